//! A GPU against the CPU node by node: each launch of a step on what the GPU gave it, by the CPU's op.
//!
//! Errors cannot add up from launch to launch, so each is held to the bound of its arithmetic alone.

use crate::engine::{StepInputs, scalars};
use crate::error::TrainError;
use cpu::Real;
use cpu::io::{Input, Io, Output};
use cuda::{Looked, Seen};
use plan::{Arg, Plan, Scalars};
use spec::{Op, Precision, Section};
use std::ops::ControlFlow;
use tensor::{Dtype, bf16};

/// How far a launch is from the CPU's op.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeError {
    pub path: String,
    pub op: &'static str,
    /// Of the output or state that is worst: `output 0 f32[8,28,28,16]`.
    pub output: String,
    /// ‖gpu − cpu‖ / ‖cpu‖ of floats; of masks and indices the share that differs, where one is forgiven: a tie.
    pub error: f64,
}

/// What a comparison found.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    pub launches: usize,
    pub bound: f64,
    /// The first launch past the bound; none came after it.
    pub past: Option<NodeError>,
    /// Of the launches that were compared.
    pub worst: Option<NodeError>,
}

/// What a launch may be off by: roundings of its operands and of its result, summed in another order.
pub(crate) fn bound(precision: Precision) -> f64 {
    match precision {
        Precision::F32 | Precision::F64 => 1e-5,
        Precision::Tf32 => 2e-3,
        Precision::Bf16 => 5e-3,
    }
}

/// Runs every phase of a step of one micro-batch, up to the first launch that is past the bound.
pub(crate) fn compare(
    gpu: &mut cuda::Executor,
    plan: &Plan,
    step: &StepInputs<'_>,
    bound: f64,
) -> Result<Compared, TrainError> {
    gpu.prepare(plan)?;
    for (name, data) in step.micros.iter().flat_map(|m| &m.inputs) {
        gpu.set_input(plan, name, data)?;
    }
    let scalars = scalars(plan, step, 0);
    let mut found = Compared { launches: 0, bound, past: None, worst: None };
    for phase in 0..plan.phases.len() {
        for section in [Section::Body, Section::Update] {
            let visit = |seen: &Seen<'_>| {
                let error = node_error(seen, &scalars);
                found.launches += 1;
                let past = error.as_ref().is_some_and(|e| e.error > bound);
                if found.worst.as_ref().map_or(-1.0, |w| w.error) < error.as_ref().map_or(-1.0, |e| e.error) {
                    found.worst = error.clone();
                }
                if past { ControlFlow::Break(error) } else { ControlFlow::Continue(()) }
            };
            let looked = Looked { phase, section, slot: 0 };
            if let Some(past) = gpu.inspect(plan, looked, &scalars, visit)? {
                return Ok(Compared { past, ..found });
            }
        }
    }
    Ok(found)
}

/// The worst of what a launch wrote; none of a launch that writes nothing.
fn node_error(seen: &Seen<'_>, scalars: &Scalars) -> Option<NodeError> {
    let launch = seen.launch;
    let expected = on_cpu(seen, scalars);
    let outputs = launch.outputs.iter().zip(&seen.outputs).enumerate().map(|(i, o)| (format!("output {i}"), o));
    let states = launch.states.iter().zip(&seen.states).enumerate().map(|(i, s)| (format!("state {i}"), s));
    let errors = outputs.chain(states).zip(&expected).map(|((what, (arg, got)), words)| {
        let error = error_of(arg, got, bytemuck::cast_slice(words));
        let output = format!("{what} {}{}", arg.dtype.name(), arg.shape);
        NodeError { path: launch.path.clone(), op: launch.op.name(), output, error }
    });
    errors.max_by(|a, b| a.error.total_cmp(&b.error))
}

/// `got` in the dtype of `arg`, `expected` as the CPU stores it.
fn error_of(arg: &Arg, got: &[u8], expected: &[u8]) -> f64 {
    let count = arg.shape.elements();
    let differing = |bits: usize, all: usize| bits.saturating_sub(1) as f64 / all.max(1) as f64;
    match arg.dtype {
        Dtype::U8 => {
            let bits = got.iter().zip(expected).map(|(g, e)| (g ^ e).count_ones() as usize).sum();
            return differing(bits, 8 * count);
        }
        Dtype::I32 => {
            let other = got.chunks_exact(4).zip(expected.chunks_exact(4)).filter(|(g, e)| g != e).count();
            return differing(other, count);
        }
        _ => {}
    }
    let floats = |bytes: &[u8]| -> Vec<f64> {
        bytes.chunks_exact(4).take(count).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
    };
    let (got, expected) = (floats(bytemuck::cast_slice(&widened(arg.dtype, got))), floats(expected));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let size = norm(&mut expected.iter().copied()).max(1e-6);
    let gap = norm(&mut got.iter().zip(&expected).map(|(g, e)| if g == e { 0.0 } else { g - e }));
    // Both not finite in the same way is no difference; a NaN on one side, or infinities of two signs, is the largest.
    let same =
        got.iter().zip(&expected).all(|(g, e)| g.is_nan() == e.is_nan() && (g.is_finite() || g == e || g.is_nan()));
    match gap / size {
        error if error.is_finite() => error,
        _ if same && expected.iter().any(|x| !x.is_finite()) => 0.0,
        _ => f64::INFINITY,
    }
}

