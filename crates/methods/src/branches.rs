//! Branches: copies of a network's later stages on the map of an earlier one, with parameters of their own.

use spec::{Expr, Net, Step, Taps};

/// Where a branch starts, and how deep its stages are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Branch {
    /// The stage whose map it reads, from 1.
    pub(crate) from: usize,
    /// Blocks of each of its stages; as many as the network has where absent.
    pub(crate) blocks: Option<usize>,
}

/// The branch's last map, [n,h,w,c]; `name` says where a stage's parameters go.
pub(crate) fn grow<'g>(
    step: &Step<'g>,
    taps: &Taps<'g>,
    branch: Branch,
    name: impl Fn(usize) -> Net<'g>,
) -> Result<Expr<'g>, String> {
    let mut stages = branch.from + 1..taps.stages.len();
    stages.try_fold(taps.stages[branch.from], |x, stage| {
        step.student.stage(&name(stage), stage, branch.blocks, x).ok_or_else(|| {
            "the method grows branches from a network's later stages, and this network has none that can be copied; \
             use a residual network"
                .to_string()
        })
    })
}
