//! VGG with batch norm for small images (Simonyan and Zisserman 2014, arXiv:1409.1556, as in the distillation benches): five
//! blocks of 3×3 convolutions with bias, 64-128-256-512-512, one linear layer behind a global pool.
//!
//! A max pool follows the first three blocks; the fourth has one only if the images are exactly 64 high.

use crate::fits_2x2;
use spec::{Expr, InitScheme, Net, Network, Taps};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Vgg {
    /// Convolutions of each block.
    pub(crate) convs: [usize; 5],
    pub(crate) classes: usize,
}

impl Network for Vgg {
    fn build<'g>(&self, net: &Net<'g>, image: Expr<'g>) -> Taps<'g> {
        let net = net.clone().init(InitScheme::FanOutNormal);
        let pools = if image.shape().dims()[1] == 64 { 4 } else { 3 };
        let (mut x, mut stages) = (image, vec![]);
        for (b, (convs, width)) in self.convs.into_iter().zip([64, 128, 256, 512, 512]).enumerate() {
            let scope = net.scope(&format!("block{b}"));
            for j in 0..convs {
                let (name, fan_in) = ((3 * j).to_string(), 9 * x.shape().dims()[3]);
                let y = scope.bias(&name, scope.conv(&name, x, width, 3, 1), fan_in);
                x = scope.bn(&(3 * j + 1).to_string(), y).relu();
            }
            stages.push(x); // before the pool: [n,32,32,64], [n,16,16,128], [n,8,8,256], [n,4,4,512], [n,4,4,512]
            if b < pools && fits_2x2(x) {
                x = x.max_pool(2, 2, 0);
            }
        }
        let pooled = x.mean_hw(); // [n,512]
        Taps { stages, pooled, logits: net.linear(self.classifier(), pooled, self.classes) }
    }

    fn classifier(&self) -> &'static str {
        "classifier"
    }
}
