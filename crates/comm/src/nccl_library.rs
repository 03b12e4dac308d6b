//! NCCL's shared library: found, checked, its functions by name. Works on a machine without a GPU.
//!
//! Invariants: a missing library, function or version is an error that says where was looked; no code of NCCL becomes a
//! Rust enum before it was compared, so a newer library's codes are harmless.

use cudarc::nccl::sys::{ncclComm_t, ncclConfig_t, ncclUniqueId};
use std::env;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::Duration;

/// The oldest version that is used, as NCCL counts: 10000 major + 100 minor + patch.
pub const VERSION_WANTED: u32 = 22_700;
/// Of the header whose configuration [`Nccl::join`](crate::Nccl::join) fills in.
pub(crate) const VERSION_KNOWN: u32 = 22_809;

pub(crate) const SUCCESS: c_int = 0;
pub(crate) const IN_PROGRESS: c_int = 7;

/// Why NCCL did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NcclError {
    #[error("NCCL was not found: {tried}; install NCCL 2.27 or newer, or name its file by RETORT_NCCL_LIB")]
    NotFound { tried: String },
    #[error("NCCL in {path} has no {function}: {reason}; NCCL 2.27 or newer is needed")]
    Symbol { path: String, function: &'static str, reason: String },
    #[error("NCCL in {path} is {}, {} or newer is needed; name another file by RETORT_NCCL_LIB", version_text(*found), version_text(*wanted))]
    Version { path: String, found: u32, wanted: u32 },
    /// `code` and `name` are NCCL's; `text` is what `ncclGetLastError` said.
    #[error("{call}{}: {name} ({code}): {text}", of_rank(*rank))]
    Call { call: &'static str, rank: Option<usize>, code: i32, name: &'static str, text: String },
    #[error("{call}{} was still in progress after {} s; a rank is missing or hangs", of_rank(Some(*rank)), limit.as_secs_f32())]
    TimedOut { call: &'static str, rank: usize, limit: Duration },
    #[error("{call}{}: the communicator was aborted before", of_rank(Some(*rank)))]
    Aborted { call: &'static str, rank: usize },
}

impl NcclError {
    /// Whether another rank is to blame: its end of a connection is gone, or it aborted.
    pub fn is_peer(&self) -> bool {
        matches!(self, Self::Call { name: "ncclRemoteError", .. } | Self::Aborted { .. })
    }

    /// Whether there is no NCCL here that this program can use.
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::Symbol { .. } | Self::Version { .. })
    }
}

fn of_rank(rank: Option<usize>) -> String {
    rank.map_or_else(String::new, |rank| format!(" on rank {rank}"))
}

/// 22809 → `2.28.9`.
pub fn version_text(version: u32) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

/// NCCL's own name of a code.
fn code_name(code: c_int) -> &'static str {
    match code {
        1 => "ncclUnhandledCudaError",
        2 => "ncclSystemError",
        3 => "ncclInternalError",
        4 => "ncclInvalidArgument",
        5 => "ncclInvalidUsage",
        6 => "ncclRemoteError",
        IN_PROGRESS => "ncclInProgress",
        _ => "unknown result",
    }
}

type Data = *mut c_void;

/// NCCL's functions, named after them; codes stay integers.
pub(crate) struct Functions {
    pub(crate) get_last_error: unsafe extern "C" fn(ncclComm_t) -> *const c_char,
    pub(crate) get_unique_id: unsafe extern "C" fn(*mut ncclUniqueId) -> c_int,
    pub(crate) init_rank_config:
        unsafe extern "C" fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int, *mut ncclConfig_t) -> c_int,
    pub(crate) get_async_error: unsafe extern "C" fn(ncclComm_t, *mut c_int) -> c_int,
    pub(crate) finalize: unsafe extern "C" fn(ncclComm_t) -> c_int,
    pub(crate) destroy: unsafe extern "C" fn(ncclComm_t) -> c_int,
    pub(crate) abort: unsafe extern "C" fn(ncclComm_t) -> c_int,
    pub(crate) group_start: unsafe extern "C" fn() -> c_int,
    pub(crate) group_end: unsafe extern "C" fn() -> c_int,
    pub(crate) all_reduce: unsafe extern "C" fn(Data, Data, usize, c_int, c_int, ncclComm_t, Data) -> c_int,
    pub(crate) broadcast: unsafe extern "C" fn(Data, Data, usize, c_int, c_int, ncclComm_t, Data) -> c_int,
    pub(crate) all_gather: unsafe extern "C" fn(Data, Data, usize, c_int, ncclComm_t, Data) -> c_int,
}

