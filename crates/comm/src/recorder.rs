//! Flight recorder: the last collectives of this rank.
//!
//! One thread writes, any other may read at the same time: a slot carries the number of its entry, which is unset while
//! the slot is written (a sequence lock), so no reader makes the writer wait and none sees a mixture of two entries.

use crate::Op;
use crate::phase::Phase;
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Entries kept.
pub(crate) const ENTRIES: usize = 2_000;

/// A collective. Times are microseconds of Unix time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub sequence: u64,
    pub step: u64,
    pub phase: Phase,
    pub op: String,
    pub bytes: u64,
    pub begin_us: u64,
    /// None: it has not completed.
    pub end_us: Option<u64>,
    /// Last sample given to the device before this step, and in it.
    pub samples: (u64, u64),
}

/// What an entry is made of, as the trainer's thread knows it when a collective begins.
pub(crate) struct Begin {
    pub(crate) sequence: u64,
    pub(crate) step: u64,
    pub(crate) phase: Phase,
    pub(crate) call: u64,
    pub(crate) begin_us: u64,
    pub(crate) samples: (u64, u64),
}

/// The ring.
pub(crate) struct Recorder {
    slots: Box<[Slot]>,
    /// Number of entries ever written.
    written: AtomicU64,
}

#[derive(Default)]
struct Slot {
    /// Sequence of the entry + 1; 0: empty, or being written.
    number: AtomicU64,
    step: AtomicU64,
    phase: AtomicU64,
    call: AtomicU64,
    begin: AtomicU64,
    /// 0: not yet.
    end: AtomicU64,
    before: AtomicU64,
    sample: AtomicU64,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self { slots: (0..ENTRIES).map(|_| Slot::default()).collect(), written: AtomicU64::new(0) }
    }

    fn slot(&self, sequence: u64) -> &Slot {
        &self.slots[(sequence % ENTRIES as u64) as usize]
    }

    /// Sequences come in order, from 0.
    pub(crate) fn begin(&self, entry: &Begin) {
        let slot = self.slot(entry.sequence);
        slot.number.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        slot.step.store(entry.step, Ordering::Relaxed);
        slot.phase.store(entry.phase as u64, Ordering::Relaxed);
        slot.call.store(entry.call, Ordering::Relaxed);
        slot.begin.store(entry.begin_us, Ordering::Relaxed);
        slot.end.store(0, Ordering::Relaxed);
        slot.before.store(entry.samples.0, Ordering::Relaxed);
        slot.sample.store(entry.samples.1, Ordering::Relaxed);
        slot.number.store(entry.sequence + 1, Ordering::Release);
        self.written.store(entry.sequence + 1, Ordering::Release);
    }

    pub(crate) fn end(&self, sequence: u64, end_us: u64) {
        self.slot(sequence).end.store(end_us, Ordering::Relaxed);
    }

    /// The entry of this sequence, unless it is being written or overwritten.
    fn entry(&self, sequence: u64) -> Option<Entry> {
        let slot = self.slot(sequence);
        if slot.number.load(Ordering::Acquire) != sequence + 1 {
            return None;
        }
        let (op, bytes) = unpack(slot.call.load(Ordering::Relaxed));
        let end = slot.end.load(Ordering::Relaxed);
        let entry = Entry {
            sequence,
            step: slot.step.load(Ordering::Relaxed),
            phase: Phase::from_number(slot.phase.load(Ordering::Relaxed)),
            op: op.to_string(),
            bytes,
            begin_us: slot.begin.load(Ordering::Relaxed),
            end_us: (end != 0).then_some(end),
            samples: (slot.before.load(Ordering::Relaxed), slot.sample.load(Ordering::Relaxed)),
        };
        fence(Ordering::Acquire);
        (slot.number.load(Ordering::Relaxed) == sequence + 1).then_some(entry)
    }

    /// At most the last `most` entries, oldest first.
    pub(crate) fn last(&self, most: usize) -> Vec<Entry> {
        let written = self.written.load(Ordering::Acquire);
        let first = written.saturating_sub(most.min(ENTRIES) as u64);
        (first..written).filter_map(|sequence| self.entry(sequence)).collect()
    }

    /// All entries as JSON lines, oldest first.
    pub(crate) fn dump(&self, to: &mut impl Write) -> io::Result<()> {
        for entry in self.last(ENTRIES) {
            serde_json::to_writer(&mut *to, &entry)?;
            to.write_all(b"\n")?;
        }
        Ok(())
    }
}

/// Kind of a collective, root and bytes in one word, so that they are read together: 2, 16 and 46 bits.
pub(crate) fn pack(op: Op, bytes: usize) -> u64 {
    let (kind, root) = match op {
        Op::Barrier => (0, 0),
        Op::Broadcast { root } => (1, root),
        Op::AllReduce => (2, 0),
        Op::AllGather => (3, 0),
    };
    kind | ((root as u64 & 0xffff) << 2) | ((bytes as u64) << 18)
}

/// Inverse of [`pack`].
pub(crate) fn unpack(call: u64) -> (Op, u64) {
    let op = match call & 3 {
        0 => Op::Barrier,
        1 => Op::Broadcast { root: (call >> 2 & 0xffff) as usize },
        2 => Op::AllReduce,
        _ => Op::AllGather,
    };
    (op, call >> 18)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(sequence: u64) -> Begin {
        let call = pack(Op::Broadcast { root: sequence as usize % 7 }, sequence as usize * 3);
        Begin {
            sequence,
            step: sequence * 2,
            phase: Phase::Reduce,
            call,
            begin_us: sequence + 10,
            samples: (sequence, 9),
        }
    }

    #[test]
    fn the_last_entries_are_kept_in_order() {
        let recorder = Recorder::new();
        assert!(recorder.last(16).is_empty());
        for sequence in 0..5_000 {
            recorder.begin(&begin(sequence));
            if sequence != 4_999 {
                recorder.end(sequence, sequence + 11);
            }
        }
        let all = recorder.last(usize::MAX);
        assert_eq!(all.len(), ENTRIES);
        assert!(all.iter().zip(3_000..).all(|(e, s)| e.sequence == s && e.bytes == 3 * s && e.step == 2 * s));
        let last = &recorder.last(2);
        assert_eq!((last[0].end_us, last[1].end_us), (Some(5_009), None));
        assert_eq!(last[1].op, "broadcast from rank 1");
        let mut text = Vec::new();
        recorder.dump(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.lines().count(), ENTRIES);
        let line: Entry = serde_json::from_str(text.lines().next_back().unwrap()).unwrap();
        assert_eq!(&line, &last[1]);
    }

    #[test]
    fn a_reader_never_sees_a_mixture() {
        let recorder = Recorder::new();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..60_000).for_each(|sequence| recorder.begin(&begin(sequence))));
            loop {
                let some = recorder.last(50);
                assert!(some.iter().all(|e| e.bytes == 3 * e.sequence && e.begin_us == e.sequence + 10));
                if some.last().is_some_and(|e| e.sequence == 59_999) {
                    break;
                }
            }
        });
    }

    #[test]
    fn a_call_fits_a_word() {
        let all = [(Op::Barrier, 0), (Op::Broadcast { root: 65_535 }, 1), (Op::AllReduce, 1 << 40), (Op::AllGather, 7)];
        assert!(all.iter().all(|&(op, bytes)| unpack(pack(op, bytes)) == (op, bytes as u64)));
    }
}
