//! The oracles of patch swap by number (methods, chapter 2.6), through plan and executor. Oracle 7 compares with another
//! method, CS-KD: tests/methods has it.

use crate::engine::{Case, Inputs, gradients, images, output, set_state, setting, step};
use crate::golden::distance;
use crate::networks::Shown;
use crate::wave::wave;
use data::{ClassLists, DataError, Dataset, DrawData, EpochKey, LastBatch, Loader, Meta, RawImage};
use methods::{Ce, Direction, Ips, Pair};
use nets::NetworkSpec;
use plan::Fusion;
use spec::{ImageArgs, Losses, Method, Op, Setting, Spec, Step, StepInput};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use tensor::{HostTensor, Shape};
use train::engine::{Engine, StepValues};

const ALL: [Direction; 4] =
    [Direction::TwoWaySg, Direction::TwoWayFull, Direction::OneWayBToA, Direction::ByConfidence];
const CLASSES: usize = 5;
const SIDE: usize = 8;
const CELLS: usize = 16;

/// The method, showing what it feeds the network; if `only` names a term, the others have weight 0.
#[derive(Debug)]
struct Watched {
    ips: Ips,
    only: Option<&'static str>,
}

impl Method for Watched {
    fn spec(&self, setting: &Setting) -> Result<Spec, String> {
        self.ips.spec(setting)
    }

    fn losses<'g>(&self, phase: usize, step: &Step<'g>) -> Losses {
        let mut losses = self.ips.losses(phase, step);
        let graph = step.builder.graph();
        let swap = graph.nodes.iter().find(|n| matches!(n.op, Op::PatchSwap { .. })).unwrap();
        losses.outputs.push(("fed".to_string(), swap.outputs[0]));
        let others = losses.terms.iter_mut().filter(|t| self.only.is_some_and(|only| t.name != only));
        others.for_each(|term| term.weight = 0.0.into());
        losses
    }
}

fn ips(kl: Direction) -> Ips {
    Ips { kl, ..Ips::default() }
}

fn resnet8(method: impl Method + 'static) -> Case {
    let student = NetworkSpec::new("resnet8").build(CLASSES).unwrap();
    Case::new(Box::new(method), student, CLASSES, [SIDE, SIDE, 3])
}

/// Pairs of float images, their labels [anchors, partners] and the mask.
fn pairs(rows: &[f64], labels: &[i32], mask: &[u8]) -> Inputs {
    let pairs = labels.len();
    let mut inputs = images(&[2 * pairs, SIDE, SIDE, 3], rows, &labels.repeat(2));
    inputs.push(("draw.swap_mask".to_string(), HostTensor::new(Shape::new(&[pairs, CELLS]), mask).unwrap()));
    inputs
}

/// Three pairs, all different, and masks of any kind.
fn three_pairs() -> (Vec<f64>, [i32; 3], Vec<u8>) {
    let mask = (0..3 * CELLS).map(|i| u8::from(i * i % 7 < 3)).collect();
    (wave("pairs", 6 * SIDE * SIDE * 3), [1, 4, 2], mask)
}

/// What the network saw, and the step's values, for three pairs.
fn run(
    method: impl Method + 'static,
    (rows, labels, mask): (&[f64], &[i32], &[u8]),
) -> (Engine<cpu::Executor<f64>>, StepValues) {
    let mut engine = resnet8(method).engine(labels.len());
    let values = step(&mut engine, pairs(rows, labels, mask), 0.0);
    (engine, values)
}

fn fed(rows: &[f64], mask: &[u8]) -> Vec<f64> {
    let labels = vec![0; mask.len() / CELLS];
    output(&run(Watched { ips: Ips::default(), only: None }, (rows, &labels, mask)).0, "fed")
}

/// Halves exchanged.
fn exchanged(rows: &[f64]) -> Vec<f64> {
    let (a, b) = rows.split_at(rows.len() / 2);
    [b, a].concat()
}

/// Few coloured images of four classes, one of which has a single image.
struct Toy(Meta);

