//! ResNet-(6n+2) for small images (He et al. 2015, arXiv:1512.03385, section 4.2): three stages of n basic blocks.
//!
//! Widths are [16; 16, 32, 64]. The ×2 and ×4 nets of the distillation benches widen them to [16; 32, 64, 128] and
//! [32; 64, 128, 256]: the stem of ×2 keeps its 16 channels, that of ×4 is doubled, so `layer1.0` has a projection.

use crate::residual::{Block, Norm, Projection, Stage};
use spec::{Expr, InitScheme, Net, Network, Taps};

/// Channels of the stem and of the three stages.
pub(crate) type Widths = [usize; 4];
pub(crate) const PLAIN: Widths = [16, 16, 32, 64];
pub(crate) const X2: Widths = [16, 32, 64, 128];
pub(crate) const X4: Widths = [32, 64, 128, 256];

#[derive(Clone, Copy, Debug)]
pub(crate) struct ResnetCifar {
    /// 6n+2.
    pub(crate) depth: usize,
    pub(crate) widths: Widths,
    pub(crate) classes: usize,
}

impl ResnetCifar {
    /// Stage `s`, from 1.
    fn at(&self, s: usize) -> Stage {
        let projection = Projection { name: "downsample", norm: Norm::Batch };
        let (stride, blocks) = (if s == 1 { 1 } else { 2 }, (self.depth - 2) / 6);
        Stage { block: Block::Basic, width: self.widths[s], stride, blocks, projection }
    }
}

impl Network for ResnetCifar {
    fn build<'g>(&self, net: &Net<'g>, image: Expr<'g>) -> Taps<'g> {
        let net = net.clone().init(InitScheme::FanOut);
        let mut x = net.bn("bn1", net.conv("conv1", image, self.widths[0], 3, 1)).relu(); // [n,32,32,c0]
        let mut stages = vec![x];
        for s in 1..=3 {
            x = self.at(s).build(&net, &format!("layer{s}."), x);
            stages.push(x); // after the ReLU: [n,32,32,c1], [n,16,16,c2], [n,8,8,c3]
        }
        let pooled = x.mean_hw(); // the whole map, so any image size works
        Taps { stages, pooled, logits: net.linear(self.classifier(), pooled, self.classes) }
    }

    fn classifier(&self) -> &'static str {
        "fc"
    }

    fn stage<'g>(&self, net: &Net<'g>, stage: usize, blocks: Option<usize>, x: Expr<'g>) -> Option<Expr<'g>> {
        let own = (1..=3).contains(&stage).then(|| self.at(stage))?;
        let copy = Stage { blocks: blocks.unwrap_or(own.blocks), ..own };
        Some(copy.build(&net.clone().init(InitScheme::FanOut), "", x))
    }
}
