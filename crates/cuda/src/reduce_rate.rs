//! How fast NCCL sums over GPUs: a communicator and a buffer of its own, no kernel of this program.

use crate::driver::{Buffer, Gpu, Stream};
use crate::error::CudaError;
use crate::measure::{REPEATS, median_seconds};
use crate::ranks::Meeting;
use comm::{Aborter, Element, Nccl};
use std::fmt::{Debug, Formatter};

/// GPUs that were joined to be measured.
pub struct Reduction {
    // First: NCCL waits for nothing that is still on its stream.
    stream: Stream,
    nccl: Nccl,
    buffer: Buffer,
}

impl Debug for Reduction {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {} to be measured", self.nccl.rank(), self.nccl.world())
    }
}

impl Reduction {
    /// All-reduces that one measurement runs.
    pub const RUNS: usize = REPEATS + 1;

    /// Joins the other ranks of the meeting, on the GPU of this number, for sums of `most_bytes` at most.
    pub fn join(ordinal: usize, meeting: Meeting, most_bytes: usize) -> Result<Reduction, CudaError> {
        let gpu = Gpu::open(ordinal)?;
        let (stream, buffer) = (Stream::new(&gpu)?, Buffer::new(&gpu, most_bytes)?);
        let zeroed = stream.fill(buffer.address, 0, buffer.bytes);
        zeroed.map_err(|fault| CudaError::Driver { what: "filling memory".into(), fault })?;
        let Meeting { library, id, rank, world, settings, .. } = meeting;
        let nccl = Nccl::join(library, id, rank, world, &settings).map_err(failed)?;
        Ok(Reduction { stream, nccl, buffer })
    }

    /// What ends it from another thread.
    pub fn aborter(&self) -> Aborter {
        self.nccl.aborter()
    }

    /// Seconds of an all-reduce of so many bytes, of zeros in f32: the median of ten, after one that connects the ranks. All ranks call
    /// it with the same number.
    pub fn seconds(&self, bytes: usize) -> Result<f64, CudaError> {
        let elements = bytes.min(self.buffer.bytes) / size_of::<f32>();
        median_seconds(&self.stream, || {
            // SAFETY: elements of a buffer that nothing else uses, and that lives until the stream is done: `median_seconds` waits for
            // its work, and a driver waits before it frees.
            let done = unsafe {
                self.nccl.all_reduce_sum(self.buffer.address, elements, Element::F32, self.stream.raw.cast())
            };
            done.map_err(failed)?;
            self.nccl.async_error().map_err(failed)
        })
    }
}

fn failed(error: comm::NcclError) -> CudaError {
    CudaError::Ranks { what: "the sum over ranks that is measured".to_string(), source: Box::new(error) }
}
