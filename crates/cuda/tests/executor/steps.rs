//! Whole steps of small networks: GPU against CPU, launch by launch against captured, several micro-batches and shapes.

use crate::machine::{Cpu, Gpu, Machine, Model, Values, close, feed, scalars, start};
use cuda::Mode;
use methods::{Ce, Kd};
use spec::Precision;

fn ce(precision: Precision) -> Model {
    Model { method: Box::new(Ce::default()), student: "resnet8", teachers: vec![], precision, side: 8 }
}

fn kd(precision: Precision) -> Model {
    Model { method: Box::new(Kd::default()), student: "resnet8", teachers: vec!["resnet8"], precision, side: 8 }
}

/// Both modes give equal bits over three steps (a graph is captured in the second), and after one step what the CPU gives within
/// the tolerance: later ones amplify how each rounds.
pub(crate) fn compare(what: &str, model: &Model, units: &[usize], tolerance: f64) {
    let Some(mut stepped) = Gpu::new(Mode::Stepped) else { return };
    let mut captured = Gpu::new(Mode::Captured).expect("it was there");
    let mut shapes: Vec<usize> = units.to_vec();
    shapes.sort_by_key(|&n| std::cmp::Reverse(n));
    shapes.dedup();
    let mut cpu = Cpu::new();
    let mut expected = model.run(cpu.storage(), &shapes, units.len()).go(&mut cpu, units, 1);
    let run = model.run(stepped.storage(), &shapes, units.len());
    let mut got = run.go(&mut captured, units, 1);
    if model.precision == Precision::Bf16 {
        // A gradient of so few images hangs on single roundings; `nodes` holds each launch to a bound instead.
        [&mut expected, &mut got].into_iter().for_each(|v| v.retain(|name, _| !name.starts_with("momentum.")));
    }
    close(what, &got, &expected, tolerance);
    let got = run.go(&mut captured, units, 3);
    assert!(captured.0.graphs() > 0, "nothing was captured");
    let again = run.go(&mut stepped, units, 3);
    for (name, values) in &got {
        assert!(values == &again[name], "{what}: {name}: launch by launch gives other bits than captured");
    }
}

/// Three captured steps in bf16 against the CPU's, by kind of value.
pub(crate) fn compare_bf16(what: &str, model: &Model, units: usize, bounds: [f64; 3]) {
    let Some(mut gpu) = Gpu::new(Mode::Captured) else { return };
    let mut cpu = Cpu::new();
    let expected = model.run(cpu.storage(), &[units], 1).go(
        &mut cpu,
        &[units],
        std::env::var("STEPS").ok().map_or(3, |v| v.parse().unwrap()),
    );
    let got = model.run(gpu.storage(), &[units], 1).go(
        &mut gpu,
        &[units],
        std::env::var("STEPS").ok().map_or(3, |v| v.parse().unwrap()),
    );
    for (kind, bound) in ["losses and logits", "parameters", "momenta"].into_iter().zip(bounds) {
        let of = |values: &Values| {
            values.iter().filter(|v| kind_of(v.0) == kind).map(|(n, v)| (n.clone(), v.clone())).collect()
        };
        close(&format!("{what}, {kind}"), &of(&got), &of(&expected), bound);
    }
}

fn kind_of(name: &str) -> &'static str {
    match name {
        _ if name.contains("/reduced ") || name.ends_with("logits") => "losses and logits",
        _ if name.starts_with("momentum") || name.starts_with("norm ") => "momenta",
        _ => "parameters",
    }
}

#[test]
fn cross_entropy_in_f32() {
    compare("ce f32", &ce(Precision::F32), &[4], 1e-4);
}

#[test]
fn cross_entropy_in_bf16() {
    compare("ce bf16", &ce(Precision::Bf16), &[4], 5e-2);
}

#[test]
fn distillation_in_f32_over_micro_batches_of_two_shapes() {
    compare("kd f32", &kd(Precision::F32), &[4, 4, 2], 1e-4);
}

#[test]
fn distillation_in_bf16() {
    compare("kd bf16", &kd(Precision::Bf16), &[4], 5e-2);
}

#[test]
fn the_first_value_that_is_not_finite_is_named_as_on_the_cpu() {
    let Some(mut gpu) = Gpu::new(Mode::Captured) else { return };
    let mut cpu = Cpu::new();
    let model = ce(Precision::F32);
    let [expected, got] = [spoilt(&mut cpu, &model), spoilt(&mut gpu, &model)];
    assert_eq!(got, expected);
    assert!(expected.is_some_and(|f| f.path.contains("layer2")), "the spoilt filter is in layer2");
}

fn spoilt(machine: &mut impl Machine, model: &Model) -> Option<plan::NonFinite> {
    let run = model.run(machine.storage(), &[4], 1);
    let plan = &run.plans[0];
    machine.reserve(&[plan], &run.states, 1);
    start(machine, &run.states);
    let filter =
        run.states.entries.iter().find(|e| e.name.contains("layer2") && e.shape.rank() == 4).expect("a filter");
    let mut values = machine.state(filter.offset, filter.shape.elements());
    values[3] = f32::NAN;
    machine.set_state(filter.offset, &values);
    machine.prepare(plan);
    feed(machine, plan, 0);
    machine.phase(plan, 0, &scalars(plan, &[4], 0));
    machine.first_nonfinite(plan, &scalars(plan, &[4], 0))
}

#[test]
fn ranks_of_one_process_compute_as_if_alone() {
    let Some(mut alone) = Gpu::new(Mode::Captured) else { return };
    let model = ce(Precision::F32);
    let run = model.run(alone.storage(), &[4], 1);
    let expected = run.go(&mut alone, &[4], 3);
    let rank = || run.go(&mut Gpu::new(Mode::Captured).expect("it was there"), &[4], 3);
    std::thread::scope(|scope| {
        let ranks = [scope.spawn(rank), scope.spawn(rank)];
        for got in ranks.map(|r| r.join().expect("a rank that does not panic")) {
            assert!(got == expected, "two executors in one process disturb each other");
        }
    });
}
