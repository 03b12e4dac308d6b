//! Proofs for every method of the program, as it ships and in the variants that change its graph: the same bits at one, two, four and
//! eight ranks, all row losses of a phase in one launch, and the matrix products that chapter 1.2 counts.

#[path = "proof/flops.rs"]
mod flops;
#[allow(dead_code)] // other tests read more of it
mod proof;
#[path = "proof/shipped.rs"]
mod shipped;

use methods::MethodSpec;
use proof::{Run, run};
use shipped::{Tiny, plain, variants};
use spec::Op;
use std::collections::BTreeSet;

/// Three steps of 24 units and a short one of 10.
const UNITS: [usize; 4] = [24, 24, 24, 10];

/// In micro-batches of `micro`: one, three or eight in a step. The short step ends with one that is not full, and leaves ranks
/// without any.
fn same_bits((name, method): (String, MethodSpec), micro: usize) {
    let make = || method.clone().build();
    let plan = Run { micro, units: &UNITS, lr: 0.05, ..Run::default() };
    let one = run(&Tiny, &make, &Run { ranks: 1, ..plan });
    assert!(one.values.iter().all(|v| v.nonfinite.is_none() && v.loss.is_finite()), "{name}");
    assert!(one.states.values().flatten().all(|x| x.is_finite()), "{name}");
    for ranks in [2, 4, 8] {
        let many = run(&Tiny, &make, &Run { ranks, ..plan });
        assert_eq!(one.values, many.values, "{name}: values at {ranks} ranks, micro-batches of {micro}");
        assert_eq!(one.states, many.states, "{name}: states at {ranks} ranks, micro-batches of {micro}");
    }
}

#[test]
fn every_method_has_the_same_bits_at_any_number_of_ranks() {
    assert_eq!(plain().len(), 22);
    for method in plain() {
        [24, 8, 3].into_iter().for_each(|micro| same_bits(method.clone(), micro));
    }
}

#[test]
fn variants_have_the_same_bits_at_any_number_of_ranks() {
    variants().into_iter().for_each(|method| same_bits(method, 3));
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
    for (name, method) in plain().into_iter().chain(variants()) {
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
