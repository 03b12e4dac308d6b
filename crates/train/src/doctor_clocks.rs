//! Preflight of a GPU's clocks, heat, power and errors, by NVML, the library behind nvidia-smi.

use crate::doctor::Finding;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, ComputeMode, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

/// Hotter than this before anything runs: the cooling fails. GPUs slow down at 83 to 95 °C.
const HOT_C: u32 = 80;
const COOL: &str = "look at fans, air flow and the room's temperature";
const POWER: &str = "nvidia-smi -q -d POWER; raise the limit by nvidia-smi -pl WATTS, and look at the power supply";

/// What NVML says of a GPU; `None` where this GPU does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Reading {
    /// MHz: now and most.
    sm_clock: Option<[u32; 2]>,
    memory_clock: Option<[u32; 2]>,
    throttled: Option<ThrottleReasons>,
    temperature_c: Option<u32>,
    /// Milliwatts: now, the limit that holds, the limit as delivered.
    power_mw: Option<[u32; 3]>,
    persistent: Option<bool>,
    compute_mode: Option<ComputeMode>,
    /// Since the driver was loaded: corrected, not corrected.
    memory_errors: Option<[u64; 2]>,
}

/// What NVML says of a GPU of this process, numbered `ordinal`, by its id. Without the library that is a finding too.
pub(crate) fn clocks(ordinal: usize, uuid: &str) -> Vec<Finding> {
    let unknown = |why: String| vec![Finding::ok("GPU", format!("GPU {ordinal}: clocks are not known: {why}"))];
    let nvml = match Nvml::init() {
        Ok(nvml) => nvml,
        Err(NvmlError::LibloadingError(_)) => return unknown("there is no libnvidia-ml.so.1".to_string()),
        Err(why) => return unknown(format!("NVML: {why}")),
    };
    match nvml.device_by_uuid(uuid) {
        Ok(device) => judge(ordinal, &read(&device)),
        Err(why) => unknown(format!("NVML, asked for {uuid}: {why}")),
    }
}

fn read(device: &Device<'_>) -> Reading {
    let clock = |kind: Clock| Some([device.clock_info(kind).ok()?, device.max_clock_info(kind).ok()?]);
    let power = || {
        let [now, limit] = [device.power_usage().ok()?, device.enforced_power_limit().ok()?];
        Some([now, limit, device.power_management_limit_default().unwrap_or(limit)])
    };
    let errors = |kind| device.total_ecc_errors(kind, EccCounter::Volatile).ok();
    Reading {
        sm_clock: clock(Clock::SM),
        memory_clock: clock(Clock::Memory),
        throttled: device.current_throttle_reasons().ok(),
        temperature_c: device.temperature(TemperatureSensor::Gpu).ok(),
        power_mw: power(),
        persistent: device.is_in_persistent_mode().ok(),
        compute_mode: device.compute_mode().ok(),
        memory_errors: errors(MemoryError::Corrected).zip(errors(MemoryError::Uncorrected)).map(|(c, u)| [c, u]),
    }
}

/// Why clocks are held down, in words, and what to do. Idle and `none` hold nothing down that a run would not end.
const REASONS: [(ThrottleReasons, &str, &str); 8] = [
    (ThrottleReasons::HW_THERMAL_SLOWDOWN, "too hot, the hardware halves them or worse", COOL),
    (ThrottleReasons::SW_THERMAL_SLOWDOWN, "too hot, the driver lowers them", COOL),
    (
        ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN,
        "the power supply brakes",
        "the machine's power supply is overloaded or lost a feed: look at it",
    ),
    (ThrottleReasons::SW_POWER_CAP, "the power limit is reached", POWER),
    (ThrottleReasons::HW_SLOWDOWN, "the hardware slows down: heat, power or a brake from outside", COOL),
    (
        ThrottleReasons::APPLICATIONS_CLOCKS_SETTING,
        "application clocks are set",
        "nvidia-smi -rac takes the setting away",
    ),
    (
        ThrottleReasons::SYNC_BOOST,
        "another GPU of its sync boost group holds it down",
        "nvidia-smi -q -d PERFORMANCE of all GPUs",
    ),
    (ThrottleReasons::DISPLAY_CLOCK_SETTING, "the display's clocks are set", "take the display off this GPU"),
];

fn judge(ordinal: usize, reading: &Reading) -> Vec<Finding> {
    let of_gpu = |text: String| format!("GPU {ordinal}: {text}");
    let mut found = vec![Finding::ok("GPU", of_gpu(shown(reading)))];
    let mut warn = |text: String, remedy: &str| found.push(Finding::warn("GPU", of_gpu(text), remedy));
    let throttled = reading.throttled.unwrap_or(ThrottleReasons::NONE);
    let special = ThrottleReasons::HW_THERMAL_SLOWDOWN | ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN;
    for (reason, words, remedy) in REASONS {
        // The general word of what a special one has already said.
        let said = reason == ThrottleReasons::HW_SLOWDOWN && throttled.intersects(special);
        if throttled.contains(reason) && !said {
            warn(format!("clocks are held down: {words}"), remedy);
        }
    }
    if let Some(degrees) = reading.temperature_c.filter(|&c| c >= HOT_C) {
        warn(format!("{degrees} °C before a run, expected below {HOT_C}"), COOL);
    }
    if let Some([_, limit, delivered]) = reading.power_mw.filter(|[_, limit, delivered]| limit < delivered) {
        let remedy = format!("nvidia-smi -pl {} if the lower limit is not meant", delivered / 1000);
        warn(format!("the power limit is {} W, delivered with {} W", limit / 1000, delivered / 1000), &remedy);
    }
    if let Some([corrected, lost]) = reading.memory_errors.filter(|[_, lost]| *lost > 0) {
        let what = format!(
            "{lost} memory errors that could not be corrected, and {corrected} that could, since the driver was loaded"
        );
        let remedy = "nvidia-smi -q -d ECC,ROW_REMAPPER; reset the GPU, and have it replaced if errors come back";
        warn(what, remedy);
    }
    if reading.compute_mode == Some(ComputeMode::Prohibited) {
        let remedy = "nvidia-smi -c DEFAULT, as root";
        found.push(Finding::fail("GPU", of_gpu("its compute mode is prohibited".to_string()), remedy));
    }
    found
}

