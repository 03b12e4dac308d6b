//! Small graphs by hand, the text of their bodies, and a run of a plan in f64.

use crate::rng::Rng;
use cpu::{Executor, Scalars};
use plan::{
    Fusion, OptimizerArgs, Options, Phase, Plan, StateTable, StepGraph, Storage, compile, differentiate, fuse, optimize,
};
use spec::{
    BatchInput, Builder, Graph, Losses, Precision, Rows, Section, Source, StateKind, TrainRange, Value, ValueId, verify,
};
use std::collections::BTreeMap;
use tensor::{Dtype, HostTensor, Shape};

/// Adds a value that the data side delivers: `rows` rows of shape `row` per unit.
pub(crate) fn input(graph: &mut Graph, name: &str, rows: u32, row: &[usize], dtype: Dtype) -> ValueId {
    let rows = Rows([rows, 0]);
    let dims = [&[graph.count_rows(rows)], row].concat();
    let source = Source::Batch(graph.batch.len() as u32);
    let value = graph.add_value(Value { shape: Shape::new(&dims), dtype, rows, source });
    graph.batch.push(BatchInput { name: name.to_string(), value });
    value
}

pub(crate) fn phase(name: &str, prefixes: &[&str], losses: Losses) -> Phase {
    let trains = prefixes.iter().map(|p| TrainRange::new(p)).collect();
    Phase { name: name.to_string(), trains, losses, grads: vec![], reduced: vec![], norm: None }
}

/// A step of one phase that trains the student.
pub(crate) fn one_phase(builder: Builder, losses: Losses) -> StepGraph {
    StepGraph { graph: builder.finish(), phases: vec![phase("train", &["student."], losses)] }
}

/// The step with gradients and updates, fused so far, verified after each pass.
pub(crate) fn fused(step: &StepGraph, fusion: Fusion) -> StepGraph {
    let check = |step: StepGraph, pass: &str| {
        verify(&step.graph, pass).unwrap_or_else(|e| panic!("{e}\n{}", step.graph));
        step
    };
    let step = check(differentiate(step), "differentiate");
    let step = check(optimize(&step, &OptimizerArgs::default(), false), "optimize");
    check(fuse(&step, fusion), "fuse")
}

/// The text of all that runs before the update.
pub(crate) fn body(step: &StepGraph) -> String {
    let text = step.graph.to_string();
    text.split("update ").next().unwrap_or_default().to_string()
}

/// Asserts that a text is the expected one; the indentation of the expected one is that of its first line.
#[track_caller]
pub(crate) fn assert_text(found: &str, expected: &str) {
    let lines: Vec<&str> = expected.lines().skip(1).collect();
    let margin = lines.first().map_or(0, |l| l.len() - l.trim_start().len());
    let expected: Vec<&str> = lines.iter().map(|l| l.get(margin..).unwrap_or("")).collect();
    let expected = expected.join("\n");
    assert!(found.trim_end() == expected.trim_end(), "found:\n{found}\nexpected:\n{expected}\n");
}

pub(crate) fn options(fusion: Fusion) -> Options {
    let optimizer = OptimizerArgs { clip_norm: Some(3.0), ema: true, ..OptimizerArgs::default() };
    Options { fusion, optimizer, storage: Storage::CpuF64, bucket_bytes: 1 << 12, keep_outputs: true }
}

pub(crate) const CLASSES: usize = 5;
const MICROS: usize = 2;

