//! Inputs on their way to the batch region: page-locked memory, then, on a stream of their own, a staging copy on the device,
//! then their place, whose address never changes. There are two of each, so that the next batch travels while one is computed on.

use crate::command::Address;
use crate::driver::{Event, EventKind, Gpu, Stream};
use crate::error::CudaError;
use crate::pinned::Pinned;
use crate::program::merged;
use std::ops::Range;
use std::rc::Rc;

#[derive(Debug)]
struct Turn {
    host: Pinned,
    /// The copies from `host` are done.
    sent: Event,
    /// The copies from the staging memory are done.
    taken: Event,
}

#[derive(Debug)]
pub(crate) struct Inputs {
    // First: it waits for nothing that the rest owns when it is dropped.
    stream: Stream,
    turns: [Turn; 2],
    now: usize,
    /// Bytes of a batch, device addresses of the staging memory (two of them) and of the batch region.
    bytes: usize,
    staging: Address,
    batch: Address,
    /// Ranges of the batch that were filled this turn.
    filled: Vec<Range<usize>>,
}

impl Inputs {
    pub(crate) fn new(gpu: &Rc<Gpu>, bytes: usize, staging: Address, batch: Address) -> Result<Inputs, CudaError> {
        let turn = || {
            let event = || Event::new(gpu, EventKind::Order);
            Ok::<_, CudaError>(Turn { host: Pinned::new(gpu, bytes)?, sent: event()?, taken: event()? })
        };
        let turns = [turn()?, turn()?];
        Ok(Inputs { stream: Stream::new(gpu)?, turns, now: 0, bytes, staging, batch, filled: vec![] })
    }

    /// Fills a range of the batch; what runs after the next `flush` sees it.
    pub(crate) fn put(
        &mut self,
        range: Range<usize>,
        compute: &Stream,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), CudaError> {
        if self.filled.iter().any(|f| f.start < range.end && range.start < f.end) {
            self.flush(compute)?; // filled twice: the first may be on its way
        }
        let turn = &mut self.turns[self.now];
        if self.filled.is_empty() {
            turn.sent.synchronize()?;
            self.stream.wait(&turn.taken)?;
        }
        fill(&mut turn.host.bytes_mut()[range.clone()]);
        let to = self.staging + (self.now * self.bytes + range.start) as Address;
        self.stream.upload(to, &turn.host, range.start, range.len())?;
        self.filled.push(range);
        Ok(())
    }

    /// Puts the copies to the batch on the compute stream.
    pub(crate) fn flush(&mut self, compute: &Stream) -> Result<(), CudaError> {
        if self.filled.is_empty() {
            return Ok(());
        }
        let turn = &self.turns[self.now];
        turn.sent.record(&self.stream)?;
        compute.wait(&turn.sent)?;
        let from = self.staging + (self.now * self.bytes) as Address;
        for r in merged(std::mem::take(&mut self.filled)) {
            let at = r.start as Address;
            let copied = compute.copy(self.batch + at, from + at, r.len());
            copied.map_err(|fault| CudaError::Driver { what: "copying inputs to their place".into(), fault })?;
        }
        turn.taken.record(compute)?;
        self.now ^= 1;
        Ok(())
    }
}

impl Drop for Inputs {
    fn drop(&mut self) {
        let _ = self.stream.synchronize(); // page-locked memory outlives the copies from it
    }
}
