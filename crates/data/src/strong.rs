//! The strong view of cross-view consistency distillation (CRLD): two of fourteen operators, then a cutout, on 8-bit pixels after the recipe's
//! geometry.

use crate::draw::{EpochKey, Purpose};
use crate::operators::{Canvas, Operator};

/// Colour of the cutout, near the mean of ImageNet; the same on every set.
const FILL: [u8; 3] = [125, 123, 114];

/// What is drawn for one strong view.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StrongView {
    /// In order of application, with magnitudes.
    pub operators: [(Operator, f64); 2],
    /// `[x0, y0, x1, y1]` of the filled rectangle, see [`Canvas::fill`].
    pub cutout: Option<[f64; 4]>,
}

impl StrongView {
    /// The draws of an image of `[height, width]`, pinned by `tests/strong.rs`.
    ///
    /// `OPERATORS`: for each of two, uniformly and with replacement, `below(14)` in [`Operator::ALL`], then u = `f64` for the magnitude
    /// low + (high − low) u. `CUTOUT`: c = `f64` / 2, then u and u′ = `f64` for the centre (W + (1 − W) u, H + (1 − H) u′).
    pub fn draw(key: EpochKey, slot: u32, role: u8, size: [usize; 2]) -> StrongView {
        let mut stream = key.stream(Purpose::OPERATORS, slot, role);
        let operators = [(); 2].map(|()| {
            let operator = Operator::ALL[stream.below(Operator::ALL.len() as u32) as usize];
            let [low, high] = operator.range();
            (operator, low + (high - low) * stream.f64())
        });
        let mut stream = key.stream(Purpose::CUTOUT, slot, role);
        let share = 0.5 * stream.f64();
        let [y, x] = size.map(|side| side as f64);
        let center = [x + (1.0 - x) * stream.f64(), y + (1.0 - y) * stream.f64()];
        StrongView { operators, cutout: cutout_rectangle(share, center, size) }
    }

    /// Changes the image; `scratch` is any buffer.
    pub fn apply(&self, canvas: &mut Canvas, scratch: &mut Vec<u8>) {
        for (operator, magnitude) in self.operators {
            operator.apply(magnitude, canvas, scratch);
        }
        if let Some(corners) = self.cutout {
            canvas.fill(corners, FILL);
        }
    }
}

/// `[x0, y0, x1, y1]` of a square whose side is `share` of the width, about `[x, y]`, in an image of `[height, width]`. Left and upper
/// edges shift it, the others cut it; none where the share is not positive.
pub fn cutout_rectangle(share: f64, center: [f64; 2], size: [usize; 2]) -> Option<[f64; 4]> {
    let [height, width] = size.map(|side| side as f64);
    let side = share * width;
    let [x0, y0] = center.map(|c| (c - side / 2.0).max(0.0).trunc());
    (share > 0.0).then(|| [x0, y0, (x0 + side).min(width), (y0 + side).min(height)])
}
