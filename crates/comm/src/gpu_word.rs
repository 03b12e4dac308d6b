//! How far a rank's GPU has come in a step: a word of host memory that the GPU writes by itself, so that the watch can tell what a
//! GPU is in while the trainer waits for it.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

/// Most buckets that a word can count.
const MOST: usize = 2_045;

/// The word, on a page of its own: whoever drives the GPU locks the page and lets the GPU write there.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct GpuWord {
    word: AtomicU32,
    rest: [u8; 4092],
}

impl Default for GpuWord {
    fn default() -> Self {
        Self { word: AtomicU32::new(0), rest: [0; 4092] }
    }
}

impl GpuWord {
    /// Where the GPU writes words of [`GpuPlace::word`].
    pub fn as_ptr(&self) -> *mut u32 {
        self.word.as_ptr()
    }

    /// The word at this moment.
    pub fn get(&self) -> u32 {
        self.word.load(Ordering::Relaxed)
    }

    /// Writes it from the host, while the GPU does nothing that would.
    pub fn set(&self, word: u32) {
        self.word.store(word, Ordering::Relaxed);
    }
}

/// A place in a step, in the order in which a GPU comes to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GpuAt {
    /// In the body, before the first bucket of gradients was made.
    Body,
    /// In the sum over ranks of this bucket, from 1.
    Sum(usize),
    /// Beyond that sum: in the body, or, after the last one, in what follows it.
    Summed(usize),
    /// The update is done.
    Done,
}

/// What a word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuPlace {
    /// Phase of the plan, from 0.
    pub phase: usize,
    pub at: GpuAt,
    /// Buckets of the phase.
    pub buckets: usize,
}

impl GpuPlace {
    /// Phase, place and buckets in 8, 12 and 12 bits: words of a step are in order. 0 means that the step has not begun.
    pub fn word(self) -> u32 {
        let buckets = self.buckets.min(MOST);
        let at = match self.at {
            GpuAt::Body => 1,
            GpuAt::Sum(bucket) => 2 * bucket.min(buckets),
            GpuAt::Summed(bucket) => 2 * bucket.min(buckets) + 1,
            GpuAt::Done => 2 * buckets + 2,
        };
        (self.phase.min(255) as u32) << 24 | (at as u32) << 12 | buckets as u32
    }

    /// Inverse of [`word`](Self::word); none: not begun.
    pub fn of(word: u32) -> Option<Self> {
        let (phase, at, buckets) = ((word >> 24) as usize, (word >> 12 & 0xfff) as usize, (word & 0xfff) as usize);
        let at = match at {
            0 => return None,
            1 => GpuAt::Body,
            at if at > 2 * buckets + 1 => GpuAt::Done,
            at if at % 2 == 0 => GpuAt::Sum(at / 2),
            at => GpuAt::Summed(at / 2),
        };
        Some(Self { phase, at, buckets })
    }

    /// Whether the GPU is in a collective.
    pub fn is_sum(self) -> bool {
        matches!(self.at, GpuAt::Sum(_))
    }
}

/// `all_reduce of bucket 3 of 7`, `past bucket 2 of 7`
impl fmt::Display for GpuPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            GpuAt::Body => f.write_str("in the body")?,
            GpuAt::Sum(bucket) => write!(f, "all_reduce of bucket {bucket} of {}", self.buckets)?,
            GpuAt::Summed(bucket) => write!(f, "past bucket {bucket} of {}", self.buckets)?,
            GpuAt::Done => f.write_str("past the update")?,
        }
        if self.phase > 0 { write!(f, " of phase {}", self.phase + 1) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_back_and_in_order() {
        let phase = |phase: usize| {
            let sums = (1..=7).flat_map(|bucket| [GpuAt::Sum(bucket), GpuAt::Summed(bucket)]);
            let all = [GpuAt::Body].into_iter().chain(sums).chain([GpuAt::Done]);
            all.map(move |at| GpuPlace { phase, at, buckets: 7 })
        };
        let places: Vec<GpuPlace> = phase(0).chain(phase(1)).collect();
        assert!(places.iter().all(|&place| GpuPlace::of(place.word()) == Some(place)));
        assert!(places.windows(2).all(|pair| 0 < pair[0].word() && pair[0].word() < pair[1].word()));
        assert_eq!(GpuPlace::of(0), None);
        assert_eq!(places[5].to_string(), "all_reduce of bucket 3 of 7");
        assert_eq!(places[16 + 6].to_string(), "past bucket 3 of 7 of phase 2");
        let beyond = GpuPlace { phase: 999, at: GpuAt::Sum(5_000), buckets: 5_000 };
        assert_eq!(GpuPlace::of(beyond.word()).unwrap().at, GpuAt::Sum(MOST));
        let none = GpuPlace { phase: 0, at: GpuAt::Done, buckets: 0 };
        assert_eq!(GpuPlace::of(none.word()), Some(none));
    }
}
