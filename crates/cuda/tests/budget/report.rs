//! The assembler's report (`nvcc -Xptxas -v`) of one file of kernels.

/// A kernel for one target.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Compiled {
    pub name: String,
    pub target: String,
    pub registers: u32,
    /// Bytes.
    pub static_shared: u32,
    pub stack: u32,
    pub spills: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Report {
    pub kernels: Vec<Compiled>,
    /// Lines that say neither of the figures: warnings, serialized wgmma (C7510 and its like), parts of other reports between.
    pub complaints: Vec<String>,
}

impl Report {
    pub(crate) fn parse(text: &str) -> Report {
        let mut report = Report::default();
        for line in text.lines().filter(|l| !l.trim().is_empty()) {
            if report.take(line.strip_prefix("ptxas info    : ").unwrap_or(line).trim()).is_none() {
                report.complaints.push(line.to_string());
            }
        }
        let unfinished = report.kernels.iter().filter(|k| k.registers == 0).map(|k| format!("nothing of {}", k.name));
        report.complaints.extend(unfinished.collect::<Vec<_>>());
        report
    }

    /// `None` of a line that is not understood.
    fn take(&mut self, line: &str) -> Option<()> {
        if let Some(rest) = line.strip_prefix("Compiling entry function '") {
            let (name, target) = rest.strip_suffix('\'')?.split_once("' for '")?;
            self.kernels.push(Compiled { name: name.into(), target: target.into(), ..Compiled::default() });
        } else if line.contains(" bytes stack frame, ") {
            // Of the kernel, or of a function that it calls.
            let kernel = self.kernels.last_mut()?;
            for (figure, what) in figures(line) {
                match what {
                    "bytes stack frame" => kernel.stack += figure,
                    "bytes spill stores" | "bytes spill loads" => kernel.spills += figure,
                    _ => return None,
                }
            }
        } else if let Some(rest) = line.strip_prefix("Used ") {
            let kernel = self.kernels.last_mut().filter(|k| k.registers == 0)?;
            for (figure, what) in figures(rest) {
                match what {
                    "registers" => kernel.registers = figure,
                    "bytes smem" => kernel.static_shared = figure,
                    _ => {} // barriers, constant memory, the stack again
                }
            }
        } else {
            let known = ["Function properties for ", "Compile time = "].iter().any(|k| line.starts_with(k));
            (known || line.contains(" bytes gmem")).then_some(())?;
        }
        Some(())
    }
}

/// "Used 72 registers, used 1 barriers": each number and what it counts.
fn figures(line: &str) -> impl Iterator<Item = (u32, &str)> {
    line.split(", ").filter_map(|part| {
        let (figure, what) = part.strip_prefix("used ").unwrap_or(part).split_once(' ')?;
        Some((figure.parse().ok()?, what))
    })
}

impl Compiled {
    /// What is wrong whatever the budget: values in local memory, which is device memory.
    pub(crate) fn in_memory(&self, stem: &str) -> Option<String> {
        let Compiled { name, target, stack, spills, .. } = self;
        (stack + spills > 0).then(|| {
            format!("kernels/{stem}.cu: {name} for {target}: {spills} bytes of spills, {stack} of stack; expected none")
        })
    }
}

#[test]
fn figures_are_read_and_what_is_none_is_a_complaint() {
    let text = "ptxas info    : 0 bytes gmem, 48 bytes cmem[3]
ptxas info    : Compiling entry function 'a' for 'sm_90'
ptxas info    : Function properties for a
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 72 registers, used 1 barriers, 16 bytes cumulative stack size, 1024 bytes smem, 576 bytes cmem[0]
ptxas info    : Compile time = 493.963 ms
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to insufficient register resources
a.cu(3): warning #177-D: variable \"x\" was declared but never referenced
";
    let report = Report::parse(text);
    let [a] = &report.kernels[..] else { panic!("{:?}", report.kernels) };
    assert_eq!((a.name.as_str(), a.target.as_str(), a.registers, a.static_shared), ("a", "sm_90", 72, 1024));
    assert!(a.in_memory("a").is_some_and(|f| f.contains("20 bytes of spills, 16 of stack")));
    let [wgmma, warning] = &report.complaints[..] else { panic!("{:?}", report.complaints) };
    assert!(wgmma.contains("C7510") && warning.contains("warning"));
    // Reports of two targets, torn apart.
    let head = |name: &str| format!("Compiling entry function '{name}' for 'sm_80'\n");
    let torn = Report::parse(&format!("{}{}Used 8 registers\nUsed 16 registers\n", head("a"), head("b")));
    assert_eq!(torn.complaints, ["Used 16 registers", "nothing of a"]);
}
