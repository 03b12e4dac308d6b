//! ShuffleNetV2 (Ma et al. 2018, arXiv:1807.11164) in two published forms: the distillation benches' for CIFAR, with a 1×1 stem
//! and no pool, and torchvision's for ImageNet. Default initialisation.

use spec::{ConvSpec, Expr, Net, Network, Taps};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Cifar,
    Torchvision,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct ShuffleV2 {
    pub(crate) form: Form,
    pub(crate) widths: [usize; 3],
    pub(crate) classes: usize,
}

/// Scope of a branch, and names of its convolutions and batch norms.
type Names = (&'static str, [[&'static str; 2]; 3]);

impl Network for ShuffleV2 {
    fn build<'g>(&self, net: &Net<'g>, image: Expr<'g>) -> Taps<'g> {
        let cifar = self.form == Form::Cifar;
        let mut x = if cifar {
            net.bn("bn1", net.conv("conv1", image, 24, 1, 1)).relu() // [n,32,32,24]
        } else {
            let stem = net.scope("conv1");
            stem.bn("1", stem.conv("0", image, 24, 3, 2)).relu() // [n,112,112,24] of 224
        };
        let mut stages = vec![x]; // the tap is before the pool
        if !cifar {
            x = x.max_pool(3, 2, 1);
        }
        for (s, (basic, width)) in (1..).zip([3, 7, 3].into_iter().zip(self.widths)) {
            let stage = if cifar { format!("layer{s}") } else { format!("stage{}", s + 1) };
            x = self.down(&net.scope(&format!("{stage}.0")), x, width);
            for i in 1..=basic {
                x = self.basic(&net.scope(&format!("{stage}.{i}")), x);
            }
            stages.push(x); // shuffled: [n,16,16,c1], [n,8,8,c2], [n,4,4,c3]
        }
        let last = if cifar {
            net.bn("bn2", net.conv("conv2", x, 1024, 1, 1)).relu()
        } else {
            let last = net.scope("conv5");
            last.bn("1", last.conv("0", x, 1024, 1, 1)).relu()
        };
        let pooled = last.mean_hw(); // [n,1024]
        Taps { stages, pooled, logits: net.linear(self.classifier(), pooled, self.classes) }
    }

    fn classifier(&self) -> &'static str {
        match self.form {
            Form::Cifar => "linear",
            Form::Torchvision => "fc",
        }
    }
}

impl ShuffleV2 {
    /// [n,h,w,c] → [n,h/2,w/2,width]: both branches see the whole input.
    fn down<'g>(&self, net: &Net<'g>, x: Expr<'g>, width: usize) -> Expr<'g> {
        let (left, right): (Names, Names) = match self.form {
            Form::Cifar => (
                ("", [["conv1", "bn1"], ["conv2", "bn2"], ["", ""]]),
                ("", [["conv3", "bn3"], ["conv4", "bn4"], ["conv5", "bn5"]]),
            ),
            Form::Torchvision => {
                (("branch1", [["0", "1"], ["2", "3"], ["", ""]]), ("branch2", [["0", "1"], ["3", "4"], ["5", "6"]]))
            }
        };
        let scope = below(net, left.0);
        let [[dw, dw_bn], [pw, pw_bn], _] = left.1;
        let y = scope.bn(dw_bn, scope.conv_spec(dw, x, depthwise(x, 2))); // no ReLU
        let y = scope.bn(pw_bn, scope.conv(pw, y, width / 2, 1, 1)).relu();
        y.concat_channels(&[branch(net, right, x, ConvSpec::new(width / 2, 3, 2))]).channel_shuffle(2)
    }

    /// The first half of the channels passes as it is: [n,h,w,c] → [n,h,w,c].
    fn basic<'g>(&self, net: &Net<'g>, x: Expr<'g>) -> Expr<'g> {
        let half = x.shape().dims()[3] / 2;
        let names: Names = match self.form {
            Form::Cifar => ("", [["conv1", "bn1"], ["conv2", "bn2"], ["conv3", "bn3"]]),
            Form::Torchvision => ("branch2", [["0", "1"], ["3", "4"], ["5", "6"]]),
        };
        let right = branch(net, names, x.slice_channels(half, half), ConvSpec::new(half, 3, 1));
        x.slice_channels(0, half).concat_channels(&[right]).channel_shuffle(2)
    }
}

/// 1×1, depthwise 3×3 without ReLU, 1×1; `spec` has its width and stride.
fn branch<'g>(net: &Net<'g>, (scope, names): Names, x: Expr<'g>, spec: ConvSpec) -> Expr<'g> {
    let net = below(net, scope);
    let [first, middle, last] = names;
    let y = net.bn(first[1], net.conv(first[0], x, spec.out, 1, 1)).relu();
    let y = net.bn(middle[1], net.conv_spec(middle[0], y, depthwise(y, spec.stride)));
    net.bn(last[1], net.conv(last[0], y, spec.out, 1, 1)).relu()
}

fn depthwise(x: Expr<'_>, stride: usize) -> ConvSpec {
    let channels = x.shape().dims()[3];
    ConvSpec { groups: channels, ..ConvSpec::new(channels, 3, stride) }
}

fn below<'g>(net: &Net<'g>, scope: &str) -> Net<'g> {
    if scope.is_empty() { net.clone() } else { net.scope(scope) }
}
