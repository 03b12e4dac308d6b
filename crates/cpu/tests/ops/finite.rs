//! Gradients against central differences in f64, through the rules of the graph.

use crate::interpreter::{Buffer, Case, LR, error, noise};
use graph::*;
use std::collections::HashMap;
use tensor::Dtype;

/// What is differentiated: a value, weighted by noise, or a sum of weighted losses.
pub(crate) enum Of {
    Value(ValueId),
    Losses(Vec<(ValueId, Weight)>),
}

/// A case under construction; float leaves are differentiated, in order of creation.
pub(crate) struct Make {
    pub(crate) case: Case<f64>,
    wrt: Vec<ValueId>,
}

impl Make {
    pub(crate) fn real(&mut self, shape: &[usize]) -> ValueId {
        let seed = self.case.leaves.len() as u64;
        let id = self.case.leaf(Buffer::real::<f64>(shape, noise(seed).take(shape.iter().product())));
        self.wrt.push(id);
        id
    }

    /// A float that no gradient is wanted of.
    pub(crate) fn constant(&mut self, shape: &[usize], values: impl IntoIterator<Item = f64>) -> ValueId {
        self.case.leaf(Buffer::real::<f64>(shape, values))
    }

    pub(crate) fn i32(&mut self, values: &[i32]) -> ValueId {
        self.case.leaf(Buffer::i32(&[values.len()], values))
    }

    fn op(&mut self, op: Op, inputs: &[ValueId]) -> Of {
        Of::Value(self.case.one(op, inputs))
    }
}

/// Largest error over the leaves between the rules' gradient and central differences.
pub(crate) fn check(name: &str, build: fn(&mut Make) -> Of) {
    let mut make = Make { case: Case::new(), wrt: vec![] };
    let target = build(&mut make);
    let Make { mut case, wrt } = make;
    let (seeds, losses) = match target {
        Of::Value(y) => {
            let shape = case.graph.shape(y);
            let dy = case.leaf(Buffer::real::<f64>(shape.dims(), noise(99).take(shape.elements())));
            (vec![(y, dy)], vec![])
        }
        Of::Losses(losses) => (vec![], losses),
    };
    let total = |case: &Case<f64>| {
        let values = case.evaluate();
        let dot = |&(y, dy): &(ValueId, ValueId)| -> f64 {
            values[&y].f64s::<f64>().iter().zip(values[&dy].f64s::<f64>()).map(|(a, b)| a * b).sum()
        };
        let weighted =
            |&(loss, weight): &(ValueId, Weight)| case.scalars.weight(weight) * values[&loss].f64s::<f64>()[0];
        seeds.iter().map(dot).sum::<f64>() + losses.iter().map(weighted).sum::<f64>()
    };
    let mut wanted = HashMap::new();
    for &leaf in &wrt {
        let step = 1e-5;
        let slope = |case: &mut Case<f64>, i: usize| {
            let old = case.leaves[&leaf].get::<f64>()[i];
            let [up, down] = [step, -step].map(|step| {
                case.leaves.get_mut(&leaf).unwrap().get_mut::<f64>()[i] = old + step;
                total(case)
            });
            case.leaves.get_mut(&leaf).unwrap().get_mut::<f64>()[i] = old;
            (up - down) / (2.0 * step)
        };
        let slopes: Vec<f64> = (0..case.graph.shape(leaf).elements()).map(|i| slope(&mut case, i)).collect();
        wanted.insert(leaf, slopes);
    }
    let grads = case.backward(&seeds, &losses);
    let values = case.evaluate();
    for (i, leaf) in wrt.iter().enumerate() {
        let grad = grads.get(leaf).unwrap_or_else(|| panic!("{name}: no gradient of leaf {i}"));
        let error = error(&values[grad].f64s::<f64>(), &wanted[leaf]);
        assert!(
            error < 1e-7,
            "{name}, leaf {i}: error {error:.1e}\n{:?}\n{:?}",
            values[grad].f64s::<f64>(),
            wanted[leaf]
        );
    }
}

