//! The update section and state: against goldens of torch.optim, gating, order, short micro-batches.

use crate::golden::Golden;
use crate::interpreter::{Buffer, error, launch, scalars, update};
use cpu::io::{Input, Io, Output, Real, Scalars};
use graph::*;
use tensor::{Dtype, Shape};

fn flag<T: Real>(value: f64) -> Buffer {
    Buffer::real::<T>(&[], [value])
}

/// A carried value: slots follow each other.
fn carried<'a>(buffer: &'a Buffer, shape: &[usize], slot_bytes: usize) -> Input<'a> {
    Input { shape: Shape::new(shape), dtype: buffer.dtype, bytes: buffer.bytes(), slot_bytes }
}

fn sgd_args(count: usize, momentum: f64, nesterov: bool, weight_decay: f64, clip_norm: Option<f64>) -> SgdArgs {
    let param = |i: usize| SgdParam {
        param: StateId(2 * i as u32),
        momentum: StateId(2 * i as u32 + 1),
        weight_decay,
        lr_factor: 1.0,
    };
    SgdArgs { params: (0..count).map(param).collect(), momentum, nesterov, clip_norm }
}

fn sgd_golden<T: Real>(name: &str, limit: f64) {
    let golden = Golden::read(&format!("ops/{name}.safetensors"));
    let momentum = golden.number("momentum");
    let names = ["a", "b", "c"];
    let zeros = |b: &Buffer| Buffer::real::<T>(b.shape.dims(), std::iter::repeat_n(0.0, b.shape.elements()));
    let mut states: Vec<_> =
        names.iter().map(|n| golden.buffer::<T>(&format!("w.{n}"))).map(|w| [zeros(&w), w]).collect();
    for (step, lr) in golden.attr["lr"].as_array().unwrap().iter().enumerate() {
        for (name, [m, w]) in names.iter().zip(&mut states) {
            let key = format!("in.grad.{step}.{name}");
            if golden.tensors.contains_key(&key) {
                let args = sgd_args(
                    1,
                    momentum,
                    golden.attr["nesterov"].as_bool().unwrap(),
                    golden.number("weight_decay"),
                    None,
                );
                let (norm, finite, grad) = (flag::<T>(1.0), flag::<T>(1.0), golden.buffer::<T>(&key));
                let mut pair = [w.clone(), m.clone()];
                let inputs = [&norm, &finite, &grad].map(Buffer::input).to_vec();
                update::<T>(&Op::Sgd(Box::new(args)), inputs, &mut pair, &scalars(lr.as_f64().unwrap(), 1.0, 0.0));
                [*w, *m] = pair;
            }
            let check = |got: &Buffer, key: String| {
                let error = error(&got.f64s::<T>(), &golden.values(&key));
                assert!(error < limit, "{} {key}: {error:.1e}", golden.name);
            };
            check(w, format!("out.{step}.{name}"));
            if momentum > 0.0 {
                check(m, format!("out.momentum.{step}.{name}"));
            }
        }
    }
}

#[test]
fn sgd_matches_torch() {
    for name in ["sgd_plain", "sgd_momentum", "sgd_nesterov"] {
        sgd_golden::<f64>(name, 1e-12);
        sgd_golden::<f32>(name, 1e-6);
    }
}

/// What a plain loop makes of one tensor.
struct Plain {
    weights: Vec<f64>,
    momenta: Vec<f64>,
}

impl Plain {
    fn lars(&mut self, g: &[f64], lr: f64, param: &SgdParam, (args, adapts): (&LarsArgs, bool)) {
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let (wn, gn, decay) = (norm(&self.weights), norm(g), param.weight_decay);
        let mut ratio = args.trust * wn / (gn + decay * wn + args.epsilon);
        if !adapts || wn == 0.0 || gn == 0.0 {
            ratio = 1.0;
        }
        for ((w, v), g) in self.weights.iter_mut().zip(&mut self.momenta).zip(g) {
            *v = args.momentum * *v + ratio * lr * param.lr_factor * (g + decay * *w);
            *w -= *v;
        }
    }
}

