//! Boxes that methods draw: CutMix, cutout, random erasing (chapter 7.17). Literals come from an independent implementation.

mod common;

use std::sync::Arc;

use common::{Memory, epoch, spec};
use data::{Augment, BatchSpec, DrawData, DrawKind, DrawSpec, Loader, Micro, Sampler};

const SIZE: [usize; 2] = [20, 32];

/// The values of one draw in a micro-batch of the first epoch, padded to `pad_units`.
fn drawn(kinds: &[(&str, DrawKind)], number: u32, first_slot: u32, units: u32, pad_units: usize) -> Vec<DrawData> {
    let set = Memory::new(&vec![0; 6000], 1, SIZE);
    let draws = kinds.iter().map(|&(name, kind)| DrawSpec { name: name.into(), kind }).collect();
    let order = epoch(&set, Sampler::Shuffle, 1);
    let spec = BatchSpec { draws, pad_units, ..spec(Augment::None) };
    let micro = Micro { step: number, leaf: 0, number, first_slot, units };
    let mut batch = Loader::new(Arc::new(set), spec).unwrap().batch(&order, &micro).unwrap();
    kinds.iter().map(|(name, _)| batch.draws.remove(*name).unwrap()).collect()
}

fn boxes(name: &str, kind: DrawKind, first_slot: u32, units: u32) -> Vec<[i32; 4]> {
    match drawn(&[(name, kind)], 0, first_slot, units, 0).remove(0) {
        DrawData::Boxes(boxes) => boxes,
        other => panic!("{other:?}"),
    }
}

fn cut(alpha: f64, number: u32) -> ([i32; 4], f32) {
    let kinds = [("box", DrawKind::CutBox { alpha, size: SIZE }), ("share", DrawKind::CutShare { alpha, size: SIZE })];
    match drawn(&kinds, number, 0, 1, 0)[..] {
        [DrawData::Box(cut), DrawData::F32(share)] => (cut, share),
        ref other => panic!("{other:?}"),
    }
}

fn area(boxed: [i32; 4]) -> i32 {
    (boxed[2] - boxed[0]) * (boxed[3] - boxed[1])
}

fn inside(boxed: [i32; 4]) -> bool {
    let [top, left, bottom, right] = boxed;
    0 <= top && top <= bottom && bottom <= SIZE[0] as i32 && 0 <= left && left <= right && right <= SIZE[1] as i32
}

#[test]
fn cut_boxes_are_pinned() {
    let expected = [
        ([0, 11, 13, 32], 0.5734375),
        ([0, 20, 7, 32], 0.86875),
        ([11, 15, 17, 25], 0.90625),
        ([0, 0, 17, 15], 0.6015625),
        ([0, 17, 11, 32], 0.7421875),
        ([3, 1, 20, 31], 0.203125),
    ];
    assert_eq!([0, 1, 2, 3, 4, 5].map(|number| cut(1.0, number)), expected);
    assert_eq!(cut(0.3, 2), ([0, 0, 14, 14], 0.69375));
}

/// The label weights of CutMix: the share is exactly that of the pixels that the box of the same micro-batch leaves.
#[test]
fn cut_share_is_the_share_of_unchanged_pixels() {
    let mut sum = 0.0;
    for number in 0..400 {
        let (boxed, share) = cut(1.0, number);
        assert!(inside(boxed), "{boxed:?}");
        assert_eq!(share, (1.0 - f64::from(area(boxed)) / 640.0) as f32);
        sum += f64::from(share);
    }
    // 0.7005 in an independent simulation at 32 × 32, σ of this mean 0.009; smaller images lose more to halves.
    assert!((0.66..0.74).contains(&(sum / 400.0)), "{sum}");
    // λ is 0.5 where alpha is 0: sides ⌊0.707 of 20 and 32⌋, halves 7 and 11, unless the edge cuts.
    let fixed: Vec<[i32; 4]> = (0..40).map(|number| cut(0.0, number).0).collect();
    assert!(fixed.iter().all(|b| b[2] - b[0] <= 14 && b[3] - b[1] <= 22));
    assert!(fixed.iter().any(|b| b[2] - b[0] == 14) && fixed.iter().any(|b| b[3] - b[1] == 22));
}

#[test]
fn lambda_without_alpha_is_a_half() {
    assert_eq!(drawn(&[("mix", DrawKind::Lambda { alpha: 0.0 })], 3, 0, 2, 0), [DrawData::F32(0.5)]);
}

#[test]
fn cutouts_are_squares_clipped_at_the_edge() {
    let hole = |side| DrawKind::Cutout { side, size: SIZE };
    let expected = [[0, 11, 8, 19], [4, 18, 12, 26], [14, 15, 20, 23], [0, 4, 5, 12]];
    assert_eq!(boxes("hole", hole(8), 5, 4), expected);
    // An odd side is one shorter.
    assert_eq!(boxes("hole", hole(7), 5, 4), [[1, 12, 7, 18], [5, 19, 11, 25], [15, 16, 20, 22], [0, 5, 4, 11]]);
    let many = boxes("hole", hole(8), 0, 6000);
    assert!(many.iter().all(|&b| inside(b) && area(b) >= 16));
    let rows = many.iter().filter(|b| b[2] - b[0] == 8).count();
    // Centres 4 to 16 of 20 rows are not cut: 13 in 20, 3900 ± 37.
    assert!(rows.abs_diff(3900) < 150, "{rows}");
}

#[test]
fn erased_boxes_follow_gate_area_and_ratio() {
    let erase = |p| DrawKind::Erase { p, size: SIZE };
    let none = [0; 4];
    let first = [none, [4, 16, 11, 21], none, [13, 17, 20, 20], [3, 12, 8, 29], [0, 7, 14, 14], none, [11, 16, 19, 23]];
    assert_eq!(boxes("erase", erase(0.5), 5, 8), first);
    let (half, all) = (boxes("erase", erase(0.5), 0, 6000), boxes("erase", erase(1.0), 0, 6000));
    let open = half.iter().filter(|&&b| b != none).count();
    assert!(open.abs_diff(3000) < 160, "{open}");
    // The box's numbers follow the gate's whether or not it is open.
    assert!(half.iter().zip(&all).all(|(h, a)| *h == none || h == a));
    assert_eq!(boxes("erase", erase(0.0), 0, 50), vec![none; 50]);
    for &[top, left, bottom, right] in &all {
        let (share, aspect) =
            (f64::from(area([top, left, bottom, right])) / 640.0, f64::from(bottom - top) / f64::from(right - left));
        assert!(inside([top, left, bottom, right]) && bottom - top < 20 && right - left < 32);
        // Sides are rounded: the smallest is √(0.02 · 640 · 0.3) ≈ 2.
        assert!((0.01..0.45).contains(&share) && (0.2..5.0).contains(&aspect), "{share} {aspect}");
    }
}

#[test]
fn padding_has_empty_boxes() {
    let kinds = [("hole", DrawKind::Cutout { side: 8, size: SIZE }), ("erase", DrawKind::Erase { p: 1.0, size: SIZE })];
    for draw in drawn(&kinds, 0, 0, 3, 5) {
        let DrawData::Boxes(boxes) = draw else { panic!("{draw:?}") };
        assert_eq!(boxes.len(), 5);
        assert!(boxes[..3].iter().all(|&b| b != [0; 4]) && boxes[3..] == [[0; 4]; 2]);
    }
}
