//! Geometry of augmentation and evaluation, as torchvision does it on 8-bit images.
//!
//! Crops of padded images and flips are only drawn here: the step applies them with the normalisation. Crops that resize are done
//! here: bilinear with antialias (Pillow's convolution, within 1 of 255), crop first, then resize.

use fast_image_resize::images::{CroppedImage, Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

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
}

impl Augment {
    /// Largest crop offset, if crops are drawn.
    pub(crate) fn crop_range(&self) -> Option<u32> {
        match *self {
            Augment::PadCrop { pad } | Augment::PadCropFlip { pad } => Some(2 * pad as u32 + 1),
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
        };
        match *self {
            Augment::RandomResizedCropFlip { size, .. } | Augment::ResizeCenterCrop { size, .. } if valid => {
                Ok([size, size])
            }
            _ => Err(DataError::Setting(format!(
                "{self:?} is out of range; expected sides up to {}, crop ≤ resize, 0 < scale ≤ 1, 0 < ratio, each from low to high",
                limits::SIDE
            ))),
        }
    }
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
    let pixel = if image.channels == 1 { PixelType::U8 } else { PixelType::U8x3 };
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).use_alpha(false);
    let [left, top, width, height] = [part.left, part.top, part.width, part.height].map(|v| v as u32);
    // A view of the box, not the `crop` option: pixels outside the box must not bleed in.
    let source =
        ImageRef::new(image.width as u32, image.height as u32, &image.pixels, pixel).expect("buffer has its size");
    let source = CroppedImage::new(&source, left, top, width, height).expect("box is inside the image");
    let mut target = Image::from_slice_u8(size[1] as u32, size[0] as u32, out, pixel).expect("buffer has its size");
    resizer.resize(&source, &mut target, &options).expect("source and target have one pixel type");
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
