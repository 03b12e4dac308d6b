//! JPEG and PNG files to RGB, chosen by magic bytes, never by suffix.
//!
//! Grey is replicated, alpha dropped, 16-bit reduced to its high byte, CMYK and YCCK converted; EXIF orientation is ignored, as
//! torchvision does. A truncated file is an error, not a partly grey picture.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::dataset::{RawImage, check_size, limits};

/// Decodes an image file into `image` as RGB. The error is the reason, for a ledger.
pub fn decode_image(bytes: &[u8], image: &mut RawImage) -> Result<(), String> {
    if bytes.len() as u64 > limits::FILE_BYTES {
        return Err(format!("{} bytes; expected at most {}", bytes.len(), limits::FILE_BYTES));
    }
    match bytes {
        [] => Err("the file is empty".into()),
        [0xff, 0xd8, 0xff, ..] => decode_jpeg(bytes, image),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => decode_png(bytes, image),
        _ => Err(format!("neither JPEG nor PNG: first bytes {:02x?}", &bytes[..bytes.len().min(4)])),
    }
}

fn decode_jpeg(bytes: &[u8], image: &mut RawImage) -> Result<(), String> {
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(limits::SIDE)
        .set_max_height(limits::SIDE)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|e| format!("JPEG header: {e}"))?;
    let (width, height) = decoder.dimensions().ok_or("JPEG header: no dimensions")?;
    check_size(height, width)?;
    if !has_end_marker(bytes) {
        return Err("JPEG: no end marker behind the last scan; the file is cut short".into());
    }
    // An 8×8 block takes at least a bit; a smaller file is a forged size and must not reserve memory.
    if height.div_ceil(8) * width.div_ceil(8) > bytes.len() * 8 {
        return Err(format!("JPEG: {} bytes cannot hold {height}×{width} pixels", bytes.len()));
    }
    image.reshape(height, width, 3);
    if decoder.output_buffer_size() != Some(image.pixels.len()) {
        return Err("JPEG: number of components is neither 1, 3 nor 4".into());
    }
    decoder.decode_into(&mut image.pixels).map_err(|e| format!("JPEG: {e}"))
}

/// Whether an EOI marker follows the last SOS marker (neither can occur inside a scan). Even in strict mode the decoder makes the
/// last dozen bytes up where a file is cut short.
fn has_end_marker(bytes: &[u8]) -> bool {
    let last = |marker| bytes.windows(2).rposition(|pair| pair == [0xff, marker]);
    // Nearly every file ends with it; only others are searched.
    bytes.ends_with(&[0xff, 0xd9]) || last(0xd9) > last(0xda)
}

fn decode_png(bytes: &[u8], image: &mut RawImage) -> Result<(), String> {
    let png = |e: image::ImageError| format!("PNG: {e}");
    let mut decoder = ImageReader::with_format(Cursor::new(bytes), ImageFormat::Png).into_decoder().map_err(png)?;
    let (width, height) = decoder.dimensions();
    let (height, width) = (height as usize, width as usize);
    check_size(height, width)?;
    // A row needs 1 bit a pixel at least, and deflate shrinks by 1032 at most.
    if height * width.div_ceil(8) > bytes.len().saturating_mul(1032) {
        return Err(format!("PNG: {} bytes cannot hold {height}×{width} pixels", bytes.len()));
    }
    let mut bounds = image::Limits::default();
    bounds.max_alloc = Some((limits::PIXELS * 8) as u64);
    decoder.set_limits(bounds).map_err(png)?;
    let decoded = DynamicImage::from_decoder(decoder).map_err(png)?;
    let color = decoded.color();
    if color.bytes_per_pixel() > color.channel_count() {
        let high_bytes = decoded.into_rgb16().into_raw().into_iter().map(|value| (value >> 8) as u8);
        image.pixels = high_bytes.collect();
    } else {
        image.pixels = decoded.into_rgb8().into_raw();
    }
    (image.height, image.width, image.channels) = (height, width, 3);
    Ok(())
}
