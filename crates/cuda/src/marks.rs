//! Marks in the work of a rank's GPU, by which the watch sees where it is: copies of four bytes from a table on the device to a
//! word of the host's, two on the compute stream in a phase and two around each sum on the stream of sums. They may be captured. Where
//! nobody watches there are none.
//!
//! Exchanges of carried values and of batch statistics have no marks: a GPU that is in one of them seems to be where it was before.

use crate::command::Address;
use crate::driver::{Buffer, Gpu, Stream};
use crate::error::CudaError;
use crate::executor::Executor;
use crate::pinned::PinnedWord;
use crate::program::Step;
use crate::ranks::Between;
use comm::{GpuAt, GpuPlace, GpuWord};
use plan::Plan;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// Most different words; of more there are no marks.
const MOST: usize = 4_096;

#[derive(Debug)]
pub(crate) struct Marks {
    to: PinnedWord,
    /// The words, each once, as they come.
    table: Buffer,
    known: RefCell<Vec<u32>>,
}

impl Marks {
    pub(crate) fn new(gpu: &Rc<Gpu>, word: Option<Arc<GpuWord>>) -> Result<Option<Marks>, CudaError> {
        let Some(to) = word.and_then(|word| PinnedWord::new(gpu, word)) else { return Ok(None) };
        Ok(Some(Marks { to, table: Buffer::new(gpu, 4 * MOST)?, known: RefCell::default() }))
    }

    /// Puts the mark at `from` on the stream.
    pub(crate) fn issue(&self, from: Address, stream: &Stream) -> Result<(), CudaError> {
        self.to.receive(from, stream)
    }
}

impl Executor {
    /// Where the mark of a place lies on the device, if anybody watches.
    pub(crate) fn mark(&self, place: GpuPlace) -> Result<Option<Address>, CudaError> {
        let Some(marks) = self.ranks.as_ref().and_then(|ranks| ranks.marks.as_ref()) else { return Ok(None) };
        let (word, mut known) = (place.word(), marks.known.borrow_mut());
        let address = |i: usize| marks.table.address + 4 * i as Address;
        if let Some(i) = known.iter().position(|&w| w == word) {
            return Ok(Some(address(i)));
        }
        if known.len() == MOST {
            return Ok(None);
        }
        self.store(address(known.len()), &word.to_le_bytes())?;
        known.push(word);
        Ok(Some(address(known.len() - 1)))
    }

    /// The mark as a list of one step; an empty one if nobody watches, and where ranks sum nothing, as in evaluations.
    pub(crate) fn mark_step(&self, plan: &Plan, phase: usize, at: GpuAt) -> Result<Vec<Step>, CudaError> {
        let buckets = plan.reduce.buckets.iter().filter(|b| b.phase == phase).count();
        let place = GpuPlace { phase, at, buckets };
        let Some(from) = (if buckets > 0 { self.mark(place)? } else { None }) else { return Ok(vec![]) };
        let ranks = self.ranks.as_ref().expect("there are marks").clone();
        Ok(vec![Step::between(Between::Mark { ranks, from })])
    }
}
