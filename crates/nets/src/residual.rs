//! Stages of residual blocks that add before the last ReLU (He et al. 2015, arXiv:1512.03385, figure 5).

use spec::{ConvSpec, Expr, Net};

/// What a block does between input and sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// Two 3×3 convolutions, the first with the stride.
    Basic,
    /// 1×1, 3×3 with the stride, 1×1 to four times the width. The 3×3 has ⌊width · base / 64⌋ channels in each group.
    Bottleneck { base: usize, groups: usize },
}

/// A 1×1 convolution on the shortcut, where size or channels change ("type B").
#[derive(Clone, Copy, Debug)]
pub(crate) struct Projection {
    /// What the published implementation calls it: `downsample` or `shortcut`.
    pub(crate) name: &'static str,
    pub(crate) norm: Norm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Norm {
    Batch,
    None,
}

/// Blocks of one width, the first with the stride.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stage {
    pub(crate) block: Block,
    pub(crate) width: usize,
    pub(crate) stride: usize,
    pub(crate) blocks: usize,
    pub(crate) projection: Projection,
}

impl Stage {
    /// [n,h,w,c] → [n,h/stride,w/stride,width], or 4·width of bottlenecks. Names begin with `prefix` and the block's number.
    pub(crate) fn build<'g>(self, net: &Net<'g>, prefix: &str, mut x: Expr<'g>) -> Expr<'g> {
        for b in 0..self.blocks {
            let scope = net.scope(&format!("{prefix}{b}"));
            let stride = if b == 0 { self.stride } else { 1 };
            x = match self.block {
                Block::Basic => self.basic(&scope, x, stride),
                Block::Bottleneck { base, groups } => {
                    let inner = ConvSpec { groups, ..ConvSpec::new(self.width * base / 64 * groups, 3, stride) };
                    self.bottleneck(&scope, x, inner)
                }
            };
        }
        x
    }

    fn basic<'g>(self, net: &Net<'g>, x: Expr<'g>, stride: usize) -> Expr<'g> {
        let y = net.bn("bn1", net.conv("conv1", x, self.width, 3, stride)).relu();
        let y = net.bn("bn2", net.conv("conv2", y, self.width, 3, 1));
        (y + self.shortcut(net, x, ConvSpec::new(self.width, 1, stride))).relu()
    }

    fn bottleneck<'g>(self, net: &Net<'g>, x: Expr<'g>, inner: ConvSpec) -> Expr<'g> {
        let y = net.bn("bn1", net.conv("conv1", x, inner.out, 1, 1)).relu();
        let y = net.bn("bn2", net.conv_spec("conv2", y, inner)).relu();
        let y = net.bn("bn3", net.conv("conv3", y, 4 * self.width, 1, 1));
        (y + self.shortcut(net, x, ConvSpec::new(4 * self.width, 1, inner.stride))).relu()
    }

    /// The input itself, or its projection.
    fn shortcut<'g>(self, net: &Net<'g>, x: Expr<'g>, conv: ConvSpec) -> Expr<'g> {
        if conv.stride == 1 && x.shape().dims()[3] == conv.out {
            return x;
        }
        let net = net.scope(self.projection.name);
        let y = net.conv_spec("0", x, conv);
        match self.projection.norm {
            Norm::Batch => net.bn("1", y),
            Norm::None => y,
        }
    }
}
