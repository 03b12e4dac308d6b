//! Networks, a file each: a function from an image to `Taps`, with the published parameter names and initialisation.
//!
//! Invariant: this crate knows only `spec`. A network reads its channel counts from the image, so any number of input
//! channels and any image size go; nothing here knows a data set, a loss or a device.

mod densenet;
mod linear;
mod mobilenetv1;
mod mobilenetv2;
mod residual;
mod resnet;
mod resnet_cifar;
mod resnet_preact;
mod shufflev1;
mod shufflev2;
mod state_dict;
mod vgg;
mod wrn;

use densenet::Densenet;
use linear::Linear;
use mobilenetv1::MobilenetV1;
use mobilenetv2::MobilenetV2;
use resnet::{R10X2, R18, R18X2, R34, R34X2, R50, R101, RESNEXT50, Resnet, Source, WIDE50X2};
use resnet_cifar::{PLAIN, ResnetCifar, Widths, X2, X4};
use resnet_preact::ResnetPreact;
use serde::{Deserialize, Serialize};
use shufflev1::ShuffleV1;
use shufflev2::ShuffleV2;
use spec::{Expr, Network};
pub use state_dict::{Entry, EntryValue, state_dict};
use thiserror::Error;
use vgg::Vgg;
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
    /// Name of its last linear layer, as `Network::classifier` has it.
    pub head: &'static str,
    /// Height and width of the images that its published counts are for. Any other size works too.
    pub side: usize,
    /// Where it departs from the published network, if it does.
    pub deviation: Option<&'static str>,
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
    FourStages { form: resnet::Form, source: Source },
    PreActivation { blocks: [usize; 4] },
    Vgg { convs: [usize; 5] },
    MobileV1,
    MobileV2(mobilenetv2::Form),
    ShuffleV1,
    ShuffleV2 { form: shufflev2::Form, widths: [usize; 3] },
    Dense(densenet::Form),
    Linear,
}

