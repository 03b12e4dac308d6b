//! What nvcc made of the kernels, held to kernels/budget.toml: registers, static shared memory, no spills, no stack, no complaint
//! of the compiler, and the instructions that a kernel is written for. And kernels/README.md: every op is in its table.
//!
//! The reports and fatbins are those that build.rs left in `OUT_DIR`; without nvcc these tests are skipped aloud, and those of
//! instructions without cuobjdump and nvdisasm (tools/fetch-disassembler.sh). After kernels changed on purpose,
//! `RETORT_BUDGET=write cargo test --release -p cuda --test budget` writes the figures of the file anew; read its diff.

mod code;
mod limits;
mod report;
mod table;

use code::Disassembler;
use limits::Limits;
use report::{Compiled, Report};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Targets that have budgets: the oldest that runs, and Hopper. Others have none of their own, but may neither spill.
pub(crate) const TARGETS: [&str; 2] = ["sm_80", "sm_90"];

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub(crate) fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The files of kernels/ that the program embeds, by stem, and their text.
pub(crate) fn sources() -> Vec<(String, String)> {
    let folder = root().join("kernels");
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let paths = entries.map(|e| e.expect("an entry").path()).filter(|p| p.extension().is_some_and(|e| e == "cu"));
    let mut all: Vec<_> =
        paths.map(|p| (p.file_stem().unwrap_or_default().to_string_lossy().into_owned(), read(&p))).collect();
    all.retain(|(stem, _)| !stem.starts_with("check_"));
    all.sort();
    assert!(!all.is_empty(), "{}: no kernels", folder.display());
    all
}

/// (stem, kernel) of everything that is launched by name.
fn kernels() -> BTreeSet<(String, String)> {
    let name = |line: &str| Some(line.strip_prefix("KERNEL_EXPORT(")?.split_once(')')?.0.to_string());
    sources().iter().flat_map(|(stem, text)| text.lines().filter_map(name).map(|k| (stem.clone(), k))).collect()
}

/// What build.rs left of each file; none, said aloud, where there was no compiler.
fn reports() -> Option<Vec<(String, Report)>> {
    if cfg!(no_kernels) {
        println!("skipped: this build found no nvcc; run tools/fetch-nvcc.sh and build again");
        return None;
    }
    let out = Path::new(env!("OUT_DIR"));
    let one = |(stem, _)| {
        let text = read(&out.join(format!("{stem}.ptxas")));
        (stem, Report::parse(&text))
    };
    Some(sources().into_iter().map(one).collect())
}

fn is_writing() -> bool {
    let writing = std::env::var_os("RETORT_BUDGET").is_some_and(|v| v == "write");
    if writing {
        println!("skipped: kernels/budget.toml is being written");
    }
    writing
}

#[test]
fn every_kernel_has_a_budget_and_a_rule() {
    if is_writing() {
        return;
    }
    let (limits, kernels) = (Limits::load(), kernels());
    let (names, budgets): (BTreeSet<_>, BTreeSet<_>) =
        (kernels.iter().map(|k| &k.1).collect(), limits.kernels.keys().collect());
    let difference = |a: &BTreeSet<&String>, b: &BTreeSet<&String>| a.difference(b).map(|k| k.to_string()).collect();
    let (missing, stale): (Vec<_>, Vec<_>) = (difference(&names, &budgets), difference(&budgets, &names));
    let remedy = "RETORT_BUDGET=write cargo test --release -p cuda --test budget";
    assert!(missing.is_empty() && stale.is_empty(), "no budget: {missing:?}; no kernel: {stale:?}; remedy: {remedy}");

    let ruled: Vec<_> = names.iter().map(|k| (k, limits.rule(k))).collect();
    let without: Vec<_> = ruled.iter().filter(|r| r.1.is_none()).map(|r| r.0).collect();
    assert!(without.is_empty(), "kernels/budget.toml, [instructions]: no line begins the names of {without:?}");
    let used: BTreeSet<_> = ruled.iter().filter_map(|r| Some(&r.1?.prefix)).collect();
    let unused: Vec<_> = limits.rules.iter().map(|r| &r.prefix).filter(|p| !used.contains(p)).collect();
    assert!(unused.is_empty(), "kernels/budget.toml, [instructions]: lines for no kernel: {unused:?}");

    // How a kernel's file is found when it is launched: the longest stem that its name begins with.
    let stems: BTreeSet<_> = kernels.iter().map(|k| k.0.as_str()).collect();
    for (stem, kernel) in &kernels {
        let found = stems.iter().filter(|s| kernel.starts_with(**s)).max_by_key(|s| s.len());
        assert_eq!(found, Some(&stem.as_str()), "kernels/{stem}.cu: the name of {kernel} leads to another file");
    }
}

#[test]
fn compiled_kernels_keep_to_their_budgets() {
    let Some(reports) = reports() else { return };
    let faults: Vec<_> = reports
        .iter()
        .flat_map(|(stem, r)| {
            r.complaints.iter().map(move |line| format!("kernels/{stem}.cu: the compiler says: {line}"))
        })
        .chain(reports.iter().flat_map(|(stem, r)| r.kernels.iter().filter_map(move |k| k.in_memory(stem))))
        .collect();
    let compiled: Vec<&Compiled> = reports.iter().flat_map(|r| &r.1.kernels).collect();
    if is_writing() {
        Limits::load().write(&compiled);
        println!("kernels/budget.toml is written\n{}", faults.join("\n"));
        return;
    }
    let (limits, names) = (Limits::load(), kernels());
    let mut faults = faults;
    for target in TARGETS {
        let these: Vec<_> = compiled.iter().filter(|k| k.target == target).collect();
        if these.is_empty() {
            println!("skipped: {target}, this build has no such kernels (RETORT_CUDA_ARCHS)");
            continue;
        }
        let absent = names.iter().filter(|n| !these.iter().any(|k| k.name == n.1));
        faults.extend(absent.map(|(stem, k)| format!("kernels/{stem}.cu: {k} is not in the report for {target}")));
        faults.extend(these.iter().flat_map(|k| limits.faults(k)));
        println!("{target}: {} kernels", these.len());
    }
    let of = "figures are those of nvcc 13.0.88 (tools/fetch-nvcc.sh)";
    assert!(faults.is_empty(), "{} faults; {of}:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn kernels_are_made_of_the_instructions_that_were_meant() {
    let Some(disassembler) = (!cfg!(no_kernels)).then(Disassembler::find).flatten() else {
        println!("skipped: no nvcc in this build, or no cuobjdump and nvdisasm; run tools/fetch-disassembler.sh");
        return;
    };
    if is_writing() {
        return;
    }
    let (limits, names, mut faults) = (Limits::load(), kernels(), vec![]);
    let listings = disassembler.all(Path::new(env!("OUT_DIR")), sources().into_iter().map(|s| s.0).collect());
    for target in TARGETS {
        let these: Vec<_> = listings.iter().filter(|k| k.target == target).collect();
        println!("{target}: {} kernels", these.len());
        if these.is_empty() {
            continue; // the reports' test says why
        }
        let absent = names.iter().filter(|n| !these.iter().any(|k| k.name == n.1));
        faults.extend(absent.map(|(_, k)| format!("{k}: no code for {target}")));
        faults.extend(these.iter().filter_map(|k| Some((k, limits.rule(&k.name)?))).flat_map(|(k, r)| r.faults(k)));
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn every_op_is_in_the_table_of_the_readme() {
    let faults = table::faults();
    assert!(faults.is_empty(), "kernels/README.md:\n{}", faults.join("\n"));
}
