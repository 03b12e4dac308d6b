//! Every method of the program, as it ships and in the variants that change its graph, and a network with the stages they want.

use methods::MethodSpec;
use spec::{Expr, Net, Network, Taps};

/// Three stages of one convolution each: 8 × 8, 4 × 4 and 2 × 2 maps of 4, 6 and 8 channels.
#[derive(Debug)]
pub(crate) struct Tiny;

const WIDTHS: [usize; 3] = [4, 6, 8];

impl Network for Tiny {
    fn build<'g>(&self, net: &Net<'g>, image: Expr<'g>) -> Taps<'g> {
        let mut x = net.bn("bn1", net.conv("conv1", image, 4, 3, 1)).relu();
        let mut stages = vec![x];
        for s in 1..=3 {
            x = self.stage(&net.scope(&format!("layer{s}")), s, None, x).unwrap();
            stages.push(x);
        }
        let pooled = x.mean_hw();
        Taps { stages, pooled, logits: net.linear("fc", pooled, 4) }
    }

    fn classifier(&self) -> &'static str {
        "fc"
    }

    fn stage<'g>(&self, net: &Net<'g>, stage: usize, _: Option<usize>, x: Expr<'g>) -> Option<Expr<'g>> {
        let net = net.scope("0");
        Some(net.bn("bn1", net.conv("conv1", x, WIDTHS[stage - 1], 3, if stage == 1 { 1 } else { 2 })).relu())
    }
}

/// Every method with its defaults.
pub(crate) fn plain() -> Vec<(String, MethodSpec)> {
    MethodSpec::names().map(|name| (name.to_string(), toml::from_str(&format!("name = \"{name}\"")).unwrap())).into()
}

/// The settings that change the graph.
pub(crate) fn variants() -> Vec<(String, MethodSpec)> {
    let variants = [
        "name = \"ce\"\nlabel_smoothing = 0.1",
        "name = \"ips\"\nkl = \"by_confidence\"\nfeed_originals = true\nbn_groups = \"split\"",
        "name = \"ips\"\nkl = \"two_way_full\"\nalpha_rampup_epochs = 5",
        "name = \"mixskd\"\nloss = \"a\"\ndiscriminators = \"reversed\"",
        "name = \"atsc\"\nteacher = \"frozen\"",
        "name = \"atsc\"\nanchor_bn = false\nkd_weight = 1\nce_weight = 1",
        "name = \"crld\"\nbase = \"norm_dkd\"\nmask_rule = \"by_label\"\ntau_weak = 0.26",
        "name = \"pll\"\ntargets = \"soft\"",
        "name = \"tf_kd_reg\"\nvariant = \"self_kd_lib\"",
        "name = \"bake\"\nextra_images = 1\nomega = 0.9",
        "name = \"normkd\"\nbase = \"dkd\"",
    ];
    variants.map(|text| (text.replace('\n', ", "), toml::from_str(text).unwrap())).into()
}
