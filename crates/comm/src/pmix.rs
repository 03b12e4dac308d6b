//! The size of a job from PMIx: libpmix, found at run time, says what `PMIX_RANK` alone does not.
//!
//! The client is finalised before [`ask`] returns. A process that has called `PMIx_Init` and ends without `PMIx_Finalize`
//! is a failed one to its launcher, which then ends the whole job; afterwards MPI may initialise PMIx again. The library
//! stays loaded, since it has had threads.

use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

/// What PMIx says of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmixFacts {
    /// Number of ranks.
    pub size: usize,
    /// Place of this process among the ranks of its host.
    pub local_rank: Option<usize>,
}

/// Why PMIx does not say it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PmixError {
    #[error("libpmix.so.2 does not load: {0}; install it, or start with mpirun")]
    NoLibrary(String),
    #[error("PMIx: {call} returned {status}; is the process a rank of a running job?")]
    Failed { call: &'static str, status: i32 },
    #[error("PMIx: {key} has type {kind}, expected an unsigned number of 32 or 64 bits")]
    Type { key: String, kind: u16 },
}

/// `pmix_proc_t` of versions 3 to 5.
#[repr(C)]
struct Proc {
    namespace: [c_char; 256],
    rank: u32,
}

/// The beginning of `pmix_value_t`: its type, then a union.
#[repr(C)]
struct Value {
    kind: u16,
    data: Data,
}

#[repr(C)]
union Data {
    u32: u32,
    u64: u64,
    string: *const c_char,
}

type Init = unsafe extern "C" fn(*mut Proc, *mut c_void, usize) -> c_int;
type Get = unsafe extern "C" fn(*const Proc, *const c_char, *const c_void, usize, *mut *mut Value) -> c_int;
type Finalize = unsafe extern "C" fn(*const c_void, usize) -> c_int;

struct Functions {
    init: Init,
    get: Get,
    finalize: Finalize,
}

/// All ranks of the namespace.
const WILDCARD: u32 = u32::MAX - 1;
/// Ends in `.so` on machines for development alone.
const NAMES: [&str; 2] = ["libpmix.so.2", "libpmix.so"];

/// Size and local rank of this process by its PMIx server. Errors: no library, no server, or it does not know the job.
pub fn ask() -> Result<PmixFacts, PmixError> {
    let pmix = Functions::load()?;
    let mut me = Proc { namespace: [0; 256], rank: 0 };
    // SAFETY: `me` is a pmix_proc_t to be written, and no infos are passed.
    let status = unsafe { (pmix.init)(&mut me, ptr::null_mut(), 0) };
    if status != 0 {
        return Err(PmixError::Failed { call: "PMIx_Init", status });
    }
    let all = Proc { namespace: me.namespace, rank: WILDCARD };
    let size = pmix.number(&all, c"pmix.job.size");
    // NOTE: not `pmix.lrank`. The shared store of PMIx 4.2 loses what is said of single ranks as soon as one of the host has
    // finalised; what is said of the job stays.
    let local_rank = pmix.local_rank(&all, me.rank);
    // SAFETY: PMIx_Init has succeeded, and no infos are passed.
    let status = unsafe { (pmix.finalize)(ptr::null(), 0) };
    let size = size?;
    if status != 0 {
        return Err(PmixError::Failed { call: "PMIx_Finalize", status });
    }
    Ok(PmixFacts { size, local_rank })
}

impl Functions {
    fn load() -> Result<Self, PmixError> {
        let missing = |error: libloading::Error| PmixError::NoLibrary(error.to_string());
        // SAFETY: libpmix does nothing at load time but set up its tables.
        let open = |name| unsafe { Library::new(name) };
        let library = open(NAMES[0]).or_else(|first| open(NAMES[1]).map_err(|_| first)).map_err(missing)?;
        // SAFETY: the types are those of pmix.h, unchanged since version 2.
        let functions = unsafe {
            Self {
                init: *library.get(b"PMIx_Init\0").map_err(missing)?,
                get: *library.get(b"PMIx_Get\0").map_err(missing)?,
                finalize: *library.get(b"PMIx_Finalize\0").map_err(missing)?,
            }
        };
        std::mem::forget(library); // NOTE: its threads may outlive the client
        Ok(functions)
    }

    /// A fact of the job.
    fn get(&self, job: &Proc, key: &CStr) -> Result<&'static Value, PmixError> {
        let mut value: *mut Value = ptr::null_mut();
        // SAFETY: `job` and `key` live through the call, no infos are passed, `value` receives a pointer.
        let status = unsafe { (self.get)(job, key.as_ptr(), ptr::null(), 0, &mut value) };
        if status != 0 {
            return Err(PmixError::Failed { call: "PMIx_Get", status });
        }
        // SAFETY: the call succeeded, so null or a pmix_value_t, whose beginning `Value` is. It is the caller's, and nobody
        // frees its few bytes: they are malloc's, and the function for it differs between versions.
        unsafe { value.as_ref() }.ok_or(PmixError::Failed { call: "PMIx_Get", status })
    }

    fn number(&self, job: &Proc, key: &CStr) -> Result<usize, PmixError> {
        let value = self.get(job, key)?;
        // SAFETY: the member of the union that the type names has been written.
        let number = unsafe {
            match value.kind {
                4 | 15 => Some(value.data.u64),             // PMIX_SIZE, PMIX_UINT64
                11 | 14 => Some(u64::from(value.data.u32)), // PMIX_UINT, PMIX_UINT32
                _ => None,
            }
        };
        let number = number.and_then(|number| usize::try_from(number).ok());
        number.ok_or_else(|| PmixError::Type { key: key.to_string_lossy().into_owned(), kind: value.kind })
    }

    /// Index of a rank among those of its host, which PMIx lists as `4,5,6,7`.
    fn local_rank(&self, job: &Proc, rank: u32) -> Option<usize> {
        let value = self.get(job, c"pmix.lpeers").ok().filter(|value| value.kind == 3)?; // PMIX_STRING
        // SAFETY: the type says that the union holds a pointer to a string, null or ended by a zero byte.
        let peers = unsafe { value.data.string.as_ref().map(|first| CStr::from_ptr(first)) }?;
        peers.to_str().ok()?.split(',').position(|peer| peer.parse() == Ok(rank))
    }
}
