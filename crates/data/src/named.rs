//! The draws that a method names: their checks and their values.

use spec::{CellRule, DrawKind, DrawSpec};

use crate::batch::DrawData;
use crate::deal::Micro;
use crate::draw::{EpochKey, Purpose, Stream};
use crate::error::DataError;

/// Tries to place a box of random erasing.
const ERASE_TRIES: usize = 100;

/// Checks names and ranges; `size` is that of the images in a batch, [height, width].
pub(crate) fn check(draws: &[DrawSpec], size: [usize; 2]) -> Result<(), DataError> {
    for (number, draw) in draws.iter().enumerate() {
        let wrong = |detail: String| Err(DataError::Setting(format!("draw \"{}\": {detail}", draw.name)));
        if matches!(draw.name.as_str(), "crop" | "flip") {
            return wrong("the name belongs to the augmentation".into());
        }
        if draws[..number].iter().any(|other| Purpose::named(&other.name) == Purpose::named(&draw.name)) {
            return wrong("the name, or a name with the same hash, is taken; choose another".into());
        }
        if let Some(expected) = range_error(draw.kind, size) {
            return wrong(format!("{:?} is out of range; expected {expected}", draw.kind));
        }
    }
    Ok(())
}

/// What was expected where a kind is out of range.
fn range_error(kind: DrawKind, image: [usize; 2]) -> Option<String> {
    let share = |p: f64| (0.0..=1.0).contains(&p);
    let alpha_fits = |alpha: f64| alpha >= 0.0 && alpha.is_finite();
    let (fits, size) = match kind {
        DrawKind::CellMask { cells, gate, rule } => {
            let fits = match rule {
                CellRule::Probability(p) => cells > 0 && share(p),
                CellRule::Count(count) => cells > 0 && count <= cells,
                CellRule::UniformCount => cells > 1,
            };
            if !(fits && share(gate)) {
                return Some("gate and probability in 0..=1, a count that the cells allow".into());
            }
            return None;
        }
        DrawKind::Permutation => return None,
        DrawKind::Lambda { alpha } => (alpha_fits(alpha), image),
        DrawKind::CutBox { alpha, size } | DrawKind::CutShare { alpha, size } => (alpha_fits(alpha), size),
        DrawKind::Cutout { side, size } => (2 <= side && side <= image[0].min(image[1]), size),
        DrawKind::Erase { p, size } => (share(p), size),
    };
    let [height, width] = image;
    let expected = "alpha not negative, p in 0..=1, a side from 2 to that of the image";
    (!fits || size != image).then(|| format!("{expected}, and images of {height}×{width}"))
}

/// The values for `micro`, padded to `units`: empty masks and boxes, and a permutation that leaves padding where it is.
///
/// What a unit has is keyed by its slot, what a micro-batch has by its number. A closed gate does not change which numbers are
/// consumed. `CutBox` and `CutShare` read one stream whatever their names, so that the share is that of the box.
pub(crate) fn values(spec: &DrawSpec, key: EpochKey, micro: &Micro, units: usize) -> DrawData {
    let purpose = Purpose::named(&spec.name);
    let slots = (micro.first_slot..).take(micro.units as usize);
    let boxes = |draw: &dyn Fn(&mut Stream) -> [i32; 4]| {
        let mut boxes: Vec<_> = slots.clone().map(|slot| draw(&mut key.stream(purpose, slot, 0))).collect();
        boxes.resize(units, [0; 4]);
        DrawData::Boxes(boxes)
    };
    let cut = |alpha, size| cut_box(&mut key.stream(Purpose::CUT_BOX, micro.number, 0), alpha, size);
    match spec.kind {
        DrawKind::CellMask { cells, gate, rule } => {
            let mut mask = vec![0; units * cells];
            for (slot, row) in slots.zip(mask.chunks_exact_mut(cells)) {
                let mut stream = key.stream(purpose, slot, 0);
                let open = stream.bernoulli(gate);
                fill_cells(&mut stream, rule, row);
                if !open {
                    row.fill(0);
                }
            }
            DrawData::U8(mask)
        }
        DrawKind::Permutation => {
            let mut order = key.stream(purpose, micro.number, 0).permutation(micro.units as usize);
            order.extend(micro.units..units as u32);
            DrawData::I32(order.into_iter().map(|i| i as i32).collect())
        }
        DrawKind::Lambda { alpha } => DrawData::F32(mixing(&mut key.stream(purpose, micro.number, 0), alpha) as f32),
        DrawKind::CutBox { alpha, size } => DrawData::Box(cut(alpha, size)),
        DrawKind::CutShare { alpha, size } => {
            let [top, left, bottom, right] = cut(alpha, size);
            let [area, whole] = [(bottom - top) * (right - left), (size[0] * size[1]) as i32].map(f64::from);
            DrawData::F32((1.0 - area / whole) as f32)
        }
        DrawKind::Cutout { side, size } => {
            boxes(&|stream| square(size.map(|n| stream.below(n as u32) as usize), [side; 2], size))
        }
        DrawKind::Erase { p, size } => boxes(&|stream| erase_box(stream, p, size)),
    }
}

