//! The embedded kernels: a fatbin per file of kernels/, all loaded when a GPU is opened; functions by name.

use crate::bind::Kernel;
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
    use super::module_of;

    #[test]
    fn a_kernel_is_in_the_file_with_the_longest_stem_of_its_name() {
        let stems = || ["conv", "conv_fprop", "conv_fprop_bf16", "bn"].into_iter();
        assert_eq!(module_of("conv_fprop_bf16_128x64", stems()), Some("conv_fprop_bf16"));
        assert_eq!(module_of("conv_fprop_f32", stems()), Some("conv_fprop"));
        assert_eq!(module_of("pool_max", stems()), None);
    }
}
