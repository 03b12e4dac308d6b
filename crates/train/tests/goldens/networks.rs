//! Networks of these tests: one without batch norm, and one whose logits are its weights.

use spec::{Expr, Net, Network, Taps};

/// Two convolutions, the second strided, and a linear layer; no row knows of another.
#[derive(Debug)]
pub(crate) struct Plain {
    pub(crate) classes: usize,
}

impl Network for Plain {
    fn build<'g>(&self, net: &Net<'g>, image: Expr<'g>) -> Taps<'g> {
        let x = net.conv("conv1", image, 8, 3, 1).relu();
        let x = net.conv("conv2", x, 12, 3, 2).relu();
        let pooled = x.mean_hw();
        Taps { stages: vec![x], pooled, logits: net.linear("fc", pooled, self.classes) }
    }

    fn classifier(&self) -> &'static str {
        "fc"
    }
}

/// A linear layer on the pixels: row i of one-hot images of 1 × 1 has column i of the weight as its logits, and the
/// gradient there is that at the logits.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) classes: usize,
}

impl Network for Shown {
    fn build<'g>(&self, net: &Net<'g>, image: Expr<'g>) -> Taps<'g> {
        let pooled = image.mean_hw();
        Taps { stages: vec![], pooled, logits: net.linear("fc", pooled, self.classes) }
    }

    fn classifier(&self) -> &'static str {
        "fc"
    }
}