/// Five tensors over three steps of falling rate: decayed and not, adapted and not, of zero weights, of zero gradients.
fn lars_against_loops<T: Real>(limit: f64, epsilon: f64) {
    let sizes = [70_001, 7, 40, 33, 12];
    let wave = |i: usize, k: f64| (i as f64 * 0.37 + k).sin();
    let param = |i: usize| SgdParam {
        param: StateId(2 * i as u32),
        momentum: StateId(2 * i as u32 + 1),
        weight_decay: [5e-2, 0.0, 5e-2, 1e-3, 1e-2][i],
        lr_factor: [1.0, 1.0, 10.0, 1.0, 1.0][i],
    };
    let (params, adapts) = ((0..5).map(param).collect(), vec![true, false, false, true, true]);
    let args = LarsArgs { params, adapts, momentum: 0.9, trust: 0.02, epsilon };
    let start = |t: usize| [3.0, 1.0, 0.1, 0.0, 2.0][t];
    let mut plain: Vec<Plain> = (0..5)
        .map(|t| Plain {
            weights: (0..sizes[t]).map(|i| start(t) * wave(i, 0.1)).collect(),
            momenta: vec![0.0; sizes[t]],
        })
        .collect();
    let buffer = |x: &[f64]| Buffer::real::<T>(&[x.len()], x.iter().copied());
    let mut states: Vec<_> = plain.iter().flat_map(|p| [buffer(&p.weights), buffer(&p.momenta)]).collect();
    for (step, lr) in [2.0, 1.0, 0.3].into_iter().enumerate() {
        let grad = |t: usize| -> Vec<f64> {
            let size = if t == 4 { 0.0 } else { 0.5 };
            (0..sizes[t]).map(|i| size * wave(i, (step + t) as f64)).collect()
        };
        let grads: Vec<_> = (0..5).map(grad).collect();
        let (finite, buffers) = (flag::<T>(1.0), grads.iter().map(|g| buffer(g)).collect::<Vec<_>>());
        let inputs = [&finite].into_iter().chain(&buffers).map(Buffer::input).collect();
        update::<T>(&Op::Lars(Box::new(args.clone())), inputs, &mut states, &scalars(lr, 1.0, 0.0));
        for (t, (plain, states)) in plain.iter_mut().zip(states.chunks(2)).enumerate() {
            plain.lars(&grads[t], lr, &args.params[t], (&args, args.adapts[t]));
            for (what, got, expected) in [("w", &states[0], &plain.weights), ("v", &states[1], &plain.momenta)] {
                let error = error(&got.f64s::<T>(), expected);
                assert!(error < limit, "step {step}, {what} of tensor {t}: {error:.1e}");
            }
        }
    }
}

#[test]
fn lars_equals_plain_loops() {
    for epsilon in [0.0, 0.5] {
        lars_against_loops::<f64>(1e-12, epsilon);
        lars_against_loops::<f32>(2e-6, epsilon);
    }
}

#[test]
fn clipping_matches_torch() {
    for name in ["clip_norm", "clip_norm_idle"] {
        let golden = Golden::read(&format!("ops/{name}.safetensors"));
        let grads = ["a", "b", "c"].map(|n| golden.buffer::<f64>(&format!("in.grad.{n}")));
        let loss = flag::<f64>(3.0);
        let inputs: Vec<_> = grads.iter().chain([&loss]).collect();
        let norm = launch::<f64>(
            &Op::GradNorm { grads: 3 },
            &inputs,
            &[(Shape::new(&[]), Dtype::F64); 2],
            &Scalars::default(),
        );
        assert!((norm[0].f64s::<f64>()[0].sqrt() - golden.values("out.norm")[0]).abs() < 1e-12);
        let zero = |g: &Buffer| Buffer::real::<f64>(g.shape.dims(), std::iter::repeat_n(0.0, g.shape.elements()));
        let mut states: Vec<_> = grads.iter().flat_map(|g| [zero(g), zero(g)]).collect();
        let args = sgd_args(3, 0.0, false, 0.0, Some(golden.number("max_norm")));
        let inputs = norm.iter().chain(&grads).map(Buffer::input).collect();
        update::<f64>(&Op::Sgd(Box::new(args)), inputs, &mut states, &scalars(-1.0, 1.0, 0.0));
        for (state, key) in states.iter().step_by(2).zip(["a", "b", "c"]) {
            let error = error(&state.f64s::<f64>(), &golden.values(&format!("out.grad.{key}")));
            assert!(error < 1e-12, "{name} {key}: {error:.1e}");
        }
    }
}

