//! Proofs for every method of the program, as it ships and in the variants that change its graph: the same bits at one, two and four
//! ranks, all row losses of a phase in one launch, and the matrix products that chapter 1.2 counts.

#[path = "proof/flops.rs"]
mod flops;
#[allow(dead_code)] // proofs.rs reads more of it
mod proof;

use methods::MethodSpec;
use proof::{Run, run};
use spec::{Expr, Net, Network, Op, Taps};
use std::collections::BTreeSet;

/// Three stages of one convolution each: 8 × 8, 4 × 4 and 2 × 2 maps of 4, 6 and 8 channels.
#[derive(Debug)]
struct Tiny;

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

/// Every method with its defaults, then the settings that change the graph.
fn all() -> Vec<(String, MethodSpec)> {
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
    let plain = MethodSpec::names().map(|name| format!("name = \"{name}\""));
    let texts = plain.into_iter().chain(variants.map(String::from));
    texts.map(|text| (text.replace('\n', ", "), toml::from_str(&text).unwrap())).collect()
}

/// Three steps of 24 units and a short one of 10, in micro-batches of 24 or 8, of 6 for four ranks.
const UNITS: [usize; 4] = [24, 24, 24, 10];

#[test]
fn every_method_has_the_same_bits_at_one_two_and_four_ranks() {
    for (name, method) in all() {
        let make = || method.clone().build();
        for micro in [24, 8, 6] {
            let plan = Run { micro, units: &UNITS, lr: 0.05, ..Run::default() };
            let one = run(&Tiny, &make, &Run { ranks: 1, ..plan });
            assert!(one.values.iter().all(|v| v.nonfinite.is_none() && v.loss.is_finite()), "{name}");
            assert!(one.states.values().flatten().all(|x| x.is_finite()), "{name}");
            for ranks in [2, 4] {
                let many = run(&Tiny, &make, &Run { ranks, ..plan });
                assert_eq!(one.values, many.values, "{name}: values at {ranks} ranks, micro-batches of {micro}");
                assert_eq!(one.states, many.states, "{name}: states at {ranks} ranks, micro-batches of {micro}");
            }
        }
    }
}

/// The comparison above means something: another order of summation shows.
#[test]
fn other_micro_batches_have_other_bits() {
    let method: MethodSpec = toml::from_str("name = \"crld\"").unwrap();
    let states = |micro| {
        let plan = Run { micro, units: &UNITS[..2], ..Run::default() };
        run(&Tiny, &|| method.clone().build(), &plan).states
    };
    assert_ne!(states(24), states(8));
}

/// Kernels over rows of logits, per phase.
fn row_launches(plan: &plan::Plan, phase: usize) -> (usize, usize) {
    let ops: Vec<_> = plan.graph.nodes.iter().filter(|n| n.place.phase as usize == phase).map(|n| &n.op).collect();
    let fused = ops.iter().filter(|op| matches!(op, Op::RowLosses(_))).count();
    (fused, ops.iter().filter(|op| matches!(op, Op::RowLoss(_) | Op::RowLossGrad { .. })).count())
}

#[test]
fn the_row_losses_of_a_phase_are_one_launch() {
    let mut apart = BTreeSet::new();
    for (name, method) in all() {
        let plan = flops::plan(method, ["resnet8", "resnet8"], 6);
        for phase in 0..plan.phases.len() {
            let launches = row_launches(&plan, phase);
            println!("{name}, phase {}: {} fused, {} apart", plan.phases[phase].name, launches.0, launches.1);
            if launches != (1, 0) {
                apart.insert(name.clone());
            }
        }
    }
    assert!(apart.is_empty(), "{apart:?}");
}
