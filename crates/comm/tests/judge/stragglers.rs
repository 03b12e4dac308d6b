//! Slow ranks: who is told of, with which cause, and who is not.

use crate::{World, ms};
use comm::Cause;
use comm::judge::Finding;
use comm::progress::{StepTimes, WINDOW};
use std::time::Duration;

/// Rank 1 of `size` takes `factor` times as long as the others by `cause`: what is found.
fn straggles(size: usize, factor: f64, cause: Cause) -> Vec<Finding> {
    let mut world = World::new(size);
    // The CPU time of a step counts all threads: here four.
    let usual = StepTimes { data: ms(20), own: ms(80), cpu: ms(320), link: ms(0) };
    let excess = ms(100).mul_f64(factor - 1.0);
    let slow = match cause {
        Cause::Data => StepTimes { data: usual.data + excess, ..usual },
        Cause::Compute => StepTimes { own: usual.own + excess, cpu: usual.cpu + 4 * excess, ..usual },
        Cause::Clock => StepTimes { own: usual.own + excess, ..usual },
        Cause::Network => unreachable!("it has a test of its own"),
    };
    let mut findings = Vec::new();
    for step in 0..WINDOW as u64 {
        assert_eq!(findings, [], "before {WINDOW} steps");
        for (rank, progress) in world.ranks.iter().enumerate() {
            progress.step(10 + step, 0);
            // A little noise, which is nobody's fault.
            let noise = Duration::from_micros((step * 37 + rank as u64 * 101) % 2_000);
            let times = if rank == 1 { slow } else { usual };
            progress.step_times(StepTimes { own: times.own + noise, ..times });
        }
        findings = world.second();
    }
    findings
}

#[test]
fn stragglers_are_told_of_with_their_cause() {
    for size in [2, 8] {
        for cause in [Cause::Data, Cause::Compute, Cause::Clock] {
            assert_eq!(straggles(size, 1.1, cause), [], "{cause:?}");
            for factor in [1.3, 2.0, 5.0] {
                let found = straggles(size, factor, cause);
                let [Finding::Straggler { rank: 1, ratio, cause: told, text }] = found.as_slice() else {
                    panic!("{factor} {cause:?} of {size}: {found:?}")
                };
                assert_eq!(*told, cause, "{factor} of {size}");
                assert!((ratio / factor - 1.0).abs() < 0.05);
                assert!(text.starts_with("warning: rank 1 (n00) is ") && text.ends_with("; the run goes on"), "{text}");
            }
        }
    }
}

/// A rank that one step held up for long, and that is as fast as the others otherwise, is none.
#[test]
fn a_rank_that_was_held_up_once_is_not_told_of() {
    let mut world = World::new(2);
    for step in 0..3 * WINDOW as u64 {
        for (rank, progress) in world.ranks.iter().enumerate() {
            progress.step(10 + step, 0);
            let held_up = if rank == 1 && step == WINDOW as u64 { ms(3_000) } else { ms(0) };
            progress.step_times(StepTimes { own: ms(100) + held_up, ..StepTimes::default() });
        }
        assert_eq!(world.second(), [], "step {step}");
    }
}

/// Ranks 1 to `size` - 1 have links of which each tells that bytes took 50 ms of a step of 100 ms; that of rank 1 takes so much longer that
/// it is `factor` times as slow.
fn slow_link(size: usize, factor: f64) -> Vec<Finding> {
    let mut world = World::new(size);
    let step = StepTimes { data: ms(20), own: ms(30), cpu: ms(120), link: ms(50) };
    for at in 0..WINDOW as u64 {
        for (rank, progress) in world.ranks.iter().enumerate() {
            progress.step(10 + at, 0);
            let link = match rank {
                0 => ms(0), // does not tell
                1 => step.link + ms(100).mul_f64(factor - 1.0),
                _ => step.link + Duration::from_micros((at * 37 + rank as u64 * 101) % 1_000),
            };
            progress.step_times(StepTimes { link, ..step });
        }
    }
    world.second()
}

#[test]
fn a_rank_whose_link_is_slow_is_told_of_with_the_network_as_cause() {
    for size in [3, 8] {
        assert_eq!(slow_link(size, 1.0), []);
        assert_eq!(slow_link(size, 1.1), []);
        for factor in [1.3, 2.0, 5.0] {
            let found = slow_link(size, factor);
            let [Finding::Straggler { rank: 1, ratio, cause: Cause::Network, text }] = found.as_slice() else {
                panic!("{factor} of {size}: {found:?}")
            };
            assert!((ratio / factor - 1.0).abs() < 0.05, "{ratio} of {size}");
            assert!(text.contains("network (the bytes of its collectives take longer to arrive)"), "{text}");
        }
    }
    // Of two ranks one has a link: there is nothing to compare it with.
    assert_eq!(slow_link(2, 5.0), []);
}

#[test]
fn a_straggler_is_told_of_once_in_a_thousand_steps() {
    let mut world = World::new(2);
    let told = (0..2_500).filter(|&step| {
        for (rank, progress) in world.ranks.iter().enumerate() {
            progress.step(step, 0);
            progress.step_times(StepTimes { own: ms(100 * (1 + rank as u64)), ..StepTimes::default() });
        }
        !world.second().is_empty()
    });
    assert_eq!(told.count(), 3);
}