fn conv(m: &mut Make, x: [usize; 4], w: [usize; 4], [stride, pad, groups]: [usize; 3]) -> Of {
    let (x, w) = (m.real(&x), m.real(&w));
    m.op(Op::Conv(ConvArgs { stride, pad, groups }), &[x, w])
}

fn matmul(m: &mut Make, ta: bool, tb: bool) -> Of {
    let (a, b) = (m.real(if ta { &[4, 3] } else { &[3, 4] }), m.real(if tb { &[5, 4] } else { &[4, 5] }));
    let bias = m.real(&[5]);
    m.op(Op::Matmul(MatmulArgs { ta, tb, dtype: Dtype::F64 }), &[a, b, bias])
}

fn batch_norm(m: &mut Make, shape: &[usize], groups: usize) -> Of {
    let c = shape[shape.len() - 1];
    let (x, gamma, beta) = (m.real(shape), m.real(&[c]), m.real(&[c]));
    let stats = m.case.push(Op::BnStats { groups }, &[x]);
    let bn = BnArgs { eps: 1e-3, groups };
    m.op(Op::BnApply { bn, source: StatsSource::Batch }, &[x, stats[0], stats[1], gamma, beta])
}

/// (op and sizes, why these, the case).
pub(crate) type Row = (&'static str, &'static str, fn(&mut Make) -> Of);

