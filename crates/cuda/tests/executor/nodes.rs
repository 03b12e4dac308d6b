//! GPU against CPU node by node: each launch of a step on what the GPU gave it, by the CPU's op.

use crate::machine::{Gpu, Machine, Model, feed, scalars, start};
use cpu::io::{Input, Io, Output, Real};
use cuda::{Looked, Mode, Seen};
use methods::{Ce, Ips};
use plan::{Arg, Scalars};
use spec::{Op, Precision, Section};
use std::ops::ControlFlow;
use tensor::{Dtype, bf16};

/// The bytes of a value as the CPU stores them: floats as f32.
fn widened(dtype: Dtype, bytes: &[u8]) -> Vec<u128> {
    let wide = |b: &[u8]| bf16::from_le_bytes([b[0], b[1]]).to_f32().to_le_bytes();
    let bytes = if dtype == Dtype::Bf16 { bytes.chunks_exact(2).flat_map(wide).collect() } else { bytes.to_vec() };
    let mut words = vec![0u128; bytes.len().div_ceil(16).max(1)];
    bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(&bytes);
    words
}

fn numbers(arg: &Arg, bytes: &[u8]) -> Vec<f64> {
    let words = |n: usize| bytes.chunks_exact(n);
    let all: Vec<f64> = match arg.dtype {
        Dtype::F32 => words(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect(),
        Dtype::I32 => words(4).map(|b| f64::from(i32::from_le_bytes(b.try_into().unwrap()))).collect(),
        Dtype::Bf16 => words(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        _ => bytes.iter().map(|&b| f64::from(b)).collect(),
    };
    all[..arg.shape.elements()].to_vec()
}

fn output<'a>((a, words): (&Arg, &'a mut Vec<u128>)) -> Output<'a> {
    Output { shape: a.shape, dtype: a.dtype, bytes: bytemuck::cast_slice_mut(words) }
}

/// What the CPU's op makes of the operands: outputs, then states.
fn on_cpu(seen: &Seen<'_>, scalars: &Scalars) -> Vec<Vec<u128>> {
    let launch = seen.launch;
    let in_place = launch.op == Op::Accumulate;
    let inputs: Vec<_> = launch.inputs.iter().zip(&seen.inputs).map(|(a, b)| widened(a.dtype, b)).collect();
    let mut outputs: Vec<Vec<u128>> =
        launch.outputs.iter().map(|a| vec![0; a.shape.elements().div_ceil(4).max(1)]).collect();
    if in_place {
        outputs[0] = inputs[0].clone();
    }
    let mut states: Vec<_> = launch.states.iter().zip(&seen.states_before).map(|(a, b)| widened(a.dtype, b)).collect();
    let mut io = Io { inputs: vec![], outputs: vec![], states: vec![], scalars };
    for (i, (a, words)) in launch.inputs.iter().zip(&inputs).enumerate() {
        let bytes: &[u8] = if in_place && i == 0 { &[] } else { bytemuck::cast_slice(words) };
        io.inputs.push(Input { shape: a.shape, dtype: a.dtype, bytes, slot_bytes: seen.slot_bytes });
    }
    io.outputs = launch.outputs.iter().zip(&mut outputs).map(output).collect();
    io.states = launch.states.iter().zip(&mut states).map(output).collect();
    f32::run(&launch.op, &mut io);
    outputs.extend(states);
    outputs
}

/// The worst normalised error of the launch's outputs and states.
fn error(seen: &Seen<'_>, scalars: &Scalars) -> f64 {
    let expected = on_cpu(seen, scalars);
    let launch = seen.launch;
    let written = launch.outputs.iter().zip(&seen.outputs).chain(launch.states.iter().zip(&seen.states));
    let of = |((arg, got), words): ((&Arg, &Vec<u8>), &Vec<u128>)| {
        let stored = if arg.dtype.is_float() { Dtype::F32 } else { arg.dtype };
        let expected = numbers(&Arg { dtype: stored, ..*arg }, bytemuck::cast_slice(words));
        let got = numbers(arg, got);
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
        let size = norm(&mut expected.iter().copied());
        norm(&mut got.iter().zip(&expected).map(|(g, e)| if g == e { 0.0 } else { g - e })) / size.max(1e-6)
    };
    written.zip(&expected).map(of).fold(0.0, |a: f64, b| if b.is_nan() { f64::INFINITY } else { a.max(b) })
}

/// Every node of a step within its bound.
pub(crate) fn compare(what: &str, model: &Model, bound: f64) {
    let Some(mut gpu) = Gpu::new(Mode::Stepped) else { return };
    let run = model.run(gpu.storage(), &[4], 1);
    let plan = &run.plans[0];
    gpu.reserve(&[plan], &run.states, 1);
    start(&mut gpu, &run.states);
    gpu.prepare(plan);
    feed(&mut gpu, plan, 0);
    let scalars = scalars(plan, &[4], 0);
    let mut all = Vec::new();
    for phase in 0..plan.phases.len() {
        for section in [Section::Body, Section::Update] {
            let looked = Looked { phase, section, slot: 0 };
            let visit = |seen: &Seen<'_>| -> ControlFlow<()> {
                all.push((error(seen, &scalars), format!("{} ({})", seen.launch.path, seen.launch.op.name())));
                ControlFlow::Continue(())
            };
            gpu.0.inspect(plan, looked, &scalars, visit).unwrap_or_else(|e| panic!("{e}"));
        }
    }
    assert_eq!(all.len(), plan.launches.len() - plan.section(0, Section::Prepare).len());
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    println!("{what}: {} launches, worst {:.2e} in {}", all.len(), all[0].0, all[0].1);
    let bad: Vec<_> = all.iter().filter(|e| e.0 > bound).map(|e| format!("{:.2e} {}", e.0, e.1)).collect();
    assert!(bad.is_empty(), "{what}: past {bound:.0e}: {bad:#?}");
}

fn ce(student: &'static str, precision: Precision) -> Model {
    Model { method: Box::new(Ce::default()), student, teachers: vec![], precision, side: 8 }
}

#[test]
fn every_node_of_a_step_in_f32() {
    compare("resnet8 f32", &ce("resnet8", Precision::F32), 1e-5);
}

/// Depthwise and grouped convolutions, shuffles, concatenations, pools, bottlenecks, a pre-activation.
#[test]
fn every_node_of_other_networks_in_bf16() {
    for student in ["wrn_16_1", "mobilenetv2", "shufflev1", "vgg8", "preact_resnet10", "densenet40_12"] {
        compare(&format!("{student} bf16"), &ce(student, Precision::Bf16), 5e-3);
    }
}

#[test]
fn every_node_of_a_swapped_pair_in_bf16() {
    let method = Box::new(Ips { m: Some(2), ..Ips::default() });
    let model = Model { method, ..ce("resnet8", Precision::Bf16) };
    compare("ips bf16", &model, 5e-3);
}
