//! Terms, weights, divisors, batch-norm groups, draws and slots.

use crate::evaluate::{Built, setting, small};
use methods::*;
use spec::*;

fn row_terms(built: &Built, term: &str) -> Vec<(f64, RowTerm, Vec<ValueId>)> {
    let term = built.losses.terms.iter().find(|t| t.name == term).unwrap();
    let row = |(weight, value): &(Weight, ValueId)| {
        let node = built.graph.producer(*value).unwrap();
        let Op::RowLoss(row) = &node.op else { panic!("{} is no row loss", node.op) };
        (weight.factor, *row, node.inputs.clone())
    };
    term.loss.parts.iter().map(row).collect()
}

fn weights(built: &Built) -> Vec<(&str, Weight)> {
    built.losses.terms.iter().map(|t| (t.name.as_str(), t.weight)).collect()
}

fn detached(built: &Built, value: ValueId) -> bool {
    built.graph.producer(value).is_some_and(|n| n.op == Op::Detach)
}

/// Groups of the student's statistics, and rows of its logits.
fn forward(built: &Built) -> (usize, usize) {
    let groups: Vec<_> = built
        .graph
        .nodes
        .iter()
        .filter_map(|n| if let Op::BnStats { groups } = n.op { Some(groups) } else { None })
        .collect();
    let logits: Vec<_> =
        built.graph.nodes.iter().filter(|n| matches!(n.op, Op::Matmul(_)) && n.path.starts_with("student")).collect();
    assert_eq!((groups.len(), logits.len()), (1, 1), "one forward of the student");
    (groups[0], built.graph.shape(logits[0].outputs[0])[0])
}

const PER_ROW: Divisor = Divisor { constant: 0, per_unit: [1, 0] };

/// A KL between logits at T 4.
const KL4: RowKind = RowKind::Kl { target: Target::Logits, temperature: Temperature::Fixed(4.0) };

fn smoothed(on: f64, off: f64) -> RowKind {
    RowKind::CrossEntropy { target: Target::Label { on, off }, temperature: 1.0 }
}

#[test]
fn ce_is_one_mean_over_images() {
    let built = small(&Ce::default(), &setting(10, [32, 32, 3]), 6);
    assert_eq!(weights(&built), [("ce", Weight::from(1.0))]);
    let [(weight, term, inputs)] = &row_terms(&built, "ce")[..] else { panic!("one part") };
    assert_eq!((*weight, term.kind, term.divisor), (1.0, RowKind::HARD, PER_ROW));
    assert_eq!(built.graph.name(inputs[1]), "batch.label");
    assert_eq!(forward(&built), (1, 6));
    assert!(matches!(Ce::default().spec(&setting(10, [32, 32, 3])).unwrap().sampler, Sampler::Shuffle));
}

#[test]
fn smoothed_labels_in_both_conventions() {
    let kind = |smoothing_over| {
        let built = small(&Ce { label_smoothing: 0.1, smoothing_over }, &setting(10, [8, 8, 3]), 2);
        row_terms(&built, "ce")[0].1.kind
    };
    assert_eq!(kind(SmoothingOver::Others), smoothed(0.9, 0.1 / 9.0));
    assert_eq!(kind(SmoothingOver::All), smoothed(0.91, 0.01));
}

#[test]
fn kd_runs_the_frozen_teacher_first() {
    let built = small(&Kd::default(), &setting(10, [32, 32, 3]), 4);
    assert_eq!(weights(&built), [("ce", Weight::from(0.1)), ("kd", Weight::from(0.9 * 16.0))]);
    let [(weight, term, inputs)] = &row_terms(&built, "kd")[..] else { panic!("one part") };
    assert_eq!((*weight, term.kind, term.divisor), (1.0, KL4, PER_ROW));
    assert!(detached(&built, inputs[1]) && !detached(&built, inputs[0]));
    let place = |module: &str| {
        built.graph.nodes.iter().filter(|n| n.path.starts_with(module)).map(|n| n.outputs[0].0).collect::<Vec<_>>()
    };
    assert!(place("teacher/").last().unwrap() < place("student/").first().unwrap(), "teacher before student");
    let running = |n: &Node| matches!(n.op, Op::BnApply { source: StatsSource::Running, .. });
    assert!(built.graph.nodes.iter().any(|n| running(n) && n.path.starts_with("teacher/")));
    assert_eq!(built.graph.bn_uses.len(), 1, "the teacher's statistics stay");
    assert_eq!(Kd::default().spec(&setting(10, [32, 32, 3])).unwrap().teachers, 1);
    assert!(built.losses.outputs.iter().any(|(name, _)| name == "teacher.logits"));
}

