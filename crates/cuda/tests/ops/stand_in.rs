//! The stand-in GPU without a driver: kernels by name, on memory whose margins are watched.

use cuda::Kernel;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

pub(crate) type Launcher = unsafe extern "C" fn(
    *const c_char,
    *const c_uint,
    c_uint,
    c_uint,
    *const c_void,
    usize,
    c_int,
    c_int,
    u64,
    *mut c_char,
    usize,
) -> c_int;

type Poison = unsafe extern "C" fn(*const c_void, usize);

/// The stand-in's functions for tests.
struct StandIn {
    launch: Launcher,
    /// Marks memory that no kernel may touch, in the flavour that sees it (ASan).
    poison: Poison,
    _library: libloading::Library,
}

/// The stand-in, if `SIMGPU` says where it lies.
fn stand_in() -> Option<&'static StandIn> {
    static LIBRARY: OnceLock<Option<StandIn>> = OnceLock::new();
    let found = LIBRARY.get_or_init(|| {
        let folder = std::env::var_os("SIMGPU")?;
        // SAFETY: the stand-in's initialisers only fill its table of kernels; the symbols have these types.
        unsafe {
            let path = std::path::Path::new(&folder).join("libcuda.so.1");
            let library = libloading::Library::new(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let launch = *library.get::<Launcher>(b"simgpu_launch\0").expect("the stand-in exports simgpu_launch");
            let poison = *library.get::<Poison>(b"simgpu_poison\0").expect("the stand-in exports simgpu_poison");
            Some(StandIn { launch, poison, _library: library })
        }
    });
    found.as_ref()
}

pub(crate) fn launcher() -> Option<&'static Launcher> {
    stand_in().map(|s| &s.launch)
}

/// An order of threads (0 forward, 1 reverse, 2 random) and a landing of copies (0 late, 1 early, 2 mixed).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule(pub c_int, pub c_int, pub u64);

/// The schedules that every case runs in.
pub(crate) const SCHEDULES: [Schedule; 4] =
    [Schedule(0, 0, 1), Schedule(1, 1, 1), Schedule(2, 2, 7), Schedule(2, 0, 3)];

/// Memory `shift` bytes past 16-byte alignment, with a margin on both sides that no kernel may touch.
pub(crate) struct Memory {
    words: Vec<u128>,
    bytes: usize,
    shift: usize,
}

const MARGIN: usize = 4;
const GUARD: u128 = 0xdead_beef_dead_beef_dead_beef_dead_beef;

impl Memory {
    /// `None` leaves it as a device leaves it: NaN.
    pub(crate) fn new(bytes: usize, data: Option<&[u8]>) -> Memory {
        Memory::shifted(0, bytes, data)
    }

    pub(crate) fn shifted(shift: usize, bytes: usize, data: Option<&[u8]>) -> Memory {
        let mut words = vec![u128::MAX; (shift + bytes).div_ceil(16) + 2 * MARGIN];
        let end = words.len() - MARGIN;
        words[..MARGIN].fill(GUARD);
        words[end..].fill(GUARD);
        let mut memory = Memory { words, bytes, shift };
        if let Some(data) = data {
            memory.bytes_mut()[..data.len()].copy_from_slice(data);
        }
        memory.poison_margins();
        memory
    }

    /// Not even a read of a margin goes unseen in the sanitizer's flavour.
    fn poison_margins(&self) {
        let Some(stand_in) = stand_in() else { return };
        let (start, address) = (self.words.as_ptr() as usize, self.address() as usize);
        let end = start + size_of_val(&self.words[..]);
        for (from, to) in [(start, address), (address + self.bytes, end)] {
            // SAFETY: marks bytes of this allocation, which only `check` reads, and that code is not instrumented.
            unsafe { (stand_in.poison)(from as *const c_void, to - from) };
        }
    }

    pub(crate) fn address(&self) -> u64 {
        self.words[MARGIN..].as_ptr() as u64 + self.shift as u64
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words[MARGIN..])[self.shift..][..self.bytes]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words[MARGIN..])[self.shift..][..self.bytes]
    }

    pub(crate) fn check(&self, what: &str) {
        let end = self.words.len() - MARGIN;
        let whole = self.words[..MARGIN].iter().chain(&self.words[end..]).all(|&w| w == GUARD);
        assert!(whole, "{what}: written outside its {} bytes", self.bytes);
        let all = bytemuck::cast_slice::<u128, u8>(&self.words[MARGIN..end]);
        let mut rest = all[..self.shift].iter().chain(&all[self.shift + self.bytes..]);
        assert!(rest.all(|&b| b == 0xff), "{what}: written outside its {} bytes", self.bytes);
    }
}

/// Runs a kernel for the case `what`.
pub(crate) fn launch(launch: &Launcher, kernel: &Kernel, schedule: Schedule, what: &str) {
    let Kernel { name, grid, block, shared_bytes, args } = kernel;
    let mut aligned = vec![0u128; args.len().div_ceil(16).max(4)];
    bytemuck::cast_slice_mut(&mut aligned)[..args.len()].copy_from_slice(args);
    let (text, mut error) = (CString::new(*name).expect("no NUL"), vec![0 as c_char; 512]);
    let Schedule(order, landing, seed) = schedule;
    // SAFETY: the argument struct has the kernel's size, which the callee checks; its addresses are live.
    let status = unsafe {
        launch(
            text.as_ptr(),
            grid.as_ptr(),
            *block,
            *shared_bytes,
            aligned.as_ptr().cast(),
            args.len(),
            order,
            landing,
            seed,
            error.as_mut_ptr(),
            error.len(),
        )
    };
    // SAFETY: the callee ends the text with NUL within the buffer.
    let error = unsafe { CStr::from_ptr(error.as_ptr()) }.to_string_lossy().into_owned();
    assert_eq!(status, 0, "{what}: {schedule:?}: {error}");
}
