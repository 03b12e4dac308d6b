//! NCCL: the communicator of one rank on one GPU.
//!
//! Invariants: communicators never block, so each call returns within the limit or is an error; the handle is used under
//! a lock and taken out of it before it is aborted or destroyed, so no thread uses it after; an abort comes from any
//! thread and at any time. NCCL has no timeouts: who waits for a stream needs a watch thread that asks
//! [`Aborter::poll`] and owns the clock.
//!
//! The ranks connect at their first collective: call each one once before it is captured.
//!
//! Nothing of the environment is set here. Two ranks on one GPU, for tests of the program: before NCCL 2.30 each rank
//! needs `NCCL_HOSTID=job-$RANK NCCL_NET=Socket NCCL_P2P_DISABLE=1 NCCL_SHM_DISABLE=1 NCCL_IB_DISABLE=1
//! NCCL_SOCKET_IFNAME=lo NCCL_MAX_CTAS=2`, later versions `NCCL_MULTI_RANK_GPU_ENABLE=1`.

use crate::nccl_library::{IN_PROGRESS, Library, NcclError, SUCCESS, VERSION_KNOWN};
use cudarc::nccl::sys::{ncclComm_t, ncclConfig_t, ncclUniqueId};
use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Between two questions whether a call in progress is done.
const POLL: Duration = Duration::from_micros(200);
const SUM: c_int = 0;

/// What a communicator is made with.
#[derive(Clone, Copy, Debug)]
pub struct NcclSettings {
    /// Of each call that goes on after it has returned: to join, to connect at the first collective, to end.
    pub limit: Duration,
    /// Most blocks that NCCL's kernels may take from the program's own; `None`: as NCCL likes.
    pub max_ctas: Option<u32>,
}

/// Type of the elements of a sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    F32,
    Bf16,
    U8,
}

impl Element {
    /// `ncclDataType_t`.
    fn code(self) -> c_int {
        match self {
            Self::U8 => 1,
            Self::F32 => 7,
            Self::Bf16 => 9,
        }
    }
}

/// One rank's communicator. May move to another thread, but not be shared; see [`Aborter`] for what may.
///
/// Captured graphs with its collectives must be gone before it is dropped: the drop waits until all ranks drop theirs
/// (for the limit at most), and gives the communicator back. One that has failed, or is dropped while panicking, is left
/// to the end of the process, since NCCL would wait for ranks that do not come.
pub struct Nccl {
    handle: Arc<Handle>,
    world: usize,
    limit: Duration,
    /// Inside of `group`: the lock is held, this is what it guards.
    grouped: Cell<Option<ncclComm_t>>,
}

// SAFETY: NCCL ties a communicator to a device, not to a thread; `grouped` is empty whenever the value can move.
unsafe impl Send for Nccl {}

/// Ends a communicator from any thread, in whatever its own thread waits.
#[derive(Clone)]
pub struct Aborter(Arc<Handle>);

struct Handle {
    library: Arc<Library>,
    rank: usize,
    state: Mutex<State>,
}

enum State {
    Live(Communicator),
    Aborted,
    Ended,
}

#[derive(Clone, Copy)]
struct Communicator(ncclComm_t);
// SAFETY: the pointer is only used under the lock, or by the one thread that took it out.
unsafe impl Send for Communicator {}

impl Nccl {
    /// What the ranks of one communicator meet by: rank 0 makes it, the others get it by [`broadcast`]. Needs no GPU.
    ///
    /// [`broadcast`]: crate::Communicator::broadcast
    pub fn unique_id(library: &Library) -> Result<[u8; 128], NcclError> {
        let mut id = ncclUniqueId { internal: [0; 128] };
        // SAFETY: the pointer is to one id.
        let code = unsafe { (library.functions.get_unique_id)(&mut id) };
        match code {
            SUCCESS => Ok(id.internal.map(|c| c.cast_unsigned())),
            code => Err(library.error("ncclGetUniqueId", None, code)),
        }
    }

