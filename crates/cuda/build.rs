//! Compiles kernels/*.cu to fatbins and writes the table that the program embeds (`OUT_DIR/kernels.rs`), with the assembler's
//! report beside each (`OUT_DIR/<stem>.ptxas`: registers, spills, stack, shared memory).
//!
//! nvcc is looked for in NVCC, CUDA_HOME/bin, `.cuda/` of the checkout (tools/fetch-nvcc.sh fills it) and PATH. Without it the
//! build goes on with `cfg(no_kernels)`, and the program says what to do when a GPU is asked for. RETORT_CUDA_ARCHS ("80" or
//! "80 90") narrows the targets for development; the first of them also gives the PTX that newer GPUs compile for themselves.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Where tools/fetch-nvcc.sh puts it.
const FETCHED: &str = ".cuda/nvidia/cu13/bin/nvcc";
const ARCHS: &str = "80 86 89 90 100 120";

struct Build {
    nvcc: PathBuf,
    version: Vec<u8>,
    kernels: PathBuf,
    out: PathBuf,
    archs: Vec<String>,
    /// Contents of all headers: any kernel may include any.
    headers: Vec<Vec<u8>>,
}

fn main() {
    println!("cargo::rustc-check-cfg=cfg(no_kernels)");
    for name in ["NVCC", "CUDA_HOME", "RETORT_CUDA_ARCHS"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../..");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let kernels = root.join("kernels");
    println!("cargo::rerun-if-changed={}", kernels.display());
    let fetched = root.join(FETCHED);
    if fetched.exists() {
        println!("cargo::rerun-if-changed={}", fetched.display()); // a path that is missing would build always
    }
    let sources = files(&kernels, "cu");
    let archs: Vec<String> = env::var("RETORT_CUDA_ARCHS")
        .unwrap_or(ARCHS.into())
        .split([' ', ','])
        .filter(|a| !a.is_empty())
        .map(|a| a.trim_start_matches("sm_").to_string())
        .collect();
    let mut table = String::new();
    match find_nvcc(&root) {
        None => {
            println!("cargo::rustc-cfg=no_kernels");
            write_table(&mut table, &sources, &[], |_| "b\"\"".into());
        }
        Some((nvcc, version)) => {
            let headers = files(&kernels.join("include"), "cuh").iter().map(|f| read(f)).collect();
            let build = Build { nvcc, version, kernels, out: out.clone(), archs, headers };
            build.all(&sources);
            write_table(&mut table, &sources, &build.archs, |stem| {
                format!("include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{stem}.fatbin\"))")
            });
        }
    }
    write_if_changed(&out.join("kernels.rs"), table.as_bytes());
}

/// `MODULES`: file stem, image, but for `check_*`, which tests alone embed. `ARCHS`: the targets, for people.
fn write_table(to: &mut String, sources: &[PathBuf], archs: &[String], image: impl Fn(&str) -> String) {
    to.push_str("pub(crate) static MODULES: &[(&str, &[u8])] = &[\n");
    for stem in sources.iter().map(|s| stem(s)).filter(|s| !s.starts_with("check_")) {
        writeln!(to, "    ({stem:?}, {}),", image(&stem)).expect("a string takes all");
    }
    let archs: Vec<String> = archs.iter().map(|a| format!("sm_{a}")).collect();
    writeln!(to, "];\npub(crate) const ARCHS: &str = {:?};", archs.join(" ")).expect("a string takes all");
}

/// nvcc and what it says of itself.
fn find_nvcc(root: &Path) -> Option<(PathBuf, Vec<u8>)> {
    let named = env::var_os("NVCC").map(PathBuf::from);
    let home = env::var_os("CUDA_HOME").map(|h| PathBuf::from(h).join("bin/nvcc"));
    let fetched = Some(root.join(FETCHED));
    let candidates = [named, home, fetched, Some(PathBuf::from("nvcc"))].into_iter().flatten();
    candidates.into_iter().find_map(|nvcc| {
        let answer = Command::new(&nvcc).arg("--version").output().ok().filter(|o| o.status.success())?;
        Some((nvcc, answer.stdout))
    })
}

impl Build {
    /// Every file that changed, as many at a time as cargo allows jobs.
    fn all(&self, sources: &[PathBuf]) {
        let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize).clamp(1, 64);
        let (queue, failed) = (Mutex::new(sources.iter()), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    loop {
                        let next = queue.lock().expect("no thread panics").next();
                        let Some(source) = next else { break };
                        if let Err(e) = self.one(source) {
                            failed.lock().expect("no thread panics").push(e);
                        }
                    }
                });
            }
        });
        let failed = failed.into_inner().expect("no thread panics");
        assert!(failed.is_empty(), "kernels that nvcc refuses:\n{}", failed.join("\n"));
    }

    fn one(&self, source: &Path) -> Result<(), String> {
        let stem = stem(source);
        let flags = self.flags(&stem);
        let mut hasher = DefaultHasher::new();
        (read(source), &self.headers, &flags, &self.version).hash(&mut hasher);
        let key = format!("{:016x}", hasher.finish());
        let [fatbin, report, key_file] = ["fatbin", "ptxas", "key"].map(|e| self.out.join(format!("{stem}.{e}")));
        if fatbin.exists() && fs::read_to_string(&key_file).is_ok_and(|old| old == key) {
            return Ok(());
        }
        let answer = Command::new(&self.nvcc)
            .args(&flags)
            .arg("-I")
            .arg(self.kernels.join("include"))
            .arg(source)
            .arg("-o")
            .arg(&fatbin)
            .output()
            .map_err(|e| format!("{}: {e}", self.nvcc.display()))?;
        let text = String::from_utf8_lossy(&answer.stderr);
        if !answer.status.success() {
            return Err(format!("{}:\n{text}{}", source.display(), String::from_utf8_lossy(&answer.stdout)));
        }
        let written = fs::write(&report, text.as_bytes()).and_then(|()| fs::write(&key_file, key));
        written.map_err(|e| format!("{}: {e}", report.display()))
    }

    /// The name decides the targets: `*_sm90a` is Hopper's alone, the rest is portable and carries PTX for what comes later.
    fn flags(&self, stem: &str) -> Vec<String> {
        let common = ["-std=c++17", "-O3", "-t2", "-fatbin", "-Xptxas", "-v"];
        let mut flags: Vec<String> = common.map(String::from).to_vec();
        if stem.ends_with("_sm90a") {
            flags.push("-gencode=arch=compute_90a,code=sm_90a".into());
            return flags;
        }
        flags.extend(self.archs.iter().map(|a| format!("-gencode=arch=compute_{a},code=sm_{a}")));
        flags.extend(self.archs.first().map(|a| format!("-gencode=arch=compute_{a},code=compute_{a}")));
        flags
    }
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == extension));
    files.sort();
    files
}

fn stem(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(file: &Path) -> Vec<u8> {
    fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// Cargo compiles again what includes a file that was written.
fn write_if_changed(file: &Path, text: &[u8]) {
    if fs::read(file).is_ok_and(|old| old == text) {
        return;
    }
    fs::write(file, text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
}
