//! MobileNetV1 (Howard et al. 2017, arXiv:1704.04861, table 1) as the distillation benches have it for ImageNet: default
//! initialisation, plain ReLU. One bench's tables call it "MobileNetV2".

use spec::{ConvSpec, Expr, Net, Network, Taps};

/// Width and stride of `model.1` to `model.13`.
const UNITS: [(usize, usize); 13] = [
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
];
/// Units whose output is a tap, the last of each size; the stem has none.
const TAPS: [usize; 4] = [3, 5, 11, 13];

#[derive(Clone, Copy, Debug)]
pub(crate) struct MobilenetV1 {
    pub(crate) classes: usize,
}

impl Network for MobilenetV1 {
    fn build<'g>(&self, net: &Net<'g>, image: Expr<'g>) -> Taps<'g> {
        let stem = net.scope("model.0");
        let mut x = stem.bn("1", stem.conv("0", image, 32, 3, 2)).relu(); // [n,112,112,32] of 224
        let mut stages = vec![];
        for (i, (width, stride)) in (1..).zip(UNITS) {
            let (scope, channels) = (net.scope(&format!("model.{i}")), x.shape().dims()[3]);
            let depthwise = ConvSpec { groups: channels, ..ConvSpec::new(channels, 3, stride) };
            x = scope.bn("1", scope.conv_spec("0", x, depthwise)).relu();
            x = scope.bn("4", scope.conv("3", x, width, 1, 1)).relu();
            if TAPS.contains(&i) {
                stages.push(x); // [n,56,56,128], [n,28,28,256], [n,14,14,512], [n,7,7,1024]
            }
        }
        let pooled = x.mean_hw(); // [n,1024]
        Taps { stages, pooled, logits: net.linear(self.classifier(), pooled, self.classes) }
    }

    fn classifier(&self) -> &'static str {
        "fc"
    }
}
