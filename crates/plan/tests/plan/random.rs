//! Random steps: every one of them plans, passes the checker, and computes the same fused and unfused.

use crate::rng::Rng;
use crate::support::{CLASSES, assert_equal, input, options, phase, run};
use plan::{Fusion, Options, StateTable, StepGraph, Storage, compile};
use spec::{
    BnMode, Builder, Commit, ConvSpec, Expr, Graph, Init, Loss, Losses, Net, Op, Precision, SlotId, StateKind, ValueId,
    Weight,
};
use tensor::Dtype;

/// What the data side delivers, and a slot.
#[derive(Clone, Copy)]
struct Leaves {
    image: ValueId,
    label: ValueId,
    index: ValueId,
    permutation: ValueId,
    mask: ValueId,
    slot: SlotId,
}

/// A step of one or two phases with random networks, teachers, losses and commits.
pub(crate) fn random_step(seed: u64) -> StepGraph {
    let rng = &mut Rng::new(seed);
    let units = rng.pick(&[2, 4]);
    let mut graph = Graph::new(Precision::F64, [units, 0]);
    graph.rolling_units = 2 * units;
    let side = rng.pick(&[5, 6]);
    let leaves = Leaves {
        image: input(&mut graph, "image", 2, &[side, side, 3], Dtype::F64),
        label: input(&mut graph, "label", 2, &[], Dtype::I32),
        index: input(&mut graph, "index", 1, &[], Dtype::I32),
        permutation: input(&mut graph, "permutation", 2, &[], Dtype::I32),
        mask: input(&mut graph, "mask", 1, &[side.div_ceil(2).pow(2)], Dtype::U8),
        slot: graph.add_slot("ramp"),
    };
    let builder = Builder::new(graph);
    let mut phases = Vec::new();
    for p in 0..1 + u32::from(rng.once_in(3)) {
        builder.set_phase(p);
        let losses = losses(&builder, rng, leaves, p);
        let own = format!("student.p{p}.");
        let prefixes = if rng.once_in(2) { vec!["student.", "method."] } else { vec![own.as_str()] };
        phases.push(phase(&format!("phase{p}"), &prefixes, losses));
    }
    StepGraph { graph: builder.finish(), phases }
}

/// The terms and commits of a phase.
fn losses(builder: &Builder, rng: &mut Rng, leaves: Leaves, p: u32) -> Losses {
    let (label, n) = (builder.expr(leaves.label), builder.expr(leaves.image).rows() / 2);
    let mut image = builder.expr(leaves.image);
    if rng.once_in(3) {
        image = image.patch_swap(builder.expr(leaves.mask), 2);
    }
    let teacher = (!rng.once_in(3))
        .then(|| network(Net::new(builder, "teacher", BnMode::Eval).scope(&format!("p{p}")), rng, leaves, image));
    let bn = if rng.once_in(6) { BnMode::Eval } else { BnMode::Train { groups: rng.pick(&[1, 2]) } };
    let student = Net::new(builder, "student", bn).scope(&format!("p{p}"));
    let (features, logits) = network(student.clone(), rng, leaves, image);
    let mut losses = Losses::new().term("ce", 1.0, logits.cross_entropy(label)).logits(logits, label);
    for t in 0..rng.below(4) {
        let loss = loss(rng, logits, (label, features), teacher);
        losses = losses.term(&format!("term{t}"), weight(rng, leaves.slot), loss);
    }
    if rng.once_in(3) {
        let anchor = student.state("anchor", &[4], StateKind::Anchor, Init::Const(0.5));
        let bias = student.state("pull", &[4], StateKind::Param, Init::Const(0.5));
        let pull = builder.read(bias).squared_distance(builder.read(anchor));
        losses = losses.term("pull", weight(rng, leaves.slot), pull);
    }
    if rng.once_in(4) {
        // What no image enters, read by the body and by the update.
        let shape = [2 * n, CLASSES];
        let centre = builder.read(student.state("centre", &shape, StateKind::Param, Init::Const(0.1))).scale(0.5);
        let anchor = builder.read(student.state("centre_anchor", &shape, StateKind::Anchor, Init::Const(0.1)));
        let near = logits.mse(centre.relu()) + 0.1 * centre.squared_distance(anchor);
        losses = losses.term("near", weight(rng, leaves.slot), near);
    }
    let memory = Net::new(builder, "memory", bn).scope(&format!("p{p}"));
    if rng.once_in(2) {
        let state = memory.state("rolling", &[4 * n, CLASSES], StateKind::Memory, Init::Const(0.0));
        losses.commits.push(Commit::Assign { state, rows: logits.detach().id() });
    }
    if rng.once_in(2) {
        let state = memory.state("rows", &[4 * n, CLASSES], StateKind::Memory, Init::Const(0.0));
        let rows = rng.pick(&[logits, logits.detach()]).slice_rows(n, n);
        losses.commits.push(Commit::Scatter { state, index: leaves.index, rows: rows.id() });
    }
    if rng.once_in(3) {
        losses = losses.output("features", rng.pick(&[features, features.detach()]));
    }
    losses
}