impl Toy {
    fn new() -> Arc<Toy> {
        let labels = vec![0, 1, 1, 2, 0, 2, 1, 3, 0, 2, 1, 0, 2, 1];
        let classes = ["a", "b", "c", "d"].map(String::from).to_vec();
        Arc::new(Toy(Meta { name: "toy".into(), classes, channels: 3, size: Some([SIDE, SIDE]), labels }))
    }
}

impl Dataset for Toy {
    fn meta(&self) -> &Meta {
        &self.0
    }

    fn read(&self, index: usize, image: &mut RawImage) -> Result<(), DataError> {
        let pixels = (0..SIDE * SIDE * 3).map(|i| (i * (2 * index + 3) % 256) as u8).collect();
        *image = RawImage { height: SIDE, width: SIDE, channels: 3, pixels };
        Ok(())
    }

    fn place(&self, index: usize) -> String {
        format!("toy {index}")
    }
}

fn pair_rule(rule: Pair) -> data::PairRule {
    match rule {
        Pair::WithSelf => data::PairRule::WithSelf,
        Pair::WithoutSelf => data::PairRule::WithoutSelf,
        Pair::Partition => data::PairRule::Partition,
    }
}

/// An epoch of pairs in batches of four, masks as the method asks for them.
fn batches(ips: &Ips, rule: Pair, epoch: u32) -> Vec<data::Batch> {
    let spec = ips.spec(&setting(CLASSES, [SIDE, SIDE, 3])).unwrap();
    let spec::DrawKind::CellMask { cells, gate, rule: spec::CellRule::Probability(q) } = spec.draws[0].kind else {
        panic!("{:?}", spec.draws)
    };
    let kind = data::DrawKind::CellMask { cells, gate, rule: data::CellRule::Probability(q) };
    let draws = vec![data::DrawSpec { name: spec.draws[0].name.clone(), kind }];
    let (augment, on_bad) = (data::Augment::None, data::OnBad::Fail);
    let loader =
        Loader::new(Toy::new(), data::BatchSpec { augment, views: vec![], draws, on_bad, pad_units: 0 }).unwrap();
    let lists = Arc::new(ClassLists::of(loader.dataset().as_ref()));
    let sampler = data::Sampler::Pairs { rule: pair_rule(rule), partners: 1 };
    let epoch = data::Epoch::new(sampler, lists, EpochKey { seed: 3, stage: 0, epoch }).unwrap();
    let deal = data::Deal::new(epoch.units(), 4, 4, LastBatch::Keep).unwrap();
    let micros = (0..deal.steps()).flat_map(|step| deal.deal(step, 0, 1));
    micros.map(|micro| loader.batch(&epoch, &micro).unwrap()).collect()
}

/// What the network sees of a batch of 8-bit images, and the images normalised without the method.
fn seen(ips: &Ips, batch: &data::Batch, fusion: Fusion) -> (Vec<f64>, Vec<f64>) {
    let (mean, std) = ([0.5, 0.4, 0.3], [0.25, 0.2, 0.3]);
    let image = ImageArgs { size: [SIDE, SIDE], pad: 0, mean, std, crop: false, flip: false };
    let input = Some(StepInput { pixels: [SIDE, SIDE], image });
    let case = resnet8(Watched { ips: ips.clone(), only: None });
    let units = batch.labels.len();
    let mut engine = Case { input, fusion, ..case }.engine::<f64>(units);
    let DrawData::U8(mask) = &batch.draws["swap_mask"] else { panic!("a mask is bytes") };
    let inputs = vec![
        ("image".to_string(), HostTensor::new(Shape::new(&batch.shape), &batch.images).unwrap()),
        ("label".to_string(), HostTensor::new(Shape::new(&[2 * units]), &batch.row_labels).unwrap()),
        ("draw.swap_mask".to_string(), HostTensor::new(Shape::new(&[units, CELLS]), mask).unwrap()),
    ];
    step(&mut engine, inputs, 0.0);
    let plain = batch.images.iter().enumerate().map(|(i, &p)| (f64::from(p) / 255.0 - mean[i % 3]) / std[i % 3]);
    (output(&engine, "fed"), plain.collect())
}