/// A mean over so many rows of each unit.
fn rows_per_unit(rows: u64) -> spec::Divisor {
    spec::Divisor { constant: 0, per_unit: [rows, 0] }
}

#[test]
fn ips_default_is_the_formula() {
    let built = small(&Ips::default(), &setting(10, [32, 32, 3]), 3);
    assert_eq!(weights(&built), [("ce", Weight::from(1.0)), ("kd", Weight::from(16.0))]);
    let (ce, kd) = (row_terms(&built, "ce"), row_terms(&built, "kd"));
    let [(weight, term, inputs)] = &ce[..] else { panic!("one part") };
    assert_eq!((*weight, term.kind, term.divisor), (1.0, RowKind::HARD, rows_per_unit(2)), "mean over the 2n images");
    let logits = inputs[0];
    for (weight, term, _) in &kd {
        assert_eq!((*weight, term.kind, term.mask, term.divisor), (0.5, KL4, RowMask::All, PER_ROW));
    }
    let rows = |value: ValueId| {
        let node = built.graph.producer(value).unwrap();
        let node = if node.op == Op::Detach { built.graph.producer(node.inputs[0]).unwrap() } else { node };
        assert_eq!(node.inputs[0], logits);
        let Op::Slice { axis: Axis::Batch, start, len: 3 } = node.op else { panic!("{} is no half", node.op) };
        start
    };
    let sides: Vec<_> = kd.iter().map(|(_, _, i)| (rows(i[0]), rows(i[1]))).collect();
    assert_eq!(sides, [(0, 3), (3, 0)], "(student, teacher)");
    assert!(kd.iter().all(|(_, _, i)| !detached(&built, i[0]) && detached(&built, i[1])));
    let swap =
        built.graph.nodes.iter().find(|n| matches!(n.op, Op::PatchSwap { cell: 8 })).expect("cells of a quarter");
    assert_eq!(built.graph.name(swap.inputs[1]), "batch.draw.swap_mask");
    assert_eq!(built.graph.shape(swap.inputs[1]).dims(), [3, 16]);
    assert_eq!(forward(&built), (1, 6));
}

#[test]
fn ips_directions() {
    let kd = |kl| {
        let built = small(&Ips { kl, ..Ips::default() }, &setting(10, [32, 32, 3]), 3);
        let side = |i: &Vec<ValueId>| (detached(&built, i[0]), detached(&built, i[1]));
        row_terms(&built, "kd").iter().map(|(w, t, i)| (*w, side(i), t.mask, t.divisor)).collect::<Vec<_>>()
    };
    assert_eq!(kd(Direction::TwoWayFull), [(0.5, (false, false), RowMask::All, PER_ROW); 2]);
    assert_eq!(kd(Direction::OneWayBToA), [(1.0, (false, true), RowMask::All, PER_ROW)]);
    let rules = [MaskRule::Greater, MaskRule::GreaterOrEqual].map(|rule| RowMask::LabelProb { rule });
    assert_eq!(kd(Direction::ByConfidence), rules.map(|mask| (1.0, (false, true), mask, PER_ROW)));
    // The mask compares the teacher with the student; a teaches b where it is surer or equal.
    let built = small(&Ips { kl: Direction::ByConfidence, ..Ips::default() }, &setting(10, [32, 32, 3]), 3);
    for (_, _, i) in row_terms(&built, "kd") {
        let source = |value| built.graph.producer(value).unwrap().inputs[0];
        assert_eq!((i[1], i[0]), (i[2], source(i[3])), "mask of (teacher, student)");
        assert_eq!(built.graph.shape(i[4]).dims(), [3], "labels of the pairs");
    }
}

#[test]
fn ips_rows_groups_and_reductions() {
    let case = |feed_originals, bn_groups, ce_reduce, ce_on| {
        let ips = Ips { feed_originals, bn_groups, ce_reduce, ce_on, ..Ips::default() };
        let built = small(&ips, &setting(10, [32, 32, 3]), 3);
        let parts = row_terms(&built, "ce");
        let parts = parts.iter().map(|(w, t, _)| (*w, t.divisor.per_unit[0])).collect::<Vec<_>>();
        (forward(&built), built.losses.terms[0].weight.factor, parts)
    };
    use {BnGroups::*, CeOn::*, CeReduce::*};
    // Weight of the term; weight of each part and rows that its mean is over, per unit.
    assert_eq!(case(false, Joint, Mean, Both), ((1, 6), 1.0, vec![(1.0, 2)]));
    assert_eq!(case(false, Split, Sum, Both), ((2, 6), 2.0, vec![(1.0, 2)]));
    assert_eq!(case(true, Joint, Mean, Both), ((1, 12), 1.0, vec![(1.0, 4)]));
    assert_eq!(case(true, Split, Sum, Both), ((4, 12), 4.0, vec![(1.0, 4)]));
    assert_eq!(case(false, Joint, Mean, Anchor), ((1, 6), 1.0, vec![(1.0, 1)]));
    assert_eq!(case(true, Split, Sum, Anchor), ((4, 12), 2.0, vec![(0.5, 1); 2]));
}

