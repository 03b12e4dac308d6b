//! Networks, a file each: a function from an image to `Taps`, with the published parameter names and initialisation.
//!
//! Invariant: this crate knows only `graph`. A network reads its channel counts from the image, so any number of input
//! channels and any image size go; nothing here knows a data set, a loss or a device.

mod residual;
mod resnet;
mod resnet_cifar;
mod state_dict;
mod wrn;

use graph::Network;
use resnet::{Depth, Resnet, Stem};
use resnet_cifar::{PLAIN, ResnetCifar, Widths, X2, X4};
use serde::{Deserialize, Serialize};
pub use state_dict::{Entry, EntryValue, state_dict};
use thiserror::Error;
use wrn::Wrn;

/// A recipe's `[network]`: the name, and what the name leaves open.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// One of `NetworkSpec::names()`.
    pub name: String,
    /// `wrn_*` only: how often the batch norm behind each stage moves its running statistics. Default `twice`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrn_bn: Option<WrnBn>,
}

/// Moves of the running statistics of `block2.layer.0.bn1`, `block3.layer.0.bn1` and `bn1` per training forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WrnBn {
    /// As in the code behind the published CIFAR-100 teachers and results (mdistiller), so that they can be reproduced.
    #[default]
    Twice,
    /// As in every other layer.
    Once,
}

/// What else is known of a network by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Name of the last layer: `fc` or `linear`.
    pub head: &'static str,
    /// Height and width of the images that its published counts are for. Any other size works too.
    pub side: usize,
}

/// A `[network]` section that cannot be built.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum NetError {
    #[error("network.name: there is no network {name:?}; did you mean {nearest:?}? known: {}", NetworkSpec::names().collect::<Vec<_>>().join(", "))]
    Name { name: String, nearest: &'static str },
    #[error("network.wrn_bn is a setting of wrn_* networks, and the network is {name:?}; remove the line")]
    WrnBn { name: String },
}

#[derive(Clone, Copy, Debug)]
enum Family {
    ThreeStages { depth: usize, widths: Widths },
    Wide { depth: usize, width: usize },
    FourStages { depth: Depth, stem: Stem },
}

use Family::{FourStages, ThreeStages, Wide};

/// Every network. Names of the distillation benches; `resnet18`, `resnet34`, `resnet50` are torchvision's, `cifar_` marks
/// the same depths with the CIFAR stem.
const NETWORKS: [(&str, Family); 26] = [
    ("resnet8", ThreeStages { depth: 8, widths: PLAIN }),
    ("resnet14", ThreeStages { depth: 14, widths: PLAIN }),
    ("resnet20", ThreeStages { depth: 20, widths: PLAIN }),
    ("resnet32", ThreeStages { depth: 32, widths: PLAIN }),
    ("resnet38", ThreeStages { depth: 38, widths: PLAIN }),
    ("resnet44", ThreeStages { depth: 44, widths: PLAIN }),
    ("resnet56", ThreeStages { depth: 56, widths: PLAIN }),
    ("resnet110", ThreeStages { depth: 110, widths: PLAIN }),
    ("resnet116", ThreeStages { depth: 116, widths: PLAIN }),
    ("resnet14x2", ThreeStages { depth: 14, widths: X2 }),
    ("resnet38x2", ThreeStages { depth: 38, widths: X2 }),
    ("resnet110x2", ThreeStages { depth: 110, widths: X2 }),
    ("resnet8x4", ThreeStages { depth: 8, widths: X4 }),
    ("resnet14x4", ThreeStages { depth: 14, widths: X4 }),
    ("resnet32x4", ThreeStages { depth: 32, widths: X4 }),
    ("resnet38x4", ThreeStages { depth: 38, widths: X4 }),
    ("wrn_16_1", Wide { depth: 16, width: 1 }),
    ("wrn_16_2", Wide { depth: 16, width: 2 }),
    ("wrn_40_1", Wide { depth: 40, width: 1 }),
    ("wrn_40_2", Wide { depth: 40, width: 2 }),
    ("cifar_resnet18", FourStages { depth: Depth::D18, stem: Stem::Cifar }),
    ("cifar_resnet34", FourStages { depth: Depth::D34, stem: Stem::Cifar }),
    ("cifar_resnet50", FourStages { depth: Depth::D50, stem: Stem::Cifar }),
    ("resnet18", FourStages { depth: Depth::D18, stem: Stem::Imagenet }),
    ("resnet34", FourStages { depth: Depth::D34, stem: Stem::Imagenet }),
    ("resnet50", FourStages { depth: Depth::D50, stem: Stem::Imagenet }),
];

impl NetworkSpec {
    /// The network of this name, all settings at their defaults.
    pub fn new(name: &str) -> NetworkSpec {
        NetworkSpec { name: name.to_string(), wrn_bn: None }
    }

    /// Every name.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NETWORKS.iter().map(|&(name, _)| name)
    }

    /// The network, with `classes` logits.
    pub fn build(&self, classes: usize) -> Result<Box<dyn Network>, NetError> {
        Ok(match self.family()? {
            ThreeStages { depth, widths } => Box::new(ResnetCifar { depth, widths, classes }),
            Wide { depth, width } => Box::new(Wrn { depth, width, bn: self.wrn_bn.unwrap_or_default(), classes }),
            FourStages { depth, stem } => Box::new(Resnet { depth, stem, classes }),
        })
    }

    /// The same network with every setting that applies to it written out.
    pub fn resolved(mut self) -> Result<NetworkSpec, NetError> {
        if let Wide { .. } = self.family()? {
            self.wrn_bn.get_or_insert_default();
        }
        Ok(self)
    }

    /// What is known of the network by its name.
    pub fn facts(&self) -> Result<Facts, NetError> {
        Ok(match self.family()? {
            FourStages { stem, .. } => Facts { head: stem.head(), side: if stem == Stem::Imagenet { 224 } else { 32 } },
            ThreeStages { .. } | Wide { .. } => Facts { head: "fc", side: 32 },
        })
    }

    fn family(&self) -> Result<Family, NetError> {
        let name = self.name.clone();
        let Some(&(_, family)) = NETWORKS.iter().find(|(known, _)| *known == name) else {
            let nearest = NetworkSpec::names().min_by_key(|known| edits(known, &name.to_lowercase()));
            return Err(NetError::Name { name, nearest: nearest.unwrap_or_default() });
        };
        match (family, self.wrn_bn) {
            (ThreeStages { .. } | FourStages { .. }, Some(_)) => Err(NetError::WrnBn { name }),
            _ => Ok(family),
        }
    }
}

/// Letters to insert, delete or replace to get from one word to the other (Levenshtein).
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.chars().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.chars().count()]
}
