//! A communicator that several owners use one after the other: the stages of a run, and who ends it.

use crate::{CommError, Communicator};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Handle to a rank's communicator. Its collectives are called by one owner at a time.
#[derive(Clone)]
pub struct Shared(Arc<Mutex<Box<dyn Communicator>>>);

impl Shared {
    pub fn new(inner: Box<dyn Communicator>) -> Self {
        Self(Arc::new(Mutex::new(inner)))
    }

    fn inner(&self) -> MutexGuard<'_, Box<dyn Communicator>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Communicator for Shared {
    fn rank(&self) -> usize {
        self.inner().rank()
    }

    fn world_size(&self) -> usize {
        self.inner().world_size()
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.inner().barrier()
    }

    fn broadcast(&self, data: &mut [u8], root: usize) -> Result<(), CommError> {
        self.inner().broadcast(data, root)
    }

    fn all_reduce_sum(&self, data: &mut [f32]) -> Result<(), CommError> {
        self.inner().all_reduce_sum(data)
    }

    fn all_reduce_sum_f64(&self, data: &mut [f64]) -> Result<(), CommError> {
        self.inner().all_reduce_sum_f64(data)
    }

    fn all_gather(&self, data: &[u8]) -> Result<Vec<u8>, CommError> {
        self.inner().all_gather(data)
    }

    fn all_gather_varied(&self, data: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        self.inner().all_gather_varied(data)
    }

    fn arriving(&self) -> Option<Duration> {
        self.inner().arriving()
    }

    fn abort(&self, reason: &str) {
        self.inner().abort(reason);
    }
}
