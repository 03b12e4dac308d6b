//! The CUDA driver; everything of cudarc is behind this file and `pinned`.
//!
//! cudarc panics where the driver, or one of its functions, is missing. So nothing is called before `gate` has looked: for the
//! library, for every function used here, for the version. All handles keep their `Gpu` alive and make its context current
//! themselves, on whatever thread they are; none of them may change threads, which their raw pointers see to.
//!
//! Device addresses are plain numbers. A wrong one is a device error at the next wait, not undefined behaviour of the host.

use crate::command::Address;
use crate::error::{CudaError, Fault};
use crate::facts::{self, Facts};
use cudarc::driver::{result, sys};
use std::cell::Cell;
use std::ffi::{CString, c_void};
use std::rc::Rc;

/// What an error of a wait says it was doing.
pub(crate) const WAITING: &str = "waiting for the GPU";

type Result<T> = std::result::Result<T, CudaError>;

/// Every function that this file calls, but those that a driver may lack.
const SYMBOLS: &[&str] = &[
    "cuInit",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetUuid_v2",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuStreamCreate",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuStreamDestroy_v2",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventElapsedTime_v2",
    "cuEventDestroy_v2",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuModuleUnload",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
    "cuGraphInstantiateWithFlags",
    "cuGraphUpload",
    "cuGraphLaunch",
    "cuGraphExecDestroy",
    "cuGraphDestroy",
];

fn fault(error: result::DriverError) -> Fault {
    let text = |r: std::result::Result<&std::ffi::CStr, result::DriverError>, other: &str| {
        r.map_or(other.to_string(), |t| t.to_string_lossy().into_owned())
    };
    Fault {
        code: error.0 as u32,
        name: text(error.error_name(), "unknown error"),
        text: text(error.error_string(), "the driver has no text for it"),
    }
}

pub(crate) fn driver<T>(what: &str, result: std::result::Result<T, result::DriverError>) -> Result<T> {
    result.map_err(|e| CudaError::Driver { what: what.to_string(), fault: fault(e) })
}

/// Whether there is a function of this name; the library must be present.
pub(crate) fn has(symbol: &str) -> bool {
    let name = format!("{symbol}\0");
    // SAFETY: the symbol is looked up, not called.
    unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes()).is_ok() }
}

/// The number of GPUs, once it is known that the driver can be called.
fn gate() -> Result<usize> {
    // SAFETY: loads the library and runs its initialisers, as the driver is made for.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    if !has("cuDriverGetVersion") {
        return Err(CudaError::MissingSymbol("cuDriverGetVersion"));
    }
    let mut version = 0;
    // SAFETY: the function is there; it writes one int and may be called before cuInit.
    let answer = unsafe { sys::cuDriverGetVersion(&mut version) };
    if answer == sys::CUresult::CUDA_SUCCESS && version < 13000 {
        return Err(CudaError::OldDriver { major: version / 1000, minor: version % 1000 / 10 });
    }
    if let Some(missing) = SYMBOLS.iter().find(|s| !has(s)) {
        return Err(CudaError::MissingSymbol(missing));
    }
    match result::init() {
        Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => return Err(CudaError::NoDevice),
        other => other.map_err(|e| CudaError::Init(fault(e)))?,
    }
    match driver("counting GPUs", result::device::get_count())? {
        0 => Err(CudaError::NoDevice),
        n => Ok(n as usize),
    }
}

/// The GPUs of this machine, in the driver's order. Errors: there is no driver or GPU that this program can use.
pub fn devices() -> Result<Vec<Facts>> {
    (0..gate()?).map(|i| look(i).map(|f| f.1)).collect()
}