#[test]
fn ema_matches_golden() {
    let golden = Golden::read("ops/ema.safetensors");
    let mut average = golden.buffer::<f64>("w.ema");
    for (step, decay) in golden.attr["decay"].as_array().unwrap().iter().enumerate() {
        let mut states = [average, golden.buffer::<f64>(&format!("in.w.{step}"))];
        let finite = flag::<f64>(1.0);
        let op = Op::Ema { pairs: vec![(StateId(0), StateId(1))], decay: SlotId::EMA_DECAY };
        update::<f64>(&op, vec![finite.input()], &mut states, &scalars(0.0, 1.0, decay.as_f64().unwrap()));
        [average, _] = states;
        assert!(error(&average.f64s::<f64>(), &golden.values(&format!("out.{step}"))) < 1e-12, "step {step}");
    }
}

#[test]
fn grad_norm_sees_every_value_that_is_not_finite() {
    // Long enough for several blocks; the bad value in the middle, in the last partial lane, and in a loss.
    let clean = Buffer::real::<f32>(&[40_001], std::iter::repeat_n(0.5, 40_001));
    let loss = flag::<f32>(2.0);
    let outputs = [(Shape::new(&[]), Dtype::F32); 2];
    let run = |g: &Buffer, loss: &Buffer| {
        launch::<f32>(&Op::GradNorm { grads: 1 }, &[g, loss], &outputs, &Scalars::default())
    };
    let result = run(&clean, &loss);
    assert_eq!((result[0].get::<f32>()[0], result[1].get::<f32>()[0]), (10_000.25, 1.0), "losses are not in the norm");
    for (at, bad) in [(20_000, f32::NAN), (40_000, f32::INFINITY), (0, f32::NEG_INFINITY)] {
        let mut grad = clean.clone();
        grad.get_mut::<f32>()[at] = bad;
        assert_eq!(run(&grad, &loss)[1].get::<f32>()[0], 0.0, "{bad} at {at}");
    }
    assert_eq!(run(&clean, &flag::<f32>(f64::NAN))[1].get::<f32>()[0], 0.0);
}

/// Ops that write states, each with inputs that would change them.
fn gated(finite: f64) -> Vec<(Op, Vec<Buffer>, Vec<Buffer>)> {
    let real = |shape: &[usize], x: f64| Buffer::real::<f32>(shape, std::iter::repeat_n(x, shape.iter().product()));
    let layer = BnRunningLayer { mean: StateId(0), var: StateId(1), updates: 1, forwards: 1 };
    let f = || flag::<f32>(finite);
    let two = || vec![real(&[3], 1.0), real(&[3], 2.0)];
    let params = sgd_args(1, 0.9, false, 0.1, None).params;
    let lars = LarsArgs { params, adapts: vec![true], momentum: 0.9, trust: 0.001, epsilon: 0.0 };
    vec![
        (Op::Sgd(Box::new(sgd_args(1, 0.9, true, 0.1, Some(1.0)))), vec![f(), f(), real(&[3], 5.0)], two()),
        (Op::Lars(Box::new(lars)), vec![f(), real(&[3], 5.0)], two()),
        (Op::Ema { pairs: vec![(StateId(0), StateId(1))], decay: SlotId::EMA_DECAY }, vec![f()], two()),
        (
            Op::BnRunning { momentum: 0.1, layers: vec![layer] },
            vec![f(), real(&[1, 3], 5.0), real(&[1, 3], 6.0)],
            two(),
        ),
        (Op::Assign { state: StateId(0) }, vec![f(), real(&[1, 3], 5.0)], vec![real(&[1, 3], 1.0)]),
        (
            Op::ScatterRows { state: StateId(0) },
            vec![f(), Buffer::i32(&[1], &[1]), real(&[1, 3], 5.0)],
            vec![real(&[2, 3], 1.0)],
        ),
    ]
}

