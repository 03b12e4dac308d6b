//! Self-distillation from the last mini-batch. Shen, Xu, Yang, Li, Guo 2022, arXiv:2203.16172.
//!
//! Every image comes in two augmentations v0, v1. Step i: o = f(v0 of batch i), then o' = f(v1 of batch i − 1) by itself;
//! loss = CE over both (their mean) + α T² KL(sg(o of step i − 1)/T ‖ o'/T). The first step has cross-entropy alone.
//!
//! T and α have no published default; 3 and 1 are our choice (methods/7-comparators 7.12). The last batch is carried over epochs.

use crate::check;
use serde::{Deserialize, Serialize};
use spec::{Losses, Method, Setting, Spec, StateSpec, StateUse, Step};

/// Settings of distillation from the last batch.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dlb {
    /// T. Default 3.
    pub temperature: f64,
    /// α. Default 1.
    pub alpha: f64,
}

impl Default for Dlb {
    fn default() -> Dlb {
        Dlb { temperature: 3.0, alpha: 1.0 }
    }
}

impl Method for Dlb {
    fn spec(&self, setting: &Setting) -> Result<Spec, String> {
        check::temperature(self.temperature)?;
        check::weight("alpha", self.alpha)?;
        let state = StateSpec { name: "previous.logits".into(), usage: StateUse::Rolling, row: vec![setting.classes] };
        Ok(Spec { previous: true, states: vec![state], ..Spec::default() })
    }

    fn losses<'g>(&self, _phase: usize, step: &Step<'g>) -> Losses {
        let state = step.state("previous.logits");
        let (now, label) = (step.student(step.image()).logits, step.label());
        let losses = Losses::new().assign(state, now).logits(now, label);
        if step.previous_units() == 0 {
            return losses.term("ce", 1.0, now.cross_entropy(label));
        }
        let again = step.student(step.previous_image()).logits; // [previous units, classes]
        let both = now.concat_rows(&[again]);
        losses
            .term("ce", 1.0, both.cross_entropy(label.concat_rows(&[step.previous_label()])))
            .term("kd", self.alpha * self.temperature.powi(2), again.kl(step.rolling(state), self.temperature))
            .output("logits.previous", again)
    }
}