/// What the CPU's op makes of the launch's operands: outputs, then states.
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
    let mut io = Io {
        inputs: launch.inputs.iter().zip(&inputs).map(|(a, words)| read(a, words, seen.slot_bytes)).collect(),
        outputs: launch.outputs.iter().zip(&mut outputs).map(written).collect(),
        states: launch.states.iter().zip(&mut states).map(written).collect(),
        scalars,
    };
    if in_place {
        io.inputs[0].bytes = &[]; // it is what the output holds
    }
    f32::run(&launch.op, &mut io);
    outputs.extend(states);
    outputs
}

fn read<'a>(a: &Arg, words: &'a [u128], slot_bytes: usize) -> Input<'a> {
    Input { shape: a.shape, dtype: a.dtype, bytes: bytemuck::cast_slice(words), slot_bytes }
}

fn written<'a>((a, words): (&Arg, &'a mut Vec<u128>)) -> Output<'a> {
    Output { shape: a.shape, dtype: a.dtype, bytes: bytemuck::cast_slice_mut(words) }
}

/// The bytes of a value as the CPU stores it, aligned: floats as f32.
fn widened(dtype: Dtype, bytes: &[u8]) -> Vec<u128> {
    let wide = |b: &[u8]| bf16::from_le_bytes([b[0], b[1]]).to_f32().to_le_bytes();
    let converted: Vec<u8>;
    let bytes = if dtype == Dtype::Bf16 {
        converted = bytes.chunks_exact(2).flat_map(wide).collect();
        &converted
    } else {
        bytes
    };
    let mut words = vec![0u128; bytes.len().div_ceil(16).max(1)];
    bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench_inputs::Synthetic;
    use crate::device::open_gpu;
    use crate::engine::Engine;
    use crate::recipe::Recipe;
    use comm::Solo;
    use plan::{Arena, Loc};
    use spec::ValueId;
    use std::collections::HashMap;
    use tensor::Shape;

    fn arg(dtype: Dtype, n: usize) -> Arg {
        let (loc, shape) = (Loc { arena: Arena::Work, offset: 0 }, Shape::new(&[n]));
        Arg { value: ValueId(0), loc, shape, stored: shape, dtype }
    }

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn floats_are_held_by_their_norm_and_masks_by_the_share_of_bits() {
        let float = arg(Dtype::F32, 2);
        assert!((error_of(&float, &bytes(&[3.0, 4.5]), &bytes(&[3.0, 4.0])) - 0.1).abs() < 1e-7);
        let nan = f32::NAN;
        assert_eq!(error_of(&float, &bytes(&[nan, 1.0]), &bytes(&[0.0, 1.0])), f64::INFINITY);
        assert_eq!(error_of(&float, &bytes(&[0.0, 1.0]), &bytes(&[nan, 1.0])), f64::INFINITY);
        assert_eq!(error_of(&float, &bytes(&[nan, 1.0]), &bytes(&[nan, 1.0])), 0.0);
        let half: Vec<u8> = [3.0, 4.5].iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
        assert!((error_of(&arg(Dtype::Bf16, 2), &half, &bytes(&[3.0, 4.0])) - 0.1).abs() < 1e-7);
        let mask = arg(Dtype::U8, 2);
        assert_eq!(error_of(&mask, &[0b100, 0], &[0, 0]), 0.0, "one bit is a tie");
        assert_eq!(error_of(&mask, &[0b110, 1], &[0, 0]), 2.0 / 16.0);
        assert_eq!(error_of(&arg(Dtype::I32, 2), &[1, 0, 0, 0, 2, 0, 0, 0], &[0; 8]), 0.5);
    }

    const RECIPE: &str = r#"
        data = { set = "fashion", folder = "images" }
        network = { name = "resnet8" }
        method = { name = "ce" }
        train = { epochs = 1, global_batch = 2 }
        optimizer = { name = "sgd", lr = 0.1 }
    "#;

    /// Nothing is within a bound below zero.
    #[test]
    fn the_first_launch_past_the_bound_ends_the_comparison() {
        if let Err(e) = cuda::devices() {
            return println!("skipped: {e}");
        }
        let recipe =
            Recipe::parse(RECIPE.to_string(), "ce.toml".as_ref(), &[]).unwrap_or_else(|e| panic!("{e}")).recipe;
        let synthetic = Synthetic::new(&recipe).unwrap();
        let Synthetic { model, compile, sizes } = &synthetic;
        let gpu = open_gpu(0, model.precision).unwrap();
        let mut engine = Engine::new(model, compile, sizes, gpu, Box::new(Solo::default())).unwrap();
        engine.initialise(1).unwrap();
        engine.loaded().unwrap();
        let plan = engine.plan().clone();
        let (micros, slots) = (synthetic.micros(&plan).unwrap(), HashMap::from([("lr".to_string(), 0.1)]));
        let step = StepInputs { micros: &micros, all_units: &[sizes.full], slots: &slots };
        let first = compare(&mut engine.executor, &plan, &step, -1.0).unwrap();
        let past = first.past.expect("past a bound that nothing holds");
        assert_eq!((first.launches, past.path.as_str()), (1, plan.section(0, Section::Body)[0].path.as_str()));
        let whole = compare(&mut engine.executor, &plan, &step, bound(model.precision)).unwrap();
        assert_eq!(whole.past, None);
        assert_eq!(whole.launches, plan.launches.len() - plan.section(0, Section::Prepare).len());
    }
}
