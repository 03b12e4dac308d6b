//! ResNet-18, -34 and -50 of four stages, 64-128-256-512 (He et al. 2015, arXiv:1512.03385, table 1), with two stems.
//!
//! ImageNet: 7×7 stride 2 and a max pool, parameter names of torchvision. CIFAR: 3×3 and no pool, names of the
//! distillation benches. The stride of a bottleneck sits on its 3×3 convolution ("v1.5"); no last γ starts at zero.

use crate::residual::{Residual, basic_block, bottleneck};
use graph::{ConvSpec, Expr, InitScheme, Net, Network, Taps};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stem {
    Cifar,
    Imagenet,
}

impl Stem {
    /// What the published implementation calls its last layer.
    pub(crate) fn head(self) -> &'static str {
        match self {
            Stem::Cifar => "linear",
            Stem::Imagenet => "fc",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Depth {
    D18,
    D34,
    D50,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Resnet {
    pub(crate) depth: Depth,
    pub(crate) stem: Stem,
    pub(crate) classes: usize,
}

impl Network for Resnet {
    fn build<'g>(&self, net: &Net<'g>, image: Expr<'g>) -> Taps<'g> {
        let net = net.clone().init(InitScheme::FanOut);
        let blocks = match self.depth {
            Depth::D18 => [2, 2, 2, 2],
            Depth::D34 | Depth::D50 => [3, 4, 6, 3],
        };
        let (stem, projection) = match self.stem {
            Stem::Cifar => (ConvSpec::new(64, 3, 1), "shortcut"),
            Stem::Imagenet => (ConvSpec::new(64, 7, 2), "downsample"),
        };
        let mut x = net.bn("bn1", net.conv_spec("conv1", image, stem)).relu(); // [n,112,112,64] of 224
        let mut stages = vec![x]; // the tap is before the pool
        if self.stem == Stem::Imagenet {
            x = x.max_pool(3, 2, 1); // [n,56,56,64]
        }
        for (s, blocks) in blocks.into_iter().enumerate() {
            for b in 0..blocks {
                let stride = if s > 0 && b == 0 { 2 } else { 1 };
                let (scope, block) =
                    (net.scope(&format!("layer{}.{b}", s + 1)), Residual { width: 64 << s, stride, projection });
                x = match self.depth {
                    Depth::D18 | Depth::D34 => basic_block(&scope, x, block),
                    Depth::D50 => bottleneck(&scope, x, block),
                };
            }
            stages.push(x); // after the ReLU
        }
        let pooled = x.mean_hw(); // [n,512] or [n,2048]
        Taps { stages, pooled, logits: net.linear(self.stem.head(), pooled, self.classes) }
    }
}