#[test]
fn a_phase_that_is_not_finite_changes_nothing() {
    for finite in [0.0, 1.0] {
        for (op, inputs, states) in gated(finite) {
            let mut after = states.clone();
            update::<f32>(&op, inputs.iter().map(Buffer::input).collect(), &mut after, &scalars(0.1, 1.0, 0.5));
            assert_eq!(after == states, finite == 0.0, "{op}, flag {finite}");
        }
    }
}

#[test]
fn running_statistics_move_in_micro_batch_forward_and_group_order() {
    // Two micro-batches, two forwards, two groups, one channel, two updates each: 16 moves of r ← r/2 + s/2.
    let slot = |x: [f64; 2]| x;
    let (first, second) = (slot([1.0, 2.0]), slot([3.0, 4.0]));
    let stats = |slots: [[f64; 2]; 2]| Buffer::real::<f64>(&[4], slots.concat());
    let forwards = [stats([first, second]), stats([[10.0, 20.0], [30.0, 40.0]])];
    let layer = BnRunningLayer { mean: StateId(0), var: StateId(1), updates: 2, forwards: 2 };
    let op = Op::BnRunning { momentum: 0.5, layers: vec![layer] };
    let finite = flag::<f64>(1.0);
    let (a, b) = (carried(&forwards[0], &[2, 1], 16), carried(&forwards[1], &[2, 1], 16));
    let order = [1.0, 2.0, 10.0, 20.0, 3.0, 4.0, 30.0, 40.0];
    // By both micro-batches, the first one, none, and as many as there are.
    for (running, moves) in [(2, 8), (1, 4), (0, 0), (3, 8)] {
        let mut states = [Buffer::real::<f64>(&[1], [0.0]), Buffer::real::<f64>(&[1], [1.0])];
        let scalars = Scalars { slots: vec![], micro_units: vec![[8, 0], [8, 0]], micro: 0, running };
        update::<f64>(&op, vec![finite.input(), a, a, b, b], &mut states, &scalars);
        let expected = |start: f64| order[..moves].iter().fold(start, |r, s| (0..2).fold(r, |r, _| 0.5 * r + 0.5 * s));
        assert_eq!([states[0].f64s::<f64>()[0], states[1].f64s::<f64>()[0]], [expected(0.0), expected(1.0)]);
    }
}

#[test]
fn assign_compacts_short_micro_batches() {
    let rows = Buffer::real::<f64>(&[8], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -1.0, -1.0]);
    let mut states = [Buffer::real::<f64>(&[4, 2], [0.0; 8])];
    let finite = flag::<f64>(1.0);
    let scalars = Scalars { slots: vec![], micro_units: vec![[2, 0], [1, 0]], micro: 0, running: 2 };
    update::<f64>(
        &Op::Assign { state: StateId(0) },
        vec![finite.input(), carried(&rows, &[2, 2], 32)],
        &mut states,
        &scalars,
    );
    assert_eq!(states[0].f64s::<f64>(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0, 0.0]);
}

