//! Copies that the host waits for, through one piece of page-locked memory; and the scalars of a step, which it does not.

use crate::command::Address;
use crate::driver::{Event, EventKind, Gpu, Stream};
use crate::error::CudaError;
use crate::pinned::Pinned;
use std::rc::Rc;
use tensor::{Dtype, bf16};

/// Most bytes that are on their way at once.
const WINDOW: usize = 4 << 20;

#[derive(Debug)]
pub(crate) struct Transfer {
    window: Pinned,
}

impl Transfer {
    pub(crate) fn new(gpu: &Rc<Gpu>) -> Result<Transfer, CudaError> {
        Ok(Transfer { window: Pinned::new(gpu, WINDOW)? })
    }

    /// The bytes at each place, after all that was put on the stream. Small ones share a wait.
    pub(crate) fn fetch(&mut self, stream: &Stream, places: &[(Address, usize)]) -> Result<Vec<Vec<u8>>, CudaError> {
        stream.gpu.enter()?;
        let mut out: Vec<Vec<u8>> = places.iter().map(|p| Vec::with_capacity(p.1)).collect();
        // (place, offset in the window, bytes) of what is on its way.
        let (mut coming, mut used) = (Vec::new(), 0);
        for (i, &(address, bytes)) in places.iter().enumerate() {
            let mut done = 0;
            while done < bytes {
                if used == WINDOW {
                    self.land(stream, &mut coming, &mut out)?;
                    used = 0;
                }
                let n = (bytes - done).min(WINDOW - used);
                stream.download(&mut self.window, used, address + done as Address, n)?;
                coming.push((i, used, n));
                done += n;
                used = (used + n).next_multiple_of(16).min(WINDOW);
            }
        }
        self.land(stream, &mut coming, &mut out)?;
        Ok(out)
    }

    fn land(
        &self,
        stream: &Stream,
        coming: &mut Vec<(usize, usize, usize)>,
        out: &mut [Vec<u8>],
    ) -> Result<(), CudaError> {
        stream.synchronize()?;
        for (i, at, n) in coming.drain(..) {
            out[i].extend_from_slice(&self.window.bytes()[at..at + n]);
        }
        Ok(())
    }

    /// Writes bytes to the device, after all that was put on the stream.
    pub(crate) fn store(&mut self, stream: &Stream, to: Address, bytes: &[u8]) -> Result<(), CudaError> {
        stream.gpu.enter()?;
        for (i, chunk) in bytes.chunks(WINDOW).enumerate() {
            self.window.bytes_mut()[..chunk.len()].copy_from_slice(chunk);
            stream.upload(to + (i * WINDOW) as Address, &self.window, 0, chunk.len())?;
            stream.synchronize()?;
        }
        Ok(())
    }
}

/// The scalars of the steps that are on their way: a copy's source is not written again before the copy is done.
#[derive(Debug)]
pub(crate) struct ScalarRing {
    hosts: Vec<(Pinned, Event)>,
    next: usize,
}

impl ScalarRing {
    pub(crate) fn new(gpu: &Rc<Gpu>, bytes: usize) -> Result<ScalarRing, CudaError> {
        let one = |_| Ok((Pinned::new(gpu, bytes)?, Event::new(gpu, EventKind::Order)?));
        Ok(ScalarRing { hosts: (0..4).map(one).collect::<Result<_, CudaError>>()?, next: 0 })
    }

    pub(crate) fn write(&mut self, stream: &Stream, to: Address, bytes: &[u8]) -> Result<(), CudaError> {
        let count = self.hosts.len();
        let (host, copied) = &mut self.hosts[self.next];
        self.next = (self.next + 1) % count;
        copied.synchronize()?;
        host.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        stream.upload(to, host, 0, bytes.len())?;
        copied.record(stream)
    }
}

/// Bytes of device memory as f32.
pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Bytes of device memory as numbers.
pub(crate) fn numbers(bytes: &[u8], dtype: Dtype) -> Vec<f64> {
    let words = |n: usize| bytes.chunks_exact(n);
    match dtype {
        Dtype::Bf16 => words(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        Dtype::F32 => floats(bytes).into_iter().map(f64::from).collect(),
        Dtype::I32 => words(4).map(|b| f64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
        Dtype::U8 => bytes.iter().map(|&b| f64::from(b)).collect(),
        other => unreachable!("{other} is not stored on a GPU"),
    }
}
