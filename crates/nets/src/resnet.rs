//! ResNets of four stages (He et al. 2015, arXiv:1512.03385, table 1), wide ones (Zagoruyko and Komodakis 2016,
//! arXiv:1605.07146) and ResNeXt (Xie et al. 2016, arXiv:1611.05431), each as the implementation of a bench has it.
//!
//! The stride of a bottleneck sits on its 3×3 convolution ("v1.5"); no last γ starts at zero.

use crate::residual::{Block, Norm, Projection, Stage};
use spec::{ConvSpec, Expr, InitScheme, Net, Network, Taps};

/// Blocks of each stage, and the width of the first; it doubles from stage to stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    pub(crate) block: Block,
    pub(crate) blocks: [usize; 4],
    pub(crate) width: usize,
}

const BASIC: Form = Form { block: Block::Basic, blocks: [2, 2, 2, 2], width: 64 };
const BOTTLENECK: Form = Form { block: Block::Bottleneck { base: 64, groups: 1 }, blocks: [3, 4, 6, 3], width: 64 };
pub(crate) const R18: Form = BASIC;
pub(crate) const R34: Form = Form { blocks: [3, 4, 6, 3], ..BASIC };
pub(crate) const R50: Form = BOTTLENECK;
pub(crate) const R101: Form = Form { blocks: [3, 4, 23, 3], ..BOTTLENECK };
pub(crate) const WIDE50X2: Form = Form { block: Block::Bottleneck { base: 128, groups: 1 }, ..BOTTLENECK };
pub(crate) const RESNEXT50: Form = Form { block: Block::Bottleneck { base: 4, groups: 32 }, ..BOTTLENECK };
/// Basic nets of twice the width behind a stem of 64 channels, so that `layer1.0` has a projection (SimKD).
pub(crate) const R10X2: Form = Form { blocks: [1, 1, 1, 1], width: 128, ..BASIC };
pub(crate) const R18X2: Form = Form { width: 128, ..R18 };
pub(crate) const R34X2: Form = Form { width: 128, ..R34 };

/// Whose implementation: stem, names and initialisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// 7×7 stride 2 and a max pool.
    Torchvision,
    /// 3×3, no pool (RepDistiller, mdistiller).
    Mdistiller,
    /// 3×3, no pool, projections without batch norm (Self-KD-Lib's CIFAR_ResNet50).
    SelfKd,
    /// 3×3, no pool, and no ReLU behind the stem's batch norm, so that the first block sees signs (the trunk of MixSKD).
    MixSkd,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Resnet {
    pub(crate) form: Form,
    pub(crate) source: Source,
    pub(crate) classes: usize,
}

impl Resnet {
    /// Stage `s`, from 1.
    fn at(&self, s: usize) -> Stage {
        let Form { block, blocks, width } = self.form;
        let name = if self.source == Source::Mdistiller { "shortcut" } else { "downsample" };
        let norm = if self.source == Source::SelfKd { Norm::None } else { Norm::Batch };
        let stride = if s == 1 { 1 } else { 2 };
        Stage { block, width: width << (s - 1), stride, blocks: blocks[s - 1], projection: Projection { name, norm } }
    }

    fn init(&self) -> InitScheme {
        match self.source {
            Source::Torchvision | Source::Mdistiller => InitScheme::FanOut,
            Source::SelfKd | Source::MixSkd => InitScheme::Default,
        }
    }
}

impl Network for Resnet {
    fn build<'g>(&self, net: &Net<'g>, image: Expr<'g>) -> Taps<'g> {
        let net = net.clone().init(self.init());
        let imagenet = self.source == Source::Torchvision;
        let stem = if imagenet { ConvSpec::new(64, 7, 2) } else { ConvSpec::new(64, 3, 1) };
        let mut x = net.bn("bn1", net.conv_spec("conv1", image, stem)); // [n,112,112,64] of 224
        if self.source != Source::MixSkd {
            x = x.relu();
        }
        let mut stages = vec![x]; // the tap is before the pool
        if imagenet {
            x = x.max_pool(3, 2, 1); // [n,56,56,64]
        }
        for s in 1..=4 {
            x = self.at(s).build(&net, &format!("layer{s}."), x);
            stages.push(x); // after the ReLU
        }
        let pooled = x.mean_hw(); // [n,512], of bottlenecks [n,2048]
        Taps { stages, pooled, logits: net.linear(self.classifier(), pooled, self.classes) }
    }

    fn classifier(&self) -> &'static str {
        if self.source == Source::Mdistiller { "linear" } else { "fc" }
    }

    fn stage<'g>(&self, net: &Net<'g>, stage: usize, blocks: Option<usize>, x: Expr<'g>) -> Option<Expr<'g>> {
        let own = (1..=4).contains(&stage).then(|| self.at(stage))?;
        let copy = Stage { blocks: blocks.unwrap_or(own.blocks), ..own };
        Some(copy.build(&net.clone().init(self.init()), "", x))
    }
}
