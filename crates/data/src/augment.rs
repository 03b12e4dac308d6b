//! Geometry of augmentation and evaluation, as torchvision does it on 8-bit images.
//!
//! Crops of padded images and flips are only drawn here: the step applies them with the normalisation. Crops that resize are done
//! here: bilinear with antialias (Pillow's convolution, within 1 of 255), crop first, then resize.

use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::{U8, U8x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};

use crate::dataset::{RawImage, limits};
use crate::draw::Stream;
use crate::error::DataError;

/// What happens to an image between file and network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Augment {
    /// As it is.
    None,
    /// The whole image with draw `crop`, i32 [rows, 2]: row and column in 0..=2·pad of the crop in the zero-padded image.
    PadCrop { pad: usize },
    /// As `PadCrop`, and draw `flip`, i32 [rows]: 1 = mirrored.
    PadCropFlip { pad: usize },
    /// A box of relative area in `scale` and aspect ratio (width / height) in `ratio`, resized to `size`², and draw `flip`.
    RandomResizedCropFlip { size: usize, scale: [f64; 2], ratio: [f64; 2] },
    /// Shorter side to `resize`, then the central `size`²: evaluation.
    ResizeCenterCrop { resize: usize, size: usize },
    /// The whole image to `size`², its aspect ratio not kept (chapter 6.2).
    ResizeExact { size: usize },
}

impl Augment {
    /// The padding, if crops of padded images are drawn: offsets are in 0..=2·pad.
    pub(crate) fn pad(&self) -> Option<usize> {
        match *self {
            Augment::PadCrop { pad } | Augment::PadCropFlip { pad } => Some(pad),
            _ => None,
        }
    }

    pub(crate) fn flips(&self) -> bool {
        matches!(self, Augment::PadCropFlip { .. } | Augment::RandomResizedCropFlip { .. })
    }

    /// `[height, width]` of the images that a batch holds, given those of the set if they agree.
    pub(crate) fn output_size(&self, size: Option<[usize; 2]>) -> Result<[usize; 2], DataError> {
        let varies =
            || DataError::Setting(format!("{self:?} needs images of one size, but sizes vary; resize them to one"));
        let valid = match *self {
            Augment::None => return size.ok_or_else(varies),
            Augment::PadCrop { pad } | Augment::PadCropFlip { pad } if pad <= limits::SIDE => {
                return size.ok_or_else(varies);
            }
            Augment::PadCrop { .. } | Augment::PadCropFlip { .. } => false,
            Augment::RandomResizedCropFlip { size, scale: [s0, s1], ratio: [r0, r1] } => {
                (1..=limits::SIDE).contains(&size)
                    && 0.0 < s0
                    && s0 <= s1
                    && s1 <= 1.0
                    && 0.0 < r0
                    && r0 <= r1
                    && r1.is_finite()
            }
            Augment::ResizeCenterCrop { resize, size } => 1 <= size && size <= resize && resize <= limits::SIDE,
            Augment::ResizeExact { size } => (1..=limits::SIDE).contains(&size),
        };
        match *self {
            Augment::RandomResizedCropFlip { size, .. }
            | Augment::ResizeCenterCrop { size, .. }
            | Augment::ResizeExact { size }
                if valid =>
            {
                Ok([size, size])
            }
            _ => Err(DataError::Setting(format!(
                "{self:?} is out of range; expected sides up to {}, crop ≤ resize, 0 < scale ≤ 1, 0 < ratio, each from low to high",
                limits::SIDE
            ))),
        }
    }
}

