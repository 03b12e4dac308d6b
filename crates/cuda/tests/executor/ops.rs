//! Single ops and short lists: operands checked, both modes alike, inputs that come faster than they are computed on.

use crate::machine::{Cpu, Gpu, Machine, elementwise_plan, gpu, scalars};
use cuda::{Math, Mode, OpRun};
use plan::Storage;
use spec::{Binary, Op, Precision};
use tensor::{Dtype, HostTensor, Shape, bf16};

/// Numbers that bf16 holds, so that rounding an input changes nothing.
fn tensor(dtype: Dtype, rows: usize, seed: f32) -> HostTensor {
    let value = |i: usize| bf16::from_f32(((i as f32 + seed) * 0.37).sin()).to_f32();
    let values: Vec<f32> = (0..rows * 24).map(value).collect();
    HostTensor::from_f32(dtype, Shape::new(&[rows, 24]), &values).unwrap()
}

#[test]
fn one_op_runs_on_memory_of_its_own() {
    let Some(executor) = gpu(Mode::Stepped) else { return };
    let inputs = [tensor(Dtype::F32, 5, 0.0), tensor(Dtype::F32, 5, 9.0)];
    let run = OpRun {
        name: "add",
        op: &Op::Binary(Binary::Add),
        inputs: &inputs,
        outputs: &[(Shape::new(&[5, 24]), Dtype::F32)],
        states: &[],
        scalars: &plan::Scalars::default(),
        math: Math::F32,
        carried: &[],
        slot_bytes: 0,
        sms: 0,
    };
    let got = executor.run_op(&run).unwrap_or_else(|e| panic!("{e}"));
    let sum = |(a, b): (&f32, &f32)| a + b;
    let [a, b] = [0, 1].map(|i| inputs[i].view::<f32>().unwrap());
    let expected: Vec<f32> = a.iter().zip(b).map(sum).collect();
    assert_eq!(got[0].view::<f32>().unwrap(), expected);
}

/// Outputs of ten bodies, each on inputs of its own, read after each or only at the end of all.
fn outputs(machine: &mut impl Machine, precision: Precision, rows: usize) -> Vec<Vec<f64>> {
    let (plan, states) = elementwise_plan(rows, precision, machine.storage());
    machine.reserve(&[&plan], &states, 1);
    let y = plan.phases[0].losses.outputs[0].1;
    let mut all = Vec::new();
    for step in 0..10 {
        for (i, name) in ["x", "a", "b"].into_iter().enumerate() {
            // `a` stays what it was in odd steps; f32 is given whatever the plan wants.
            if name != "a" || step % 2 == 0 {
                machine.set_input(&plan, name, &tensor(Dtype::F32, rows, (10 * step + i) as f32));
            }
        }
        if step == 4 {
            machine.set_input(&plan, "x", &tensor(Dtype::F32, rows, 1234.0)); // once more, before anyone read it
        }
        let mut scalars = scalars(&plan, &[rows], 0);
        scalars.slots[0] = 0.5 + step as f64;
        machine.body(&plan, 0, 0, &scalars);
        if step % 3 != 1 {
            all.push(machine.read(&plan, y));
        }
    }
    all
}

#[test]
fn both_modes_and_the_cpu_agree_on_a_short_list() {
    for (precision, rows) in [(Precision::F32, 7), (Precision::Bf16, 16), (Precision::F32, 1)] {
        let Some(mut stepped) = Gpu::new(Mode::Stepped) else { return };
        let mut captured = Gpu::new(Mode::Captured).expect("it was there");
        let expected = outputs(&mut Cpu::new(), precision, rows);
        let [stepped, captured] = [&mut stepped, &mut captured].map(|g| (outputs(g, precision, rows), g.0.graphs()));
        assert_eq!((stepped.1, captured.1), (0, 1));
        assert!(stepped.0 == captured.0, "{precision:?}, {rows} rows: launch by launch gives other bits than captured");
        for (got, expected) in captured.0.iter().zip(&expected) {
            let bound = if precision == Precision::Bf16 { 0.02 } else { 1e-6 };
            let worst = got.iter().zip(expected).map(|(g, e)| (g - e).abs() / (1.0 + e.abs())).fold(0.0, f64::max);
            assert!(worst <= bound, "{precision:?}, {rows} rows: {worst}");
        }
    }
}

#[test]
fn a_wrong_input_is_named() {
    let Some(mut executor) = gpu(Mode::Captured) else { return };
    let (plan, states) = elementwise_plan(4, Precision::F32, Storage::Device);
    executor.reserve(&[&plan], &states, 1).unwrap();
    let error = executor.set_input(&plan, "x", &tensor(Dtype::F32, 5, 0.0)).unwrap_err().to_string();
    assert_eq!(error, "x: expected f32[4, 24], got f32[5, 24]");
    let ints = HostTensor::new(Shape::new(&[4, 24]), &[1i32; 96]).unwrap();
    let error = executor.set_input(&plan, "x", &ints).unwrap_err().to_string();
    assert_eq!(error, "x: expected f32[4, 24], got i32[4, 24]");
    executor.set_input(&plan, "unknown", &ints).unwrap();
}

#[test]
fn times_come_per_node() {
    let Some(mut executor) = gpu(Mode::Captured) else { return };
    let (plan, states) = elementwise_plan(4, Precision::F32, Storage::Device);
    executor.reserve(&[&plan], &states, 1).unwrap();
    executor.profile(Some(()));
    executor.body(&plan, 0, 0, &scalars(&plan, &[4], 0)).unwrap();
    let times = executor.profile(None);
    let launches = plan.section(0, spec::Section::Body);
    assert_eq!(times.len(), launches.len());
    for (time, launch) in times.iter().zip(launches) {
        assert_eq!((&time.path, time.op, time.cost), (&launch.path, launch.op.name(), launch.cost));
        assert!(time.commands.iter().all(|c| c.1 >= 0.0 && !c.0.is_empty()), "{time:?}");
    }
    assert!(executor.profile(None).is_empty());
}