#[test]
fn ips_originals_follow_the_swapped() {
    let built = small(&Ips { feed_originals: true, ..Ips::default() }, &setting(10, [32, 32, 3]), 3);
    let concat = built.graph.nodes.iter().find(|n| n.op == Op::Concat { axis: Axis::Batch }).expect("one batch of 4n");
    let swap = built.graph.producer(concat.inputs[0]).unwrap();
    assert!(matches!(swap.op, Op::PatchSwap { .. }));
    assert_eq!(swap.inputs[0], concat.inputs[1], "then the images as they were");
    let ce = row_terms(&built, "ce");
    let first_row = |value| match built.graph.producer(value).unwrap().op {
        Op::Slice { start, .. } => start,
        ref op => panic!("{op} is no half"),
    };
    let [(_, _, inputs)] = &ce[..] else { panic!("one part") };
    assert_eq!(built.graph.shape(inputs[0]).dims()[0], 12, "over all four runs");
    let students: Vec<_> = row_terms(&built, "kd").iter().map(|(_, _, i)| first_row(i[0])).collect();
    assert_eq!(students, [0, 3], "distillation is between the swapped");
}

#[test]
fn ips_ramp_is_a_slot() {
    let ips = Ips { alpha: 2.0, alpha_rampup_epochs: 5.0, ..Ips::default() };
    let spec = ips.spec(&setting(10, [32, 32, 3])).unwrap();
    let [SlotSpec { name, ramp }] = &spec.slots[..] else { panic!("one slot") };
    assert_eq!((name.as_str(), *ramp), ("alpha", Ramp::up(2.0, 5.0)));
    let built = small(&ips, &setting(10, [32, 32, 3]), 3);
    let weight = built.losses.terms[1].weight;
    assert_eq!(weight.factor, 16.0);
    assert_eq!(built.graph.slots[weight.slot.expect("a slot").0 as usize], "alpha");
    let flat = Ips { alpha: 2.0, ..Ips::default() };
    assert!(flat.spec(&setting(10, [32, 32, 3])).unwrap().slots.is_empty());
    assert_eq!(small(&flat, &setting(10, [32, 32, 3]), 3).losses.terms[1].weight, Weight::from(32.0));
}

#[test]
fn ips_asks_for_pairs_and_masks() {
    let ask = |ips: &Ips, image| {
        let spec = ips.spec(&setting(10, image)).unwrap();
        let [DrawSpec { name, kind }] = &spec.draws[..] else { panic!("one draw") };
        assert_eq!((name.as_str(), spec.rows_per_unit()), ("swap_mask", 2));
        let Sampler::Pairs { rule, partners: 1 } = spec.sampler else { panic!("pairs") };
        (rule, *kind)
    };
    let default = Ips::default();
    let mask = |cells, gate, rule| DrawKind::CellMask { cells, gate, rule };
    let half = CellRule::Probability(0.5);
    assert_eq!(ask(&default, [32, 32, 3]), (PairRule::WithSelf, mask(16, 0.5, half)));
    assert_eq!(ask(&default, [28, 28, 1]), (PairRule::WithSelf, mask(16, 0.5, half)));
    // A side that m does not divide: the last row and column are narrower.
    let ragged = Ips { m: Some(5), gate: 1.0, cell_prob: Some(0.1), pair: Pair::Partition, ..Ips::default() };
    assert_eq!(ask(&ragged, [32, 32, 3]), (PairRule::Partition, mask(49, 1.0, CellRule::Probability(0.1))));
    let exactly = Ips { cell_count: Some(CellCount::Exactly(3)), pair: Pair::WithoutSelf, ..Ips::default() };
    assert_eq!(ask(&exactly, [32, 64, 3]), (PairRule::WithoutSelf, mask(32, 0.5, CellRule::Count(3))));
    let uniform = Ips { cell_count: Some(CellCount::Spread(Spread::Uniform)), ..Ips::default() };
    assert_eq!(ask(&uniform, [32, 32, 3]).1, mask(16, 0.5, CellRule::UniformCount));
    // One cell of the whole image is a control of the sweep, and one pixel is legal too.
    assert_eq!(ask(&Ips { m: Some(32), ..Ips::default() }, [32, 32, 3]).1, mask(1, 0.5, half));
    assert_eq!(ask(&default, [3, 3, 1]).1, mask(9, 0.5, half));
}
