//! Preflight of the driver, the GPUs and NCCL.

use crate::device::Device;
use crate::doctor::{Asked, Finding, State, Tell};
use crate::doctor_clocks;
use crate::joined::shares_gpu;
use comm::discover::Environment;
use comm::{Library, version_text};
use cuda::{Coverage, Facts};

const GIB: f64 = (1u64 << 30) as f64;

pub(crate) fn gpus(asked: &Asked, tell: &Tell) {
    if let Ok(text) = std::fs::read_to_string("/proc/driver/nvidia/version") {
        let line = text.lines().next().unwrap_or_default().trim_start_matches("NVRM version:").trim();
        tell.tell(Finding::ok("GPU", format!("driver: {line}")));
    }
    if let Ok(visible) = std::env::var("CUDA_VISIBLE_DEVICES") {
        tell.tell(Finding::ok("GPU", format!("CUDA_VISIBLE_DEVICES is {visible:?}")));
    }
    if asked.device == Some(Device::Cpu) {
        return tell.tell(Finding::ok("GPU", "not looked for: --device cpu"));
    }
    let devices = match cuda::devices() {
        Ok(devices) => devices,
        Err(why) => {
            let state = if asked.device.is_some() { State::Fail } else { State::Warn };
            let mut finding = Finding::of_error("GPU", state, &why.to_string(), "nvidia-smi may say more");
            if state == State::Warn {
                finding.found += ": runs on the CPU";
            }
            return tell.tell(finding);
        }
    };
    let chosen = match asked.chosen() {
        Ok(device) => device,
        Err(why) => {
            let remedy = "show more in CUDA_VISIBLE_DEVICES, or take another by --device cuda:N";
            return tell.tell(Finding::of_error("GPU", State::Fail, &why.to_string(), remedy));
        }
    };
    let Device::Cuda(own) = chosen else {
        return tell.tell(Finding::ok("GPU", format!("{} here; this run computes on the CPU", devices.len())));
    };
    if cuda::archs().is_none() && asked.device.is_none() {
        let remedy = "run tools/fetch-nvcc.sh and build again, or use --device cpu";
        tell.tell(Finding::fail("GPU", "there is one, but the program has no embedded kernels for it", remedy));
    }
    // Of several ranks each looks at its own.
    for gpu in devices.iter().filter(|g| asked.world() == 1 || g.ordinal == own) {
        look(gpu, tell);
        doctor_clocks::clocks(gpu.ordinal, &gpu.uuid).into_iter().for_each(|finding| tell.tell(finding));
    }
}

fn look(gpu: &Facts, tell: &Tell) {
    let Facts { ordinal, name, compute, sms, memory_bytes, uuid, pci } = gpu;
    let [major, minor] = compute;
    let all = *memory_bytes as f64 / GIB;
    let what =
        format!("GPU {ordinal} {name}, {uuid} at {pci}, sm_{major}{minor}, {sms} multiprocessors, {all:.1} GiB, free");
    tell.tell(match cuda::free_memory(*ordinal) {
        Ok((free, total)) if (free as f64) < 0.8 * total as f64 => {
            let remedy = "nvidia-smi shows who uses it; wait, end that, or take another GPU by CUDA_VISIBLE_DEVICES";
            Finding::warn("GPU", what, remedy).measured(free as f64 / GIB, "GiB")
        }
        Ok((free, _)) => Finding::ok("GPU", what).measured(free as f64 / GIB, "GiB"),
        Err(why) => {
            let remedy = "nvidia-smi -q shows its state; its compute mode must not be prohibited";
            Finding::of_error("GPU", State::Fail, &format!("GPU {ordinal} {name}: {why}"), remedy)
        }
    });
    let Some(archs) = cuda::archs() else { return };
    let remedy = format!("build again with RETORT_CUDA_ARCHS=\"{major}{minor}\"");
    match cuda::coverage(archs, *compute) {
        Coverage::Compiled => {}
        Coverage::ByDriver => {
            let what = format!(
                "GPU {ordinal}: kernels are for {archs}; the driver compiles them for sm_{major}{minor} at the start"
            );
            tell.tell(Finding::warn("GPU", what, remedy));
        }
        Coverage::Missing => {
            let what = format!("GPU {ordinal}: kernels are for {archs}, it is sm_{major}{minor}");
            tell.tell(Finding::fail("GPU", what, remedy));
        }
    }
}

pub(crate) fn nccl(asked: &Asked, tell: &Tell) {
    let environment = Environment::of_process();
    let gpu = matches!(asked.chosen(), Ok(Device::Cuda(_)));
    match Library::open() {
        Ok(library) => {
            let what = format!("version {}, from {}", version_text(library.version()), library.path());
            tell.tell(Finding::ok("NCCL", what));
        }
        Err(why) => {
            let named = environment.get("RETORT_NCCL_LIB").is_some_and(|v| !v.is_empty());
            let text = why.to_string();
            let (found, remedy) = text.rsplit_once("; ").unwrap_or((&text, "name its file by RETORT_NCCL_LIB"));
            tell.tell(if gpu && asked.world() > 1 && !shares_gpu(&environment) {
                Finding::fail("NCCL", found, remedy)
            } else if gpu || named {
                Finding::warn("NCCL", format!("{found}; only several GPUs need it"), remedy)
            } else {
                Finding::ok("NCCL", format!("{found}; only several GPUs need it"))
            });
        }
    }
    let set = |name: &&str| Some(format!("{name}={}", environment.get(name)?));
    let names = ["NCCL_SOCKET_IFNAME", "NCCL_DEBUG", "NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE"];
    let of_ib = ["NCCL_IB_DISABLE", "NCCL_IB_HCA", "NCCL_IB_GID_INDEX", "NCCL_IB_TIMEOUT"];
    let shown: Vec<String> = names.iter().chain(&of_ib).filter_map(set).collect();
    if !shown.is_empty() {
        tell.tell(Finding::ok("NCCL", format!("set: {}", shown.join(" "))));
    }
}
