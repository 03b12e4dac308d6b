//! Batch norm over ranks, `train.bn`: on threads of the CPU, and on two GPUs where there are any (the stand-in's on
//! LD_LIBRARY_PATH; else skipped aloud).

mod gpu;
mod refused;
mod steps;

use comm::Threads;
use spec::Precision;
use steps::{Left, Run, Views, close, engine, on_cpu, ranks};
use train::TrainError;
use train::recipe::BnPolicy::{Broadcast, Local, Sync};

const VIEWS: [Views; 3] = [Views::One, Views::TwoForwards, Views::TwoGroups];

fn running(left: &Left) -> Vec<(&String, &Vec<f64>)> {
    left.states.iter().filter(|(name, _)| name.contains(".running_")).collect()
}

/// Ranks with statistics in common against one rank with all images: losses, gradients of both steps, all states.
fn sync_equals_one_rank(views: Views, steps: &[Vec<usize>]) {
    // In f32 gradients of scales are small differences of large sums; 1.1e-5 was seen in the first step.
    for (precision, tolerance) in [(Precision::F32, 2e-5), (Precision::F64, 1e-12)] {
        let one = Run { steps: steps.to_vec(), precision, ..Run::new(views, Local, 1, 8) };
        let four = Run { bn: Sync, ranks: 4, micro: 2, ..one.clone() };
        let (got, expected) = (on_cpu(&four), on_cpu(&one));
        assert!(got.gradients.len() > 2 * 20, "{} gradients", got.gradients.len());
        close(&got, &expected, tolerance);
    }
}

#[test]
fn sync_over_four_ranks_is_one_rank_with_all_images() {
    for views in VIEWS {
        sync_equals_one_rank(views, &Run::new(views, Sync, 4, 2).steps);
    }
}

#[test]
fn sync_weighs_a_short_micro_batch_by_its_rows() {
    let steps = [(0..8).collect::<Vec<_>>(), (8..15).collect(), (15..22).collect()];
    sync_equals_one_rank(Views::One, &steps);
    sync_equals_one_rank(Views::TwoGroups, &steps);
}

#[test]
fn sync_takes_the_same_micro_batch_of_each_rank() {
    // Two ranks with two micro-batches of two each: the first ones hold samples 0, 1 and 4, 5.
    let four = Run { precision: Precision::F64, ..Run::new(Views::TwoForwards, Sync, 2, 2) };
    let order = |step: &Vec<usize>| [0, 1, 4, 5, 2, 3, 6, 7].map(|i| step[i]).to_vec();
    let one = Run { bn: Local, ranks: 1, micro: 4, steps: four.steps.iter().map(order).collect(), ..four.clone() };
    close(&on_cpu(&four), &on_cpu(&one), 1e-12);
}

#[test]
fn one_rank_is_the_same_by_all_policies() {
    let run = |bn| on_cpu(&Run::new(Views::TwoForwards, bn, 1, 4));
    let local = run(Local);
    assert_eq!(local, run(Sync));
    assert_eq!(local, run(Broadcast));
}

#[test]
fn broadcast_moves_running_statistics_by_the_images_of_rank_0() {
    for views in VIEWS {
        let one_step = |bn, ranks, micro, units: usize| {
            on_cpu(&Run { steps: vec![(0..units).collect()], ..Run::new(views, bn, ranks, micro) })
        };
        // Two micro-batches a rank, of which rank 0 has the first four images.
        let (two, alone) = (one_step(Broadcast, 2, 2, 8), one_step(Local, 1, 2, 4));
        assert_eq!(running(&two), running(&alone));
        let local = one_step(Local, 2, 2, 8);
        assert_ne!(running(&two), running(&local));
        assert_eq!((&two.values, &two.gradients), (&local.values, &local.gradients));
    }
}

#[test]
fn a_short_step_leaves_rank_0_what_it_has() {
    // The second step has one micro-batch, rank 0's first.
    let steps = vec![(0..8).collect(), vec![8, 9]];
    let two = on_cpu(&Run { steps: steps.clone(), ..Run::new(Views::One, Broadcast, 2, 2) });
    let local = on_cpu(&Run { steps, ..Run::new(Views::One, Local, 2, 2) });
    assert_ne!(running(&two), running(&local));
    assert_eq!(two.values, local.values);
}

#[test]
fn local_statistics_move_by_all_micro_batches_in_order() {
    // Micro-batches are summed in another order over ranks: equal to rounding. In f64 a wrong order would stand out.
    for views in VIEWS {
        let one = Run { precision: Precision::F64, ..Run::new(views, Local, 1, 2) };
        close(&on_cpu(&Run { ranks: 2, ..one.clone() }), &on_cpu(&one), 1e-12);
    }
}

#[test]
fn a_step_that_is_not_finite_ends_alike_on_all_ranks() {
    let spoilt = Run { spoilt: Some(5), ..Run::new(Views::TwoForwards, Sync, 2, 2) };
    let all = ranks(&spoilt, |_| Ok(cpu::Executor::<f32>::new(1)?));
    let all: Vec<_> = all.into_iter().map(|left| left.unwrap()).collect();
    // Rank 1 has the sample; the others have what it gave them.
    let expected = ["on another rank", "conv_stats"];
    for (left, op) in all.iter().zip(expected) {
        assert_eq!(left.values[0].nonfinite, Some(("student/conv1".to_string(), op)));
        assert_eq!(left.values[1].nonfinite, None, "the step was dropped, the next is whole");
    }
    assert_eq!(all[0].states, all[1].states);
}

#[test]
fn a_rank_that_is_gone_is_an_error_of_the_others() {
    let run = Run::new(Views::One, Sync, 2, 4);
    let mut world = Threads::world(2);
    drop(world.pop());
    let comm = Box::new(world.remove(0));
    let mut engine = engine(&run, cpu::Executor::<f32>::new(1).unwrap(), comm).unwrap();
    let error = steps::steps(&run, &mut engine, 0..1).unwrap_err();
    assert!(matches!(error, TrainError::Comm(_)), "{error}");
    assert!(error.to_string().contains("rank 1 is gone"), "{error}");
    let results = ranks(&run, |comm| {
        if comm.rank() == 1 {
            Err(TrainError::Setting("no executor".into()))
        } else {
            Ok(cpu::Executor::<f32>::new(1)?)
        }
    });
    assert!(matches!(results[0], Err(TrainError::Comm(_))), "{results:?}");
}