fn weight(rng: &mut Rng, slot: SlotId) -> Weight {
    rng.pick(&[Weight::from(0.5), Weight::from(2.0), Weight::from(0.0), Weight::slot(slot)])
}

/// A term over logits [2n, classes].
fn loss<'g>(
    rng: &mut Rng,
    logits: Expr<'g>,
    (label, features): (Expr<'g>, Expr<'g>),
    teacher: Option<(Expr<'g>, Expr<'g>)>,
) -> Loss {
    let (a, b) = logits.halves();
    let target = teacher.map_or(logits.detach().relu(), |t| t.1);
    match rng.below(9) {
        0 => logits.kl(target, 4.0),
        1 => 0.5 * (a.kl(b.detach(), 2.0) + b.kl(a.detach(), 2.0)),
        2 => 0.5 * (a.kl(b, 2.0) + b.kl(a, 3.0)),
        3 => logits.cross_entropy_soft(target.softmax(2.0)),
        4 => a.cross_entropy_smoothed(label.slice_rows(0, a.rows()), 0.9, 0.1 / (CLASSES - 1) as f64),
        5 => match teacher {
            Some((taught, _)) if taught.shape() == features.shape() => features.mse(taught.detach()),
            _ => logits.mse(target),
        },
        6 => logits.kl_where(target, 1.0, spec::RowMask::Confident { threshold: 0.3 }, &[target]),
        7 => logits.cross_entropy(label) + 0.25 * logits.cross_entropy(label),
        _ => a.mse(b),
    }
}

/// Features [2n,c] and logits of a random network; its layers are numbered.
fn network<'g>(net: Net<'g>, rng: &mut Rng, leaves: Leaves, image: Expr<'g>) -> (Expr<'g>, Expr<'g>) {
    let mut live = vec![net.conv("stem", image, rng.pick(&[2, 4]), 3, 1)];
    for layer in 0..3 + rng.below(8) {
        // The newest value, mostly; others make branches.
        let x = if rng.once_in(4) { rng.pick(&live) } else { *live.last().unwrap() };
        let twin = live.iter().rev().find(|y| y.shape() == x.shape() && y.id() != x.id()).copied();
        live.push(layer_of(&net, rng, (layer, leaves), (x, twin)));
    }
    let features = live.last().unwrap().mean_hw();
    (features, net.linear("fc", features, CLASSES))
}

