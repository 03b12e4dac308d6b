//! The same on a GPU, through the driver: what this program does where `SIMGPU` is not set, on a machine with nothing but it.

use crate::harness::Case;
use cuda::Kernel;
use cuda::{Executor, Math, Mode, OpRun};
use cudarc::driver::{result, sys};
use std::ffi::{CString, c_void};
use std::fmt::Debug;
use tensor::{Dtype, Shape};

/// kernels/check_wrappers.cu, which the program does not carry.
#[cfg(not(no_kernels))]
static CHECKS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/check_wrappers.fatbin"));
#[cfg(no_kernels)]
static CHECKS: &[u8] = &[];

thread_local! {
    static GPU: Option<Executor> = open();
}

fn open() -> Option<Executor> {
    match Executor::new(0, Mode::Stepped, Math::F32) {
        Ok(executor) => {
            println!("on {}", executor.describe());
            Some(executor)
        }
        Err(e) if e.is_absence() => {
            println!("skipped: {e}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// Outputs and states of a case; `None`, said aloud, where there is no GPU. `sms`: 0 for the GPU's own.
pub(crate) fn run(case: &Case, outputs: &[(Shape, Dtype)], sms: u32) -> Option<Vec<Vec<u8>>> {
    let run = OpRun {
        name: &case.name,
        op: &case.op,
        inputs: &case.inputs,
        outputs,
        states: &case.states,
        scalars: &case.scalars,
        math: case.math,
        carried: &case.carried,
        slot_bytes: case.slot_bytes(),
        sms,
    };
    GPU.with(|gpu| {
        let written = gpu.as_ref()?.run_op(&run).unwrap_or_else(|e| panic!("{e}"));
        Some(written.iter().map(|t| t.bytes().to_vec()).collect())
    })
}

#[track_caller]
fn good<T, E: Debug>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|e| panic!("the driver says {e:?}"))
}

/// What a kernel of `CHECKS` writes to so many words, given the addresses of input and output; `None` where there is no GPU.
pub(crate) fn run_check(input: &[u32], words: usize, kernel: &dyn Fn(u64, u64) -> Kernel) -> Option<Vec<u32>> {
    GPU.with(|gpu| {
        gpu.as_ref()?; // its context is this thread's
        let mut image = vec![0u128; CHECKS.len() / 16 + 1];
        bytemuck::cast_slice_mut(&mut image)[..CHECKS.len()].copy_from_slice(CHECKS);
        let mut output = vec![u32::MAX; words];
        // SAFETY: memory, module and function live until the last line; the kernel takes one argument, the struct, which is copied at
        // the launch; the context is current.
        unsafe {
            let module = good(result::module::load_data(image.as_ptr().cast()));
            let [from, to] = [input.len(), words].map(|n| good(result::malloc_sync(4 * n)));
            good(result::memcpy_htod_sync(from, input));
            good(result::memcpy_htod_sync(to, &output));
            let Kernel { name, grid: [x, y, z], block, shared_bytes, args } = kernel(from, to);
            let function = good(result::module::get_function(module, CString::new(name).expect("no NUL")));
            let mut aligned = vec![0u128; args.len().div_ceil(16)];
            bytemuck::cast_slice_mut(&mut aligned)[..args.len()].copy_from_slice(&args);
            let mut params = [aligned.as_mut_ptr().cast::<c_void>()];
            let stream: sys::CUstream = std::ptr::null_mut();
            good(result::launch_kernel(function, (x, y, z), (block, 1, 1), shared_bytes, stream, &mut params));
            good(result::ctx::synchronize());
            good(result::memcpy_dtoh_sync(&mut output, to));
            [from, to].into_iter().for_each(|p| good(result::free_sync(p)));
            good(result::module::unload(module));
        }
        Some(output)
    })
}
