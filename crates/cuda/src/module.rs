//! The embedded kernels: a fatbin per file of kernels/, all loaded when a GPU is opened; functions by name.

use crate::command::Kernel;
use crate::driver::{Function, Gpu, Module};
use crate::error::CudaError;
use std::collections::HashMap;
use std::rc::Rc;

mod embedded {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// CUDA_ERROR_NO_BINARY_FOR_GPU, CUDA_ERROR_UNSUPPORTED_PTX_VERSION, CUDA_ERROR_INVALID_PTX.
const NO_BINARY: [u32; 3] = [209, 222, 218];

/// File stems of the kernels that were there when the program was built.
pub fn stems() -> impl Iterator<Item = &'static str> {
    embedded::MODULES.iter().map(|m| m.0)
}

/// The targets of the embedded kernels, `sm_80 sm_90`; `None` if the program was built without nvcc.
pub fn archs() -> Option<&'static str> {
    if cfg!(no_kernels) { None } else { Some(embedded::ARCHS) }
}

/// How the embedded kernels come to run on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// As they are.
    Compiled,
    /// The driver compiles them when they are first loaded.
    ByDriver,
    Missing,
}

/// How kernels for `archs`, as [`archs`] has them, cover a GPU of a compute capability: compiled for an equal or smaller minor
/// version of its major one, else from the PTX of the first.
pub fn coverage(archs: &str, [major, minor]: [i32; 2]) -> Coverage {
    let targets = || archs.split(' ').filter_map(|a| a.strip_prefix("sm_")?.parse::<i32>().ok());
    if targets().any(|t| t / 10 == major && t % 10 <= minor) {
        Coverage::Compiled
    } else if targets().next().is_some_and(|first| first <= 10 * major + minor) {
        Coverage::ByDriver
    } else {
        Coverage::Missing
    }
}

/// The file that holds a kernel: the longest stem that its name begins with.
fn module_of<'a>(kernel: &str, stems: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    stems.filter(|s| kernel.starts_with(s)).max_by_key(|s| s.len())
}

#[derive(Debug)]
pub(crate) struct Modules {
    modules: HashMap<&'static str, Module>,
    functions: HashMap<&'static str, (Function, Option<usize>)>,
    gpu: Rc<Gpu>,
}

impl Modules {
    pub(crate) fn load(gpu: &Rc<Gpu>) -> Result<Modules, CudaError> {
        gpu.enter()?;
        let mut modules = HashMap::new();
        for &(stem, image) in embedded::MODULES {
            let module = Module::load(gpu, image).map_err(|fault| {
                if cfg!(no_kernels) {
                    return CudaError::NoKernels; // the image is empty, and no driver takes it
                }
                if NO_BINARY.contains(&fault.code) {
                    let [major, minor] = gpu.facts.compute;
                    let label = format!("{}, sm_{major}{minor}", gpu.label());
                    let (archs, wanted) = (embedded::ARCHS, format!("{major}{minor}"));
                    return CudaError::Arch { gpu: label, archs, wanted, fault };
                }
                CudaError::Driver { what: format!("loading kernels {stem}"), fault }
            })?;
            modules.insert(stem, module);
        }
        Ok(Modules { modules, functions: HashMap::new(), gpu: gpu.clone() })
    }

    /// The function of a kernel of the node `path`, with its argument's size checked and its shared memory allowed.
    pub(crate) fn function(&mut self, kernel: &Kernel, path: &str, op: &'static str) -> Result<Function, CudaError> {
        let Kernel { name, shared_bytes, args, .. } = kernel;
        let (path, name) = (|| path.to_string(), *name);
        if !self.functions.contains_key(name) {
            self.gpu.enter()?;
            let module = module_of(name, self.modules.keys().copied()).and_then(|stem| self.modules.get(stem));
            let function = module.and_then(|m| m.function(name));
            let function = function.ok_or_else(|| CudaError::NoKernel { path: path(), op, kernel: name })?;
            let bytes = function.argument_bytes();
            self.functions.insert(name, (function, bytes));
        }
        let (function, bytes) = &self.functions[name];
        if let Some(expected) = bytes.filter(|&b| b != args.len()) {
            return Err(CudaError::Arguments { path: path(), op, kernel: name, expected, got: args.len() });
        }
        function.allow_shared(*shared_bytes).map_err(|fault| {
            let command = format!("{name} with {shared_bytes} bytes of shared memory");
            CudaError::Launch { path: path(), op, command, fault }
        })?;
        Ok(function.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::{Coverage, coverage, module_of};

    #[test]
    fn kernels_cover_their_major_version_and_what_came_later() {
        let archs = "sm_80 sm_86 sm_90 sm_100";
        for (compute, expected) in [
            ([8, 0], Coverage::Compiled),
            ([8, 9], Coverage::Compiled),
            ([10, 3], Coverage::Compiled),
            ([12, 0], Coverage::ByDriver),
            ([7, 5], Coverage::Missing),
        ] {
            assert_eq!(coverage(archs, compute), expected, "{compute:?}");
        }
        assert_eq!(coverage("", [9, 0]), Coverage::Missing);
    }

    #[test]
    fn a_kernel_is_in_the_file_with_the_longest_stem_of_its_name() {
        let stems = || ["conv", "conv_fprop", "conv_fprop_bf16", "bn"].into_iter();
        assert_eq!(module_of("conv_fprop_bf16_128x64", stems()), Some("conv_fprop_bf16"));
        assert_eq!(module_of("conv_fprop_f32", stems()), Some("conv_fprop"));
        assert_eq!(module_of("pool_max", stems()), None);
    }
}
