//! A linear probe: feature vectors, given as images [n,1,1,d], times a matrix without bias.

use spec::{Expr, Net, Network, Taps};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Linear {
    pub(crate) classes: usize,
}

impl Network for Linear {
    fn build<'g>(&self, net: &Net<'g>, image: Expr<'g>) -> Taps<'g> {
        let pooled = image.mean_hw(); // [n,d]
        Taps { stages: vec![], pooled, logits: net.linear_without_bias(self.classifier(), pooled, self.classes) }
    }

    fn classifier(&self) -> &'static str {
        "fc"
    }
}
