//! DenseNets (Huang et al. 2016, arXiv:1608.06993) in three published forms. Taps are the stem and the concatenations at the
//! end of each block, raw, before any batch norm.

use crate::fits_2x2;
use spec::{Expr, InitScheme, Net, Network, Taps};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// DenseNet-121 of CS-KD for small images: a layer puts its channels *before* its input's.
    Cifar121,
    /// DenseNet-40 of growth 12 without bottlenecks, the classic CIFAR form; the names are those of `Cifar121`.
    Cifar40,
    /// torchvision's DenseNet-121: a stem of 7×7 stride 2 and a max pool, channels behind the input's.
    Torchvision121,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Densenet {
    pub(crate) form: Form,
    pub(crate) classes: usize,
}

impl Densenet {
    fn torchvision(&self) -> bool {
        self.form == Form::Torchvision121
    }

    /// [n,h,w,c] → [n,h,w,c+growth].
    fn layer<'g>(&self, net: &Net<'g>, x: Expr<'g>) -> Expr<'g> {
        let (bn1, bn2) = if self.torchvision() { ("norm1", "norm2") } else { ("bn1", "bn2") };
        let active = net.bn(bn1, x).relu();
        let new = if self.form == Form::Cifar40 {
            net.conv("conv1", active, 12, 3, 1)
        } else {
            let y = net.bn(bn2, net.conv("conv1", active, 128, 1, 1)).relu();
            net.conv("conv2", y, 32, 3, 1)
        };
        if self.form == Form::Cifar121 { new.concat_channels(&[x]) } else { x.concat_channels(&[new]) }
    }

    /// [n,h,w,c] → [n,h/2,w/2,c/2]; the 40-layer net keeps c. Maps too small to pool stay.
    fn transition<'g>(&self, net: &Net<'g>, x: Expr<'g>) -> Expr<'g> {
        let channels = x.shape().dims()[3];
        let out = if self.form == Form::Cifar40 { channels } else { channels / 2 };
        let y = net.bn(if self.torchvision() { "norm" } else { "bn" }, x).relu();
        let y = net.conv("conv", y, out, 1, 1);
        if fits_2x2(y) { y.avg_pool(2, 2, 0) } else { y }
    }
}

impl Network for Densenet {
    fn build<'g>(&self, net: &Net<'g>, image: Expr<'g>) -> Taps<'g> {
        let head = net.clone().init(if self.torchvision() { InitScheme::FanInZeroBias } else { InitScheme::Default });
        let net = if self.torchvision() { head.scope("features") } else { head.clone() };
        let (mut x, blocks) = match self.form {
            Form::Cifar121 => (net.conv("conv1", image, 64, 3, 1), &[6, 12, 24, 16][..]), // no batch norm
            Form::Cifar40 => (net.conv("conv1", image, 16, 3, 1), &[12; 3][..]),
            Form::Torchvision121 => (net.bn("norm0", net.conv("conv0", image, 64, 7, 2)).relu(), &[6, 12, 24, 16][..]),
        };
        let mut stages = vec![x]; // the tap is before the pool
        if self.torchvision() {
            x = x.max_pool(3, 2, 1);
        }
        for (b, &layers) in (1..).zip(blocks) {
            for i in 0..layers {
                let scope = match self.form {
                    Form::Torchvision121 => format!("denseblock{b}.denselayer{}", i + 1),
                    Form::Cifar121 | Form::Cifar40 => format!("dense{b}.{i}"),
                };
                x = self.layer(&net.scope(&scope), x);
            }
            stages.push(x);
            if b < blocks.len() {
                let scope = if self.torchvision() { format!("transition{b}") } else { format!("trans{b}") };
                x = self.transition(&net.scope(&scope), x);
            }
        }
        let pooled = net.bn(if self.torchvision() { "norm5" } else { "bn" }, x).relu().mean_hw(); // [n,1024] or [n,448]
        Taps { stages, pooled, logits: head.linear(self.classifier(), pooled, self.classes) }
    }

    fn classifier(&self) -> &'static str {
        if self.torchvision() { "classifier" } else { "linear" }
    }
}
