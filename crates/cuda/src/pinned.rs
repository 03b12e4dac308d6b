//! Page-locked host memory; beside `driver`, whose rules hold here as well, the one file that knows cudarc.

use crate::command::Address;
use crate::driver::{Gpu, Stream, driver, has};
use crate::error::CudaError;
use comm::GpuWord;
use cudarc::driver::{result, sys};
use std::rc::Rc;
use std::sync::Arc;

/// Page-locked host memory, zeros at first: the GPU copies from and to it while the host goes on.
#[derive(Debug)]
pub(crate) struct Pinned {
    gpu: Rc<Gpu>,
    pointer: *mut u8,
    bytes: usize,
}

impl Pinned {
    pub(crate) fn new(gpu: &Rc<Gpu>, bytes: usize) -> Result<Pinned, CudaError> {
        gpu.enter()?;
        let bytes = bytes.max(256);
        // SAFETY: cached memory (flags 0) of the driver, filled before anyone reads it, freed once, in `drop`.
        let pointer = driver("allocating page-locked memory", unsafe { result::malloc_host(bytes, 0) })?.cast::<u8>();
        // SAFETY: so many bytes were just allocated.
        unsafe { std::ptr::write_bytes(pointer, 0, bytes) };
        Ok(Pinned { gpu: gpu.clone(), pointer, bytes })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: allocated and filled in `new`. Callers wait for copies into it before they read.
        unsafe { std::slice::from_raw_parts(self.pointer, self.bytes) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; callers wait for copies from it before they write.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`; owners wait for their streams before they drop it.
        let _ = self.gpu.enter().map(|()| unsafe { result::free_host(self.pointer.cast()) });
    }
}

impl Stream {
    /// Host to device, from a place in page-locked memory that stays as it is until the copy is done.
    pub(crate) fn upload(&self, to: Address, from: &Pinned, at: usize, bytes: usize) -> Result<(), CudaError> {
        let from = &from.bytes()[at..at + bytes];
        // SAFETY: the source is page-locked and its owners wait for the copy; see the head of `driver` on addresses.
        driver("copying to the GPU", unsafe { result::memcpy_htod_async(to, from, self.raw) })
    }

    /// Device to host, into a place in page-locked memory.
    pub(crate) fn download(&self, to: &mut Pinned, at: usize, from: Address, bytes: usize) -> Result<(), CudaError> {
        let to = &mut to.bytes_mut()[at..at + bytes];
        // SAFETY: as above.
        driver("copying from the GPU", unsafe { result::memcpy_dtoh_async(to, from, self.raw) })
    }
}

/// A word of the host's that the GPU writes and another thread may read at any time. It is no memory of the driver's: readers may
/// outlive the context.
#[derive(Debug)]
pub(crate) struct PinnedWord {
    gpu: Rc<Gpu>,
    word: Arc<GpuWord>,
}

impl PinnedWord {
    /// None where the driver does not lock the host's own memory: nobody depends on the word.
    pub(crate) fn new(gpu: &Rc<Gpu>, word: Arc<GpuWord>) -> Option<PinnedWord> {
        if !has("cuMemHostRegister_v2") || !has("cuMemHostUnregister") {
            return None;
        }
        gpu.enter().ok()?;
        // SAFETY: a whole page, which lives as long as `self`; it is unlocked once, in `drop`.
        let done = unsafe { sys::cuMemHostRegister_v2(word.as_ptr().cast(), size_of::<GpuWord>(), 0) };
        done.result().ok().map(|()| PinnedWord { gpu: gpu.clone(), word })
    }

    /// The GPU copies the word at `from` to the host when the stream gets there.
    pub(crate) fn receive(&self, from: Address, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: the page lives and stays locked until the lists and graphs that write it are gone; readers use atomics.
        let done = unsafe { sys::cuMemcpyDtoHAsync_v2(self.word.as_ptr().cast(), from, size_of::<u32>(), stream.raw) };
        driver("telling the host where the GPU is", done.result())
    }
}

impl Drop for PinnedWord {
    fn drop(&mut self) {
        // SAFETY: locked in `new`; owners wait for their streams before they drop it.
        let _ = self.gpu.enter().map(|()| unsafe { sys::cuMemHostUnregister(self.word.as_ptr().cast()) });
    }
}