    /// Joins the other ranks, on the GPU of the calling thread's current context.
    ///
    /// Errors: NCCL's; [`NcclError::TimedOut`] if not all have joined within the limit. What was begun is then left to
    /// the end of the process.
    pub fn join(
        library: Arc<Library>,
        id: [u8; 128],
        rank: usize,
        world: usize,
        settings: &NcclSettings,
    ) -> Result<Self, NcclError> {
        let mut config = config(settings);
        let id = ncclUniqueId { internal: id.map(|c| c as c_char) };
        let as_int = |n: usize| c_int::try_from(n).unwrap_or(c_int::MAX);
        let mut comm = ptr::null_mut();
        // SAFETY: the pointers are to one communicator and one filled configuration, which NCCL copies.
        let code =
            unsafe { (library.functions.init_rank_config)(&mut comm, as_int(world), id, as_int(rank), &mut config) };
        if code != SUCCESS && code != IN_PROGRESS {
            return Err(library.error("ncclCommInitRankConfig", Some(rank), code));
        }
        let handle = Arc::new(Handle { library, rank, state: Mutex::new(State::Live(Communicator(comm))) });
        if let Err(e) = handle.wait("ncclCommInitRankConfig", settings.limit) {
            *handle.lock() = State::Ended;
            return Err(e);
        }
        Ok(Self { handle, world, limit: settings.limit, grouped: Cell::new(None) })
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.handle.rank
    }

    /// Number of ranks.
    pub fn world(&self) -> usize {
        self.world
    }

    /// Replaces each element by its sum over the ranks, when the stream comes to it. May be captured.
    ///
    /// # Safety
    /// `address` is that of `elements` elements in this rank's device memory, which live and are not otherwise used
    /// until the stream, or each graph that captured the call, is done with it; `stream` is of this rank's context.
    pub unsafe fn all_reduce_sum(
        &self,
        address: u64,
        elements: usize,
        element: Element,
        stream: *mut c_void,
    ) -> Result<(), NcclError> {
        let data = address as *mut c_void;
        self.call("ncclAllReduce", |library, comm| {
            // SAFETY: as the caller says; the communicator is live.
            unsafe { (library.functions.all_reduce)(data, data, elements, element.code(), SUM, comm, stream) }
        })
    }

    /// Replaces the bytes by those of rank `root`, when the stream comes to it. May be captured.
    ///
    /// # Safety
    /// As [`all_reduce_sum`](Self::all_reduce_sum), with `bytes` bytes.
    pub unsafe fn broadcast(
        &self,
        address: u64,
        bytes: usize,
        root: usize,
        stream: *mut c_void,
    ) -> Result<(), NcclError> {
        let (data, u8s) = (address as *mut c_void, Element::U8.code());
        let root = c_int::try_from(root).unwrap_or(c_int::MAX);
        self.call("ncclBroadcast", |library, comm| {
            // SAFETY: as the caller says; the communicator is live.
            unsafe { (library.functions.broadcast)(data, data, bytes, u8s, root, comm, stream) }
        })
    }

    /// Puts the bytes of all ranks one after another, in rank order, when the stream comes to it. May be captured.
    ///
    /// # Safety
    /// As [`all_reduce_sum`](Self::all_reduce_sum), with `bytes_each` bytes at `send`, `world` times as many at
    /// `receive`; they overlap nowhere, unless `send` is this rank's place in `receive`.
    pub unsafe fn all_gather(
        &self,
        send: u64,
        receive: u64,
        bytes_each: usize,
        stream: *mut c_void,
    ) -> Result<(), NcclError> {
        let (send, receive, u8s) = (send as *mut c_void, receive as *mut c_void, Element::U8.code());
        self.call("ncclAllGather", |library, comm| {
            // SAFETY: as the caller says; the communicator is live.
            unsafe { (library.functions.all_gather)(send, receive, bytes_each, u8s, comm, stream) }
        })
    }

