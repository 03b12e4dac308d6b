//! The 8-bit image operators of the strong view, equal to Pillow's byte for byte (Pillow 13, held by `tests/operators.rs`).
//!
//! A grey image counts as RGB with three equal channels, of which one is kept: every operator leaves them equal, `Colour` is then
//! the identity. Nothing is allocated but a copy of the image in a buffer that the caller keeps.

/// Magnitudes of the enhancers: only less.
const ENHANCE: [f64; 2] = [0.05, 0.95];

/// Pixels that `Colour` takes at a time.
const RUN: usize = 64;

/// An image that operators change in place; bytes [height, width, channels], 1 channel or 3.
#[derive(Debug)]
pub struct Canvas<'a> {
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    pub pixels: &'a mut [u8],
}

/// What can be done to an image; the magnitude of each is in parentheses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// Each channel's values are stretched to 0..=255 (none).
    AutoContrast,
    /// Blend with black (share of the image).
    Brightness,
    /// Blend with its luma (share of the image).
    Colour,
    /// Blend with its mean luma (share of the image).
    Contrast,
    /// Each channel's histogram becomes even (none).
    Equalise,
    /// Nothing (none).
    Identity,
    /// Upper bits are kept (their number, truncated, at least 1, at most 8).
    Posterise,
    /// Turned about the centre, nearest pixel, black outside (degrees, counter-clockwise).
    Rotate,
    /// Blend with a smoothed copy (share of the image).
    Sharpness,
    /// A row takes its pixels from the right by magnitude × y (slope); nearest pixel, black outside, as the next ones.
    ShearX,
    /// A column takes its pixels from below by magnitude × x (slope).
    ShearY,
    /// Values from the threshold on are inverted (threshold).
    Solarise,
    /// Pixels come from the right (share of the width).
    TranslateX,
    /// Pixels come from below (share of the height).
    TranslateY,
}

impl Operator {
    /// All, in the order in which they are drawn.
    pub const ALL: [Operator; 14] = [
        Operator::AutoContrast,
        Operator::Brightness,
        Operator::Colour,
        Operator::Contrast,
        Operator::Equalise,
        Operator::Identity,
        Operator::Posterise,
        Operator::Rotate,
        Operator::Sharpness,
        Operator::ShearX,
        Operator::ShearY,
        Operator::Solarise,
        Operator::TranslateX,
        Operator::TranslateY,
    ];

    /// Bounds of the strong view's magnitudes, the upper one exclusive.
    pub fn range(self) -> [f64; 2] {
        match self {
            Operator::Brightness | Operator::Colour | Operator::Contrast | Operator::Sharpness => ENHANCE,
            Operator::Posterise => [4.0, 8.0],
            Operator::Rotate => [-30.0, 30.0],
            Operator::ShearX | Operator::ShearY | Operator::TranslateX | Operator::TranslateY => [-0.3, 0.3],
            Operator::Solarise => [0.0, 256.0],
            Operator::AutoContrast | Operator::Equalise | Operator::Identity => [0.0, 1.0],
        }
    }

    /// Changes the image. Shares must be in 0..=1. `scratch` is any buffer; its content is lost.
    pub fn apply(self, magnitude: f64, canvas: &mut Canvas, scratch: &mut Vec<u8>) {
        let (v, share) = (magnitude, magnitude as f32);
        let (height, width) = (canvas.height as f64, canvas.width as f64);
        match self {
            Operator::AutoContrast => canvas.map_channels(stretched),
            Operator::Brightness => canvas.map(|x| blend(0, x, share)),
            Operator::Colour => canvas.fade(share),
            Operator::Contrast => {
                let mean = canvas.mean_luma();
                canvas.map(|x| blend(mean, x, share));
            }
            Operator::Equalise => canvas.map_channels(equalised),
            Operator::Identity => {}
            Operator::Posterise => {
                let dropped = 8 - (v as u32).clamp(1, 8);
                canvas.map(|x| x >> dropped << dropped);
            }
            Operator::Rotate => canvas.transform(rotation(v, width, height), scratch),
            Operator::Sharpness => canvas.soften(share, scratch),
            Operator::ShearX => canvas.transform([1.0, v, 0.0, 0.0, 1.0, 0.0], scratch),
            Operator::ShearY => canvas.transform([1.0, 0.0, 0.0, v, 1.0, 0.0], scratch),
            Operator::Solarise => canvas.map(|x| if f64::from(x) < v { x } else { 255 - x }),
            Operator::TranslateX => canvas.transform([1.0, 0.0, v * width, 0.0, 1.0, 0.0], scratch),
            Operator::TranslateY => canvas.transform([1.0, 0.0, 0.0, 0.0, 1.0, v * height], scratch),
        }
    }
}