/// One line of what is known.
fn shown(reading: &Reading) -> String {
    let clock = |name: &str, clock: [u32; 2]| format!("{name} {} of {} MHz", clock[0], clock[1]);
    let held = reading.throttled.map(|reasons| {
        let word = match (reasons.is_empty(), reasons == ThrottleReasons::GPU_IDLE) {
            (true, _) => "not held down",
            (_, true) => "idle",
            (false, false) => "held down",
        };
        word.to_string()
    });
    let mode = reading.compute_mode.as_ref().and_then(|mode| match mode {
        ComputeMode::Default => None,
        ComputeMode::Prohibited => Some("compute mode prohibited".to_string()),
        ComputeMode::ExclusiveThread | ComputeMode::ExclusiveProcess => Some("one process at a time".to_string()),
    });
    let parts = [
        reading.sm_clock.map(|c| clock("clocks: multiprocessors", c)),
        reading.memory_clock.map(|c| clock("memory", c)),
        held,
        reading.temperature_c.map(|c| format!("{c} °C")),
        reading.power_mw.map(|[now, limit, _]| format!("{} of {} W", now / 1000, limit / 1000)),
        reading
            .persistent
            .filter(|on| !on)
            .map(|_| "persistence mode off: the first start waits for the driver".to_string()),
        mode,
        reading.memory_errors.map(|[corrected, lost]| format!("memory errors {corrected} corrected, {lost} not")),
    ];
    let known: Vec<String> = parts.into_iter().flatten().collect();
    if known.is_empty() { "NVML tells nothing of it".to_string() } else { known.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    fn well() -> Reading {
        Reading {
            sm_clock: Some([345, 1980]),
            memory_clock: Some([2619, 2619]),
            throttled: Some(ThrottleReasons::GPU_IDLE),
            temperature_c: Some(31),
            power_mw: Some([71_200, 700_000, 700_000]),
            persistent: Some(true),
            compute_mode: Some(ComputeMode::Default),
            memory_errors: Some([0, 0]),
        }
    }

    /// What is not ok, with its remedy.
    fn trouble(reading: &Reading) -> Vec<(State, String, String)> {
        let found = judge(3, reading);
        assert_eq!(found[0].state, State::Ok);
        found[1..].iter().map(|f| (f.state, f.found.clone(), f.remedy.clone())).collect()
    }

    #[test]
    fn an_idle_gpu_is_one_line() {
        let found = judge(3, &well());
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(
            found[0].found,
            "GPU 3: clocks: multiprocessors 345 of 1980 MHz, memory 2619 of 2619 MHz, idle, 31 °C, 71 of 700 W, memory errors 0 corrected, \
             0 not"
        );
        assert_eq!(judge(0, &Reading::default())[0].found, "GPU 0: NVML tells nothing of it");
    }

    #[test]
    fn each_reason_is_a_warning_in_words_with_a_remedy() {
        for (reason, words, remedy) in REASONS {
            let seen = trouble(&Reading { throttled: Some(reason | ThrottleReasons::GPU_IDLE), ..well() });
            let expected = format!("GPU 3: clocks are held down: {words}");
            assert_eq!(seen, [(State::Warn, expected, remedy.to_string())]);
        }
        let both = ThrottleReasons::HW_SLOWDOWN | ThrottleReasons::HW_THERMAL_SLOWDOWN;
        assert_eq!(trouble(&Reading { throttled: Some(both), ..well() }).len(), 1, "the special word alone");
    }

    #[test]
    fn heat_lower_limits_lost_bits_and_modes_are_said() {
        let hot = trouble(&Reading { temperature_c: Some(80), ..well() });
        assert_eq!(hot[0].1, "GPU 3: 80 °C before a run, expected below 80");
        assert!(trouble(&Reading { temperature_c: Some(79), ..well() }).is_empty());
        let capped = trouble(&Reading { power_mw: Some([71_000, 350_000, 700_000]), ..well() });
        assert_eq!(
            (capped[0].1.as_str(), &capped[0].2[..17]),
            ("GPU 3: the power limit is 350 W, delivered with 700 W", "nvidia-smi -pl 70")
        );
        let lost = trouble(&Reading { memory_errors: Some([4, 2]), ..well() });
        assert!(lost[0].1.contains("2 memory errors that could not be corrected, and 4 that could"), "{lost:?}");
        assert!(trouble(&Reading { memory_errors: Some([4, 0]), ..well() }).is_empty());
        let closed = trouble(&Reading { compute_mode: Some(ComputeMode::Prohibited), ..well() });
        assert_eq!((closed[0].0, closed[0].2.as_str()), (State::Fail, "nvidia-smi -c DEFAULT, as root"));
    }

    #[test]
    fn a_gpu_that_the_library_does_not_know_is_a_finding() {
        let found = clocks(0, "GPU-00000000-0000-0000-0000-000000000000");
        assert_eq!(found.len(), 1);
        assert!(found[0].state == State::Ok && found[0].found.contains("clocks are not known: "), "{found:?}");
    }
}