/// The part of the zero-padded image that begins at `origin` (row, column) and has the image's size.
pub(crate) fn pad_crop(image: &RawImage, pad: usize, origin: [usize; 2], out: &mut [u8]) {
    let [row, column] = origin;
    let stride = image.width * image.channels;
    // Columns that are inside the image, in the output and from their first one in the image.
    let (first, end) = (pad.saturating_sub(column), (image.width + pad).saturating_sub(column).min(image.width));
    for (y, line) in out.chunks_exact_mut(stride).enumerate() {
        line.fill(0);
        let inside = (y + row).checked_sub(pad).filter(|&y| y < image.height);
        if let (Some(y), true) = (inside, first < end) {
            let from = y * stride + (first + column - pad) * image.channels;
            let bytes = (end - first) * image.channels;
            line[first * image.channels..][..bytes].copy_from_slice(&image.pixels[from..][..bytes]);
        }
    }
}

/// The whole image.
pub(crate) fn whole(image: &RawImage) -> CropBox {
    CropBox { top: 0, left: 0, height: image.height, width: image.width }
}

/// A rectangle inside an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CropBox {
    pub(crate) top: usize,
    pub(crate) left: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
}

/// The box of torchvision's RandomResizedCrop: ten tries, then the central box nearest to the allowed ratios.
pub(crate) fn random_box(stream: &mut Stream, image: [usize; 2], scale: [f64; 2], ratio: [f64; 2]) -> CropBox {
    let [image_height, image_width] = image;
    let area = (image_height * image_width) as f64;
    let log_ratio = ratio.map(f64::ln);
    for _ in 0..10 {
        let target = area * (scale[0] + (scale[1] - scale[0]) * stream.f64());
        let aspect = (log_ratio[0] + (log_ratio[1] - log_ratio[0]) * stream.f64()).exp();
        let width = (target * aspect).sqrt().round_ties_even() as usize;
        let height = (target / aspect).sqrt().round_ties_even() as usize;
        if (1..=image_width).contains(&width) && (1..=image_height).contains(&height) {
            let top = stream.below((image_height - height + 1) as u32) as usize;
            let left = stream.below((image_width - width + 1) as u32) as usize;
            return CropBox { top, left, height, width };
        }
    }
    let in_ratio = image_width as f64 / image_height as f64;
    let (height, width) = if in_ratio < ratio[0] {
        ((image_width as f64 / ratio[0]).round_ties_even() as usize, image_width)
    } else if in_ratio > ratio[1] {
        (image_height, (image_height as f64 * ratio[1]).round_ties_even() as usize)
    } else {
        (image_height, image_width)
    };
    // At least one pixel: a 1×n strip rounds to nothing.
    let (height, width) = (height.clamp(1, image_height), width.clamp(1, image_width));
    CropBox { top: (image_height - height) / 2, left: (image_width - width) / 2, height, width }
}

/// `[height, width]` after the shorter side became `side`; the longer one is truncated, as torchvision's Resize does.
pub fn resized_short_side(image: [usize; 2], side: usize) -> [usize; 2] {
    let [height, width] = image;
    // A strip of one pixel by many must not grow beyond the limit of a side.
    let longer = |long: usize, short: usize| ((side * long) / short).min(limits::SIDE.max(side));
    if height <= width { [side, longer(width, height)] } else { [longer(height, width), side] }
}

/// First row (or column) of a central crop: round((side - crop) / 2), halves to even, as torchvision's CenterCrop does.
pub fn center_crop_origin(side: usize, crop: usize) -> usize {
    ((side - crop) as f64 / 2.0).round_ties_even() as usize
}

/// Part of `image` resized to `size` (`[height, width]`) into `out`.
pub(crate) fn resize_box(image: &RawImage, part: CropBox, size: [usize; 2], out: &mut [u8], resizer: &mut Resizer) {
    // By pixel type: the untyped call compiles every pixel format of the library.
    if image.channels == 1 {
        resize_pixels::<U8>(image, part, size, out, resizer);
    } else {
        resize_pixels::<U8x3>(image, part, size, out, resizer);
    }
}