impl Canvas<'_> {
    /// Fills columns x0..=⌊x1⌋ and rows y0..=⌊y1⌋, both ends included, as far as they are inside; `[x0, y0, x1, y1]` are not negative.
    /// A grey image takes the colour's luma.
    pub fn fill(&mut self, corners: [f64; 4], colour: [u8; 3]) {
        let [x0, y0, x1, y1] = corners.map(|v| v as usize);
        let (right, bottom) = ((x1 + 1).min(self.width), (y1 + 1).min(self.height));
        if x0 >= right {
            return;
        }
        let grey = [luma(colour)];
        let value = if self.channels == 1 { &grey[..] } else { &colour[..] };
        for y in y0..bottom {
            let line =
                &mut self.pixels[(y * self.width + x0) * self.channels..(y * self.width + right) * self.channels];
            line.chunks_exact_mut(self.channels).for_each(|pixel| pixel.copy_from_slice(value));
        }
    }

    /// Left becomes right.
    pub(crate) fn mirror(&mut self) {
        for line in self.pixels.chunks_exact_mut(self.width * self.channels) {
            match self.channels {
                3 => line.as_chunks_mut::<3>().0.reverse(),
                _ => line.reverse(),
            }
        }
    }

    /// Every value by a table.
    fn map(&mut self, value: impl Fn(u8) -> u8) {
        let table: [u8; 256] = std::array::from_fn(|x| value(x as u8));
        self.pixels.iter_mut().for_each(|x| *x = table[*x as usize]);
    }

    /// Every channel by a table that follows from its histogram; none where the channel stays.
    fn map_channels(&mut self, table: fn(&[u32; 256]) -> Option<[u8; 256]>) {
        match self.channels {
            3 => map_each::<3>(self.pixels, table),
            _ => map_each::<1>(self.pixels, table),
        }
    }

    /// Mean luma, rounded half up.
    fn mean_luma(&self) -> u8 {
        let sum: u64 = match self.channels {
            3 => self.pixels.as_chunks::<3>().0.iter().map(|&pixel| u64::from(luma(pixel))).sum(),
            _ => self.pixels.iter().map(|&x| u64::from(x)).sum(),
        };
        (sum as f64 / (self.height * self.width) as f64 + 0.5) as u8
    }

    /// Blend of each pixel with its luma; by runs of pixels, so that the compiler makes vectors.
    fn fade(&mut self, share: f32) {
        if self.channels == 3 {
            for run in self.pixels.chunks_mut(3 * RUN) {
                let mut grey = [[0; 3]; RUN];
                grey.iter_mut().zip(run.as_chunks::<3>().0).for_each(|(grey, pixel)| *grey = [luma(*pixel); 3]);
                run.iter_mut().zip(grey.as_flattened()).for_each(|(x, &d)| *x = blend(d, *x, share));
            }
        }
    }

    /// Blend with the mean of 3×3 pixels in which the middle one counts five times; the border is its own mean.
    fn soften(&mut self, share: f32, scratch: &mut Vec<u8>) {
        scratch.clear();
        scratch.extend_from_slice(self.pixels);
        let (c, stride) = (self.channels, self.width * self.channels);
        if self.width < 3 {
            return;
        }
        for y in 1..self.height.saturating_sub(1) {
            let out = &mut self.pixels[y * stride..][c..stride - c];
            let taps: [&[u8]; 9] =
                std::array::from_fn(|k| &scratch[(y + k / 3 - 1) * stride + k % 3 * c..][..out.len()]);
            for (i, out) in out.iter_mut().enumerate() {
                let sum = taps.iter().map(|tap| u16::from(tap[i])).sum::<u16>() + 4 * u16::from(*out);
                // 13 is odd, so that no half occurs.
                *out = blend(((2 * sum + 13) / 26) as u8, *out, share);
            }
        }
    }

    /// Pixel (x, y) becomes the one at (⌊a(x+½) + b(y+½) + c⌋, ⌊d(x+½) + e(y+½) + f⌋), black where that is outside.
    fn transform(&mut self, matrix: [f64; 6], scratch: &mut Vec<u8>) {
        scratch.clear();
        scratch.extend_from_slice(self.pixels);
        match self.channels {
            3 => gather::<3>(scratch, self.pixels, [self.width, self.height], matrix),
            _ => gather::<1>(scratch, self.pixels, [self.width, self.height], matrix),
        }
    }
}

