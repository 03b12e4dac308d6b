//! Wide ResNet WRN-(6n+4)-w with pre-activation blocks and no dropout (Zagoruyko and Komodakis 2016, arXiv:1605.07146).
//!
//! Widths are [16; 16w, 32w, 64w]. The projection has no batch norm and is fed by the activated input; the identity
//! shortcut is the raw input. Taps are raw sums, before any batch norm.

use crate::WrnBn;
use spec::{Expr, InitScheme, Net, Network, Taps};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Wrn {
    /// 6n+4.
    pub(crate) depth: usize,
    pub(crate) width: usize,
    pub(crate) bn: WrnBn,
    pub(crate) classes: usize,
}

impl Network for Wrn {
    fn build<'g>(&self, net: &Net<'g>, image: Expr<'g>) -> Taps<'g> {
        let net = net.clone().init(InitScheme::FanOutZeroBias);
        // The published implementation builds a list of normalised taps in every forward and so calls the batch norm
        // behind each stage twice on the same tensor: outputs are the same, its running statistics move by 0.19.
        let updates = match self.bn {
            WrnBn::Twice => 2,
            WrnBn::Once => 1,
        };
        let mut x = net.conv("conv1", image, 16, 3, 1); // [n,32,32,16], no batch norm, no ReLU
        let mut stages = vec![x];
        for s in 0..3 {
            for b in 0..(self.depth - 4) / 6 {
                let first = s > 0 && b == 0;
                let scope = net.scope(&format!("block{}.layer.{b}", s + 1));
                let block = Block { width: (16 * self.width) << s, stride: if first { 2 } else { 1 } };
                x = pre_activation(&scope, x, block, if first { updates } else { 1 });
            }
            stages.push(x);
        }
        let pooled = net.bn_updating("bn1", x, updates).relu().mean_hw(); // [n,64w]
        Taps { stages, pooled, logits: net.linear(self.classifier(), pooled, self.classes) }
    }

    fn classifier(&self) -> &'static str {
        "fc"
    }
}

#[derive(Clone, Copy, Debug)]
struct Block {
    width: usize,
    stride: usize,
}

/// [n,h,w,c] → [n,h/stride,w/stride,width]. The test for a projection is on channels alone: with w = 1 `block1` has none.
fn pre_activation<'g>(net: &Net<'g>, x: Expr<'g>, block: Block, bn1_updates: usize) -> Expr<'g> {
    let active = net.bn_updating("bn1", x, bn1_updates).relu();
    let y = net.bn("bn2", net.conv("conv1", active, block.width, 3, block.stride)).relu();
    let y = net.conv("conv2", y, block.width, 3, 1);
    if x.shape().dims()[3] == block.width {
        return x + y;
    }
    net.conv("convShortcut", active, block.width, 1, block.stride) + y
}