fn resize_pixels<P: PixelTrait>(
    image: &RawImage,
    part: CropBox,
    size: [usize; 2],
    out: &mut [u8],
    resizer: &mut Resizer,
) {
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).use_alpha(false);
    let [left, top, width, height] = [part.left, part.top, part.width, part.height].map(|v| v as u32);
    // A view of the box, not the `crop` option: pixels outside the box must not bleed in.
    let source = TypedImageRef::<P>::from_buffer(image.width as u32, image.height as u32, &image.pixels);
    let source = source.expect("buffer has its size");
    let source = TypedCroppedImage::from_ref(&source, left, top, width, height).expect("box is inside the image");
    let target = TypedImage::<P>::from_buffer(size[1] as u32, size[0] as u32, out);
    resizer.resize_typed(&source, &mut target.expect("buffer has its size"), &options).expect("the box is not empty");
}

/// The whole image with its shorter side resized to `side`.
pub(crate) fn resize_short_side(image: &RawImage, side: usize) -> RawImage {
    let size = resized_short_side([image.height, image.width], side);
    let mut out = RawImage::default();
    out.reshape(size[0], size[1], image.channels);
    let whole = CropBox { top: 0, left: 0, height: image.height, width: image.width };
    resize_box(image, whole, size, &mut out.pixels, &mut Resizer::new());
    out
}