fn fill_cells(stream: &mut Stream, rule: CellRule, cells: &mut [u8]) {
    let count = match rule {
        CellRule::Probability(p) => return cells.iter_mut().for_each(|cell| *cell = u8::from(stream.bernoulli(p))),
        CellRule::Count(count) => count,
        CellRule::UniformCount => 1 + stream.below(cells.len() as u32 - 1) as usize,
    };
    for cell in stream.distinct(count, cells.len()) {
        cells[cell as usize] = 1;
    }
}

/// Beta(alpha, alpha); 0.5 where alpha is 0.
fn mixing(stream: &mut Stream, alpha: f64) -> f64 {
    if alpha == 0.0 { 0.5 } else { stream.beta(alpha, alpha) }
}

/// CutMix: λ, then the centre's row and column. Sides are ⌊√(1 − λ)⌋ of those of the image.
fn cut_box(stream: &mut Stream, alpha: f64, size: [usize; 2]) -> [i32; 4] {
    let share = (1.0 - mixing(stream, alpha)).sqrt();
    let center = size.map(|side| stream.below(side as u32) as usize);
    square(center, size.map(|side| (side as f64 * share) as usize), size)
}

/// [center − side/2, center + side/2) along each axis, halves rounded down, clipped: an odd side comes out one shorter.
fn square(center: [usize; 2], sides: [usize; 2], size: [usize; 2]) -> [i32; 4] {
    let [[top, bottom], [left, right]]: [[i32; 2]; 2] = std::array::from_fn(|axis| {
        let (center, half) = (center[axis], sides[axis] / 2);
        [center.saturating_sub(half), (center + half).min(size[axis])].map(|v| v as i32)
    });
    [top, left, bottom, right]
}

/// Random erasing: the gate, then up to 100 tries of area and aspect ratio (height / width); row and column of the first that fits.
fn erase_box(stream: &mut Stream, p: f64, size: [usize; 2]) -> [i32; 4] {
    let [height, width] = size;
    let tries = if stream.bernoulli(p) { ERASE_TRIES } else { 0 };
    for _ in 0..tries {
        let area = (0.02 + 0.38 * stream.f64()) * (height * width) as f64;
        let aspect = 0.3 + (1.0 / 0.3 - 0.3) * stream.f64();
        let sides = [area * aspect, area / aspect].map(|square| square.sqrt().round_ties_even() as usize);
        if sides[0] < height && sides[1] < width {
            let [top, left] = [0, 1].map(|axis| stream.below((size[axis] - sides[axis] + 1) as u32) as usize);
            return [top, left, top + sides[0], left + sides[1]].map(|v| v as i32);
        }
    }
    [0; 4]
}
