//! Label noise: NumPy's own draws, what stays clean, and what is refused. Laws and rates: oracle 3 of the crate `averaging`.

mod common;

use common::{Memory, error, labels};
use data::{Dataset, Noise, NoiseKind, NoisyLabels, RawImage, draw_labels, transition};

fn noise(kind: NoiseKind, rate: f64, seed: u32) -> Noise {
    Noise { kind, rate, seed }
}

/// Values printed by `fixtures/noisy_labels.py`.
#[test]
fn draws_are_those_of_numpy() {
    let truth: Vec<u32> = (0..40).map(|i| i * 3 % 5).collect();
    let sym = [
        2, 3, 0, 4, 0, 3, 3, 1, 4, 2, 0, 2, 0, 2, 1, 1, 1, 1, 0, 2, 4, 2, 2, 4, 1, 4, 4, 1, 3, 2, 0, 4, 2, 2, 2, 0, 3,
        2, 1, 1,
    ];
    let asym = [
        1, 3, 0, 4, 0, 2, 4, 1, 4, 2, 0, 2, 0, 2, 2, 1, 1, 1, 0, 2, 4, 3, 2, 4, 2, 4, 4, 1, 3, 3, 0, 4, 2, 2, 2, 0, 3,
        2, 0, 1,
    ];
    for (kind, expected) in [(NoiseKind::Sym, sym), (NoiseKind::Asym, asym)] {
        assert_eq!(draw_labels(&truth, &transition(noise(kind, 0.6, 3), 5, &[]), 3), expected, "{kind:?}");
    }
    // Long enough to turn the generator's state over many times.
    let truth: Vec<u32> = (0..5000).map(|i| i % 10).collect();
    let seed = 123_456_789;
    let given = draw_labels(&truth, &transition(noise(NoiseKind::Sym, 0.5, seed), 10, &[]), seed);
    let bytes: Vec<u8> = given.iter().flat_map(|label| label.to_le_bytes()).collect();
    assert_eq!(given.iter().zip(&truth).filter(|(g, t)| g != t).count(), 2468);
    assert_eq!(crc32fast::hash(&bytes), 1_027_017_382);
}

#[test]
fn no_noise_changes_nothing_and_images_stay() {
    let set = || Box::new(Memory::new(&labels(), 1, [4, 4]));
    let clean = NoisyLabels::new(set(), noise(NoiseKind::Sym, 0.0, 1)).unwrap();
    assert_eq!(clean.labels(), labels());
    let wrong = NoisyLabels::new(set(), noise(NoiseKind::Asym, 1.0, 1)).unwrap();
    assert_eq!(*wrong.truth(), labels()[..]);
    assert!(wrong.labels().iter().zip(labels()).all(|(&given, truth)| given != truth));
    assert!(wrong.describe().ends_with("41 of 41 training labels are wrong (100.00 %)"), "{}", wrong.describe());
    let mut image = RawImage::default();
    wrong.read(5, &mut image).unwrap();
    assert_eq!(image, set().image(5));
}

#[test]
fn settings_out_of_range_are_refused() {
    let set = || Box::new(Memory::new(&labels(), 1, [4, 4]));
    let rate = error(NoisyLabels::new(set(), noise(NoiseKind::Sym, 1.5, 1)));
    assert!(rate.contains("expected 0 to 1, got 1.5"), "{rate}");
    let images = error(NoisyLabels::new(set(), noise(NoiseKind::Cc, 0.5, 1)));
    assert!(images.contains("memory holds images") && images.contains("retort features"), "{images}");
}