/// Shorter side to `resize`, then the central `size`² into `out`.
pub(crate) fn resize_center_crop(image: &RawImage, resize: usize, size: usize, out: &mut [u8]) {
    let resized = resize_short_side(image, resize);
    let top = center_crop_origin(resized.height, size);
    let left = center_crop_origin(resized.width, size);
    let row = size * image.channels;
    for (r, line) in out.chunks_exact_mut(row).enumerate() {
        let start = ((top + r) * resized.width + left) * image.channels;
        line.copy_from_slice(&resized.pixels[start..start + row]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::{EpochKey, Purpose};

    fn picture() -> RawImage {
        let pixel = |i: usize| {
            let (y, x, c) = (i / 39, i / 3 % 13, i % 3);
            ((37 * y + 23 * x + 61 * c + 5 * x * y) % 256) as u8
        };
        RawImage { height: 9, width: 13, channels: 3, pixels: (0..9 * 13 * 3).map(pixel).collect() }
    }

    fn assert_near(found: &[u8], expected: &[u8]) {
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(expected).all(|(a, b)| a.abs_diff(*b) <= 1), "{found:?}\n{expected:?}");
    }

    /// Expected values: Pillow 13.0, `Image.crop` then `Image.resize(…, BILINEAR)`.
    #[test]
    fn resizing_is_pillow_s() {
        let mut resizer = Resizer::new();
        let mut resize = |image: &RawImage, [top, left, height, width]: [usize; 4], size: [usize; 2]| {
            let mut out = vec![0; size[0] * size[1] * image.channels];
            resize_box(image, CropBox { top, left, height, width }, size, &mut out, &mut resizer);
            out
        };
        assert_near(
            &resize(&picture(), [0, 0, 9, 13], [4, 5]),
            &[
                60, 121, 166, 122, 160, 144, 149, 128, 89, 121, 113, 120, 138, 117, 145, 140, 178, 110, 132, 116, 109,
                110, 131, 142, 134, 121, 125, 120, 124, 123, 140, 125, 109, 114, 143, 158, 129, 127, 113, 119, 138,
                123, 146, 115, 124, 87, 127, 158, 147, 136, 127, 124, 133, 124, 120, 121, 115, 128, 139, 141,
            ],
        );
        assert_near(
            &resize(&picture(), [2, 3, 6, 7], [3, 3]),
            &[
                134, 86, 108, 96, 123, 154, 129, 135, 141, 97, 140, 167, 133, 141, 112, 119, 127, 129, 163, 154, 121,
                112, 119, 133, 125, 139, 90,
            ],
        );
        let red = picture().pixels.chunks(3).map(|pixel| pixel[0]).collect();
        let grey = RawImage { channels: 1, pixels: red, ..picture() };
        assert_near(
            &resize(&grey, [0, 0, 9, 13], [10, 14])[..28],
            &[
                0, 21, 42, 63, 85, 106, 127, 149, 170, 191, 213, 234, 228, 20, 31, 56, 81, 106, 132, 157, 182, 208,
                147, 41, 66, 91, 112, 102,
            ],
        );
        let mut out = vec![0; 4 * 4 * 3];
        resize_center_crop(&picture(), 6, 4, &mut out);
        assert_near(
            &out,
            &[
                165, 136, 85, 158, 95, 96, 100, 89, 146, 84, 126, 170, 99, 81, 126, 84, 125, 160, 132, 179, 145, 153,
                110, 96, 92, 149, 186, 153, 156, 110, 115, 119, 104, 105, 125, 151, 163, 173, 127, 138, 100, 123, 98,
                137, 129, 134, 151, 77,
            ],
        );
    }

    #[test]
    fn resizing_to_the_same_size_copies() {
        let mut out = vec![0; 9 * 13 * 3];
        let whole = CropBox { top: 0, left: 0, height: 9, width: 13 };
        resize_box(&picture(), whole, [9, 13], &mut out, &mut Resizer::new());
        assert_eq!(out, picture().pixels);
    }

    /// By hand: int(256·500/375) = 341, (341 − 224)/2 = 58.5 → 58, (257 − 224)/2 = 16.5 → 16, (259 − 224)/2 = 17.5 → 18.
    #[test]
    fn sizes_are_torchvision_s() {
        assert_eq!(resized_short_side([375, 500], 256), [256, 341]);
        assert_eq!(resized_short_side([500, 375], 256), [341, 256]);
        assert_eq!(resized_short_side([100, 100], 256), [256, 256]);
        assert_eq!(resized_short_side([1, 16384], 256), [256, 16384]);
        let origins = [(341, 224), (257, 224), (259, 224), (256, 224), (224, 224)]
            .map(|(side, crop)| center_crop_origin(side, crop));
        assert_eq!(origins, [58, 16, 18, 16, 0]);
    }

    #[test]
    fn random_boxes_keep_to_area_and_ratio() {
        let key = EpochKey { seed: 3, stage: 0, epoch: 0 };
        let (mut areas, mut whole) = (0.0, 0);
        for slot in 0..4000 {
            let mut stream = key.stream(Purpose::RESIZED_CROP, slot, 0);
            let part = random_box(&mut stream, [300, 400], [0.08, 1.0], [0.75, 4.0 / 3.0]);
            assert!(part.top + part.height <= 300 && part.left + part.width <= 400);
            let (area, ratio) = ((part.height * part.width) as f64 / 120_000.0, part.width as f64 / part.height as f64);
            assert!((0.079..=1.0).contains(&area) && (0.73..1.36).contains(&ratio), "{part:?}");
            areas += area;
            whole += usize::from(part.height == 300 && part.width == 400);
        }
        // Large boxes of a wrong ratio do not fit and are drawn again: 0.432 in an independent simulation, σ of this mean 0.004.
        assert!((0.42..0.444).contains(&(areas / 4000.0)) && whole == 0, "{areas} {whole}");
    }

    #[test]
    fn strips_take_the_central_box() {
        let mut stream = EpochKey { seed: 3, stage: 0, epoch: 0 }.stream(Purpose::RESIZED_CROP, 0, 0);
        let mut part = |size| random_box(&mut stream, size, [0.9, 1.0], [0.75, 4.0 / 3.0]);
        assert_eq!(part([10, 1000]), CropBox { top: 0, left: 493, height: 10, width: 13 });
        assert_eq!(part([1000, 9]), CropBox { top: 494, left: 0, height: 12, width: 9 });
        assert_eq!(part([1, 1]), CropBox { top: 0, left: 0, height: 1, width: 1 });
    }
}
