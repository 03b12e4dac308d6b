//! A communicator whose collectives show in the rank's progress.

use crate::progress::Progress;
use crate::{CommError, Communicator, Op};
use std::sync::Arc;
use std::time::Duration;

/// Forwards to `inner`; begin and end of every collective go to `progress`.
pub struct Watched {
    pub inner: Box<dyn Communicator>,
    pub progress: Arc<Progress>,
}

impl Watched {
    /// A collective that fails has no end: the rank stays in it, as reports should say.
    fn during<T>(&self, op: Op, bytes: usize, call: impl FnOnce() -> Result<T, CommError>) -> Result<T, CommError> {
        self.progress.begin_collective(op, bytes);
        let before = self.inner.arriving();
        let outcome = call()?;
        if let (Some(before), Some(after)) = (before, self.inner.arriving()) {
            self.progress.arrived(after - before);
        }
        self.progress.end_collective();
        Ok(outcome)
    }
}

impl Communicator for Watched {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn world_size(&self) -> usize {
        self.inner.world_size()
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.during(Op::Barrier, 0, || self.inner.barrier())
    }

    fn broadcast(&self, data: &mut [u8], root: usize) -> Result<(), CommError> {
        self.during(Op::Broadcast { root }, data.len(), || self.inner.broadcast(data, root))
    }

    fn all_reduce_sum(&self, data: &mut [f32]) -> Result<(), CommError> {
        self.during(Op::AllReduce, size_of_val(data), || self.inner.all_reduce_sum(data))
    }

    fn all_reduce_sum_f64(&self, data: &mut [f64]) -> Result<(), CommError> {
        self.during(Op::AllReduce, size_of_val(data), || self.inner.all_reduce_sum_f64(data))
    }

    fn all_gather(&self, data: &[u8]) -> Result<Vec<u8>, CommError> {
        self.during(Op::AllGather, data.len(), || self.inner.all_gather(data))
    }

    fn abort(&self, reason: &str) {
        self.inner.abort(reason);
    }

    fn arriving(&self) -> Option<Duration> {
        self.inner.arriving()
    }

    fn all_reduce_or(&self, flags: u32) -> Result<u32, CommError> {
        self.during(Op::AllReduce, 4, || self.inner.all_reduce_or(flags))
    }

    fn all_gather_varied(&self, data: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        self.during(Op::AllGather, data.len(), || self.inner.all_gather_varied(data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Solo;

    #[test]
    fn collectives_pass_through_and_are_recorded() {
        let progress = Arc::new(Progress::new());
        let comm = Watched { inner: Box::new(Solo::default()), progress: Arc::clone(&progress) };
        comm.barrier().unwrap();
        comm.broadcast(&mut [1, 2], 0).unwrap();
        comm.all_reduce_sum(&mut [1.0]).unwrap();
        comm.all_reduce_sum_f64(&mut [1.0]).unwrap();
        assert_eq!(comm.all_gather(&[5]).unwrap(), [5]);
        assert_eq!(comm.all_reduce_or(6).unwrap(), 6);
        assert_eq!(comm.all_gather_varied(&[1, 2, 3]).unwrap(), [[1, 2, 3]]);
        let bytes: Vec<u64> = progress.last(16).iter().map(|e| e.bytes).collect();
        assert_eq!(bytes, [0, 2, 4, 8, 1, 4, 3]);
        assert!(progress.last(16).iter().all(|e| e.end_us.is_some()));
        comm.abort("no more");
        comm.barrier().unwrap_err();
        assert!(progress.look().inside);
        assert_eq!(progress.last(1)[0].end_us, None);
    }
}
