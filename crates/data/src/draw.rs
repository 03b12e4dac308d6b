//! Everything random, as a pure function of (seed, stage, purpose, epoch, slot, role).
//!
//! Layout, pinned by `tests/draws.rs` (changing it changes every run):
//!
//! | word | holds |
//! |---|---|
//! | key 0, 1 | seed, low and high half |
//! | counter 0 | number of the 4-word block inside the stream |
//! | counter 1 | slot: a unit's place in the epoch's global order; for micro-batch-wide draws the micro-batch's global number |
//! | counter 2 | epoch |
//! | counter 3 | stage << 24 \| role << 16 \| purpose |
//!
//! The words of a block are used in order 0, 1, 2, 3. Different tuples have different counters, so streams never overlap.

use crate::philox::philox4x32_10;

/// What a stream is for. Fixed ones are below 0x8000, draws named by a method above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purpose(u16);

impl Purpose {
    /// Order of an epoch's units; slot 0.
    pub const ORDER: Purpose = Purpose(1);
    /// Partners of an anchor; slot of the unit.
    pub const PARTNER: Purpose = Purpose(2);
    /// Offsets of the padded crop: row, then column.
    pub const CROP: Purpose = Purpose(3);
    /// Horizontal flip.
    pub const FLIP: Purpose = Purpose(4);
    /// Box of the random resized crop.
    pub const RESIZED_CROP: Purpose = Purpose(5);
    /// Replacement of a bad sample; stage and epoch 0, slot = sample index.
    pub const SUBSTITUTE: Purpose = Purpose(6);
    /// Choice of the validation split; stage and epoch 0, slot = class.
    pub const HOLDOUT: Purpose = Purpose(7);
    /// Order inside a class for partitioned pairs; slot = class.
    pub const PARTITION: Purpose = Purpose(8);
    /// Operators and magnitudes of a strong view.
    pub const OPERATORS: Purpose = Purpose(9);
    /// Cutout of a strong view.
    pub const CUTOUT: Purpose = Purpose(10);
    /// Box of CutMix; slot = number of the micro-batch.
    pub const CUT_BOX: Purpose = Purpose(11);

    /// Purpose of a draw that a method names: 0x8000 | low 15 bits of the name's CRC32. Independent of the order of draws.
    pub fn named(name: &str) -> Purpose {
        Purpose(0x8000 | (crc32fast::hash(name.as_bytes()) & 0x7fff) as u16)
    }
}

/// The part of the key that a whole epoch shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochKey {
    pub seed: u64,
    pub stage: u8,
    pub epoch: u32,
}

impl EpochKey {
    /// The stream of one purpose, slot and role (0 = anchor or first view).
    pub fn stream(&self, purpose: Purpose, slot: u32, role: u8) -> Stream {
        let tag = u32::from(self.stage) << 24 | u32::from(role) << 16 | u32::from(purpose.0);
        Stream {
            key: [self.seed as u32, (self.seed >> 32) as u32],
            counter: [0, slot, self.epoch, tag],
            block: [0; 4],
            used: 4,
        }
    }
}

/// A sequence of random numbers. Each method consumes a number of words that is documented and pinned.
#[derive(Clone, Debug)]
pub struct Stream {
    key: [u32; 2],
    counter: [u32; 4],
    block: [u32; 4],
    used: usize,
}

impl Stream {
    /// The next word.
    pub fn u32(&mut self) -> u32 {
        if self.used == 4 {
            self.block = philox4x32_10(self.counter, self.key);
            self.counter[0] = self.counter[0].wrapping_add(1);
            self.used = 0;
        }
        self.used += 1;
        self.block[self.used - 1]
    }

    /// Two words, the first one low.
    pub fn u64(&mut self) -> u64 {
        u64::from(self.u32()) | u64::from(self.u32()) << 32
    }

    /// Uniform in [0, 1) on a grid of 2⁻²⁴; one word.
    pub fn f32(&mut self) -> f32 {
        (self.u32() >> 8) as f32 * (1.0 / (1u32 << 24) as f32)
    }

    /// Uniform in [0, 1) on a grid of 2⁻⁵³; two words.
    pub fn f64(&mut self) -> f64 {
        (self.u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in 0..n by multiply and shift of 64 bits (bias below n / 2⁶⁴); two words. `n` must not be 0.
    #[track_caller]
    pub fn below(&mut self, n: u32) -> u32 {
        assert!(n > 0, "below(0) has no value");
        ((u128::from(self.u64()) * u128::from(n)) >> 64) as u32
    }

    /// True with probability `p`; one word.
    pub fn bernoulli(&mut self, p: f64) -> bool {
        f64::from(self.f32()) < p
    }

    /// Fisher-Yates from the top: for i = n-1 … 1 swap i with `below(i + 1)`.
    pub fn permutation(&mut self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        self.shuffle(&mut order);
        order
    }

    /// As [`Stream::permutation`], in place.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u32 + 1) as usize);
        }
    }

    /// `count` distinct values of 0..n in drawn order (a partial Fisher-Yates from the bottom).
    #[track_caller]
    pub fn distinct(&mut self, count: usize, n: usize) -> Vec<u32> {
        assert!(count <= n, "cannot draw {count} distinct values of {n}");
        let mut items: Vec<u32> = (0..n as u32).collect();
        for i in 0..count {
            let j = i + self.below((n - i) as u32) as usize;
            items.swap(i, j);
        }
        items.truncate(count);
        items
    }

    /// Standard normal by Box and Muller (the cosine half); four words.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.f64()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.f64()).cos()
    }

    /// Gamma(shape, 1), Marsaglia and Tsang 2000; for shape < 1 as Gamma(shape + 1) U^(1/shape). `shape` > 0.
    pub fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let boost = (1.0 - self.f64()).powf(1.0 / shape);
            return self.gamma(shape + 1.0) * boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            let u = 1.0 - self.f64();
            if v > 0.0 && u.ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }

    /// Beta(a, b), a and b > 0. Where both gammas underflow (tiny a and b) the limit is taken: 1 with probability a/(a+b).
    pub fn beta(&mut self, a: f64, b: f64) -> f64 {
        let (x, y) = (self.gamma(a), self.gamma(b));
        if x + y > 0.0 { x / (x + y) } else { f64::from(u8::from(self.f64() < a / (a + b))) }
    }
}