/// Every network, under the names of the benches. Names without a mark are torchvision's where it has the network (`resnet18`,
/// `mobilenet_v2`), and else those for CIFAR (`resnet20`, `mobilenetv2`). `cifar_`, `preact_`, `skl_` and `mixskd_` mark
/// depths that torchvision has too, `_imagenet` SimKD's wide basic nets; `mobilenetv1` is the one for ImageNet.
const NETWORKS: [(&str, Family); 57] = [
    ("resnet8", Family::ThreeStages { depth: 8, widths: PLAIN }),
    ("resnet14", Family::ThreeStages { depth: 14, widths: PLAIN }),
    ("resnet20", Family::ThreeStages { depth: 20, widths: PLAIN }),
    ("resnet32", Family::ThreeStages { depth: 32, widths: PLAIN }),
    ("resnet38", Family::ThreeStages { depth: 38, widths: PLAIN }),
    ("resnet44", Family::ThreeStages { depth: 44, widths: PLAIN }),
    ("resnet56", Family::ThreeStages { depth: 56, widths: PLAIN }),
    ("resnet110", Family::ThreeStages { depth: 110, widths: PLAIN }),
    ("resnet116", Family::ThreeStages { depth: 116, widths: PLAIN }),
    ("resnet14x2", Family::ThreeStages { depth: 14, widths: X2 }),
    ("resnet38x2", Family::ThreeStages { depth: 38, widths: X2 }),
    ("resnet110x2", Family::ThreeStages { depth: 110, widths: X2 }),
    ("resnet8x4", Family::ThreeStages { depth: 8, widths: X4 }),
    ("resnet14x4", Family::ThreeStages { depth: 14, widths: X4 }),
    ("resnet32x4", Family::ThreeStages { depth: 32, widths: X4 }),
    ("resnet38x4", Family::ThreeStages { depth: 38, widths: X4 }),
    ("wrn_16_1", Family::Wide { depth: 16, width: 1 }),
    ("wrn_16_2", Family::Wide { depth: 16, width: 2 }),
    ("wrn_40_1", Family::Wide { depth: 40, width: 1 }),
    ("wrn_40_2", Family::Wide { depth: 40, width: 2 }),
    ("wrn_28_10", Family::Wide { depth: 28, width: 10 }),
    ("cifar_resnet18", Family::FourStages { form: R18, source: Source::Mdistiller }),
    ("cifar_resnet34", Family::FourStages { form: R34, source: Source::Mdistiller }),
    ("cifar_resnet50", Family::FourStages { form: R50, source: Source::Mdistiller }),
    ("preact_resnet10", Family::PreActivation { blocks: [1, 1, 1, 1] }),
    ("preact_resnet18", Family::PreActivation { blocks: [2, 2, 2, 2] }),
    ("preact_resnet34", Family::PreActivation { blocks: [3, 4, 6, 3] }),
    ("skl_resnet50", Family::FourStages { form: R50, source: Source::SelfKd }),
    ("mixskd_resnet18", Family::FourStages { form: R18, source: Source::MixSkd }),
    ("mixskd_resnet50", Family::FourStages { form: R50, source: Source::MixSkd }),
    ("resnet18", Family::FourStages { form: R18, source: Source::Torchvision }),
    ("resnet34", Family::FourStages { form: R34, source: Source::Torchvision }),
    ("resnet50", Family::FourStages { form: R50, source: Source::Torchvision }),
    ("resnet101", Family::FourStages { form: R101, source: Source::Torchvision }),
    ("wide_resnet50_2", Family::FourStages { form: WIDE50X2, source: Source::Torchvision }),
    ("resnext50_32x4d", Family::FourStages { form: RESNEXT50, source: Source::Torchvision }),
    ("resnet10x2_imagenet", Family::FourStages { form: R10X2, source: Source::Torchvision }),
    ("resnet18x2_imagenet", Family::FourStages { form: R18X2, source: Source::Torchvision }),
    ("resnet34x2_imagenet", Family::FourStages { form: R34X2, source: Source::Torchvision }),
    ("vgg8", Family::Vgg { convs: [1; 5] }),
    ("vgg11", Family::Vgg { convs: [1, 1, 2, 2, 2] }),
    ("vgg13", Family::Vgg { convs: [2; 5] }),
    ("vgg16", Family::Vgg { convs: [2, 2, 3, 3, 3] }),
    ("vgg19", Family::Vgg { convs: [2, 2, 4, 4, 4] }),
    ("mobilenetv1", Family::MobileV1),
    ("mobilenetv2", Family::MobileV2(mobilenetv2::Form::Cifar { half: true })),
    ("mobilenetv2_1_0", Family::MobileV2(mobilenetv2::Form::Cifar { half: false })),
    ("mobilenetv2_tinyimagenet", Family::MobileV2(mobilenetv2::Form::Tiny)),
    ("mobilenet_v2", Family::MobileV2(mobilenetv2::Form::Torchvision)),
    ("shufflev1", Family::ShuffleV1),
    ("shufflev2", Family::ShuffleV2 { form: shufflev2::Form::Cifar, widths: [116, 232, 464] }),
    ("shufflev2_1_5", Family::ShuffleV2 { form: shufflev2::Form::Cifar, widths: [176, 352, 704] }),
    ("shufflenet_v2_x1_0", Family::ShuffleV2 { form: shufflev2::Form::Torchvision, widths: [116, 232, 464] }),
    ("cifar_densenet121", Family::Dense(densenet::Form::Cifar121)),
    ("densenet40_12", Family::Dense(densenet::Form::Cifar40)),
    ("densenet121", Family::Dense(densenet::Form::Torchvision121)),
    ("linear", Family::Linear),
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
            Family::ThreeStages { depth, widths } => Box::new(ResnetCifar { depth, widths, classes }),
            Family::Wide { depth, width } => {
                Box::new(Wrn { depth, width, bn: self.wrn_bn.unwrap_or_default(), classes })
            }
            Family::FourStages { form, source } => Box::new(Resnet { form, source, classes }),
            Family::PreActivation { blocks } => Box::new(ResnetPreact { blocks, classes }),
            Family::Vgg { convs } => Box::new(Vgg { convs, classes }),
            Family::MobileV1 => Box::new(MobilenetV1 { classes }),
            Family::MobileV2(form) => Box::new(MobilenetV2 { form, classes }),
            Family::ShuffleV1 => Box::new(ShuffleV1 { classes }),
            Family::ShuffleV2 { form, widths } => Box::new(ShuffleV2 { form, widths, classes }),
            Family::Dense(form) => Box::new(Densenet { form, classes }),
            Family::Linear => Box::new(Linear { classes }),
        })
    }

    /// The same network with every setting that applies to it written out.
    pub fn resolved(mut self) -> Result<NetworkSpec, NetError> {
        if let Family::Wide { .. } = self.family()? {
            self.wrn_bn.get_or_insert_default();
        }
        Ok(self)
    }

    /// What is known of the network by its name.
    pub fn facts(&self) -> Result<Facts, NetError> {
        let side = match self.family()? {
            Family::FourStages { source: Source::Torchvision, .. } | Family::MobileV1 => 224,
            Family::MobileV2(mobilenetv2::Form::Torchvision) | Family::Dense(densenet::Form::Torchvision121) => 224,
            Family::ShuffleV2 { form: shufflev2::Form::Torchvision, .. } => 224,
            Family::MobileV2(mobilenetv2::Form::Tiny) => 64,
            Family::Linear => 1,
            _ => 32,
        };
        let dropout = "no dropout of 0.2 before the classifier";
        let deviation = (self.name == "mobilenet_v2").then_some(dropout);
        Ok(Facts { head: self.build(1)?.classifier(), side, deviation })
    }

    fn family(&self) -> Result<Family, NetError> {
        let name = self.name.clone();
        let Some(&(_, family)) = NETWORKS.iter().find(|(known, _)| *known == name) else {
            let nearest = NetworkSpec::names().min_by_key(|known| edits(known, &name.to_lowercase()));
            return Err(NetError::Name { name, nearest: nearest.unwrap_or_default() });
        };
        match (family, self.wrn_bn) {
            (Family::Wide { .. }, _) | (_, None) => Ok(family),
            _ => Err(NetError::WrnBn { name }),
        }
    }
}

/// Whether a 2×2 window fits. Smaller maps are not pooled, so that any image size goes.
fn fits_2x2(x: Expr<'_>) -> bool {
    x.shape().dims()[1..3].iter().all(|&side| side > 1)
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
