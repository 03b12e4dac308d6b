//! Progressive self-knowledge distillation. Kim, Ji, Yoon, Hwang 2021, arXiv:2006.12000.
//!
//! M[i] is what the network said of sample i when it saw it last (softmax at T = 1). With α_t = α_T (t + 1)/E in epoch t of E:
//! loss = CE(z, (1 − α_t) onehot(y) + α_t M) = (1 − α_t) CE(z, y) + α_t CE(z, M)
//!
//! In epoch 0 there is no memory yet and α is 0. M is written from the pass that made the loss, before the update.

use crate::check;
use serde::{Deserialize, Serialize};
use spec::{Losses, Method, Ramp, Setting, SlotSpec, Spec, StateSpec, StateUse, Step};

/// Settings of progressive self-distillation.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PsKd {
    /// α_T: trust in the memory in the last epoch. Default 0.8.
    pub alpha: f64,
}

impl Default for PsKd {
    fn default() -> PsKd {
        PsKd { alpha: 0.8 }
    }
}

impl Method for PsKd {
    fn spec(&self, setting: &Setting) -> Result<Spec, String> {
        check::probability("alpha", self.alpha)?;
        let (epochs, hold) = (setting.epochs as f64, 1);
        let slot = |name: &str, from, to| SlotSpec { name: name.into(), ramp: Ramp { from, to, epochs, hold } };
        Ok(Spec {
            states: vec![StateSpec { name: "memory".into(), usage: StateUse::PerSample, row: vec![setting.classes] }],
            slots: vec![slot("alpha", 0.0, self.alpha), slot("one_minus_alpha", 1.0, 1.0 - self.alpha)],
            ..Spec::default()
        })
    }

    fn losses<'g>(&self, _phase: usize, step: &Step<'g>) -> Losses {
        let (memory, index) = (step.state("memory"), step.index());
        let (logits, label) = (step.student(step.image()).logits, step.label());
        // CE of a mixture is the mixture of the CEs. The ramp rises from (1 − α_t) = 1 as α_t does from 0.
        Losses::new()
            .term("ce", step.slot("one_minus_alpha"), logits.cross_entropy(label))
            .term("kd", step.slot("alpha"), logits.cross_entropy_soft(step.recall(memory, index)))
            .remember(memory, index, logits.softmax(1.0))
            .logits(logits, label)
    }
}
