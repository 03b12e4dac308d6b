//! Lossless coding of one record of the packed format.
//!
//! Small images are noise to a general compressor, yet neighbours are alike: the Paeth predictor of PNG (one filter for the
//! whole image) helps about half of them, so the writer tries both and keeps the shortest.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::dataset::RawImage;
use crate::decode::decode_image;

/// How a record's bytes become pixels. The numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    /// Pixels as they are.
    Raw = 0,
    /// A raw deflate stream of the pixels.
    Deflate = 1,
    /// A raw deflate stream of the differences to Paeth's prediction, modulo 256.
    Paeth = 2,
    /// An image file, JPEG or PNG.
    File = 3,
}

impl Codec {
    pub(crate) fn from_number(number: u8) -> Option<Codec> {
        [Codec::Raw, Codec::Deflate, Codec::Paeth, Codec::File].into_iter().find(|&c| c as u8 == number)
    }
}

/// The shortest of the lossless codings of `image`.
pub(crate) fn encode_shortest(image: &RawImage) -> (Codec, Vec<u8>) {
    let mut filtered = image.pixels.clone();
    paeth_filter(&mut filtered, image.width * image.channels, image.channels);
    let plain = (Codec::Deflate, deflate(&image.pixels));
    let paeth = (Codec::Paeth, deflate(&filtered));
    let best = if paeth.1.len() < plain.1.len() { paeth } else { plain };
    if best.1.len() < image.pixels.len() { best } else { (Codec::Raw, image.pixels.clone()) }
}

/// Decodes a record into `image`, whose size the caller has set from the index; the size of a file must agree with it.
pub(crate) fn decode(codec: Codec, bytes: &[u8], image: &mut RawImage) -> Result<(), String> {
    let expected = image.pixels.len();
    match codec {
        Codec::Raw if bytes.len() == expected => image.pixels.copy_from_slice(bytes),
        Codec::Raw => return Err(format!("{} bytes; expected {expected}", bytes.len())),
        Codec::Deflate => inflate(bytes, &mut image.pixels)?,
        Codec::Paeth => {
            inflate(bytes, &mut image.pixels)?;
            paeth_restore(&mut image.pixels, image.width * image.channels, image.channels);
        }
        Codec::File => {
            let size = [image.height, image.width];
            decode_image(bytes, image)?;
            if size != [image.height, image.width] {
                return Err(format!(
                    "the image is {}×{}; the index says {}×{}",
                    image.height, image.width, size[0], size[1]
                ));
            }
        }
    }
    Ok(())
}

/// Whether `bytes` stored bytes can hold `expected` pixels bytes at all; keeps a forged size from reserving memory.
pub(crate) fn plausible(codec: Codec, bytes: usize, expected: usize) -> bool {
    match codec {
        Codec::Raw => bytes == expected,
        // Deflate's best ratio is 1032 to 1.
        Codec::Deflate | Codec::Paeth => expected <= bytes.saturating_mul(1032),
        Codec::File => bytes > 0,
    }
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut coder = Compress::new(Compression::best(), false);
    let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 100 + 64);
    loop {
        let rest = &bytes[coder.total_in() as usize..];
        match coder.compress_vec(rest, &mut out, FlushCompress::Finish).expect("deflate into memory does not fail") {
            Status::StreamEnd => return out,
            Status::Ok | Status::BufError => out.reserve(out.capacity()),
        }
    }
}

/// Fills `out` exactly from a raw deflate stream that ends with `bytes`.
fn inflate(bytes: &[u8], out: &mut [u8]) -> Result<(), String> {
    let mut coder = Decompress::new(false);
    let status = coder.decompress(bytes, out, FlushDecompress::Finish).map_err(|e| format!("deflate stream: {e}"))?;
    let (read, made) = (coder.total_in() as usize, coder.total_out() as usize);
    if status == Status::StreamEnd && read == bytes.len() && made == out.len() {
        return Ok(());
    }
    Err(format!("deflate stream: {made} bytes from {read}; expected {} from {}", out.len(), bytes.len()))
}

/// Paeth's predictor: of left, up and up-left, the one nearest to left + up - up-left; ties in that order.
fn paeth(left: u8, up: u8, corner: u8) -> u8 {
    let (a, b, c) = (i16::from(left), i16::from(up), i16::from(corner));
    let (pa, pb, pc) = ((b - c).abs(), (a - c).abs(), (a + b - 2 * c).abs());
    if pa <= pb && pa <= pc {
        left
    } else if pb <= pc {
        up
    } else {
        corner
    }
}

/// Prediction of byte `i` of an image with rows of `row` bytes and `step` bytes a pixel; outside the image is 0.
fn predict(pixels: &[u8], i: usize, row: usize, step: usize) -> u8 {
    let (has_left, has_up) = (i % row >= step, i >= row);
    let left = if has_left { pixels[i - step] } else { 0 };
    let up = if has_up { pixels[i - row] } else { 0 };
    let corner = if has_left && has_up { pixels[i - row - step] } else { 0 };
    paeth(left, up, corner)
}

fn paeth_filter(pixels: &mut [u8], row: usize, step: usize) {
    for i in (0..pixels.len()).rev() {
        pixels[i] = pixels[i].wrapping_sub(predict(pixels, i, row, step));
    }
}

fn paeth_restore(pixels: &mut [u8], row: usize, step: usize) {
    for i in 0..pixels.len() {
        pixels[i] = pixels[i].wrapping_add(predict(pixels, i, row, step));
    }
}
