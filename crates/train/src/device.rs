//! Where a run computes, and the one place that makes executors.

use crate::error::TrainError;
use crate::executor::Executor;
use plan::Storage;
use spec::Precision;
use std::fmt::{Display, Formatter};
use std::str::FromStr;

/// `cpu`, `cuda` (the first GPU) or `cuda:N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Cpu,
    /// The GPU of this number, from 0; ranks of one process take the ones after it.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = TrainError;

    fn from_str(text: &str) -> Result<Device, TrainError> {
        let numbered = text.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Device::Cuda);
        match text {
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            _ => numbered.ok_or_else(|| {
                TrainError::Device(format!("expected cpu, cuda or cuda:N (N counts the GPUs from 0), got {text:?}"))
            }),
        }
    }
}

impl Display for Device {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl Device {
    /// The device of a run that computes in `precision`: the wanted one, else the first GPU that works, else the CPU. Errors: the wanted
    /// one is not there, or cannot do that.
    pub fn choose(wanted: Option<Device>, precision: Precision) -> Result<Device, TrainError> {
        match wanted {
            Some(Device::Cpu) => Ok(Device::Cpu),
            Some(Device::Cuda(_)) if precision == Precision::F64 => {
                let what = "train.precision = \"f64\" is computed on the CPU alone; use --device cpu, or f32";
                Err(TrainError::Device(what.to_string()))
            }
            Some(Device::Cuda(ordinal)) => {
                let count = cuda::devices()?.len();
                let missing = TrainError::from(cuda::CudaError::Ordinal { ordinal, count });
                if ordinal < count { Ok(Device::Cuda(ordinal)) } else { Err(missing) }
            }
            None if precision == Precision::F64 => Ok(Device::Cpu),
            None => Ok(if cuda::devices().is_ok_and(|d| !d.is_empty()) { Device::Cuda(0) } else { Device::Cpu }),
        }
    }

    /// The device of a process that is the `local_rank`-th of its host: the GPUs from the chosen one on are dealt out, unless the
    /// launcher left one visible. Errors: there are fewer GPUs than ranks.
    pub(crate) fn of_rank(self, local_rank: Option<usize>) -> Result<Device, TrainError> {
        match (self, local_rank) {
            (Device::Cuda(first), Some(local_rank)) => {
                let count = cuda::devices()?.len();
                let ordinal = if count == 1 { 0 } else { first + local_rank };
                if ordinal < count {
                    return Ok(Device::Cuda(ordinal));
                }
                Err(TrainError::Device(format!(
                    "local rank {local_rank} has no GPU: {count} are visible; start {count} ranks on this host, show more in \
                     CUDA_VISIBLE_DEVICES, or show one and set RETORT_SHARE_GPU=1 to debug on it"
                )))
            }
            (device, _) => Ok(device),
        }
    }

    /// How its executor places values.
    pub(crate) fn storage(self, precision: Precision) -> Storage {
        match self {
            Device::Cpu if precision == Precision::F64 => Storage::CpuF64,
            Device::Cpu => Storage::CpuF32,
            Device::Cuda(_) => Storage::Device,
        }
    }
}

/// Work for an executor, whichever it is.
pub(crate) trait Job {
    type Output;

    /// `make` opens the executor of a rank.
    fn run<E: Executor>(self, make: impl Fn(usize) -> Result<E, TrainError> + Sync)
    -> Result<Self::Output, TrainError>;
}

/// Gives the job the kind of executor that computes in `precision` on the device, with so many threads on the CPU.
pub(crate) fn executor<J: Job>(
    device: Device,
    precision: Precision,
    threads: usize,
    job: J,
) -> Result<J::Output, TrainError> {
    match (device, precision) {
        (Device::Cpu, Precision::F64) => job.run(|_| Ok(cpu::Executor::<f64>::new(threads)?)),
        (Device::Cpu, _) => job.run(|_| Ok(cpu::Executor::<f32>::new(threads)?)),
        (Device::Cuda(first), _) => job.run(|rank| open_gpu(first + rank, precision)),
    }
}

/// The executor of a GPU for a run in `precision`.
pub(crate) fn open_gpu(ordinal: usize, precision: Precision) -> Result<cuda::Executor, TrainError> {
    let math = if precision == Precision::Tf32 { cuda::Math::Tf32 } else { cuda::Math::F32 };
    Ok(cuda::Executor::new(ordinal, cuda::Mode::from_env(), math)?)
}

/// The executor of the CPU, in f32 on all cores.
pub(crate) fn open_cpu() -> Result<cpu::Executor<f32>, TrainError> {
    Ok(cpu::Executor::new(cores())?)
}

/// Cores of this machine.
pub(crate) fn all_cores() -> usize {
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(1 + last.trim().parse::<usize>().ok()?.checked_sub(first.trim().parse().ok()?)?)
    };
    online.split(',').filter_map(count).sum::<usize>().max(cores())
}

/// Cores of this machine, as far as this process may use them.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_written() {
        for (text, device) in [("cpu", Device::Cpu), ("cuda:0", Device::Cuda(0)), ("cuda:13", Device::Cuda(13))] {
            assert_eq!(text.parse::<Device>().unwrap(), device);
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        for text in ["", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:x", "cpu:0"] {
            let error = text.parse::<Device>().unwrap_err().to_string();
            assert!(error.contains("cpu, cuda or cuda:N"), "{text}: {error}");
        }
    }

    #[test]
    fn f64_is_refused_on_a_gpu() {
        let error = Device::choose(Some(Device::Cuda(0)), Precision::F64).unwrap_err().to_string();
        assert!(error.contains("f64") && error.contains("--device cpu"), "{error}");
        assert_eq!(Device::choose(None, Precision::F64).unwrap(), Device::Cpu);
    }
}
