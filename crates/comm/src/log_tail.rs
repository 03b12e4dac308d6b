//! The last lines that this rank logged, for the dump after a verdict.
//!
//! Nobody ever waits. A line has a slot of its own behind a lock that is held only while the line is copied; who finds it taken
//! (a thread that was put to sleep there) gives that line up: a writer drops it, a reader leaves it out. One lock around all lines
//! could hide all of them, and a reader that waits for it could wait for ever.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

/// Lines kept.
pub const LOG_LINES: usize = 200;
/// Bytes kept of a line.
const LINE_BYTES: usize = 1_000;

/// Handle to the lines; clones are the same ones.
#[derive(Clone)]
pub struct LogTail(Arc<Ring>);

struct Ring {
    slots: Box<[Mutex<Slot>]>,
    /// Lines ever written.
    written: AtomicU64,
}

/// A line, without its end, and its number from 1; 0: none yet.
#[derive(Clone, Default)]
struct Slot {
    number: u64,
    line: Vec<u8>,
}

impl Default for LogTail {
    fn default() -> Self {
        let slots = (0..LOG_LINES).map(|_| Mutex::default()).collect();
        Self(Arc::new(Ring { slots, written: AtomicU64::new(0) }))
    }
}

impl LogTail {
    /// Adds lines; what of one is beyond a thousand bytes is cut off.
    pub fn push(&self, lines: &[u8]) {
        for line in lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let number = self.0.written.fetch_add(1, Ordering::Relaxed);
            let slot = match self.0.slots[(number % LOG_LINES as u64) as usize].try_lock() {
                Ok(slot) => slot,
                Err(TryLockError::Poisoned(slot)) => slot.into_inner(),
                Err(TryLockError::WouldBlock) => continue,
            };
            put(slot, number + 1, &line[..line.len().min(LINE_BYTES)]);
        }
    }

    /// The lines as they are now, oldest first.
    pub fn lines(&self) -> Vec<String> {
        let look = |slot: &Mutex<Slot>| match slot.try_lock() {
            Ok(slot) => Some(slot.clone()),
            Err(TryLockError::Poisoned(slot)) => Some(slot.into_inner().clone()),
            Err(TryLockError::WouldBlock) => None,
        };
        let mut slots: Vec<Slot> = self.0.slots.iter().filter_map(look).filter(|slot| slot.number > 0).collect();
        slots.sort_by_key(|slot| slot.number);
        slots.into_iter().map(|slot| String::from_utf8_lossy(&slot.line).into_owned()).collect()
    }

    /// Writes the lines, oldest first.
    pub(crate) fn dump(&self, to: &mut impl Write) -> io::Result<()> {
        self.lines().iter().try_for_each(|line| writeln!(to, "{line}"))
    }
}

/// An older line, whose thread slept before it came here, does not replace a newer one.
fn put(mut slot: MutexGuard<'_, Slot>, number: u64, line: &[u8]) {
    if slot.number < number {
        slot.number = number;
        slot.line.clear();
        slot.line.extend_from_slice(line);
    }
}

impl Write for LogTail {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.push(lines);
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_in_order_and_cut() {
        let tail = LogTail::default();
        assert!(tail.lines().is_empty());
        (0..450).for_each(|i| tail.push(format!("line {i}\n").as_bytes()));
        let expected: Vec<String> = (250..450).map(|i| format!("line {i}")).collect();
        assert_eq!(tail.lines(), expected);
        tail.push(&[b'x'; 5_000]);
        tail.push("a\nb\n\u{e9}".as_bytes());
        let lines = tail.lines();
        let last: Vec<&str> = lines[LOG_LINES - 4..].iter().map(String::as_str).collect();
        assert_eq!((last[0].len(), &last[1..]), (LINE_BYTES, &["a", "b", "\u{e9}"][..]));
        let mut text = Vec::new();
        tail.dump(&mut text).unwrap();
        assert_eq!(String::from_utf8(text).unwrap().lines().count(), LOG_LINES);
    }

    /// A thread that sleeps in the middle of a line: neither readers nor writers wait for it, and all other lines are there.
    #[test]
    fn nobody_waits_for_a_line_that_is_being_written() {
        let tail = LogTail::default();
        (0..LOG_LINES).for_each(|i| tail.push(format!("{i}").as_bytes()));
        let asleep = tail.0.slots[7].lock().unwrap();
        assert_eq!(tail.lines().len(), LOG_LINES - 1);
        (0..LOG_LINES).for_each(|i| tail.push(format!("again {i}").as_bytes()));
        let lines = tail.lines();
        assert!(lines.len() == LOG_LINES - 1 && lines.iter().all(|line| line.starts_with("again ")), "{lines:?}");
        drop(asleep);
        assert_eq!(tail.lines()[0], "7");
    }

    #[test]
    fn many_threads_may_write_while_one_reads() {
        let tail = LogTail::default();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let tail = &tail;
                scope.spawn(move || (0..2_000).for_each(|i| tail.push(format!("{thread} {i} {thread}").as_bytes())));
            }
            for line in (0..200).flat_map(|_| tail.lines()) {
                let words: Vec<&str> = line.split(' ').collect();
                assert!(words.len() == 3 && words[0] == words[2], "a mixture: {line}");
            }
        });
    }
}