/// See [`Canvas::map_channels`].
fn map_each<const C: usize>(pixels: &mut [u8], table: fn(&[u32; 256]) -> Option<[u8; 256]>) {
    let pixels = pixels.as_chunks_mut::<C>().0;
    let mut histograms = [[0; 256]; C];
    for pixel in pixels.iter() {
        (0..C).for_each(|c| histograms[c][pixel[c] as usize] += 1);
    }
    let same = std::array::from_fn(|x| x as u8);
    let tables = histograms.map(|histogram| table(&histogram).unwrap_or(same));
    for pixel in pixels {
        *pixel = std::array::from_fn(|c| tables[c][pixel[c] as usize]);
    }
}

/// d + share (x − d), truncated: what rounding to a whole number gives, less one where that is above. Unlike a cast it makes vectors,
/// twice as fast in loops over bytes.
fn blend(d: u8, x: u8, share: f32) -> u8 {
    /// 2²³: behind it floats have no fraction, and their low bits are the number.
    const WHOLE: f32 = 8_388_608.0;
    let d = f32::from(d);
    let value = d + share * (f32::from(x) - d);
    let rounded = value + WHOLE;
    (rounded.to_bits() - u32::from(rounded - WHOLE > value)) as u8
}

fn luma([red, green, blue]: [u8; 3]) -> u8 {
    ((19595 * u32::from(red) + 38470 * u32::from(green) + 7471 * u32::from(blue) + 32768) >> 16) as u8
}

fn stretched(histogram: &[u32; 256]) -> Option<[u8; 256]> {
    let low = histogram.iter().position(|&n| n > 0)?;
    let high = histogram.iter().rposition(|&n| n > 0)?;
    let scale = 255.0 / (high as f64 - low as f64);
    // The cast truncates and keeps to 0..=255.
    (high > low).then(|| std::array::from_fn(|x| (x as f64 * scale - low as f64 * scale) as u8))
}

fn equalised(histogram: &[u32; 256]) -> Option<[u8; 256]> {
    let last = *histogram.iter().rfind(|&&n| n > 0)?;
    let step = (histogram.iter().sum::<u32>() - last) / 255;
    let mut below = step / 2;
    let table = histogram.map(|n| {
        let value = below.checked_div(step).unwrap_or(0).min(255) as u8;
        below += n;
        value
    });
    (step > 0).then_some(table)
}

/// The matrix that turns by `degrees` about the centre.
fn rotation(degrees: f64, width: f64, height: f64) -> [f64; 6] {
    let decimals = |x: f64| (x * 1e15).round_ties_even() / 1e15;
    let angle = -degrees.rem_euclid(360.0).to_radians();
    let (cos, sin) = (decimals(angle.cos()), decimals(angle.sin()));
    let (x, y) = (width / 2.0, height / 2.0);
    [cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y]
}

/// The loop of [`Canvas::transform`]. Two arithmetics, because Pillow has them: floats where no axis reads the other, else 16.16 fixed
/// point with rounded coefficients that are added up. Sides up to 16,384 stay inside 32 bits.
fn gather<const C: usize>(from: &[u8], to: &mut [u8], [width, height]: [usize; 2], matrix: [f64; 6]) {
    let (from, to) = (from.as_chunks::<C>().0, to.as_chunks_mut::<C>().0);
    let [a, b, c, d, e, f] = matrix;
    if b == 0.0 && d == 0.0 {
        let inside = |v: f64, side: usize| (v >= 0.0 && (v as usize) < side).then_some(v as usize);
        let mut y = f + e * 0.5;
        for line in to.chunks_exact_mut(width) {
            let row = inside(y, height).map(|y| &from[y * width..][..width]);
            let mut x = c + a * 0.5;
            for pixel in line {
                *pixel = row.and_then(|row| Some(row[inside(x, width)?])).unwrap_or([0; C]);
                x += a;
            }
            y += e;
        }
        return;
    }
    let fixed = |v: f64| (v * 65536.0 + 0.5).floor() as i32;
    let mut start = [fixed(c + a * 0.5 + b * 0.5), fixed(f + d * 0.5 + e * 0.5)];
    let ([right_x, right_y], [down_x, down_y]) = ([fixed(a), fixed(d)], [fixed(b), fixed(e)]);
    for line in to.chunks_exact_mut(width) {
        let [mut x, mut y] = start;
        for pixel in line {
            // A negative place is huge as an unsigned one.
            let (column, row) = ((x >> 16) as usize, (y >> 16) as usize);
            *pixel = if column < width && row < height { from[row * width + column] } else { [0; C] };
            (x, y) = (x.wrapping_add(right_x), y.wrapping_add(right_y));
        }
        start = [start[0].wrapping_add(down_x), start[1].wrapping_add(down_y)];
    }
}
