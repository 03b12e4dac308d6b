//! Residual blocks that add before the last ReLU (He et al. 2015, arXiv:1512.03385, figure 5).

use graph::{Expr, Net};

/// Where a block is, and what the published implementation calls its projection: `downsample` or `shortcut`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Residual {
    pub(crate) width: usize,
    pub(crate) stride: usize,
    pub(crate) projection: &'static str,
}

/// Two 3×3 convolutions: [n,h,w,c] → [n,h/stride,w/stride,width].
pub(crate) fn basic_block<'g>(net: &Net<'g>, x: Expr<'g>, block: Residual) -> Expr<'g> {
    let y = net.bn("bn1", net.conv("conv1", x, block.width, 3, block.stride)).relu();
    let y = net.bn("bn2", net.conv("conv2", y, block.width, 3, 1));
    (y + shortcut(net, x, block.width, block)).relu()
}

/// 1×1, 3×3, 1×1 to four times the width: [n,h,w,c] → [n,h/stride,w/stride,4·width]. The stride sits on the 3×3.
pub(crate) fn bottleneck<'g>(net: &Net<'g>, x: Expr<'g>, block: Residual) -> Expr<'g> {
    let y = net.bn("bn1", net.conv("conv1", x, block.width, 1, 1)).relu();
    let y = net.bn("bn2", net.conv("conv2", y, block.width, 3, block.stride)).relu();
    let y = net.bn("bn3", net.conv("conv3", y, 4 * block.width, 1, 1));
    (y + shortcut(net, x, 4 * block.width, block)).relu()
}

/// The input itself, or a 1×1 convolution and batch norm where size or channels change ("type B").
fn shortcut<'g>(net: &Net<'g>, x: Expr<'g>, out: usize, block: Residual) -> Expr<'g> {
    if block.stride == 1 && x.shape().dims()[3] == out {
        return x;
    }
    let net = net.scope(block.projection);
    net.bn("1", net.conv("0", x, out, 1, block.stride))
}
