//! ShuffleNet of three groups (Zhang et al. 2017, arXiv:1707.01083) for small images, as in the distillation benches: a 1×1
//! stem without stride or pool, and a ReLU behind the depthwise convolution, which the paper does not have.

use spec::{ConvSpec, Expr, Net, Network, Taps};

const GROUPS: usize = 3;
const STEM: usize = 24;

#[derive(Clone, Copy, Debug)]
pub(crate) struct ShuffleV1 {
    pub(crate) classes: usize,
}

impl Network for ShuffleV1 {
    fn build<'g>(&self, net: &Net<'g>, image: Expr<'g>) -> Taps<'g> {
        let mut x = net.bn("bn1", net.conv("conv1", image, STEM, 1, 1)).relu(); // [n,32,32,24]
        let mut stages = vec![x];
        for (s, (units, width)) in (1..).zip([(4, 240), (8, 480), (4, 960)]) {
            for i in 0..units {
                x = unit(&net.scope(&format!("layer{s}.{i}")), x, width, if i == 0 { 2 } else { 1 });
            }
            stages.push(x); // after the ReLU: [n,16,16,240], [n,8,8,480], [n,4,4,960]
        }
        let pooled = x.mean_hw(); // [n,960]
        Taps { stages, pooled, logits: net.linear(self.classifier(), pooled, self.classes) }
    }

    fn classifier(&self) -> &'static str {
        "linear"
    }
}

/// [n,h,w,c] → [n,h/stride,w/stride,width]. With stride 2 the pooled input goes behind the branch's own channels.
fn unit<'g>(net: &Net<'g>, x: Expr<'g>, width: usize, stride: usize) -> Expr<'g> {
    let channels = x.shape().dims()[3];
    let out = if stride == 2 { width - channels } else { width };
    let inner = out / 4;
    let groups = if channels == STEM { 1 } else { GROUPS };
    let mut y = net.bn("bn1", net.conv_spec("conv1", x, ConvSpec { groups, ..ConvSpec::new(inner, 1, 1) })).relu();
    if groups > 1 {
        y = y.channel_shuffle(groups);
    }
    let depthwise = ConvSpec { groups: inner, ..ConvSpec::new(inner, 3, stride) };
    let y = net.bn("bn2", net.conv_spec("conv2", y, depthwise)).relu();
    let y = net.bn("bn3", net.conv_spec("conv3", y, ConvSpec { groups: GROUPS, ..ConvSpec::new(out, 1, 1) }));
    if stride == 2 { y.concat_channels(&[x.avg_pool(3, 2, 1)]).relu() } else { (y + x).relu() }
}