fn look(ordinal: usize) -> Result<(sys::CUdevice, Facts)> {
    use sys::CUdevice_attribute as A;
    let device = driver("opening a GPU", result::device::get(ordinal as i32))?;
    let number = |what| {
        // SAFETY: the device handle is the driver's own.
        driver("asking what a GPU is", unsafe { result::device::get_attribute(device, what) })
    };
    let bytes = driver("asking for a GPU's id", result::device::get_uuid(device))?.bytes.map(|b| b as u8);
    let facts = Facts {
        ordinal,
        name: driver("asking for a GPU's name", result::device::get_name(device))?,
        compute: [
            number(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            number(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ],
        sms: number(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1) as u32,
        // SAFETY: as above.
        memory_bytes: driver("asking for a GPU's memory", unsafe { result::device::total_mem(device) })?,
        uuid: facts::uuid(bytes),
        pci: facts::pci(
            number(A::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?,
            number(A::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?,
            number(A::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?,
        ),
    };
    Ok((device, facts))
}

/// A GPU with its primary context.
#[derive(Debug)]
pub(crate) struct Gpu {
    device: sys::CUdevice,
    context: sys::CUcontext,
    pub facts: Facts,
}

impl Gpu {
    pub(crate) fn open(ordinal: usize) -> Result<Rc<Gpu>> {
        let count = gate()?;
        if ordinal >= count {
            return Err(CudaError::Ordinal { ordinal, count });
        }
        let (device, facts) = look(ordinal)?;
        // SAFETY: the device handle is the driver's own; the context is released once, in `drop`.
        let context = driver("making a context", unsafe { result::primary_ctx::retain(device) })?;
        let gpu = Gpu { device, context, facts };
        gpu.enter()?;
        Ok(Rc::new(gpu))
    }

    /// Makes its context the thread's.
    pub(crate) fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        driver("entering a context", unsafe { result::ctx::set_current(self.context) })
    }

    /// Bytes that are free, and all of them.
    pub(crate) fn memory(&self) -> Result<(usize, usize)> {
        self.enter()?;
        driver("asking for free memory", result::mem_get_info())
    }

    /// `0 (NVIDIA H200)`
    pub(crate) fn label(&self) -> String {
        format!("{} ({})", self.facts.ordinal, self.facts.name)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: retained once, and every handle made in it holds an `Rc` of `self`. An error has no one to hear it.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Device memory, 256-byte aligned.
#[derive(Debug)]
pub(crate) struct Buffer {
    gpu: Rc<Gpu>,
    pub address: Address,
    pub bytes: usize,
}

impl Buffer {
    pub(crate) fn new(gpu: &Rc<Gpu>, bytes: usize) -> Result<Buffer> {
        gpu.enter()?;
        // SAFETY: no one reads it as a type; it is freed once, in `drop`.
        let address = unsafe { result::malloc_sync(bytes.max(256)) };
        let address = driver(&format!("allocating {}", crate::error::size(bytes)), address)?;
        Ok(Buffer { gpu: gpu.clone(), address, bytes })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`; the driver waits for what runs on it.
        let _ = self.gpu.enter().map(|()| unsafe { result::free_sync(self.address) });
    }
}

#[derive(Debug)]
pub(crate) struct Event {
    gpu: Rc<Gpu>,
    raw: sys::CUevent,
}

/// What an event is for: events without time are cheaper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventKind {
    Order,
    Time,
}

impl Event {
    pub(crate) fn new(gpu: &Rc<Gpu>, kind: EventKind) -> Result<Event> {
        gpu.enter()?;
        let flags = match kind {
            EventKind::Order => sys::CUevent_flags::CU_EVENT_DISABLE_TIMING,
            EventKind::Time => sys::CUevent_flags::CU_EVENT_DEFAULT,
        };
        Ok(Event { gpu: gpu.clone(), raw: driver("making an event", result::event::create(flags))? })
    }

    pub(crate) fn record(&self, stream: &Stream) -> Result<()> {
        self.gpu.enter()?;
        // SAFETY: both live.
        driver("recording an event", unsafe { result::event::record(self.raw, stream.raw) })
    }

    /// Waits on the host; at once if it was never recorded.
    pub(crate) fn synchronize(&self) -> Result<()> {
        self.gpu.enter()?;
        // SAFETY: it lives.
        driver(WAITING, unsafe { result::event::synchronize(self.raw) })
    }

    /// Milliseconds from `self` to `end`, both reached.
    pub(crate) fn elapsed_ms(&self, end: &Event) -> Result<f32> {
        // SAFETY: both live and were made with `EventKind::Time`, or the driver says so.
        driver("reading a time", unsafe { result::event::elapsed(self.raw, end.raw) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = self.gpu.enter().map(|()| unsafe { result::event::destroy(self.raw) });
    }
}

/// A queue of work, done in order.
#[derive(Debug)]
pub(crate) struct Stream {
    pub gpu: Rc<Gpu>,
    pub raw: sys::CUstream,
}

impl Stream {
    pub(crate) fn new(gpu: &Rc<Gpu>) -> Result<Stream> {
        gpu.enter()?;
        let raw = driver("making a stream", result::stream::create(result::stream::StreamKind::NonBlocking))?;
        Ok(Stream { gpu: gpu.clone(), raw })
    }

    pub(crate) fn synchronize(&self) -> Result<()> {
        self.gpu.enter()?;
        // SAFETY: it lives.
        driver(WAITING, unsafe { result::stream::synchronize(self.raw) })
    }

    /// What comes after waits for the event.
    pub(crate) fn wait(&self, event: &Event) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both live.
        driver("waiting for an event", unsafe { result::stream::wait_event(self.raw, event.raw, flags) })
    }

    pub(crate) fn copy(&self, to: Address, from: Address, bytes: usize) -> std::result::Result<(), Fault> {
        // SAFETY: see the file's head on addresses.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.raw) }.map_err(fault)
    }

    pub(crate) fn fill(&self, to: Address, byte: u8, bytes: usize) -> std::result::Result<(), Fault> {
        // SAFETY: see the file's head on addresses.
        unsafe { result::memset_d8_async(to, byte, bytes, self.raw) }.map_err(fault)
    }

    /// Launches a kernel whose one argument is the struct in `args`.
    pub(crate) fn launch(
        &self,
        function: &Function,
        [grid, block]: [[u32; 3]; 2],
        shared_bytes: u32,
        args: &[u128],
    ) -> std::result::Result<(), Fault> {
        let mut params = [args.as_ptr().cast_mut().cast::<c_void>()];
        let ([gx, gy, gz], [bx, by, bz]) = (grid, block);
        // SAFETY: the function's module is loaded (`Modules` outlives all lists), the struct has the size that the kernel takes
        // (`Modules::function` asked), and the driver copies it before it returns.
        unsafe { result::launch_kernel(function.raw, (gx, gy, gz), (bx, by, bz), shared_bytes, self.raw, &mut params) }
            .map_err(fault)
    }

    /// Records what `work` puts on the stream, instead of running it.
    pub(crate) fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.gpu.enter()?;
        // Thread-local: calls of other threads, such as a watchdog's, do not break it.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives; every capture is ended below.
        driver("beginning a capture", unsafe { result::stream::begin_capture(self.raw, mode) })?;
        let done = work();
        // SAFETY: it is capturing.
        let graph = driver("ending a capture", unsafe { result::stream::end_capture(self.raw) });
        done?;
        let graph = graph?;
        // SAFETY: the graph is whole, and destroyed after its executable form is made, which does not need it.
        let exec = unsafe {
            let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            exec
        };
        let graph = Graph { gpu: self.gpu.clone(), exec: driver("making a graph ready", exec)? };
        // SAFETY: both live.
        driver("uploading a graph", unsafe { result::graph::upload(graph.exec, self.raw) })?;
        Ok(graph)
    }

    pub(crate) fn launch_graph(&self, graph: &Graph) -> Result<()> {
        // SAFETY: both live; the memory and modules that it uses are dropped after it.
        driver("launching a graph", unsafe { result::graph::launch(graph.exec, self.raw) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = self.gpu.enter().map(|()| unsafe { result::stream::destroy(self.raw) });
    }
}

/// A captured list of work, ready to run again.
#[derive(Debug)]
pub(crate) struct Graph {
    gpu: Rc<Gpu>,
    exec: sys::CUgraphExec,
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made in `capture`, destroyed once.
        let _ = self.gpu.enter().map(|()| unsafe { result::graph::exec_destroy(self.exec) });
    }
}

/// A loaded fatbin.
#[derive(Debug)]
pub(crate) struct Module {
    gpu: Rc<Gpu>,
    raw: sys::CUmodule,
}

/// A kernel. It is valid while its module is.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    raw: sys::CUfunction,
    /// Dynamic shared memory that it was allowed.
    shared_bytes: Rc<Cell<u32>>,
}

impl Module {
    pub(crate) fn load(gpu: &Rc<Gpu>, image: &[u8]) -> std::result::Result<Module, Fault> {
        // Aligned, and ended as a text is: what is no fatbin is read as one.
        let mut words = vec![0u128; image.len() / 16 + 1];
        bytemuck::cast_slice_mut(&mut words)[..image.len()].copy_from_slice(image);
        // SAFETY: a whole image, which the driver copies.
        let raw = unsafe { result::module::load_data(words.as_ptr().cast()) }.map_err(fault)?;
        Ok(Module { gpu: gpu.clone(), raw })
    }

    pub(crate) fn function(&self, name: &str) -> Option<Function> {
        let name = CString::new(name).ok()?;
        // SAFETY: the module is loaded.
        let raw = unsafe { result::module::get_function(self.raw, name) }.ok()?;
        Some(Function { raw, shared_bytes: Rc::default() })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded in `load`, unloaded once, after all that was launched from it.
        let _ = self.gpu.enter().map(|()| unsafe { result::module::unload(self.raw) });
    }
}

impl Function {
    /// Allows it so much dynamic shared memory: above 48 KiB a kernel has to ask.
    pub(crate) fn allow_shared(&self, bytes: u32) -> std::result::Result<(), Fault> {
        if bytes > self.shared_bytes.get() {
            let what = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function's module is loaded.
            unsafe { result::function::set_function_attribute(self.raw, what, bytes as i32) }.map_err(fault)?;
            self.shared_bytes.set(bytes);
        }
        Ok(())
    }

    /// Bytes of its argument, where the driver can say.
    pub(crate) fn argument_bytes(&self) -> Option<usize> {
        if !has("cuFuncGetParamInfo") {
            return None;
        }
        let (mut offset, mut bytes) = (0, 0);
        // SAFETY: the function is there; it writes two numbers.
        let answer = unsafe { sys::cuFuncGetParamInfo(self.raw, 0, &mut offset, &mut bytes) };
        (answer == sys::CUresult::CUDA_SUCCESS).then_some(bytes)
    }
}
