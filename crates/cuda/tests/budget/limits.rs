//! kernels/budget.toml: a subset of TOML, a line per entry.

use crate::code::Listing;
use crate::report::Compiled;
use crate::{TARGETS, read, root};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// Sums by these depend on the order of blocks.
const ATOMICS: [&str; 4] = ["ATOM", "ATOMG", "ATOMS", "RED"];

/// Instructions of all kernels whose names begin with `prefix` and with no longer one of another rule.
#[derive(Debug, PartialEq)]
pub(crate) struct Rule {
    pub prefix: String,
    has: Vec<String>,
    never: Vec<String>,
}

/// What a kernel may use.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Limit {
    registers: [u32; TARGETS.len()],
    static_shared: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Limits {
    /// Everything before the figures, which are written anew.
    head: String,
    pub rules: Vec<Rule>,
    pub kernels: BTreeMap<String, Limit>,
}

fn path() -> PathBuf {
    root().join("kernels/budget.toml")
}

impl Limits {
    pub(crate) fn load() -> Limits {
        Limits::parse(&read(&path())).unwrap_or_else(|e| panic!("{}: {e}", path().display()))
    }

    fn parse(text: &str) -> Result<Limits, String> {
        let mut limits = Limits::default();
        let mut section = "";
        for line in text.lines() {
            if section != "[kernels]" {
                limits.head += &format!("{line}\n");
            }
            let entry = line.split('#').next().unwrap_or_default().trim();
            match entry {
                "" => {}
                "[instructions]" | "[kernels]" => section = entry,
                _ => limits.entry(section, entry).ok_or_else(|| format!("{section}: not understood: {line}"))?,
            }
        }
        Ok(limits)
    }

    fn entry(&mut self, section: &str, entry: &str) -> Option<()> {
        let (name, value) = entry.split_once(" = ")?;
        if section == "[instructions]" {
            let value = value.strip_prefix('[')?.strip_suffix(']')?;
            let words = value.split(", ").filter(|w| !w.is_empty()).map(|w| w.strip_prefix('"')?.strip_suffix('"'));
            let words = words.collect::<Option<Vec<_>>>()?;
            let never = words.iter().filter_map(|w| w.strip_prefix('!')).map(String::from).collect();
            let has = words.iter().filter(|w| !w.starts_with('!')).map(|w| w.to_string()).collect();
            self.rules.push(Rule { prefix: name.into(), has, never });
            return Some(());
        }
        let mut limit = Limit::default();
        for field in value.strip_prefix("{ ")?.strip_suffix(" }")?.split(", ") {
            let (key, figure) = field.split_once(" = ")?;
            let figure = figure.parse().ok()?;
            match TARGETS.iter().position(|t| *t == key) {
                Some(target) => limit.registers[target] = figure,
                None if key == "static_shared" => limit.static_shared = figure,
                None => return None,
            }
        }
        self.kernels.insert(name.into(), limit).is_none().then_some(())
    }

    pub(crate) fn rule(&self, kernel: &str) -> Option<&Rule> {
        self.rules.iter().filter(|r| kernel.starts_with(&r.prefix)).max_by_key(|r| r.prefix.len())
    }

    /// What of a kernel is over its budget.
    pub(crate) fn faults(&self, kernel: &Compiled) -> Vec<String> {
        let Compiled { name, target, registers, static_shared, .. } = kernel;
        let (Some(limit), Some(i)) = (self.kernels.get(name), TARGETS.iter().position(|t| t == target)) else {
            return vec![format!("{name} for {target}: it has no budget in kernels/budget.toml")];
        };
        let over = |what: &str, got: u32, most: u32| {
            (got > most).then(|| format!("{name} for {target}: {got} {what}, at most {most} in kernels/budget.toml"))
        };
        let registers = over("registers", *registers, limit.registers[i]);
        let shared = over("bytes of static shared memory", *static_shared, limit.static_shared);
        registers.into_iter().chain(shared).collect()
    }