/// Compiles the step and runs it on two micro-batches in f64: every reduced value and every state after the step, by name.
pub(crate) fn run(step: &StepGraph, fusion: Fusion) -> BTreeMap<String, Vec<f64>> {
    assert_eq!(step.graph.precision, Precision::F64);
    let mut states = StateTable::default();
    let plan = compile(step.clone(), &options(fusion), &mut states, None).unwrap_or_else(|e| panic!("{e}"));
    let mut executor = Executor::<f64>::new(1).unwrap();
    executor.reserve(&plan, &states, MICROS);
    for entry in &states.entries {
        let mut rng = Rng::named(&entry.name);
        let vector = entry.shape.rank() == 1;
        let value = |u: f64| match entry.kind {
            StateKind::Momentum => 0.1 * u,
            _ if entry.name.ends_with("running_var") => 0.7 + 0.3 * u,
            _ if vector && entry.name.ends_with("weight") => 1.0 + 0.4 * u,
            _ => 0.4 * u,
        };
        executor.state_mut(entry.offset, entry.shape.elements()).iter_mut().for_each(|x| *x = value(rng.real()));
    }
    executor.prepare(&plan);
    let units = plan.graph.units;
    let mut slots = vec![0.1, (units[0] * MICROS) as f64, 1.0, 0.9];
    slots.resize(plan.graph.slots.len().max(4), 0.7);
    let mut scalars = Scalars { slots, micro_units: vec![units; MICROS], micro: 0, running: MICROS };
    let mut found = BTreeMap::new();
    for p in 0..plan.phases.len() {
        let mut sum = vec![0.0; executor.reduce_mut(&plan, p).len()];
        for micro in 0..MICROS {
            feed(&mut executor, &plan, micro);
            scalars.micro = micro;
            executor.body(&plan, p, micro, &scalars).unwrap();
            sum.iter_mut().zip(executor.reduce_mut(&plan, p)).for_each(|(s, x)| *s += *x);
        }
        executor.reduce_mut(&plan, p).copy_from_slice(&sum);
        let begin = plan.reduce.phases[p].start;
        for (name, _, range) in plan.reduce.entries.iter().filter(|e| plan.reduce.phases[p].contains(&e.2.start)) {
            found.insert(name.clone(), sum[range.start - begin..range.end - begin].to_vec());
        }
        executor.update(&plan, p, &scalars);
    }
    for entry in &states.entries {
        found.insert(entry.name.clone(), executor.state(entry.offset, entry.shape.elements()).to_vec());
    }
    found
}

/// Fills every input by its name and the micro-batch.
fn feed(executor: &mut Executor<f64>, plan: &Plan, micro: usize) {
    for input in &plan.graph.batch {
        let (value, name) = (plan.graph.value(input.value), input.name.as_str());
        let (shape, count) = (value.shape, value.shape.elements());
        let mut rng = Rng::named(&format!("{name}{micro}"));
        let whole = |rng: &mut Rng, i: usize| match name {
            "label" => rng.below(CLASSES),
            "index" => micro * count + i,
            "permutation" => count - 1 - i,
            "crop" => rng.below(3),
            "pixels" => rng.below(256),
            _ => rng.below(2),
        };
        let tensor = match value.dtype {
            Dtype::U8 => HostTensor::new(shape, &(0..count).map(|i| whole(&mut rng, i) as u8).collect::<Vec<u8>>()),
            Dtype::I32 => HostTensor::new(shape, &(0..count).map(|i| whole(&mut rng, i) as i32).collect::<Vec<i32>>()),
            _ => HostTensor::new(shape, &(0..count).map(|_| rng.real()).collect::<Vec<f64>>()),
        };
        executor.set_input(plan, name, &tensor.unwrap()).unwrap();
    }
}

/// Asserts that two runs have the same names, and values within `tolerance` of the largest of each tensor (or of 1).
#[track_caller]
pub(crate) fn assert_equal(
    what: &str,
    got: &BTreeMap<String, Vec<f64>>,
    expected: &BTreeMap<String, Vec<f64>>,
    tolerance: f64,
) {
    assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}: names");
    for (name, values) in expected {
        let scale = values.iter().fold(1.0f64, |m, x| m.max(x.abs()));
        for (i, (g, e)) in got[name].iter().zip(values).enumerate() {
            assert!(e.is_finite(), "{what}: {name}[{i}] is {e}: the test says nothing");
            assert!((g - e).abs() <= tolerance * scale, "{what}: {name}[{i}]: {g} against {e}");
        }
    }
}

/// A section's launches, by path and op, for messages.
pub(crate) fn launches(plan: &Plan, section: Section) -> Vec<String> {
    plan.section(0, section).iter().map(|l| format!("{} {}", l.path, l.op.name())).collect()
}