    /// The collectives that `f` calls become one launch. The group ends also when `f` fails; its error comes first.
    /// An abort by another thread waits until `f` has returned, so `f` does nothing but call collectives.
    pub fn group<T>(&self, f: impl FnOnce() -> Result<T, NcclError>) -> Result<T, NcclError> {
        if self.grouped.get().is_some() {
            return f();
        }
        let state = self.handle.lock();
        let comm = self.handle.live(&state, "ncclGroupStart")?;
        // SAFETY: no arguments.
        let code = unsafe { (self.handle.library.functions.group_start)() };
        self.handle.check("ncclGroupStart", code)?;
        self.grouped.set(Some(comm));
        let open = OpenGroup(self);
        let result = f();
        let code = open.end();
        drop(state);
        let ended = self.handle.check("ncclGroupEnd", code);
        let value = result?;
        ended?;
        self.handle.wait("ncclGroupEnd", self.limit)?;
        Ok(value)
    }

    /// The error that the communicator has met since it joined, if any: also one of work on a stream.
    pub fn async_error(&self) -> Result<(), NcclError> {
        const CALL: &str = "ncclCommGetAsyncError";
        let code = match self.grouped.get() {
            Some(comm) => self.handle.check(CALL, async_code(&self.handle.library, comm)),
            None => self.handle.poll(CALL),
        };
        code.map(drop)
    }

    /// What other threads watch and end this communicator by.
    pub fn aborter(&self) -> Aborter {
        Aborter(Arc::clone(&self.handle))
    }

    /// One call with the communicator, complete when it returns.
    fn call(&self, name: &'static str, f: impl FnOnce(&Library, ncclComm_t) -> c_int) -> Result<(), NcclError> {
        let library = &self.handle.library;
        if let Some(comm) = self.grouped.get() {
            return self.handle.check(name, f(library, comm)).map(drop);
        }
        let state = self.handle.lock();
        let comm = self.handle.live(&state, name)?;
        let code = f(library, comm);
        drop(state);
        match self.handle.check(name, code)? {
            IN_PROGRESS => self.handle.wait(name, self.limit),
            _ => Ok(()),
        }
    }

    /// Ends with the other ranks; the communicator is no longer in the handle.
    fn end(&self, Communicator(comm): Communicator) -> Result<(), NcclError> {
        let Handle { library, rank, .. } = &*self.handle;
        let functions = &library.functions;
        // SAFETY: the communicator is live, and this thread has the only pointer to it.
        let mut code = unsafe { (functions.finalize)(comm) };
        let begin = Instant::now();
        while code == IN_PROGRESS {
            thread::sleep(POLL);
            if begin.elapsed() > self.limit {
                return Err(NcclError::TimedOut { call: "ncclCommFinalize", rank: *rank, limit: self.limit });
            }
            code = async_code(library, comm);
        }
        self.handle.check("ncclCommFinalize", code)?;
        // SAFETY: as above; nothing uses the pointer after.
        self.handle.check("ncclCommDestroy", unsafe { (functions.destroy)(comm) }).map(drop)
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        let mut state = self.handle.lock();
        let State::Live(comm) = *state else { return };
        *state = State::Ended;
        drop(state);
        if thread::panicking() {
            return;
        }
        if let Err(e) = self.end(comm) {
            tracing::warn!("a communicator of NCCL is left to the end of the process: {e}");
        }
    }
}

/// Ends the group of NCCL also when a panic passes through.
struct OpenGroup<'a>(&'a Nccl);

impl OpenGroup<'_> {
    fn end(self) -> c_int {
        let code = self.close();
        std::mem::forget(self);
        code
    }

    fn close(&self) -> c_int {
        self.0.grouped.set(None);
        // SAFETY: the group was started on this thread.
        unsafe { (self.0.handle.library.functions.group_end)() }
    }
}

