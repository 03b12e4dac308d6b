//! The operators of the strong view against Pillow, byte for byte: tests/goldens/views.

mod common;

use std::collections::BTreeMap;

use common::repository;
use data::{Canvas, Operator, cutout_rectangle};
use tensor::{HostTensor, SafeFile};

const FILL: [u8; 3] = [125, 123, 114];
const NAMES: [(Operator, &str); 14] = [
    (Operator::AutoContrast, "auto_contrast"),
    (Operator::Brightness, "brightness"),
    (Operator::Colour, "colour"),
    (Operator::Contrast, "contrast"),
    (Operator::Equalise, "equalise"),
    (Operator::Identity, "identity"),
    (Operator::Posterise, "posterise"),
    (Operator::Rotate, "rotate"),
    (Operator::Sharpness, "sharpness"),
    (Operator::ShearX, "shear_x"),
    (Operator::ShearY, "shear_y"),
    (Operator::Solarise, "solarise"),
    (Operator::TranslateX, "translate_x"),
    (Operator::TranslateY, "translate_y"),
];

#[derive(Clone)]
struct Picture {
    size: [usize; 2],
    pixels: Vec<u8>,
}

impl Picture {
    fn canvas(&mut self) -> Canvas<'_> {
        let [height, width] = self.size;
        let channels = self.pixels.len() / (height * width);
        Canvas { height, width, channels, pixels: &mut self.pixels }
    }

    fn after(&self, operator: Operator, magnitude: f64, scratch: &mut Vec<u8>) -> Vec<u8> {
        let mut picture = self.clone();
        operator.apply(magnitude, &mut picture.canvas(), scratch);
        picture.pixels
    }

    /// Repeated over `size`.
    fn tiled(&self, size: [usize; 2]) -> Picture {
        let [height, width] = self.size;
        let places = (0..size[0]).flat_map(|y| (0..size[1]).map(move |x| (y % height) * width + x % width));
        Picture { size, pixels: places.flat_map(|i| self.pixels[3 * i..][..3].to_vec()).collect() }
    }

    fn first_channel(&self) -> Picture {
        Picture { size: self.size, pixels: self.pixels.iter().copied().step_by(3).collect() }
    }
}

fn golden(name: &str) -> BTreeMap<String, HostTensor> {
    let path = repository().join(format!("tests/goldens/views/{name}.safetensors"));
    SafeFile::open(&path).unwrap().tensors().unwrap()
}

fn stored() -> BTreeMap<String, Picture> {
    let picture = |tensor: &HostTensor| {
        let dims = tensor.shape().dims().to_vec();
        Picture { size: [dims[0], dims[1]], pixels: tensor.view::<u8>().unwrap().to_vec() }
    };
    golden("images").iter().map(|(name, tensor)| (name["in.".len()..].to_string(), picture(tensor))).collect()
}

fn pictures() -> BTreeMap<String, Picture> {
    let mut pictures = stored();
    for (name, size) in [("large", [224, 224]), ("long", [187, 225])] {
        pictures.insert(name.into(), pictures["odd"].tiled(size));
    }
    pictures
}

fn crc(pixels: &[u8]) -> i64 {
    crc32fast::hash(pixels).into()
}

#[test]
fn operators_are_pillow_s() {
    let (pictures, mut scratch, mut compared) = (pictures(), vec![], 0);
    for (operator, name) in NAMES {
        let golden = golden(name);
        let magnitudes = |key| golden[key].view::<f64>().unwrap();
        for (key, tensor) in &golden {
            let Some((kind, image)) = key.split_once('.').filter(|(kind, _)| *kind != "in") else { continue };
            let picture = &pictures[image];
            if kind == "out" {
                let whole = tensor.view::<u8>().unwrap().chunks_exact(picture.pixels.len());
                for (v, expected) in magnitudes("in.magnitude").iter().zip(whole) {
                    let found = picture.after(operator, *v, &mut scratch);
                    let wrong = found.iter().zip(expected).filter(|(a, b)| a != b).count();
                    assert_eq!(wrong, 0, "{operator:?} {v} of {image}: {wrong} of {} bytes", found.len());
                    compared += 1;
                }
            } else {
                for (v, expected) in magnitudes("in.more").iter().zip(tensor.view::<i64>().unwrap()) {
                    let found = crc(&picture.after(operator, *v, &mut scratch));
                    assert_eq!(found, *expected, "{operator:?} {v} of {image}");
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 10_000, "{compared}");
}

#[test]
fn rectangles_are_pillow_s() {
    let golden = golden("rectangle");
    let (draws, _) = golden["in.draw"].view::<f64>().unwrap().as_chunks::<3>();
    for (name, picture) in stored() {
        let boxes = golden[&format!("box.{name}")].view::<f64>().unwrap().as_chunks::<4>().0;
        let sums = golden[&format!("crc.{name}")].view::<i64>().unwrap();
        for (i, [share, x, y]) in draws.iter().enumerate() {
            let [height, width] = picture.size.map(|side| side as f64);
            let corners = cutout_rectangle(*share, [x * width, y * height], picture.size).unwrap();
            assert_eq!(corners, boxes[i], "{name} {i}");
            let mut filled = picture.clone();
            filled.canvas().fill(corners, FILL);
            assert_eq!(crc(&filled.pixels), sums[i], "{name} {i}");
            if let (Some(whole), true) = (golden.get(&format!("out.{name}")), i < 8) {
                assert_eq!(
                    filled.pixels,
                    whole.view::<u8>().unwrap()[i * filled.pixels.len()..][..filled.pixels.len()]
                );
            }
        }
    }
}

/// One channel of an image whose three are equal.
#[test]
fn a_grey_image_is_one_channel_of_three_equal_ones() {
    let mut scratch = vec![];
    for (name, picture) in stored() {
        let grey = picture.first_channel();
        let rgb = Picture { size: grey.size, pixels: grey.pixels.iter().flat_map(|&x| [x; 3]).collect() };
        for operator in Operator::ALL {
            let [low, high] = operator.range();
            for v in [0.0, 0.3, 0.8].map(|u| low + (high - low) * u) {
                let expected = rgb.after(operator, v, &mut scratch);
                let found = grey.after(operator, v, &mut scratch);
                assert!(expected.chunks_exact(3).all(|p| p[0] == p[1] && p[1] == p[2]));
                let first: Vec<u8> = expected.into_iter().step_by(3).collect();
                assert_eq!(found, first, "{operator:?} {v} of {name}");
            }
        }
        let mut filled = grey.clone();
        filled.canvas().fill([0.0, 0.0, 99.0, 99.0], FILL);
        assert!(filled.pixels.iter().all(|&x| x == 123));
    }
}
