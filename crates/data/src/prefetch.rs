//! Threads that make micro-batches ahead of the step, handed out in order.
//!
//! Worker w of N makes micro-batches w, w + N, …, each into a bounded channel of its own; the reader takes from the channels in
//! turn. So the order is fixed, memory is bounded, and nothing is shared but the loader.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::batch::Batch;
use crate::deal::Micro;
use crate::error::DataError;
use crate::loader::Loader;
use crate::sampler::Epoch;

/// An iterator over micro-batches. Errors come in their place in the order. Dropping it ends the threads and waits for them.
pub struct Prefetch {
    /// Dropped first: workers that wait to send then end.
    lanes: Vec<Receiver<Result<Batch, DataError>>>,
    threads: Vec<JoinHandle<()>>,
    micros: Arc<[Micro]>,
    next: usize,
    waited: Duration,
    late: Option<Late>,
}

/// Told of a micro-batch that lets the reader wait.
struct Late {
    every: Duration,
    tell: Tell,
}

/// Hears which micro-batch is waited for, and for how long.
type Tell = Box<dyn FnMut(&Micro, Duration) + Send>;

impl Prefetch {
    /// Starts `workers` threads (at least one) on `micros`; up to `ahead` finished micro-batches wait in each worker's channel.
    pub fn new(
        loader: Arc<Loader>,
        epoch: Arc<Epoch>,
        micros: Vec<Micro>,
        workers: usize,
        ahead: usize,
    ) -> Result<Prefetch, DataError> {
        let micros: Arc<[Micro]> = micros.into();
        let workers = workers.clamp(1, micros.len().max(1));
        let (mut lanes, mut threads) = (Vec::new(), Vec::new());
        for worker in 0..workers {
            let (sender, receiver) = sync_channel(ahead);
            let (loader, epoch, micros) = (loader.clone(), epoch.clone(), micros.clone());
            let work = move || {
                for micro in micros.iter().skip(worker).step_by(workers) {
                    // The reader is gone: nobody wants the rest.
                    if sender.send(loader.batch(&epoch, micro)).is_err() {
                        return;
                    }
                }
            };
            let thread = std::thread::Builder::new().name(format!("data-{worker}")).spawn(work);
            threads.push(
                thread.map_err(|e| DataError::Setting(format!("cannot start data worker {worker}: {e}; use fewer")))?,
            );
            lanes.push(receiver);
        }
        Ok(Prefetch { lanes, threads, micros, next: 0, waited: Duration::ZERO, late: None })
    }

    /// Has `tell` called on the reader's thread whenever it has waited for one micro-batch for another `every`, with the wait so far.
    pub fn when_late(mut self, every: Duration, tell: impl FnMut(&Micro, Duration) + Send + 'static) -> Prefetch {
        self.late = Some(Late { every, tell: Box::new(tell) });
        self
    }

    /// Time spent waiting for batches so far: what the input costs the step.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

impl Iterator for Prefetch {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let micro = self.micros.get(self.next)?;
        let start = Instant::now();
        let lane = &self.lanes[self.next % self.lanes.len()];
        let batch = match &mut self.late {
            None => lane.recv().ok(),
            Some(Late { every, tell }) => (1..).find_map(|times| match lane.recv_timeout(*every) {
                Err(RecvTimeoutError::Timeout) => {
                    tell(micro, *every * times);
                    None
                }
                received => Some(received.ok()),
            })?,
        };
        self.waited += start.elapsed();
        self.next += 1;
        Some(batch.unwrap_or(Err(DataError::Worker(micro.number))))
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.lanes.clear();
        for thread in self.threads.drain(..) {
            // A worker's panic was reported as `DataError::Worker`; here it must not turn into a second one.
            let _ = thread.join();
        }
    }
}