#[test]
fn oracle_1_nothing_or_everything_is_exchanged() {
    for fusion in [Fusion::Off, Fusion::Full] {
        let mask = |gate, q| Ips { gate, cell_prob: Some(q), ..Ips::default() };
        for closed in [mask(0.0, 0.5), mask(1.0, 0.0)] {
            let (fed, plain) = seen(&closed, &batches(&closed, Pair::WithSelf, 0)[1], fusion);
            assert_eq!(fed, plain, "the loader's images");
        }
        let open = mask(1.0, 1.0);
        let (fed, plain) = seen(&open, &batches(&open, Pair::WithSelf, 0)[1], fusion);
        assert_eq!(fed, exchanged(&plain));
        let half = mask(1.0, 0.5);
        let (fed, plain) = seen(&half, &batches(&half, Pair::WithoutSelf, 0)[1], fusion);
        assert!(fed != plain && fed != exchanged(&plain));
    }
    let (rows, labels, _) = three_pairs();
    for kl in [Direction::TwoWaySg, Direction::TwoWayFull] {
        let [nothing, all] = [0, 1].map(|bit| run(ips(kl), (&rows, &labels, &[bit; 3 * CELLS])));
        same_step(&nothing, &all);
    }
}

/// Equal up to the order of sums.
fn same_step(
    (engine, values): &(Engine<cpu::Executor<f64>>, StepValues),
    (other, other_values): &(Engine<cpu::Executor<f64>>, StepValues),
) {
    let terms = |v: &StepValues| v.terms.iter().flat_map(|t| [t.1, t.2]).collect::<Vec<_>>();
    assert!(distance(&terms(values), &terms(other_values)) < 1e-12);
    let grads = gradients(other);
    for (name, grad) in gradients(engine) {
        assert!(distance(&grad, &grads[&name]) < 1e-11, "{name}: {:e}", distance(&grad, &grads[&name]));
    }
}

#[test]
fn oracle_2_the_exchange_is_its_own_inverse() {
    let (rows, _, mask) = three_pairs();
    let once = fed(&rows, &mask);
    assert_ne!(once, rows);
    assert_eq!(fed(&once, &mask), rows);
}

#[test]
fn oracle_3_pixels_are_conserved() {
    let (rows, _, mask) = three_pairs();
    let swapped = fed(&rows, &mask);
    let ((a, b), (c, d)) = (rows.split_at(rows.len() / 2), swapped.split_at(rows.len() / 2));
    for i in 0..a.len() {
        assert!([a[i], b[i]] == [c[i], d[i]] || [b[i], a[i]] == [c[i], d[i]], "element {i}");
        assert_eq!(a[i] + b[i], c[i] + d[i]);
    }
    // Cells are whole squares of 2 × 2 pixels, numbered row by row.
    let moved = |pair: usize, row: usize, column: usize| mask[pair * CELLS + row / 2 * 4 + column / 2] == 1;
    for (i, pixel) in c.chunks(3).enumerate() {
        let (pair, row, column) = (i / (SIDE * SIDE), i / SIDE % SIDE, i % SIDE);
        let from = if moved(pair, row, column) { b } else { a };
        assert_eq!(pixel, &from[3 * i..3 * i + 3], "pair {pair}, pixel ({row}, {column})");
    }
}

#[test]
fn oracle_4_the_complement_gives_the_same_pairs() {
    let (rows, labels, mask) = three_pairs();
    let complement: Vec<u8> = mask.iter().map(|bit| 1 - bit).collect();
    assert_eq!(fed(&rows, &complement), exchanged(&fed(&rows, &mask)));
    for kl in [Direction::TwoWaySg, Direction::TwoWayFull, Direction::ByConfidence] {
        same_step(&run(ips(kl), (&rows, &labels, &mask)), &run(ips(kl), (&rows, &labels, &complement)));
    }
}

