//! Be your own teacher: the deepest classifier teaches shallower ones. Zhang, Song, Gao, Chen, Bao, Ma 2019, arXiv:1905.08094.
//!
//! Heads hang on the two stages before the last, through later stages of one block each: logits z_i and last maps f_i;
//! loss = Σ_{i=0..2} CE(z_i, y) + w T² Σ_{i=1,2} KL(sg(z_0)/T ‖ z_i/T) + h Σ_{i=1,2} MSE(f_i, sg(f_0)), i = 0 the network itself
//!
//! Constants and branches of the self-distillation bench that published them (methods/7-comparators 7.14).

use crate::branches::{Branch, grow};
use crate::check;
use serde::{Deserialize, Serialize};
use spec::{Expr, Loss, Losses, Method, Setting, Spec, Step, Taps};

/// Settings of self-teaching through branches.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Byot {
    /// T. Default 4.
    pub temperature: f64,
    /// w. Default 1.
    pub kd_weight: f64,
    /// h. Default 0.05.
    pub hint_weight: f64,
    /// Blocks of each stage of a branch. Default 1.
    pub blocks: usize,
}

impl Default for Byot {
    fn default() -> Byot {
        Byot { temperature: 4.0, kd_weight: 1.0, hint_weight: 0.05, blocks: 1 }
    }
}

impl Byot {
    /// Last map and logits of head 1, on the stage before the last, and head 2, on the one before.
    fn heads<'g>(&self, step: &Step<'g>, taps: &Taps<'g>) -> Result<Vec<(Expr<'g>, Expr<'g>)>, String> {
        let stages = taps.stages.len().saturating_sub(1);
        if stages < 3 {
            return Err(format!(
                "the method hangs heads on the two stages before the last, and the network has {stages} stages"
            ));
        }
        let head = |h: usize| {
            let name = |stage| step.module(&format!("layer{stage}_head{h}"));
            let x = grow(step, taps, Branch { from: stages - h, blocks: Some(self.blocks) }, name)?;
            let logits = step.module(&format!("fc_head{h}")).linear_here(x.mean_hw(), step.setting.classes);
            Ok((x, logits))
        };
        [1, 2].into_iter().map(head).collect()
    }
}

impl Method for Byot {
    fn spec(&self, _setting: &Setting) -> Result<Spec, String> {
        check::temperature(self.temperature)?;
        check::weight("kd_weight", self.kd_weight)?;
        check::weight("hint_weight", self.hint_weight)?;
        if self.blocks == 0 {
            return Err(
                "method.blocks is the number of blocks in each stage of a branch, expected at least 1, got 0".into()
            );
        }
        Ok(Spec::default())
    }

    fn fits<'g>(&self, step: &Step<'g>) -> Result<(), String> {
        let taps = step.student(step.image());
        let heads = self.heads(step, &taps)?;
        let same = heads.iter().all(|(map, _)| map.shape() == taps.stages[taps.stages.len() - 1].shape());
        if same { Ok(()) } else { Err("branches end with maps of another shape than the network's".into()) }
    }

    fn losses<'g>(&self, _phase: usize, step: &Step<'g>) -> Losses {
        let (taps, label, t) = (step.student(step.image()), step.label(), self.temperature);
        let heads = self.heads(step, &taps).expect("`fits` was asked before");
        let (deepest, map) = (taps.logits.detach(), taps.stages[taps.stages.len() - 1].detach());
        let sum = |of: &dyn Fn(Expr<'g>, Expr<'g>) -> Loss| {
            heads.iter().fold(Loss::default(), |sum, &(map, logits)| sum + of(map, logits))
        };
        Losses::new()
            .term("ce", 1.0, taps.logits.cross_entropy(label) + sum(&|_, z| z.cross_entropy(label)))
            .term("kd", self.kd_weight * t * t, sum(&|_, z| z.kl(deepest, t)))
            .term("hint", self.hint_weight, sum(&|f, _| f.mse(map)))
            .logits(taps.logits, label)
    }

    fn other_heads<'g>(&self, step: &Step<'g>) -> Vec<(String, Expr<'g>)> {
        let heads = self.heads(step, &step.student(step.image())).expect("`fits` was asked before");
        heads.into_iter().enumerate().map(|(h, (_, z))| (format!("head{}_top1", h + 1), z)).collect()
    }
}
