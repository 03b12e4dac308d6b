//! Settings of self-distillation from mixup, as a recipe has them. `mixskd.rs` has the method.

use serde::{Deserialize, Serialize};

/// Settings of self-distillation from mixup. Weights are 1 in both released scripts.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct MixSkd {
    /// λ ~ Beta(a, a). Default 0.4; ImageNet 0.2.
    pub mix_alpha: f64,
    /// T. Default 3.
    pub temperature: f64,
    /// Default `b`.
    pub loss: MixSkdLoss,
    /// Default `frozen`.
    pub discriminators: Discriminators,
    pub cls_weight: f64,
    pub mixcls_weight: f64,
    pub stcls_weight: f64,
    pub kl_st_weight: f64,
    pub kl_pair_weight: f64,
    pub fea_weight: f64,
    pub gan_weight: f64,
}

/// The two published losses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MixSkdLoss {
    A,
    B,
}

/// What becomes of the discriminators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Discriminators {
    /// They stay as they begin, as in both released scripts.
    Frozen,
    Trained,
    /// Trained, and their gradient changes its sign on its way into the features.
    Reversed,
}

impl Default for MixSkd {
    fn default() -> MixSkd {
        MixSkd {
            mix_alpha: 0.4,
            temperature: 3.0,
            loss: MixSkdLoss::B,
            discriminators: Discriminators::Frozen,
            cls_weight: 1.0,
            mixcls_weight: 1.0,
            stcls_weight: 1.0,
            kl_st_weight: 1.0,
            kl_pair_weight: 1.0,
            fea_weight: 1.0,
            gan_weight: 1.0,
        }
    }
}
