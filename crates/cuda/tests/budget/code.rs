//! Machine code by cuobjdump and nvdisasm, where they are.

use crate::{TARGETS, root};
use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Where tools/fetch-disassembler.sh puts them.
const FETCHED: &str = ".cuda/disassembler/nvidia/cu13/bin";

/// A kernel's opcodes for one target, with their modifiers.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Listing {
    pub name: String,
    pub target: String,
    pub opcodes: BTreeSet<String>,
}

impl Listing {
    /// Is there an opcode with these modifiers, others allowed between? "LDG.128" finds LDG.E.128.CONSTANT, not LDGSTS.E.128.
    pub(crate) fn has(&self, wanted: &str) -> bool {
        self.opcodes.iter().any(|opcode| {
            let (mut parts, mut wanted) = (opcode.split('.'), wanted.split('.'));
            parts.next() == wanted.next() && wanted.all(|w| parts.any(|p| p == w))
        })
    }
}

pub(crate) struct Disassembler {
    cuobjdump: PathBuf,
    /// PATH, on which cuobjdump finds nvdisasm.
    path: std::ffi::OsString,
}

impl Disassembler {
    pub(crate) fn find() -> Option<Disassembler> {
        let path = env::var_os("PATH").unwrap_or_default();
        let home = env::var_os("CUDA_HOME").map(|h| PathBuf::from(h).join("bin"));
        let folders: Vec<_> = [root().join(FETCHED)].into_iter().chain(home).chain(env::split_paths(&path)).collect();
        let both = |folder: &&PathBuf| ["cuobjdump", "nvdisasm"].iter().all(|tool| folder.join(tool).is_file());
        let cuobjdump = folders.iter().find(both)?.join("cuobjdump");
        Some(Disassembler { cuobjdump, path: env::join_paths(&folders).ok()? })
    }

    /// All kernels of the fatbins `stems` in `folder`, of those targets that have budgets.
    pub(crate) fn all(&self, folder: &Path, stems: Vec<String>) -> Vec<Listing> {
        let (queue, found) = (Mutex::new(stems.into_iter()), Mutex::new(vec![]));
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let Some(stem) = queue.lock().unwrap().next() else { break };
                        let listings = self.one(&folder.join(format!("{stem}.fatbin")));
                        found.lock().unwrap().extend(listings);
                    }
                });
            }
        });
        found.into_inner().unwrap()
    }

    fn one(&self, fatbin: &Path) -> Vec<Listing> {
        let of = |target: &&str| {
            let mut command = Command::new(&self.cuobjdump);
            let command = command.args(["-sass", "-arch", target]).arg(fatbin).env("PATH", &self.path);
            let output = command.output().expect("cuobjdump is there");
            let (text, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{}: {text}{error}", fatbin.display());
            listings(&text)
        };
        TARGETS.iter().flat_map(of).collect()
    }
}

/// Reads the text of `cuobjdump -sass`.
fn listings(text: &str) -> Vec<Listing> {
    let (mut all, mut target) = (Vec::<Listing>::new(), "");
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("code for ") {
            target = name;
        } else if let Some(name) = line.strip_prefix("Function : ") {
            all.push(Listing { name: name.into(), target: target.into(), ..Listing::default() });
        } else if let (Some(opcode), Some(kernel)) = (opcode(line), all.last_mut()) {
            kernel.opcodes.insert(opcode.into());
        }
    }
    all
}

/// The opcode of a line `/*0010*/  @!P0 LDG.E.128 R4, [R2.64] ;`; the second line of an instruction has none.
fn opcode(line: &str) -> Option<&str> {
    let (_, instruction) = line.strip_prefix("/*")?.split_once("*/")?;
    let mut words = instruction.split_whitespace().skip_while(|w| w.starts_with('@'));
    words.next().map(|w| w.trim_end_matches(';')).filter(|w| w.starts_with(|c: char| c.is_ascii_uppercase()))
}

#[test]
fn opcodes_are_read_with_their_modifiers() {
    let text = "code for sm_80
        Function : a
    .headerflags    @\"EF_CUDA_SM80\"
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;  /* 0x00000a00ff017624 */
                                                                           /* 0x000fe400078e00ff */
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, [R2.64] ;         /* 0x0000000000007919 */
        /*0020*/                   EXIT ;                                  /* 0x0000000000007919 */
    code for sm_90
        Function : a
        /*0000*/               @P1 LDGSTS.E.BYPASS.128 [R1], [R2.64] ;      /* 0x00000a00ff017624 */
";
    let [old, new] = &listings(text)[..] else { panic!("two kernels") };
    assert_eq!((old.name.as_str(), old.target.as_str(), new.target.as_str()), ("a", "sm_80", "sm_90"));
    assert_eq!(old.opcodes.iter().collect::<Vec<_>>(), ["EXIT", "IMAD.MOV.U32", "LDG.E.128.CONSTANT"]);
    assert!(old.has("LDG.128") && old.has("LDG.E.CONSTANT") && !old.has("LDG.64") && !old.has("LDG.128.E"));
    assert!(new.has("LDGSTS") && !new.has("LDG.128"));
}
