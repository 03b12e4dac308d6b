//! The few calls of the CUDA driver that the tests make.

use bytemuck::Pod;
use cudarc::driver::sys;
use std::ffi::c_void;
use std::ptr;

/// A device with one thread's current context. Nothing is given back: the process ends soon.
pub(crate) struct Gpu;

pub(crate) struct Stream(pub(crate) sys::CUstream);
pub(crate) struct Event(sys::CUevent);
pub(crate) struct Graph(sys::CUgraphExec);

/// Device memory with `len` elements.
pub(crate) struct Buffer {
    pub(crate) address: u64,
    pub(crate) len: usize,
}

macro_rules! cuda {
    ($call:ident($($argument:expr),*)) => {{
        // SAFETY: pointers are to live values of the types that the driver names.
        let code = unsafe { sys::$call($($argument),*) };
        assert_eq!(code, sys::CUresult::CUDA_SUCCESS, stringify!($call));
    }};
}

impl Gpu {
    pub(crate) fn new(ordinal: i32) -> Self {
        let (mut device, mut context) = (0, ptr::null_mut());
        cuda!(cuInit(0));
        cuda!(cuDeviceGet(&mut device, ordinal));
        cuda!(cuDevicePrimaryCtxRetain(&mut context, device));
        cuda!(cuCtxSetCurrent(context));
        Self
    }

    pub(crate) fn stream(&self) -> Stream {
        let mut stream = ptr::null_mut();
        cuda!(cuStreamCreate(&mut stream, 1));
        Stream(stream)
    }

    pub(crate) fn event(&self) -> Event {
        let mut event = ptr::null_mut();
        cuda!(cuEventCreate(&mut event, 2));
        Event(event)
    }

    pub(crate) fn buffer<T: Pod>(&self, host: &[T]) -> Buffer {
        let mut address = 0;
        cuda!(cuMemAlloc_v2(&mut address, size_of_val(host).max(1)));
        let buffer = Buffer { address, len: host.len() };
        buffer.write(host);
        buffer
    }
}

impl Buffer {
    pub(crate) fn write<T: Pod>(&self, host: &[T]) {
        if !host.is_empty() {
            cuda!(cuMemcpyHtoD_v2(self.address, host.as_ptr().cast(), size_of_val(host)));
        }
    }

    pub(crate) fn read<T: Pod>(&self) -> Vec<T> {
        let mut host = vec![T::zeroed(); self.len];
        if self.len > 0 {
            cuda!(cuMemcpyDtoH_v2(host.as_mut_ptr().cast(), self.address, self.len * size_of::<T>()));
        }
        host
    }
}

impl Stream {
    pub(crate) fn raw(&self) -> *mut c_void {
        self.0.cast()
    }

    pub(crate) fn wait(&self) {
        cuda!(cuStreamSynchronize(self.0));
    }

    pub(crate) fn record(&self, event: &Event) {
        cuda!(cuEventRecord(event.0, self.0));
    }

    pub(crate) fn follow(&self, event: &Event) {
        cuda!(cuStreamWaitEvent(self.0, event.0, 0));
    }

    /// Fills with one value, in the order of the stream.
    pub(crate) fn fill(&self, buffer: &Buffer, value: f32) {
        cuda!(cuMemsetD32Async(buffer.address, value.to_bits(), buffer.len, self.0));
    }

    pub(crate) fn copy(&self, to: &Buffer, from: &Buffer) {
        cuda!(cuMemcpyDtoDAsync_v2(to.address, from.address, 4 * from.len, self.0));
    }

    /// What `f` submits becomes a graph.
    pub(crate) fn capture(&self, f: impl FnOnce()) -> Graph {
        let (mut graph, mut exec) = (ptr::null_mut(), ptr::null_mut());
        cuda!(cuStreamBeginCapture_v2(self.0, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
        f();
        cuda!(cuStreamEndCapture(self.0, &mut graph));
        cuda!(cuGraphInstantiateWithFlags(&mut exec, graph, 0));
        cuda!(cuGraphDestroy(graph));
        Graph(exec)
    }

    pub(crate) fn launch(&self, graph: &Graph) {
        cuda!(cuGraphLaunch(graph.0, self.0));
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        cuda!(cuGraphExecDestroy(self.0));
    }
}