impl Drop for OpenGroup<'_> {
    fn drop(&mut self) {
        self.close();
    }
}

impl Aborter {
    /// Frees this rank from whatever it waits for in NCCL, and its stream from NCCL's work. Returns when all ranks that
    /// are left have aborted as well: one that aborts alone waits. Only the first call does anything; after it every
    /// call of [`Nccl`] is [`NcclError::Aborted`], and its drop does nothing.
    pub fn abort(&self) -> Result<(), NcclError> {
        let mut state = self.0.lock();
        let State::Live(Communicator(comm)) = *state else { return Ok(()) };
        *state = State::Aborted;
        drop(state);
        // SAFETY: the communicator is live, and nobody else finds the pointer any more.
        let code = unsafe { (self.0.library.functions.abort)(comm) };
        self.0.check("ncclCommAbort", code).map(drop)
    }

    /// As [`Nccl::async_error`], from a watch thread.
    pub fn poll(&self) -> Result<(), NcclError> {
        self.0.poll("ncclCommGetAsyncError").map(drop)
    }
}

impl Handle {
    /// The state is valid between any two statements.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self, state: &State, call: &'static str) -> Result<ncclComm_t, NcclError> {
        match state {
            State::Live(Communicator(comm)) => Ok(*comm),
            State::Aborted | State::Ended => Err(NcclError::Aborted { call, rank: self.rank }),
        }
    }

    /// Success or progress; everything else is an error.
    fn check(&self, call: &'static str, code: c_int) -> Result<c_int, NcclError> {
        match code {
            SUCCESS | IN_PROGRESS => Ok(code),
            code => Err(self.library.error(call, Some(self.rank), code)),
        }
    }

    /// What the communicator says of itself now.
    fn poll(&self, call: &'static str) -> Result<c_int, NcclError> {
        let state = self.lock();
        let comm = self.live(&state, call)?;
        self.check(call, async_code(&self.library, comm))
    }

    /// Until nothing is in progress. The lock is free in between, so that an abort comes through.
    fn wait(&self, call: &'static str, limit: Duration) -> Result<(), NcclError> {
        let begin = Instant::now();
        while self.poll(call)? == IN_PROGRESS {
            if begin.elapsed() > limit {
                return Err(NcclError::TimedOut { call, rank: self.rank, limit });
            }
            thread::sleep(POLL);
        }
        Ok(())
    }
}

/// The communicator's own code, or why it does not tell.
fn async_code(library: &Library, comm: ncclComm_t) -> c_int {
    let mut own = SUCCESS;
    // SAFETY: the communicator is live, the pointer is to one int.
    match unsafe { (library.functions.get_async_error)(comm, &mut own) } {
        SUCCESS => own,
        code => code,
    }
}

/// `ncclConfig_t` has an initialiser only in C: its size, a magic number, the version, and all else undefined.
fn config(settings: &NcclSettings) -> ncclConfig_t {
    const UNDEFINED: c_int = c_int::MIN;
    ncclConfig_t {
        size: size_of::<ncclConfig_t>(),
        magic: 0xcafe_beef,
        version: VERSION_KNOWN,
        blocking: 0,
        cgaClusterSize: UNDEFINED,
        minCTAs: UNDEFINED,
        maxCTAs: settings.max_ctas.map_or(UNDEFINED, |n| c_int::try_from(n).unwrap_or(c_int::MAX)),
        netName: ptr::null(),
        splitShare: UNDEFINED,
        trafficClass: UNDEFINED,
        commName: ptr::null(),
        collnetEnable: UNDEFINED,
        CTAPolicy: UNDEFINED,
        shrinkShare: UNDEFINED,
        nvlsCTAs: UNDEFINED,
        nChannelsPerNetPeer: UNDEFINED,
        nvlinkCentricSched: UNDEFINED,
    }
}