/// A loaded NCCL.
pub struct Library {
    pub(crate) functions: Functions,
    path: String,
    version: u32,
    /// Never unloaded: NCCL has threads of its own, and graphs hold functions of it.
    _file: ManuallyDrop<libloading::Library>,
}

impl Library {
    /// The file that `RETORT_NCCL_LIB` names, and no other; without it `libnccl.so.2`, then `libnccl.so`, where the
    /// loader finds them.
    ///
    /// Errors: not found, older than [`VERSION_WANTED`], or without one of the functions.
    pub fn open() -> Result<Arc<Self>, NcclError> {
        let names = match env::var("RETORT_NCCL_LIB") {
            Ok(path) if !path.is_empty() => vec![path],
            _ => vec!["libnccl.so.2".to_owned(), "libnccl.so".to_owned()],
        };
        let mut tried = Vec::new();
        for name in names {
            // SAFETY: loading NCCL runs its initialisers, which ask nothing of the program.
            match unsafe { libloading::Library::new(&name) } {
                Ok(file) => return Self::check(file, name).map(Arc::new),
                Err(e) => tried.push(format!("{name}: {e}")),
            }
        }
        Err(NcclError::NotFound { tried: tried.join("; ") })
    }

    fn check(file: libloading::Library, path: String) -> Result<Self, NcclError> {
        // SAFETY: the type is that of nccl.h.
        let get_version: unsafe extern "C" fn(*mut c_int) -> c_int =
            unsafe { function(&file, &path, "ncclGetVersion") }?;
        let mut version: c_int = 0;
        // SAFETY: the pointer is to one int.
        let code = unsafe { get_version(&mut version) };
        if code != SUCCESS {
            let text = "no version".to_owned();
            return Err(NcclError::Call { call: "ncclGetVersion", rank: None, code, name: code_name(code), text });
        }
        let found = u32::try_from(version).unwrap_or(0);
        if found < VERSION_WANTED {
            return Err(NcclError::Version { path, found, wanted: VERSION_WANTED });
        }
        // SAFETY: every field has the type that nccl.h of 2.27 and later gives its function.
        let functions = unsafe {
            Functions {
                get_last_error: function(&file, &path, "ncclGetLastError")?,
                get_unique_id: function(&file, &path, "ncclGetUniqueId")?,
                init_rank_config: function(&file, &path, "ncclCommInitRankConfig")?,
                get_async_error: function(&file, &path, "ncclCommGetAsyncError")?,
                finalize: function(&file, &path, "ncclCommFinalize")?,
                destroy: function(&file, &path, "ncclCommDestroy")?,
                abort: function(&file, &path, "ncclCommAbort")?,
                group_start: function(&file, &path, "ncclGroupStart")?,
                group_end: function(&file, &path, "ncclGroupEnd")?,
                all_reduce: function(&file, &path, "ncclAllReduce")?,
                broadcast: function(&file, &path, "ncclBroadcast")?,
                all_gather: function(&file, &path, "ncclAllGather")?,
            }
        };
        Ok(Self { functions, path, version: found, _file: ManuallyDrop::new(file) })
    }

    /// As NCCL counts: 22809 is 2.28.9. Must be equal on all ranks.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The name by which it was loaded.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The error of a call that returned `code`, with what NCCL said last.
    pub(crate) fn error(&self, call: &'static str, rank: Option<usize>, code: c_int) -> NcclError {
        // SAFETY: NCCL takes no notice of the communicator; the text is null or ends in zero, and is copied at once.
        let text = unsafe {
            let text = (self.functions.get_last_error)(std::ptr::null_mut());
            if text.is_null() { "".into() } else { CStr::from_ptr(text).to_string_lossy() }
        };
        let text = if text.trim().is_empty() { "no further word; NCCL_DEBUG=WARN says more" } else { text.trim() };
        NcclError::Call { call, rank, code, name: code_name(code), text: text.to_owned() }
    }
}

/// A function of the file by its name.
///
/// # Safety
/// `F` is the function's type.
unsafe fn function<F: Copy>(file: &libloading::Library, path: &str, name: &'static str) -> Result<F, NcclError> {
    // SAFETY: the caller knows the type.
    match unsafe { file.get::<F>(name) } {
        Ok(found) => Ok(*found),
        Err(e) => Err(NcclError::Symbol { path: path.to_owned(), function: name, reason: e.to_string() }),
    }
}
