//! The strong view: its draws, its cutout, and what a loader delivers.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{Memory, epoch, key, labels, spec};
use data::{
    Augment, Batch, BatchSpec, Canvas, DrawData, EpochKey, Loader, Micro, Operator, Purpose, RawImage, Sampler,
    StrongView, cutout_rectangle,
};
use spec::Augment::{Recipe, Strong};

const TWO: Sampler = Sampler::Views { views: 2 };

fn batch(set: Memory, augment: Augment, views: &[spec::Augment], sampler: Sampler) -> Batch {
    let order = epoch(&set, sampler, 1);
    let spec = BatchSpec { views: views.to_vec(), ..spec(augment) };
    let micro = Micro { step: 0, leaf: 0, number: 0, first_slot: 3, units: 30 };
    Loader::new(Arc::new(set), spec).unwrap().batch(&order, &micro).unwrap()
}

fn i32s<'b>(batch: &'b Batch, name: &str) -> &'b [i32] {
    match &batch.draws[name] {
        DrawData::I32(values) => values,
        other => panic!("{name} is {other:?}"),
    }
}

/// By an independent implementation of Philox, the layout and the rules.
#[test]
fn draws_are_pinned() {
    let view = StrongView::draw(EpochKey { stage: 3, ..key(12) }, 70_000, 1, [24, 32]);
    assert_eq!(view.operators, [(Operator::Posterise, 5.2284407171541245), (Operator::Posterise, 6.338695493194618)]);
    assert_eq!(view.cutout, Some([27.0, 21.0, 28.03022988285259, 22.03022988285259]));
    let view = StrongView::draw(key(1), 5, 1, [24, 32]);
    assert_eq!(view.operators, [(Operator::TranslateY, 0.2411877844150177), (Operator::ShearY, 0.00512059938853382)]);
    assert_eq!(view.cutout, Some([12.0, 15.0, 12.03986097628167, 15.03986097628167]));
}

/// Oracle 10 of chapter 5.
#[test]
fn operator_frequencies() {
    const VIEWS: u32 = 50_000;
    let (mut counts, mut bits, mut equal) = ([0_i32; 14], BTreeMap::new(), 0_i32);
    for slot in 0..VIEWS {
        let view = StrongView::draw(key(0), slot, 1, [32, 32]);
        equal += i32::from(view.operators[0].0 == view.operators[1].0);
        for (operator, v) in view.operators {
            counts[Operator::ALL.iter().position(|&o| o == operator).unwrap()] += 1;
            let [low, high] = operator.range();
            assert!((low..high).contains(&v), "{operator:?} {v}");
            if operator == Operator::Posterise {
                *bits.entry(v as u32).or_insert(0_i32) += 1;
            }
        }
    }
    // Three standard deviations of a binomial of n draws.
    let within = |count: i32, n: f64, p: f64| (f64::from(count) - n * p).abs() < 3.0 * (n * p * (1.0 - p)).sqrt();
    assert!(counts.iter().all(|&c| within(c, f64::from(2 * VIEWS), 1.0 / 14.0)), "{counts:?}");
    assert!(within(equal, f64::from(VIEWS), 1.0 / 14.0), "{equal}");
    assert_eq!(bits.keys().copied().collect::<Vec<_>>(), [4, 5, 6, 7]);
    let n = f64::from(bits.values().sum::<i32>());
    assert!(bits.values().all(|&c| within(c, n, 0.25)), "{bits:?}");
}

/// Oracle 11 of chapter 5.
#[test]
fn cutout_rectangle_by_hand() {
    let corners = cutout_rectangle(0.25, [0.0, 31.9], [32, 32]).unwrap();
    assert_eq!(corners, [0.0, 27.0, 8.0, 32.0]);
    let painted = |corners| {
        let mut pixels = vec![0; 32 * 32 * 3];
        Canvas { height: 32, width: 32, channels: 3, pixels: &mut pixels }.fill(corners, [125, 123, 114]);
        let colours: Vec<&[u8]> = pixels.chunks(3).collect();
        assert!(colours.iter().all(|c| [[0; 3], [125, 123, 114]].contains(&[c[0], c[1], c[2]])));
        (0..32 * 32).filter(|&i| colours[i] != [0; 3]).map(|i| (i % 32, i / 32)).collect::<Vec<_>>()
    };
    let expected: Vec<_> = (27..32).flat_map(|y| (0..=8).map(move |x| (x, y))).collect();
    assert_eq!(painted(corners), expected);
    assert_eq!(painted(cutout_rectangle(0.001, [16.5, 9.5], [32, 32]).unwrap()), [(16, 9)]);
    assert_eq!(cutout_rectangle(0.0, [16.5, 9.5], [32, 32]), None);
    // The side follows the width: three columns and rows and the one that both ends add.
    assert_eq!(cutout_rectangle(0.5, [3.0, 20.0], [40, 6]), Some([1.0, 18.0, 4.0, 21.0]));
}

