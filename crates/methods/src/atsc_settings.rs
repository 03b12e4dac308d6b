//! Settings of adaptive teaching, as a recipe has them. `atsc.rs` has the method.

use serde::{Deserialize, Serialize};

/// Settings of adaptive teaching.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Atsc {
    /// b. Default 1.
    pub mse_weight: f64,
    /// w. Default 1; ImageNet 10.
    pub anchor_weight: f64,
    /// c and d, of the student's own classifier. Default 0: it decays, nothing else. Several teachers each have their KL, unshared.
    pub ce_weight: f64,
    pub kd_weight: f64,
    /// T of the KL. Default 4.
    pub temperature: f64,
    /// The projector's middle has 1/f of the teacher's channels. Default 2.
    pub projector_factor: usize,
    /// Whether scales and shifts are anchored as filters are; the classifier's bias never is. Default true; `atsc-ref`: false.
    pub anchor_bn: bool,
    /// Whether the teacher's scales and shifts decay. Default true.
    pub teacher_bn_decay: bool,
    /// Whether the bias step is taken. Default true.
    pub bias_step: bool,
    /// Default `adaptive`.
    pub teacher: TeacherMode,
}

/// What the teacher does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TeacherMode {
    /// It trains along, on batch statistics.
    Adaptive,
    /// It stays as it is, on running statistics, without bias step: the reused classifier alone.
    Frozen,
}

impl Default for Atsc {
    fn default() -> Atsc {
        Atsc {
            mse_weight: 1.0,
            anchor_weight: 1.0,
            ce_weight: 0.0,
            kd_weight: 0.0,
            temperature: 4.0,
            projector_factor: 2,
            anchor_bn: true,
            teacher_bn_decay: true,
            bias_step: true,
            teacher: TeacherMode::Adaptive,
        }
    }
}
