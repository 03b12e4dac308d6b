//! The world of one rank: every collective is the identity.

use crate::{CommError, Communicator, Op};
use std::cell::RefCell;

/// The only rank of its world.
#[derive(Debug, Default)]
pub struct Solo {
    /// Reason of an abort, after which collectives fail as in a larger world.
    aborted: RefCell<Option<String>>,
}

impl Solo {
    fn check(&self, op: Op) -> Result<(), CommError> {
        match &*self.aborted.borrow() {
            Some(reason) => Err(CommError::PeerLost { rank: 0, reason: reason.clone(), op, sequence: 0 }),
            None => Ok(()),
        }
    }
}

impl Communicator for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.check(Op::Barrier)
    }

    fn broadcast(&self, _data: &mut [u8], root: usize) -> Result<(), CommError> {
        assert_eq!(root, 0, "broadcast from rank {root} in a world of one");
        self.check(Op::Broadcast { root })
    }

    fn all_reduce_sum(&self, _data: &mut [f32]) -> Result<(), CommError> {
        self.check(Op::AllReduce)
    }

    fn all_reduce_sum_f64(&self, _data: &mut [f64]) -> Result<(), CommError> {
        self.check(Op::AllReduce)
    }

    fn all_gather(&self, data: &[u8]) -> Result<Vec<u8>, CommError> {
        self.check(Op::AllGather)?;
        Ok(data.to_vec())
    }

    fn abort(&self, reason: &str) {
        self.aborted.borrow_mut().get_or_insert_with(|| reason.to_owned());
    }
}