/// Oracle 12 of chapter 5, more than in distribution: the same numbers.
#[test]
fn weak_view_is_the_plain_view() {
    for augment in [
        Augment::PadCropFlip { pad: 4 },
        Augment::RandomResizedCropFlip { size: 6, scale: [0.3, 1.0], ratio: [0.7, 1.4] },
    ] {
        let plain = batch(Memory::new(&labels(), 3, [9, 8]), augment, &[], Sampler::Shuffle);
        let two = batch(Memory::new(&labels(), 3, [9, 8]), augment, &[Recipe, Strong], TWO);
        assert_eq!((&two.images[..plain.images.len()], &two.index[..30]), (&plain.images[..], &plain.index[..]));
        for name in plain.draws.keys() {
            let weak = i32s(&plain, name);
            assert_eq!(&i32s(&two, name)[..weak.len()], weak);
        }
        assert_eq!((&two.index[30..], &two.row_labels[30..]), (&plain.index[..], &plain.row_labels[..]));
        assert_ne!(&two.images[plain.images.len()..], &plain.images[..]);
    }
}

/// Pad, crop and flip pixel by pixel with the numbers of the view's role, then its operators.
fn rendered(image: &RawImage, pad: usize, slot: u32, flips: bool) -> Vec<u8> {
    let RawImage { height, width, channels, pixels } = image;
    let (mut crop, mut flip) = (key(1).stream(Purpose::CROP, slot, 1), key(1).stream(Purpose::FLIP, slot, 1));
    let [row, column] = [(); 2].map(|()| crop.below(2 * pad as u32 + 1) as usize);
    let flip = flips && flip.bernoulli(0.5);
    let mut out = vec![];
    for y in 0..*height {
        for x in 0..*width {
            let x = if flip { width - 1 - x } else { x };
            let (y, x) = ((y + row).wrapping_sub(pad), (x + column).wrapping_sub(pad));
            let inside = y < *height && x < *width;
            out.extend((0..*channels).map(|c| if inside { pixels[(y * width + x) * channels + c] } else { 0 }));
        }
    }
    let mut canvas = Canvas { height: *height, width: *width, channels: *channels, pixels: &mut out };
    StrongView::draw(key(1), slot, 1, [*height, *width]).apply(&mut canvas, &mut vec![]);
    out
}

#[test]
fn a_strong_row_is_geometry_then_operators() {
    for channels in [1, 3] {
        // The larger padding can move the whole image out.
        for (augment, pad, flips) in [
            (Augment::PadCropFlip { pad: 3 }, 3, true),
            (Augment::PadCrop { pad: 12 }, 12, false),
            (Augment::None, 0, false),
        ] {
            let set = || Memory::new(&labels(), channels, [9, 8]);
            let order = epoch(&set(), TWO, 1);
            let got = batch(set(), augment, &[Recipe, Strong], TWO);
            let bytes = 72 * channels;
            for unit in 0..30 {
                let slot = 3 + unit as u32;
                let image = set().image(order.members(slot)[1] as usize);
                let row = &got.images[(30 + unit) * bytes..][..bytes];
                assert_eq!(row, rendered(&image, pad, slot, flips), "{augment:?} unit {unit}");
            }
            // Nothing is left to the step.
            if pad > 0 {
                assert!(i32s(&got, "crop")[60..].iter().all(|&c| c == pad as i32));
            }
            if flips {
                assert!(i32s(&got, "flip")[30..].iter().all(|&f| f == 0));
            }
        }
    }
}

/// The resized row of a set of recipe views, flipped, then the operators.
#[test]
fn a_strong_resized_row_is_flipped_first() {
    let augment = Augment::RandomResizedCropFlip { size: 7, scale: [0.3, 1.0], ratio: [0.7, 1.4] };
    let set = || Memory::growing(&labels(), 3, [20, 14], 7);
    let (plain, strong) = (batch(set(), augment, &[], TWO), batch(set(), augment, &[Recipe, Strong], TWO));
    let bytes = 7 * 7 * 3;
    for unit in 0..30 {
        let row = (30 + unit) * bytes..(31 + unit) * bytes;
        let mut expected = plain.images[row.clone()].to_vec();
        if i32s(&plain, "flip")[30 + unit] == 1 {
            let lines = expected.chunks(21).flat_map(|line| line.chunks(3).rev().flatten().copied());
            expected = lines.collect();
        }
        let mut canvas = Canvas { height: 7, width: 7, channels: 3, pixels: &mut expected };
        StrongView::draw(key(1), 3 + unit as u32, 1, [7, 7]).apply(&mut canvas, &mut vec![]);
        assert_eq!(strong.images[row], expected, "unit {unit}");
    }
    assert!(i32s(&strong, "flip")[30..].iter().all(|&f| f == 0));
    assert!(i32s(&strong, "flip")[..30].contains(&1));
}

/// One view: every image of a unit is of it. A view beyond the list is the recipe's.
#[test]
fn pairs_are_one_view_and_views_default_to_the_recipe_s() {
    let set = || Memory::new(&labels(), 1, [9, 8]);
    let augment = Augment::PadCropFlip { pad: 2 };
    let pairs = Sampler::Pairs { rule: data::PairRule::WithSelf, partners: 1 };
    assert!(i32s(&batch(set(), augment, &[Strong], pairs), "crop").iter().all(|&c| c == 2));
    let (none, some) = (batch(set(), augment, &[], TWO), batch(set(), augment, &[Recipe], TWO));
    assert_eq!(none, some);
    assert!(i32s(&none, "crop")[60..].iter().any(|&c| c != 2));
}
