//! Counter layout and the numbers made from it. The literals come from an independent implementation of Philox and the layout.

use data::{EpochKey, Purpose, Stream, philox4x32_10};

const SEED: u64 = 0x0123_4567_89ab_cdef;

fn stream(slot: u32) -> Stream {
    EpochKey { seed: SEED, stage: 1, epoch: 3 }.stream(Purpose::named("test"), slot, 0)
}

/// Mean and variance of `n` values.
fn moments(n: usize, mut value: impl FnMut() -> f64) -> (f64, f64) {
    let values: Vec<f64> = (0..n).map(|_| value()).collect();
    let mean = values.iter().sum::<f64>() / n as f64;
    (mean, values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64)
}

#[test]
fn layout_is_pinned() {
    let mut crop = EpochKey { seed: SEED, stage: 3, epoch: 12 }.stream(Purpose::CROP, 70_000, 1);
    let words: Vec<u32> = (0..8).map(|_| crop.u32()).collect();
    let expected = [0xdd35591e, 0x28878b68, 0xc60515ad, 0xb886516b, 0x7d8617c6, 0x11c9623e, 0x546dead8, 0x43755afd];
    assert_eq!(words, expected);
    let key = [SEED as u32, (SEED >> 32) as u32];
    assert_eq!(words[..4], philox4x32_10([0, 70_000, 12, 3 << 24 | 1 << 16 | 3], key));
    // "swap_mask" hashes to 0xfd91.
    let mut named = EpochKey { seed: SEED, stage: 0, epoch: 2 }.stream(Purpose::named("swap_mask"), 5, 0);
    assert_eq!([named.u32(), named.u32()], [0x1c086acc, 0x25a1c179]);
}

#[test]
fn purposes_are_pinned() {
    let first = |purpose| EpochKey { seed: 0, stage: 0, epoch: 0 }.stream(purpose, 0, 0).u32();
    let fixed = [
        Purpose::ORDER,
        Purpose::PARTNER,
        Purpose::CROP,
        Purpose::FLIP,
        Purpose::RESIZED_CROP,
        Purpose::SUBSTITUTE,
        Purpose::HOLDOUT,
        Purpose::PARTITION,
        Purpose::OPERATORS,
        Purpose::CUTOUT,
        Purpose::CUT_BOX,
    ];
    for (number, purpose) in (1..).zip(fixed) {
        assert_eq!(first(purpose), philox4x32_10([0, 0, 0, number], [0, 0])[0]);
    }
}

#[test]
fn permutation_is_pinned_and_uniform() {
    let order = EpochKey { seed: SEED, stage: 3, epoch: 12 }.stream(Purpose::ORDER, 0, 0).permutation(10);
    assert_eq!(order, [3, 9, 2, 6, 1, 4, 8, 0, 5, 7]);
    let mut counts = std::collections::BTreeMap::new();
    let mut stream = stream(0);
    for _ in 0..24_000 {
        *counts.entry(stream.permutation(4)).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 24);
    // 1000 ± 31 each: 5 standard deviations.
    assert!(counts.values().all(|c: &i32| (c - 1000).abs() < 155), "{counts:?}");
}

#[test]
fn uniform_numbers_have_their_ranges_and_moments() {
    let mut s = stream(1);
    let (mean, variance) = moments(100_000, || f64::from(s.f32()));
    assert!((mean - 0.5).abs() < 0.005 && (variance - 1.0 / 12.0).abs() < 0.002, "{mean} {variance}");
    let mut seen = [0; 7];
    for _ in 0..70_000 {
        seen[s.below(7) as usize] += 1;
        assert!((0.0..1.0).contains(&s.f64()));
    }
    assert!(seen.iter().all(|c: &i32| (c - 10_000).abs() < 500), "{seen:?}");
    assert_eq!(s.below(1), 0);
    let heads = (0..100_000).filter(|_| s.bernoulli(0.3)).count();
    assert!(heads.abs_diff(30_000) < 750, "{heads}");
    assert!(!(0..100).any(|_| s.bernoulli(0.0)) && (0..100).all(|_| s.bernoulli(1.0)));
}

#[test]
fn distinct_values_are_distinct_and_uniform() {
    let mut s = stream(2);
    let mut seen = [0; 6];
    for _ in 0..30_000 {
        let drawn = s.distinct(2, 6);
        assert_ne!(drawn[0], drawn[1]);
        drawn.iter().for_each(|&d| seen[d as usize] += 1);
    }
    assert!(seen.iter().all(|c: &i32| (c - 10_000).abs() < 500), "{seen:?}");
    let mut all = s.distinct(6, 6);
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2, 3, 4, 5]);
    assert!(s.distinct(0, 6).is_empty());
}

#[test]
fn normal_gamma_beta_have_their_moments() {
    let mut s = stream(3);
    let (mean, variance) = moments(100_000, || s.normal());
    assert!(mean.abs() < 0.016 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
    for shape in [0.2, 1.0, 2.5] {
        let (mean, variance) = moments(100_000, || s.gamma(shape));
        assert!(
            (mean - shape).abs() < 0.03 && (variance / shape - 1.0).abs() < 0.1,
            "gamma {shape}: {mean} {variance}"
        );
    }
    for (a, b) in [(0.2, 0.2), (1.0, 1.0), (2.0, 5.0)] {
        let expected = a * b / ((a + b) * (a + b) * (a + b + 1.0));
        let (mean, variance) = moments(100_000, || s.beta(a, b));
        assert!(
            (mean - a / (a + b)).abs() < 0.01 && (variance / expected - 1.0).abs() < 0.05,
            "beta {a} {b}: {mean} {variance}"
        );
    }
    // Both gammas underflow: the limit, a fair coin.
    let (mean, variance) = moments(20_000, || s.beta(1e-5, 1e-5));
    assert!((mean - 0.5).abs() < 0.02 && (variance - 0.25).abs() < 0.01, "{mean} {variance}");
}

#[test]
fn streams_of_different_keys_differ() {
    let key = EpochKey { seed: 1, stage: 0, epoch: 0 };
    let first = |key: EpochKey, purpose, slot, role| key.stream(purpose, slot, role).u64();
    let all = [
        first(key, Purpose::CROP, 0, 0),
        first(EpochKey { seed: 2, ..key }, Purpose::CROP, 0, 0),
        first(EpochKey { seed: 1 << 32 | 1, ..key }, Purpose::CROP, 0, 0),
        first(EpochKey { stage: 1, ..key }, Purpose::CROP, 0, 0),
        first(EpochKey { epoch: 1, ..key }, Purpose::CROP, 0, 0),
        first(key, Purpose::FLIP, 0, 0),
        first(key, Purpose::CROP, 1, 0),
        first(key, Purpose::CROP, 0, 1),
    ];
    for (i, a) in all.iter().enumerate() {
        assert!(all[..i].iter().all(|b| a != b), "{all:?}");
    }
}
