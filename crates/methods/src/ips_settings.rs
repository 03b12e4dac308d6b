//! Settings of intra-class patch swap, as a recipe has them. `ips.rs` has the method.

use serde::{Deserialize, Serialize};
use spec::{PairRule, Setting};

/// Settings of intra-class patch swap.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ips {
    /// Partner of an anchor. Default `with_self`.
    pub pair: Pair,
    /// Probability that a pair exchanges anything. Default 0.5.
    pub gate: f64,
    /// Probability of each cell of an exchanging pair. Default 0.5, unless `cell_count` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cell_prob: Option<f64>,
    /// Instead of `cell_prob`: exactly so many cells, or "uniform", 1 to all but one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cell_count: Option<CellCount>,
    /// Side of a cell in pixels; the last row and column may be narrower. Default a quarter of the image's side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub m: Option<usize>,
    /// Whether the network also sees the images before the exchange. Then a step has 4n rows, [a, b] swapped and [a, b] as they
    /// were; cross-entropy is over all four runs, distillation between the swapped two. Default false: closed gates give originals.
    pub feed_originals: bool,
    /// Batch-norm statistics over all rows, or over each run of n (a, then b). Default `joint`.
    pub bn_groups: BnGroups,
    /// Cross-entropy as the mean over all rows fed, or as the sum of the runs' means (2 times as large, 4 with originals).
    /// Default `mean`.
    pub ce_reduce: CeReduce,
    /// Images that cross-entropy is taken on: those of both halves, or of anchors alone. Default `both`.
    pub ce_on: CeOn,
    /// Who teaches whom. Default `two_way_sg`.
    pub kl: Direction,
    /// T, softens both distributions. Default 4.
    pub temperature: f64,
    /// α, weight of the distillation. Default 1.
    pub alpha: f64,
    /// α grows linearly over so many epochs, since the first teachers are poor. Default 0: no ramp.
    pub alpha_rampup_epochs: f64,
}

/// How the partner of an anchor is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pair {
    /// Uniform over the class, the anchor included.
    WithSelf,
    /// Uniform over the class without the anchor.
    WithoutSelf,
    /// Neighbours of the shuffled class: every image once an epoch.
    Partition,
}

impl Pair {
    pub(crate) fn rule(self) -> PairRule {
        match self {
            Pair::WithSelf => PairRule::WithSelf,
            Pair::WithoutSelf => PairRule::WithoutSelf,
            Pair::Partition => PairRule::Partition,
        }
    }
}

/// How many cells of a pair are exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged, expecting = "expected a number of cells or \"uniform\"")]
pub enum CellCount {
    Exactly(usize),
    Spread(Spread),
}

/// A number of cells that is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// Between 1 and all but one, each equally likely.
    Uniform,
}

/// Rows that share batch-norm statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BnGroups {
    /// All rows.
    Joint,
    /// Each run of n rows by itself.
    Split,
}

/// What becomes of the cross-entropies of the runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CeReduce {
    /// Their mean.
    Mean,
    /// Their sum.
    Sum,
}

/// Images with a cross-entropy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CeOn {
    Both,
    Anchor,
}

/// Direction of the distillation within a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Both ways, teachers detached: their mean.
    TwoWaySg,
    /// Both ways, nothing detached.
    TwoWayFull,
    /// b, detached, teaches a.
    OneWayBToA,
    /// In each pair the image surer of the label, detached, teaches the other; a on a tie.
    ByConfidence,
}

impl Default for Ips {
    fn default() -> Ips {
        Ips {
            pair: Pair::WithSelf,
            gate: 0.5,
            cell_prob: None,
            cell_count: None,
            m: None,
            feed_originals: false,
            bn_groups: BnGroups::Joint,
            ce_reduce: CeReduce::Mean,
            ce_on: CeOn::Both,
            kl: Direction::TwoWaySg,
            temperature: 4.0,
            alpha: 1.0,
            alpha_rampup_epochs: 0.0,
        }
    }
}

impl Ips {
    /// The same settings with those that the run decides written out.
    pub(crate) fn resolved(mut self, setting: &Setting) -> Ips {
        self.m = Some(self.side(setting));
        if self.cell_count.is_none() {
            self.cell_prob.get_or_insert(0.5);
        }
        self
    }

    /// Pixels of a cell's side.
    pub(crate) fn side(&self, setting: &Setting) -> usize {
        let [h, w, _] = setting.image;
        self.m.unwrap_or((h.min(w) / 4).max(1))
    }
}
