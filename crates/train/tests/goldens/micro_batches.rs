//! A step does not depend on how its batch is divided: into micro-batches without batch norm, and over ranks always.

use crate::engine::{Case, gradients, states};
use crate::golden::Differences;
use crate::networks::Plain;
use crate::wave::wave;
use comm::{Communicator, Solo, Threads};
use methods::{Ce, Ips, Kd};
use nets::NetworkSpec;
use spec::Method;
use std::collections::{BTreeMap, HashMap};
use tensor::{HostTensor, Shape};
use train::engine::{Micro, StepInputs, StepValues};

const CLASSES: usize = 5;
const IMAGE: [usize; 3] = [8, 8, 3];
const STEPS: usize = 3;

#[derive(Clone, Copy, Debug)]
enum Of {
    Ce,
    Kd,
    Ips,
}

impl Of {
    fn method(self) -> Box<dyn Method> {
        match self {
            Of::Ce => Box::new(Ce::default()),
            Of::Kd => Box::new(Kd::default()),
            Of::Ips => Box::new(Ips::default()),
        }
    }

    fn plain(self) -> Case {
        let net = || Box::new(Plain { classes: CLASSES });
        Case { teachers: vec![net()], ..Case::new(self.method(), net(), CLASSES, IMAGE) }
    }

    /// The micro-batch of these units of a step: of a pair the anchors, then the partners.
    fn micro(self, leaf: usize, step: usize, units: std::ops::Range<usize>) -> Micro {
        let (count, members) = (units.len(), if matches!(self, Of::Ips) { 2 } else { 1 });
        let row = |member: usize, unit: usize| wave(&format!("{step}.{member}.{unit}"), IMAGE.iter().product());
        let rows: Vec<f64> = (0..members).flat_map(|m| units.clone().flat_map(move |u| row(m, u))).collect();
        let labels = units.clone().map(|u| ((3 * u + step) % CLASSES) as i32).collect::<Vec<_>>().repeat(members);
        let [h, w, c] = IMAGE;
        let mut inputs = crate::engine::images(&[members * count, h, w, c], &rows, &labels);
        let mask: Vec<u8> =
            units.flat_map(|u| (0..16).map(move |cell| u8::from((7 * u + 3 * cell + step) % 5 < 2))).collect();
        inputs.push(("draw.swap_mask".to_string(), HostTensor::new(Shape::new(&[count, 16]), &mask).unwrap()));
        Micro { leaf, units: [count, 0], inputs }
    }
}

/// Loss, gradients and states of three steps.
#[derive(Clone, Debug, PartialEq)]
struct Trace {
    values: Vec<StepValues>,
    gradients: Vec<BTreeMap<String, Vec<f64>>>,
    states: BTreeMap<String, Vec<f64>>,
}

/// Rank `rank` of `world` runs its part of micro-batches of these sizes.
fn run(of: Of, case: Case, split: &[usize], comm: Box<dyn Communicator>) -> Trace {
    let (rank, world) = (comm.rank(), comm.world_size());
    let own = split.len() * rank / world..split.len() * (rank + 1) / world;
    let mut engine = case.split::<f64>(split, comm);
    let slots = HashMap::from([("lr".to_string(), 0.1)]);
    let all_units: Vec<[usize; 2]> = split.iter().map(|&u| [u, 0]).collect();
    let mut trace = Trace { values: vec![], gradients: vec![], states: BTreeMap::new() };
    for step in 0..STEPS {
        let first = |leaf: usize| split[..leaf].iter().sum::<usize>();
        let micros: Vec<_> = own.clone().map(|leaf| of.micro(leaf, step, first(leaf)..first(leaf + 1))).collect();
        trace.values.push(engine.step(&StepInputs { micros: &micros, all_units: &all_units, slots: &slots }).unwrap());
        trace.gradients.push(gradients(&engine));
    }
    trace.states = states(&engine);
    trace
}

fn close(what: String, got: &Trace, expected: &Trace) {
    let mut found = Differences::new(what);
    for step in 0..STEPS {
        let [got_values, expected_values] = [got, expected].map(|t| &t.values[step]);
        found.add("loss", (&[got_values.loss], &[expected_values.loss]), 1e-12);
        for (got, expected) in got_values.terms.iter().zip(&expected_values.terms) {
            found.add(&got.0, (&[got.1, got.2], &[expected.1, expected.2]), 1e-12);
        }
        assert_eq!(got_values.monitors, expected_values.monitors, "top1");
        for (name, grad) in &expected.gradients[step] {
            found.add(&format!("{step}: grad of {name}"), (&got.gradients[step][name], grad), 1e-12);
        }
    }
    expected.states.iter().for_each(|(name, state)| found.add(name, (&got.states[name], state), 1e-12));
}

#[test]
fn sums_do_not_depend_on_micro_batches() {
    for of in [Of::Ce, Of::Kd, Of::Ips] {
        let whole = run(of, of.plain(), &[12], Box::new(Solo::default()));
        for split in [&[6, 6][..], &[4, 4, 4], &[5, 5, 2], &[1; 12]] {
            close(format!("{of:?} {split:?}"), &run(of, of.plain(), split, Box::new(Solo::default())), &whole);
        }
    }
}

fn on_ranks(world: usize, of: Of, case: impl Fn() -> Case + Sync, split: &[usize]) -> Vec<Trace> {
    std::thread::scope(|scope| {
        let ranks = Threads::world(world).into_iter();
        let case = &case;
        let ranks: Vec<_> = ranks.map(|comm| scope.spawn(move || run(of, case(), split, Box::new(comm)))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn four_ranks_of_eight_are_one_of_thirty_two() {
    let whole = run(Of::Ce, Of::Ce.plain(), &[32], Box::new(Solo::default()));
    for (rank, trace) in on_ranks(4, Of::Ce, || Of::Ce.plain(), &[8; 4]).iter().enumerate() {
        close(format!("rank {rank}"), trace, &whole);
    }
}

/// With batch norm too, whose running statistics see micro-batches in order: the same bits, also where a rank has nothing
/// to do and where the last micro-batch is short.
#[test]
fn bits_do_not_depend_on_ranks() {
    for of in [Of::Ce, Of::Ips] {
        let resnet8 = || Case::new(of.method(), NetworkSpec::new("resnet8").build(CLASSES).unwrap(), CLASSES, IMAGE);
        for split in [&[2, 2, 2, 2][..], &[3, 3, 1], &[4]] {
            let alone = run(of, resnet8(), split, Box::new(Solo::default()));
            for world in [2, 4] {
                for (rank, trace) in on_ranks(world, of, resnet8, split).iter().enumerate() {
                    assert!(*trace == alone, "{of:?} {split:?}: rank {rank} of {world}");
                }
            }
        }
    }
}
