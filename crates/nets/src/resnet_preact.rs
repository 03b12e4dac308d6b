//! Pre-activation ResNets of four stages, 64-128-256-512, for small images, as in CS-KD and Self-KD-Lib (after He et al. 2016,
//! arXiv:1603.05027): default initialisation, names of Self-KD-Lib.
//!
//! Two departures from the paper are the published code's: an identity shortcut carries the *activated* input, and nothing
//! normalises or rectifies behind the last block, so that the pooled vector is the mean of a raw sum.

use spec::{Expr, Net, Network, Taps};

#[derive(Clone, Copy, Debug)]
pub(crate) struct ResnetPreact {
    pub(crate) blocks: [usize; 4],
    pub(crate) classes: usize,
}

impl Network for ResnetPreact {
    fn build<'g>(&self, net: &Net<'g>, image: Expr<'g>) -> Taps<'g> {
        let mut x = net.bn("bn1", net.conv("conv1", image, 64, 3, 1)).relu(); // [n,32,32,64]
        let mut stages = vec![x];
        for s in 1..=4 {
            x = blocks(net, (&format!("layer{s}."), s), self.blocks[s - 1], x);
            stages.push(x); // a raw sum
        }
        let pooled = x.mean_hw(); // [n,512]
        Taps { stages, pooled, logits: net.linear(self.classifier(), pooled, self.classes) }
    }

    fn classifier(&self) -> &'static str {
        "fc"
    }

    fn stage<'g>(&self, net: &Net<'g>, stage: usize, count: Option<usize>, x: Expr<'g>) -> Option<Expr<'g>> {
        let own = (1..=4).contains(&stage).then(|| self.blocks[stage - 1])?;
        Some(blocks(net, ("", stage), count.unwrap_or(own), x))
    }
}

/// `count` blocks of stage `s`, from 1: [n,h,w,c] → [n,h/stride,w/stride,32·2ˢ].
fn blocks<'g>(net: &Net<'g>, (prefix, s): (&str, usize), count: usize, mut x: Expr<'g>) -> Expr<'g> {
    let width = 32 << s;
    for b in 0..count {
        let net = net.scope(&format!("{prefix}{b}"));
        let stride = if s > 1 && b == 0 { 2 } else { 1 };
        let active = net.bn("bn1", x).relu();
        let y = net.bn("bn2", net.conv("conv1", active, width, 3, stride)).relu();
        let y = net.conv("conv2", y, width, 3, 1);
        let same = stride == 1 && x.shape().dims()[3] == width;
        x = y + if same { active } else { net.scope("shortcut").conv("0", active, width, 1, stride) };
    }
    x
}
