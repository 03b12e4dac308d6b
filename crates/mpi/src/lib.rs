//! MPI behind a C interface, opened at run time by `comm::mpi`: a program linked to MPI would not start without one.
//!
//! One file of this per MPI family (Open MPI, MPICH and its kin). Every function but `retort_mpi_abi` returns 0, an error
//! code of MPI, or one of the negative codes below. MPI's own errors come back as codes; it ends the process only where
//! it fails while it starts. One call at a time, from any thread. NOTE: whoever changes a signature counts [`ABI`] up.

use mpi::Threading;
use mpi::ffi;
use mpi::traits::{AsRaw, Communicator};
use std::ffi::{c_char, c_int, c_void};
use std::mem::forget;

/// Version of this interface.
const ABI: u32 = 1;
/// MPI was started before; it starts once per process.
const STARTED_BEFORE: c_int = -1;
/// This MPI allows calls from its main thread only.
const MAIN_THREAD_ONLY: c_int = -2;
/// More bytes than one call of MPI takes.
const TOO_LONG: c_int = -3;

/// Where this process stands: in the world, and among the processes that share its host's memory.
#[repr(C)]
pub struct Place {
    rank: u32,
    size: u32,
    local_rank: u32,
    local_size: u32,
}

#[unsafe(no_mangle)]
pub extern "C" fn retort_mpi_abi() -> u32 {
    ABI
}

/// Starts MPI and writes the place of this process.
///
/// # Safety
/// `place` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn retort_mpi_init(place: *mut Place) -> c_int {
    let Some((universe, provided)) = mpi::initialize_with_threading(Threading::Serialized) else {
        return STARTED_BEFORE;
    };
    let world = universe.world();
    forget(universe); // it would end MPI; `retort_mpi_finalize` does
    if provided < Threading::Serialized {
        return MAIN_THREAD_ONLY;
    }
    // SAFETY: MPI has started, and both are constants of it.
    let code = unsafe { ffi::MPI_Comm_set_errhandler(world.as_raw(), ffi::RSMPI_ERRORS_RETURN) };
    if code != 0 {
        return code;
    }
    let host = world.split_shared(world.rank());
    let [rank, size, local_rank, local_size] = [world.rank(), world.size(), host.rank(), host.size()].map(|n| n as u32);
    // SAFETY: the caller's promise.
    unsafe { *place = Place { rank, size, local_rank, local_size } };
    0
}

/// Replaces `bytes` bytes at `data` by those of rank `root`.
///
/// # Safety
/// MPI has started; `data` is valid for reading and writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn retort_mpi_broadcast(data: *mut u8, bytes: usize, root: u32) -> c_int {
    let Ok(count) = c_int::try_from(bytes) else { return TOO_LONG };
    // SAFETY: the caller's promise; MPI touches `count` bytes at `data`.
    unsafe { ffi::MPI_Bcast(data.cast(), count, ffi::RSMPI_UINT8_T, root as c_int, ffi::RSMPI_COMM_WORLD) }
}

/// What the functions of the form "so many bytes for, or of, each rank" have in common.
type Exchange = unsafe extern "C" fn(
    *const c_void,
    c_int,
    ffi::MPI_Datatype,
    *mut c_void,
    c_int,
    ffi::MPI_Datatype,
    ffi::MPI_Comm,
) -> c_int;

/// # Safety
/// MPI has started, and the pointers are valid for what `call` does with `bytes` a rank.
unsafe fn exchange(call: Exchange, send: *const u8, bytes: usize, receive: *mut u8) -> c_int {
    let Ok(count) = c_int::try_from(bytes) else { return TOO_LONG };
    // SAFETY: the caller's promise.
    unsafe {
        let byte = ffi::RSMPI_UINT8_T;
        call(send.cast(), count, byte, receive.cast(), count, byte, ffi::RSMPI_COMM_WORLD)
    }
}

/// The `bytes` bytes at `send` of all ranks, one after the other in rank order, into `receive`.
///
/// # Safety
/// MPI has started; `send` is valid for reading `bytes`, `receive` for writing `bytes` per rank, and they do not overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn retort_mpi_all_gather(send: *const u8, bytes: usize, receive: *mut u8) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { exchange(ffi::MPI_Allgather, send, bytes, receive) }
}

/// Sends the n-th `bytes` bytes at `send` to rank n, and writes what rank n sent here to the n-th place of `receive`.
///
/// # Safety
/// MPI has started; both are valid for `bytes` per rank, for reading and for writing, and do not overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn retort_mpi_all_to_all(send: *const u8, bytes: usize, receive: *mut u8) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { exchange(ffi::MPI_Alltoall, send, bytes, receive) }
}

/// Ends MPI once all ranks have called it.
#[unsafe(no_mangle)]
pub extern "C" fn retort_mpi_finalize() -> c_int {
    // SAFETY: where MPI has not started or has ended, this is an error code of MPI or its own message.
    unsafe { ffi::MPI_Finalize() }
}

/// Writes what an error code of MPI means, in at most `capacity` bytes, and returns how many.
///
/// # Safety
/// MPI has started; `text` is valid for writing `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn retort_mpi_error(code: c_int, text: *mut u8, capacity: usize) -> usize {
    let mut long = [0u8; 8192]; // of which MPI takes up to MPI_MAX_ERROR_STRING, 256 to 1024
    let mut length = 0;
    // SAFETY: the buffer is longer than what MPI writes.
    let failed = unsafe { ffi::MPI_Error_string(code, long.as_mut_ptr().cast::<c_char>(), &mut length) };
    let length = if failed == 0 { usize::try_from(length).unwrap_or(0).min(capacity).min(long.len()) } else { 0 };
    // SAFETY: the caller's promise; `length` is within both.
    unsafe { text.copy_from_nonoverlapping(long.as_ptr(), length) };
    length
}
