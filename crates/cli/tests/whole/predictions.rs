//! Classes of image files, from a run and from an exported file.

use crate::job::{IMAGES, set_up, train};
use crate::program::retort_in;
use image::{GrayImage, RgbImage};
use std::path::Path;

fn ok(folder: &Path, args: &[&str]) -> String {
    let ran = retort_in(folder, args);
    assert_eq!(ran.code, 0, "{args:?}: {}", ran.err);
    ran.out
}

fn json_lines(text: &str) -> Vec<serde_json::Value> {
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// The test images as PNG files, by number.
fn write_pngs(folder: &Path) {
    std::fs::create_dir(folder.join("png")).unwrap();
    let bytes = std::fs::read(folder.join("images/t10k-images-idx3-ubyte")).unwrap();
    for (i, pixels) in bytes[16..].chunks_exact(28 * 28).enumerate() {
        let image = GrayImage::from_raw(28, 28, pixels.to_vec()).unwrap();
        image.save(folder.join(format!("png/{i:03}.png"))).unwrap();
    }
}

#[test]
fn predictions_of_files_are_those_of_the_evaluation() {
    let folder = set_up();
    let at = folder.path();
    train(at, &["--run", "run", "-q"]);
    write_pngs(at);
    let of_run = ok(at, &["predict", "--run", "run", "--topk", "10", "--json", "png"]);
    let run: serde_json::Value = serde_json::from_slice(&std::fs::read(at.join("run/run.json")).unwrap()).unwrap();
    let lines = json_lines(&of_run);
    assert_eq!(lines.len(), IMAGES as usize);
    let mut right = 0;
    for (i, line) in lines.iter().enumerate() {
        assert_eq!(line["path"], format!("png/{i:03}.png"));
        right += u64::from(line["classes"][0]["class"] == run["classes"][i % 10]);
        let shares: Vec<f64> = (0..10).map(|k| line["classes"][k]["probability"].as_f64().unwrap()).collect();
        assert!(shares.is_sorted_by(|a, b| a >= b) && (shares.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{line}");
    }
    let evaluation: serde_json::Value = serde_json::from_str(&ok(at, &["eval", "run", "--json"])).unwrap();
    assert_eq!(evaluation["top1_count"], right);
    assert!(right > u64::from(IMAGES / 5), "better than chance: {right}");

    ok(at, &["export", "run", "--to", "net.safetensors"]);
    let of_file = ok(at, &["predict", "--weights", "net.safetensors", "--topk", "10", "--json", "png"]);
    assert_eq!(of_file, of_run);
    ok(at, &["export", "run", "--ema", "--to", "ema.safetensors"]);
    let of_ema = ok(at, &["predict", "--weights", "ema.safetensors", "--topk", "10", "--json", "png"]);
    assert_ne!(of_ema, of_run, "the moving average is another net");

    let words = ok(at, &["predict", "--run", "run", "--topk", "3", "png/007.png"]);
    let classes = lines[7]["classes"].as_array().unwrap().iter().take(3);
    let expected = classes
        .map(|c| format!("{} {:.2} %", c["class"].as_str().unwrap(), 100.0 * c["probability"].as_f64().unwrap()));
    assert_eq!(words, format!("png/007.png: {}\n", expected.collect::<Vec<_>>().join(", ")));
}

#[test]
fn other_images_are_fitted_and_broken_ones_are_named() {
    let folder = set_up();
    let at = folder.path();
    train(at, &["--run", "run", "--max-steps", "2", "-q"]);
    RgbImage::from_fn(60, 40, |x, y| image::Rgb([x as u8 * 4, y as u8 * 6, 90])).save(at.join("colour.png")).unwrap();
    assert_eq!(json_lines(&ok(at, &["predict", "--run", "run", "--json", "colour.png"])).len(), 1);
    let bytes = std::fs::read(at.join("colour.png")).unwrap();
    std::fs::write(at.join("half.png"), &bytes[..bytes.len() / 2]).unwrap();
    for file in ["half.png", "none.png"] {
        let ran = retort_in(at, &["predict", "--run", "run", file]);
        assert_eq!((ran.code, ran.err.lines().count()), (65, 1), "{}", ran.err);
        assert!(ran.err.contains(file), "{}", ran.err);
    }
    let nothing = retort_in(at, &["predict", "--run", "images", "colour.png"]);
    assert_eq!(nothing.code, 65, "{}", nothing.err);
    assert!(nothing.err.contains("no good checkpoint in it; train first"), "{}", nothing.err);
    ok(at, &["export", "run", "--to", "net.safetensors"]);
    ok(at, &["import", "--from", "net.safetensors", "--net", "resnet8", "--to", "bare.safetensors"]);
    let bare = retort_in(at, &["predict", "--weights", "bare.safetensors", "colour.png"]);
    assert_eq!(bare.code, 65, "{}", bare.err);
    assert!(bare.err.contains("`retort export`"), "{}", bare.err);
}