#[test]
fn oracle_5_pairs_share_their_label_and_each_image_is_an_anchor_once() {
    let toy = Toy::new();
    for rule in [Pair::WithSelf, Pair::WithoutSelf, Pair::Partition] {
        for epoch in 0..3 {
            let (mut anchors, mut images) = (vec![], HashSet::new());
            for batch in batches(&Ips::default(), rule, epoch) {
                let units = batch.labels.len();
                let (of_anchors, of_partners) = batch.row_labels.split_at(units);
                assert_eq!(of_anchors, of_partners);
                assert!(batch.index.iter().zip(&batch.row_labels).all(|(&i, &l)| toy.label(i as usize) == l as u32));
                anchors.extend(batch.index[..units].to_vec());
                images.extend(batch.index.clone());
            }
            assert_eq!(images.len(), toy.len());
            anchors.sort();
            if rule != Pair::Partition {
                assert_eq!(anchors, (0..toy.len() as i32).collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn oracle_6_without_exchange_and_distillation_it_is_cross_entropy() {
    let (rows, labels, _) = three_pairs();
    let ips = Ips { alpha: 0.0, ..Ips::default() };
    let (engine, values) = run(ips, (&rows, &labels, &[0; 3 * CELLS]));
    let mut ce = resnet8(Ce::default()).engine::<f64>(6);
    let ce_values = step(&mut ce, images(&[6, SIDE, SIDE, 3], &rows, &labels.repeat(2)), 0.0);
    assert_eq!(values.terms[1].1, 0.0);
    assert_eq!((values.loss, &values.monitors), (ce_values.loss, &ce_values.monitors));
    assert_eq!(gradients(&engine), gradients(&ce));
}

/// Logits [pairs, classes] of both halves.
type Logits<'a> = (&'a [f64], &'a [f64]);

fn shown(method: impl Method + 'static, (a, b): Logits<'_>, labels: &[i32], fusion: Fusion) -> (StepValues, Vec<f64>) {
    let rows = 2 * labels.len();
    let classes = 2 * a.len() / rows;
    let case = Case::new(Box::new(method), Box::new(Shown { classes }), classes, [1, 1, rows]);
    let mut engine = Case { fusion, ..case }.engine::<f64>(labels.len());
    let transposed = |z: &[f64], rows: usize, columns: usize| -> Vec<f64> {
        (0..columns).flat_map(|c| (0..rows).map(move |r| (r, c))).map(|(r, c)| z[r * columns + c]).collect()
    };
    set_state(&mut engine, "fc.weight", &transposed(&[a, b].concat(), rows, classes));
    set_state(&mut engine, "fc.bias", &vec![0.0; classes]);
    let one_hot: Vec<f64> = (0..rows * rows).map(|i| f64::from(u8::from(i / rows == i % rows))).collect();
    let mut inputs = images(&[rows, 1, 1, rows], &one_hot, &labels.repeat(2));
    inputs.push((
        "draw.swap_mask".to_string(),
        HostTensor::new(Shape::new(&[labels.len(), 1]), &vec![0u8; labels.len()]).unwrap(),
    ));
    let values = step(&mut engine, inputs, 0.0);
    (values, transposed(&gradients(&engine)["fc.weight"], classes, rows))
}

/// Loss and gradient at the logits of the distillation alone, equal in both fusions.
fn distillation(ips: Ips, logits: Logits<'_>, labels: &[i32]) -> (f64, Vec<f64>) {
    let [fused, plain] = [Fusion::Full, Fusion::Off]
        .map(|fusion| shown(Watched { ips: ips.clone(), only: Some("kd") }, logits, labels, fusion));
    assert_eq!(fused, plain);
    (fused.0.loss, fused.1)
}

const LABELS: [i32; 3] = [0, 4, 2];

fn some_logits() -> (Vec<f64>, Vec<f64>) {
    (wave("a", 15).iter().map(|u| 3.0 * u).collect(), wave("b", 15).iter().map(|u| 3.0 * u).collect())
}

#[test]
fn oracle_8_distillation_gradients_balance() {
    let (a, b) = some_logits();
    for kl in ALL {
        let (loss, gradient) = distillation(ips(kl), (&a, &b), &LABELS);
        assert!(loss > 0.0 && gradient.iter().any(|g| g.abs() > 1e-2));
        for row in gradient.chunks(5) {
            assert!(row.iter().sum::<f64>().abs() < 1e-15, "{kl:?}: rows sum to 0");
        }
        let (loss, gradient) = distillation(ips(kl), (&a, &a), &LABELS);
        assert!(loss.abs() < 1e-15 && gradient.iter().all(|g| g.abs() < 1e-15), "{kl:?}: equals teach nothing");
    }
    let (_, gradient) = distillation(ips(Direction::TwoWaySg), (&a, &b), &LABELS);
    assert!(gradient[..15].iter().zip(&gradient[15..]).all(|(a, b)| (a + b).abs() < 1e-16));
    let (_, gradient) = distillation(ips(Direction::OneWayBToA), (&a, &b), &LABELS);
    assert!(gradient[15..].iter().all(|g| *g == 0.0), "the teacher is detached");
    // Two identical images, whatever is exchanged.
    let (rows, labels, mask) = three_pairs();
    let twins = rows[..rows.len() / 2].repeat(2);
    for kl in ALL {
        let (engine, values) = run(Watched { ips: ips(kl), only: Some("kd") }, (&twins, &labels, &mask));
        assert!(values.loss.abs() < 1e-13, "{kl:?}: {:e}", values.loss);
        let grads: BTreeMap<_, _> = gradients(&engine);
        let largest = grads.values().flatten().fold(0.0, |m: f64, g| m.max(g.abs()));
        assert!(largest < 1e-13, "{kl:?}: {largest:e}");
    }
}

#[test]
fn oracle_9_offsets_do_not_count_and_heat_makes_it_linear() {
    let (a, b) = some_logits();
    let mut moved = a.clone();
    moved[..5].iter_mut().for_each(|z| *z += 7.0);
    for kl in ALL {
        let [before, after] = [&a, &moved].map(|a| distillation(ips(kl), (a, &b), &LABELS));
        assert!((before.0 - after.0).abs() < 1e-13 * before.0, "{kl:?}");
        assert!(distance(&after.1, &before.1) < 1e-13, "{kl:?}");
    }
    let mean = |z: &[f64], i: usize| z[i / 5 * 5..][..5].iter().sum::<f64>() / 5.0;
    let limit: Vec<f64> = (0..15).map(|i| (a[i] - mean(&a, i) - b[i] + mean(&b, i)) / (2.0 * 3.0 * 5.0)).collect();
    for (temperature, tolerance) in [(1e2, 2e-1), (1e4, 2e-3), (1e6, 2e-5)] {
        let (_, gradient) = distillation(Ips { temperature, ..Ips::default() }, (&a, &b), &LABELS);
        let off = distance(&gradient[..15], &limit);
        assert!(off < tolerance, "T = {temperature}: {off:e}");
    }
}

#[test]
fn oracle_10_values_of_the_chapter() {
    let g = |s: f64| (0..8).map(|i| 2.0 * (0.37 * f64::from(i) + s).sin()).collect::<Vec<_>>();
    let (a, b) = (g(0.5), g(1.7));
    for fusion in [Fusion::Full, Fusion::Off] {
        let near = |got: &[f64], printed: &[f64]| {
            assert!(got.iter().zip(printed).all(|(g, p)| (g - p).abs() < 6e-10), "{got:?}, printed {printed:?}");
        };
        let (values, gradient) = shown(ips(Direction::TwoWaySg), (&a, &b), &[1, 3], fusion);
        near(&[values.terms[0].1, values.terms[1].1], &[1.904680050, 0.198256678]);
        near(&gradient[..4], &[-0.042586608, -0.220728253, 0.105878716, 0.157436144]);
        near(&gradient[8..12], &[0.170933259, -0.147189508, 0.021044530, -0.044788282]);
        let (_, gradient) = shown(ips(Direction::TwoWayFull), (&a, &b), &[1, 3], fusion);
        near(&gradient[..4], &[-0.110660107, -0.250456680, 0.128785691, 0.232331096]);
        near(&gradient[8..12], &[0.248780131, -0.127402826, -0.011044662, -0.110332643]);
    }
}