    /// Writes the figures anew, what is before them stays.
    pub(crate) fn write(&self, compiled: &[&Compiled]) {
        let mut kernels = BTreeMap::<&str, Limit>::new();
        for kernel in compiled {
            let Some(i) = TARGETS.iter().position(|t| *t == kernel.target) else { continue };
            let limit = kernels.entry(&kernel.name).or_default();
            limit.registers[i] = registers_allowed(kernel.registers);
            limit.static_shared = limit.static_shared.max(kernel.static_shared);
        }
        let mut text = self.head.clone();
        for (name, Limit { registers, static_shared }) in kernels {
            let targets = TARGETS.iter().zip(registers);
            let figures: Vec<_> = targets
                .map(|(target, figure)| {
                    assert!(figure > 0, "{name}: no figure for {target}; build with RETORT_CUDA_ARCHS=\"80 90\"");
                    format!("{target} = {figure}")
                })
                .collect();
            text += &format!("{name} = {{ {}, static_shared = {static_shared} }}\n", figures.join(", "));
        }
        fs::write(path(), text).unwrap_or_else(|e| panic!("{}: {e}", path().display()));
    }
}

/// Registers are given to a warp in units of 8 a thread, and a quarter of a multiprocessor has 512 of them a lane for at most 16
/// warps. Allowed is one unit above what was measured, if as many warps stay resident. The bound of `__launch_bounds__` needs no
/// figure here: rather than pass it, the compiler spills.
fn registers_allowed(measured: u32) -> u32 {
    let warps = |registers: u32| (512 / registers).min(16);
    let unit = measured.next_multiple_of(8);
    let more = (unit + 8).min(255);
    if warps(more) == warps(unit) { more } else { unit.min(255) }
}

impl Rule {
    /// Which instructions are missing, and which should not be there.
    pub(crate) fn faults(&self, kernel: &Listing) -> Vec<String> {
        let Listing { name, target, .. } = kernel;
        let absent = self.has.iter().filter(|i| !kernel.has(i)).map(|i| format!("{name} for {target}: no {i}"));
        let never = self.never.iter().map(String::as_str).chain(ATOMICS);
        let present = never.filter(|i| kernel.has(i));
        absent.chain(present.map(|i| format!("{name} for {target}: {i}, expected none"))).collect()
    }
}

#[test]
fn what_is_over_a_budget_is_named() {
    let text = "# head\n[instructions]\nconv = []\nconv_bf16 = [\"HMMA.BF16\", \"!FFMA\"]\n\n[kernels]\n\
                conv_bf16_64 = { sm_80 = 64, sm_90 = 72, static_shared = 16 }\n";
    let limits = Limits::parse(text).unwrap();
    assert!(limits.head.ends_with("\n[kernels]\n") && limits.head.starts_with("# head\n[instructions]"));
    let kernel = |target: &str, registers, static_shared| Compiled {
        name: "conv_bf16_64".into(),
        target: target.into(),
        registers,
        static_shared,
        ..Compiled::default()
    };
    assert!(limits.faults(&kernel("sm_90", 72, 16)).is_empty());
    assert!(limits.faults(&kernel("sm_80", 65, 16))[0].contains("65 registers, at most 64"));
    assert!(limits.faults(&kernel("sm_90", 65, 17))[0].contains("17 bytes of static shared memory, at most 16"));
    assert!(limits.faults(&Compiled { name: "pool".into(), ..kernel("sm_80", 1, 0) })[0].contains("no budget"));

    let opcodes = ["HMMA.16816.F32", "FFMA.FTZ", "RED.E.ADD.F32", "REDUX.MAX"].map(String::from).into();
    let listing = Listing { name: "conv_bf16_64".into(), target: "sm_80".into(), opcodes };
    let faults = limits.rule("conv_bf16_64").unwrap().faults(&listing);
    let expected = ["no HMMA.BF16", "FFMA, expected none", "RED, expected none"];
    assert!(faults.len() == 3 && faults.iter().zip(expected).all(|(f, e)| f.contains(e)), "{faults:?}");
    assert_eq!(limits.rule("conv_dgrad").unwrap().prefix, "conv");
    assert_eq!(limits.rule("pool"), None);

    for wrong in ["[kernels]\na = { sm_80 = x }", "[kernels]\na = { sm_70 = 1 }", "[instructions]\na = HMMA", "a = []"]
    {
        assert!(Limits::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn slack_costs_no_resident_warp() {
    // 16 warps a quarter up to 32 registers, 12 up to 40, 10 up to 48, 5 up to 96, 3 up to 168, 2 up to 255.
    for (measured, allowed) in
        [(20, 32), (28, 32), (40, 40), (41, 48), (84, 96), (90, 96), (160, 168), (168, 168), (241, 255)]
    {
        assert_eq!(registers_allowed(measured), allowed, "{measured}");
    }
}