const TABLE: &[Row] = &[
    ("conv 3x3 stride 2", "padding cut on one side", |m| conv(m, [2, 6, 5, 3], [4, 3, 3, 3], [2, 1, 1])),
    ("conv groups 2", "filters see half of the channels", |m| conv(m, [1, 4, 4, 4], [6, 3, 3, 2], [1, 1, 2])),
    ("conv depthwise", "one filter a channel", |m| conv(m, [1, 4, 4, 3], [3, 3, 3, 1], [1, 1, 3])),
    ("matmul NT", "a linear layer", |m| matmul(m, false, true)),
    ("matmul NN", "the other three orientations", |m| matmul(m, false, false)),
    ("matmul TN", "", |m| matmul(m, true, false)),
    ("matmul TT", "", |m| matmul(m, true, true)),
    ("add_bias [2,3,2,5]", "channels of no lane multiple", |m| {
        let (x, bias) = (m.real(&[2, 3, 2, 5]), m.real(&[5]));
        m.op(Op::AddBias, &[x, bias])
    }),
    ("bn [4,2,3,5]", "all images in one group", |m| batch_norm(m, &[4, 2, 3, 5], 1)),
    ("bn [6,2,1,3] groups 3", "two images a group", |m| batch_norm(m, &[6, 2, 1, 3], 3)),
    ("bn [9,17]", "rows without pixels, past one vector", |m| batch_norm(m, &[9, 17], 1)),
    ("bn running", "affine: sums do not enter dx", |m| {
        let (x, gamma, beta) = (m.real(&[3, 2, 2, 4]), m.real(&[4]), m.real(&[4]));
        let (mean, var) = (m.constant(&[4], noise(7).take(4)), m.constant(&[4], [0.5, 1.0, 2.0, 3.0]));
        let op = Op::BnApply { bn: BnArgs { eps: 1e-5, groups: 1 }, source: StatsSource::Running };
        m.op(op, &[x, mean, var, gamma, beta])
    }),
    ("relu", "noise keeps off the kink", |m| {
        let x = m.real(&[3, 7]);
        m.op(Op::Unary(Unary::Relu), &[x])
    }),
    ("relu6", "scaled past the upper kink", |m| {
        let x = m.real(&[3, 7]);
        let x = m.case.one(Op::Scale(Weight::from(9.0)), &[x]);
        m.op(Op::Unary(Unary::Relu6), &[x])
    }),
    ("sigmoid", "", |m| {
        let x = m.real(&[3, 7]);
        m.op(Op::Unary(Unary::Sigmoid), &[x])
    }),
    ("add, sub, mul of one value", "gradients of three uses are summed", |m| {
        let (a, b) = (m.real(&[5, 4]), m.real(&[5, 4]));
        let sum = m.case.one(Op::Binary(Binary::Add), &[a, b]);
        let difference = m.case.one(Op::Binary(Binary::Sub), &[sum, b]);
        let product = m.case.one(Op::Binary(Binary::Mul), &[difference, sum]);
        m.op(Op::Binary(Binary::Mul), &[product, a])
    }),
    ("scale by a slot", "the weight is read when it runs", |m| {
        let x = m.real(&[4]);
        m.op(Op::Scale(Weight { factor: -3.0, slot: Some(LR) }), &[x])
    }),
    ("max_pool 3 stride 2", "overlapping windows", |m| {
        let x = m.real(&[2, 5, 6, 3]);
        m.op(Op::MaxPool(PoolArgs { kernel: 3, stride: 2, pad: 1 }), &[x])
    }),
    ("avg_pool 3 stride 2", "padding counts", |m| {
        let x = m.real(&[2, 5, 6, 3]);
        m.op(Op::AvgPool(PoolArgs { kernel: 3, stride: 2, pad: 1 }), &[x])
    }),
    ("global_avg_pool", "", |m| {
        let x = m.real(&[2, 3, 4, 5]);
        m.op(Op::GlobalAvgPool, &[x])
    }),
    ("concat and slice along channels", "", |m| {
        let (a, b) = (m.real(&[2, 2, 3]), m.real(&[2, 2, 4]));
        let both = m.case.one(Op::Concat { axis: Axis::Channel }, &[a, b]);
        m.op(Op::Slice { axis: Axis::Channel, start: 2, len: 3 }, &[both])
    }),
    ("concat and slice along rows", "", |m| {
        let (a, b) = (m.real(&[2, 3]), m.real(&[3, 3]));
        let both = m.case.one(Op::Concat { axis: Axis::Batch }, &[a, b]);
        m.op(Op::Slice { axis: Axis::Batch, start: 1, len: 3 }, &[both])
    }),
    ("gather_rows", "a row twice, a row never, padding", |m| {
        let (x, index) = (m.real(&[4, 3]), m.i32(&[2, 0, 2, -1]));
        m.op(Op::GatherRows, &[x, index])
    }),
    ("mix_rows", "a fixed point", |m| {
        let (x, permutation) = (m.real(&[4, 2, 3]), m.i32(&[2, 1, 3, 0]));
        let lambda = m.constant(&[1], [0.3]);
        m.op(Op::MixRows, &[x, permutation, lambda])
    }),
    ("patch_swap", "ragged last cells", |m| {
        let x = m.real(&[4, 3, 5, 2]);
        let mask = m.case.leaf(Buffer::u8(&[2, 6], &[1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 1, 1]));
        m.op(Op::PatchSwap { cell: 2 }, &[x, mask])
    }),
    ("channel_shuffle", "groups of three", |m| {
        let x = m.real(&[2, 3, 12]);
        m.op(Op::ChannelShuffle { groups: 3 }, &[x])
    }),
];

#[test]
fn gradients_match_finite_differences() {
    for (name, why, build) in TABLE {
        eprintln!("{name}: {why}");
        check(name, *build);
    }
}

#[test]
fn detach_passes_no_gradient() {
    let mut case = Case::<f64>::new();
    let x = case.leaf(Buffer::real::<f64>(&[2], [1.0, 2.0]));
    let detached = case.one(Op::Detach, &[x]);
    let dy = case.leaf(Buffer::real::<f64>(&[2], [1.0, 1.0]));
    assert!(!case.backward(&[(detached, dy)], &[]).contains_key(&x));
    assert_eq!(case.evaluate()[&detached].f64s::<f64>(), [1.0, 2.0]);
}