fn layer_of<'g>(
    net: &Net<'g>,
    rng: &mut Rng,
    (layer, leaves): (usize, Leaves),
    (x, twin): (Expr<'g>, Option<Expr<'g>>),
) -> Expr<'g> {
    let dims = x.shape().dims().to_vec();
    let (side, channels) = (dims[1], dims[3]);
    let conv = format!("conv{layer}");
    let bn = |x| net.bn(&format!("bn{layer}"), x);
    match rng.below(20) {
        0 | 1 => net.conv(&conv, x, rng.pick(&[2, 4]), rng.pick(&[1, 3]), if side > 3 { rng.pick(&[1, 2]) } else { 1 }),
        2 if channels % 2 == 0 => net.conv_spec(&conv, x, ConvSpec { groups: 2, ..ConvSpec::new(channels, 3, 1) }),
        2..=5 => bn(net.conv(&conv, x, channels, 3, 1)).relu(),
        6..=8 => match twin {
            Some(twin) if rng.once_in(2) => (bn(net.conv(&conv, x, channels, 3, 1)) + twin).relu(),
            Some(twin) => bn(x) + bn2(net, layer, twin),
            None => (x + bn(net.conv(&conv, x, channels, 1, 1))).relu(),
        },
        9 => bn(x),
        10 => rng.pick(&[x.relu(), x.relu6(), x.sigmoid()]),
        11 if side > 3 => x.max_pool(2, 2, 0),
        12 if side > 3 => x.avg_pool(3, 2, 1),
        13 => twin.map_or(x.scale(0.5), |y| if rng.once_in(2) { x - y } else { x.sigmoid() * y }),
        14 => x.concat_channels(&[twin.unwrap_or(x)]).slice_channels(1, channels),
        15 => {
            let (a, b) = x.halves();
            b.concat_rows(&[a])
        }
        16 => x.gather(x.builder().expr(leaves.permutation)),
        17 if rng.once_in(2) => x + x.detach().sigmoid(),
        18 => net.bias(&format!("bias{layer}"), x, 4),
        19 => x + net.conv(&conv, bn(x).relu(), channels, 3, 1),
        _ => (bn(x).relu() + x).relu(),
    }
}

fn bn2<'g>(net: &Net<'g>, layer: usize, x: Expr<'g>) -> Expr<'g> {
    net.bn(&format!("bn{layer}.second"), x)
}

const SEEDS: u64 = 300;

#[test]
fn every_random_step_plans() {
    let mut launches = [0, 0];
    let mut fused = [0; 6];
    for seed in 0..SEEDS {
        let step = random_step(seed);
        for storage in [Storage::CpuF64, Storage::Device] {
            for (i, fusion) in [Fusion::Off, Fusion::Full].into_iter().enumerate() {
                let options = Options { storage, keep_outputs: seed % 2 == 0, ..options(fusion) };
                let plan = compile(step.clone(), &options, &mut StateTable::default(), None);
                let plan = plan.unwrap_or_else(|e| panic!("seed {seed} {fusion:?}: {e}\n{}", step.graph));
                launches[i] += plan.launches.len();
                for launch in &plan.launches {
                    let kinds = match launch.op {
                        Op::BnAct { mask, .. } => [true, mask, false, false, false, false],
                        Op::BnGradApply { shortcut, .. } => [false, false, shortcut, false, false, false],
                        Op::ConvDgrad { .. } => [false, false, false, launch.inputs.len() == 3, false, false],
                        Op::ConvAct { .. } => [false, false, false, false, launch.inputs.len() == 4, false],
                        Op::Conv(_) | Op::ConvStats { .. } => {
                            [false, false, false, false, false, launch.inputs.len() == 3]
                        }
                        _ => [false; 6],
                    };
                    fused.iter_mut().zip(kinds).for_each(|(n, is)| *n += usize::from(is));
                }
            }
        }
    }
    println!("{SEEDS} random steps: {} launches unfused, {} fused", launches[0], launches[1]);
    println!(
        "bn_act {}, with mask {}, shortcut gradients {}, fork adds {}, frozen adds {}, branch adds {}",
        fused[0], fused[1], fused[2], fused[3], fused[4], fused[5]
    );
    assert!(launches[1] * 10 < launches[0] * 9, "{launches:?}: the fusions hardly met a pattern");
    assert!(fused.iter().all(|&n| n >= 50), "{fused:?}: a fusion hardly met its pattern");
}

#[test]
fn every_random_step_is_the_same_fused() {
    for seed in 0..SEEDS {
        let step = random_step(seed);
        let (off, full) = (run(&step, Fusion::Off), run(&step, Fusion::Full));
        assert_equal(&format!("seed {seed}"), &full, &off, 1e-9);
    }
}