#[test]
fn scatter_keeps_the_last_of_equal_rows_and_skips_padding() {
    // Micro-batch 0: rows 2, 0; micro-batch 1: row 2 again, then padding; its second slot would write row 0.
    let index = Buffer::i32(&[6], &[2, 0, -1, 2, -1, 0]);
    let rows = Buffer::real::<f64>(&[6], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let mut states = [Buffer::real::<f64>(&[4, 1], [9.0; 4])];
    let finite = flag::<f64>(1.0);
    let scalars = Scalars { slots: vec![], micro_units: vec![[3, 0], [2, 0]], micro: 0, running: 2 };
    let inputs = vec![finite.input(), carried(&index, &[3], 12), carried(&rows, &[3, 1], 24)];
    update::<f64>(&Op::ScatterRows { state: StateId(0) }, inputs, &mut states, &scalars);
    assert_eq!(states[0].f64s::<f64>(), [2.0, 9.0, 4.0, 9.0]);
}

#[test]
fn rolling_rows_begin_after_earlier_micro_batches() {
    let state = Buffer::real::<f64>(&[5, 1], [1.0, 2.0, 3.0, 4.0, 5.0]);
    let rows = |micro| {
        let scalars = Scalars { slots: vec![], micro_units: vec![[2, 2], [2, 2], [1, 1]], micro, running: 3 };
        launch::<f64>(&Op::RollingRows { rows: 2 }, &[&state], &[(Shape::new(&[2, 1]), Dtype::F64)], &scalars)[0]
            .f64s::<f64>()
    };
    assert_eq!([rows(0), rows(1), rows(2)].concat(), [1.0, 2.0, 3.0, 4.0, 5.0, 0.0]);
}

#[test]
fn accumulate_and_copies_work_in_place() {
    let (a, b) = (Buffer::real::<f32>(&[3], [1.0, 2.0, 3.0]), Buffer::real::<f32>(&[3], [0.5; 3]));
    let out = [(Shape::new(&[3]), Dtype::F32)];
    let apart = launch::<f32>(&Op::Accumulate, &[&a, &b], &out, &Scalars::default());
    assert_eq!(apart[0].get::<f32>(), [1.5, 2.5, 3.5]);
    let empty = Input { bytes: &[], ..a.input() };
    for (op, inputs, expected) in [
        (Op::Accumulate, vec![empty, b.input()], [1.5, 2.5, 3.5]),
        (Op::Reduce, vec![empty], [1.0, 2.0, 3.0]),
        (Op::Carry, vec![empty], [1.0, 2.0, 3.0]),
        (Op::Detach, vec![a.input()], [1.0, 2.0, 3.0]),
    ] {
        let mut memory = a.clone();
        let outputs: Vec<Output<'_>> = vec![memory.output()];
        <f32 as cpu::Real>::run(&op, &mut Io { inputs, outputs, states: vec![], scalars: &Scalars::default() });
        assert_eq!(memory.get::<f32>(), expected, "{op}");
    }
}

#[test]
fn correct_skips_padding_and_does_not_count_nan() {
    let logits = [[1.0, 3.0, 2.0], [1.0, 3.0, 2.0], [f64::NAN, 1.0, 0.0], [0.0, f64::NAN, 1.0]].concat();
    let (logits, label) = (Buffer::real::<f32>(&[4, 3], logits), Buffer::i32(&[4], &[2, -1, 0, 2]));
    let counts = launch::<f32>(
        &Op::Correct { k: 2 },
        &[&logits, &label],
        &[(Shape::new(&[2]), Dtype::F32)],
        &Scalars::default(),
    );
    assert_eq!(counts[0].get::<f32>(), [0.0, 2.0]);
}

#[test]
fn zero_overwrites_and_divisors_count_units() {
    let x = Buffer::real::<f64>(&[2], [f64::NAN, 1.0]);
    let out = [(Shape::new(&[2]), Dtype::F64)];
    assert_eq!(launch::<f64>(&Op::Zero, &[&x], &out, &Scalars::default())[0].f64s::<f64>(), [0.0, 0.0]);
    // Mean over 2 rows a unit of role 0 and 1 of role 1, of a global batch of 5 and 3 units.
    let divisor = Divisor { constant: 0, per_unit: [2, 1] };
    let scalars = Scalars { slots: vec![0.0, 5.0, 3.0], micro_units: vec![[5, 3]], micro: 0, running: 1 };
    let (a, b) = (Buffer::real::<f64>(&[2], [2.0, 3.0]), Buffer::real::<f64>(&[2], [0.0, 0.0]));
    let value = launch::<f64>(&Op::SquaredError { divisor }, &[&a, &b], &[(Shape::new(&[]), Dtype::F64)], &scalars);
    assert_eq!(value[0].f64s::<f64>(), [1.0]);
}
