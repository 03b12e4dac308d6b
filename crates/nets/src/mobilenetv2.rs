//! MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381, table 2) in three published forms: the distillation benches' for CIFAR,
//! torchvision's for ImageNet, mdistiller's for Tiny-ImageNet.
//!
//! A block is 1×1 to t times the channels, depthwise 3×3, 1×1 without activation; its input is added where sizes agree.
//! Taps of blocks are those linear outputs. Torchvision's drops a fifth of the pooled vector in training (dropout 0.2): this
//! one does not.

use spec::{ConvSpec, Expr, InitScheme, Net, Network, Taps};

/// t, width and number of the blocks of each group.
const GROUPS: [(usize, usize, usize); 7] =
    [(1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Widths half or whole, plain ReLU; the first group keeps its expansion and the second its size.
    Cifar { half: bool },
    /// ReLU6; the first block has no expansion.
    Torchvision,
    /// ReLU6, a bias in every convolution, default initialisation. The stem is 1×1 *with padding 1*: 64 → 66, the border
    /// bias alone. The classifier is a 1×1 convolution.
    Tiny,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct MobilenetV2 {
    pub(crate) form: Form,
    pub(crate) classes: usize,
}

impl MobilenetV2 {
    fn width(&self, full: usize) -> usize {
        if self.form == (Form::Cifar { half: true }) { full / 2 } else { full }
    }

    /// Convolution and batch norm.
    fn conv_bn<'g>(&self, net: &Net<'g>, [conv, bn]: [&str; 2], x: Expr<'g>, spec: ConvSpec) -> Expr<'g> {
        let fan_in = spec.kernel * spec.kernel * x.shape().dims()[3] / spec.groups;
        let y = net.conv_spec(conv, x, spec);
        net.bn(bn, if self.form == Form::Tiny { net.bias(conv, y, fan_in) } else { y })
    }

    fn active<'g>(&self, x: Expr<'g>) -> Expr<'g> {
        if let Form::Cifar { .. } = self.form { x.relu() } else { x.relu6() }
    }

    /// [n,h,w,c] → [n,h/stride,w/stride,out].
    fn block<'g>(&self, net: &Net<'g>, x: Expr<'g>, expand: usize, [out, stride]: [usize; 2]) -> Expr<'g> {
        let tv = self.form == Form::Torchvision;
        let names = match (tv, expand) {
            (false, _) => [["0", "1"], ["3", "4"], ["6", "7"]],
            (true, 1) => [["", ""], ["0.0", "0.1"], ["1", "2"]],
            (true, _) => [["0.0", "0.1"], ["1.0", "1.1"], ["2", "3"]],
        };
        let channels = x.shape().dims()[3];
        let inner = expand * channels;
        let mut y = x;
        if !(tv && expand == 1) {
            y = self.active(self.conv_bn(net, names[0], y, ConvSpec::new(inner, 1, 1)));
        }
        let depthwise = ConvSpec { groups: inner, ..ConvSpec::new(inner, 3, stride) };
        y = self.active(self.conv_bn(net, names[1], y, depthwise));
        y = self.conv_bn(net, names[2], y, ConvSpec::new(out, 1, 1));
        if stride == 1 && channels == out { y + x } else { y }
    }
}

impl Network for MobilenetV2 {
    fn build<'g>(&self, net: &Net<'g>, image: Expr<'g>) -> Taps<'g> {
        let init = if self.form == Form::Tiny { InitScheme::Default } else { InitScheme::FanOutNormal };
        let net = net.clone().init(init);
        let (stem, strides, last) = match self.form {
            Form::Cifar { .. } => (("conv1", ConvSpec::new(self.width(32), 3, 2)), [1, 1, 2, 2, 1, 2, 1], "conv2"),
            Form::Torchvision => (("features.0", ConvSpec::new(32, 3, 2)), [1, 2, 2, 2, 1, 2, 1], "features.18"),
            Form::Tiny => (("pre", ConvSpec { pad: 1, ..ConvSpec::new(32, 1, 1) }), [1, 2, 2, 2, 1, 1, 1], "conv1"),
        };
        let mut x = self.active(self.conv_bn(&net.scope(stem.0), ["0", "1"], image, stem.1));
        let (mut stages, mut feature) = (vec![x], 0);
        for (g, (expand, width, blocks)) in GROUPS.into_iter().enumerate() {
            for b in 0..blocks {
                feature += 1;
                let scope = match self.form {
                    Form::Cifar { .. } => format!("blocks.{g}.{b}.conv"),
                    Form::Torchvision => format!("features.{feature}.conv"),
                    Form::Tiny if blocks == 1 => format!("stage{}.residual", g + 1),
                    Form::Tiny => format!("stage{}.{b}.residual", g + 1),
                };
                let stride = if b == 0 { strides[g] } else { 1 };
                x = self.block(&net.scope(&scope), x, expand, [self.width(width), stride]);
            }
            let tapped = if self.form == Form::Tiny { [1, 2, 3].contains(&g) } else { [1, 2, 4, 6].contains(&g) };
            if tapped {
                stages.push(x);
            }
        }
        x = self.active(self.conv_bn(&net.scope(last), ["0", "1"], x, ConvSpec::new(1280, 1, 1)));
        if self.form == Form::Tiny {
            stages.push(x);
        }
        let pooled = x.mean_hw(); // [n,1280]
        let logits = if self.form == Form::Tiny {
            self.convolved(&net, x)
        } else {
            net.linear(self.classifier(), pooled, self.classes)
        };
        Taps { stages, pooled, logits }
    }

    fn classifier(&self) -> &'static str {
        match self.form {
            Form::Cifar { .. } => "classifier.0",
            Form::Torchvision => "classifier.1",
            Form::Tiny => "conv2",
        }
    }
}

impl MobilenetV2 {
    /// Logits by a 1×1 convolution, whose parameter keeps its four axes: of the pooled map, or, where that is not square,
    /// pooled afterwards, which is the same.
    fn convolved<'g>(&self, net: &Net<'g>, x: Expr<'g>) -> Expr<'g> {
        let [h, w] = [1, 2].map(|axis| x.shape().dims()[axis]);
        let x = if h == w { x.avg_pool(h, 1, 0) } else { x };
        let y = net.conv(self.classifier(), x, self.classes, 1, 1);
        net.bias(self.classifier(), y, x.shape().dims()[3]).mean_hw()
    }
}
