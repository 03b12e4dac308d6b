//! The judge with an injected clock: who is named, when, with which codes and words.

use comm::judge::{Finding, Heard, Judge};
use comm::member::Member;
use comm::progress::{Phase, Seen};
use comm::verdict::{Kind, Verdict};
use comm::{Death, GpuAt, GpuPlace, Limits, Op, Progress};
use std::time::Duration;

mod stragglers;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn limits() -> Limits {
    Limits { hang: ms(10_000), slow_phase: ms(40_000), ..Limits::default() }
}

/// A world whose ranks beat every second unless they are stopped.
struct World {
    judge: Judge,
    ranks: Vec<Progress>,
    stopped: Vec<usize>,
    now: Duration,
}

impl World {
    /// All ranks are in step 9, phase forward, and have passed collective #0.
    fn new(size: usize) -> Self {
        let member = |rank: usize| Member {
            rank: rank as u32,
            host: format!("n{:02}", rank / 4),
            pid: 4_000 + rank as u32,
            device: format!("GPU {}", rank % 4),
            uuid: "GPU-3f".into(),
            ..Member::default()
        };
        let members: Vec<_> = (0..size).map(member).collect();
        let judge = Judge::new(&members, limits(), Duration::ZERO);
        let ranks: Vec<Progress> = (0..size).map(|_| Progress::new()).collect();
        for rank in &ranks {
            rank.step(8, 90);
            rank.step(9, 99);
            rank.begin_collective(Op::Barrier, 0);
            rank.end_collective();
            rank.enter(Phase::Forward);
        }
        let mut world = Self { judge, ranks, stopped: Vec::new(), now: Duration::ZERO };
        world.second();
        world
    }

    fn wait(&self, rank: usize) {
        self.ranks[rank].enter(Phase::Reduce);
        self.ranks[rank].begin_collective(Op::AllReduce, 4096);
    }

    fn wait_all_but(&self, rank: usize) {
        (0..self.ranks.len()).filter(|&r| r != rank).for_each(|r| self.wait(r));
    }

    fn hear(&mut self, rank: usize, heard: Heard) {
        self.judge.observe(rank, heard, self.now);
    }

    /// One second later.
    fn second(&mut self) -> Vec<Finding> {
        self.now += ms(1_000);
        for rank in (0..self.ranks.len()).filter(|r| !self.stopped.contains(r)) {
            self.judge.observe(rank, Heard::Beat(self.ranks[rank].look()), self.now);
        }
        self.judge.tick(self.now)
    }

    fn verdict_now(&mut self) -> Option<Verdict> {
        verdict(self.judge.tick(self.now))
    }

    /// Seconds until there is a verdict, and it; none within `most`.
    fn verdict_within(&mut self, most: u64) -> Option<(u64, Verdict)> {
        (1..=most).find_map(|second| Some((second, verdict(self.second())?)))
    }
}

fn verdict(findings: Vec<Finding>) -> Option<Verdict> {
    findings.into_iter().find_map(|f| match f {
        Finding::Verdict(verdict) => Some(verdict),
        Finding::Straggler { .. } => None,
    })
}

#[test]
fn a_death_is_judged_at_once_and_by_its_kind() {
    for size in [2, 8] {
        for (death, code, words) in [
            (None, 137, "died, killed by signal 9 (kill -9, the out-of-memory killer), or its host or link is gone"),
            (Some(Death::Exit(0)), 0, "died, exited with code 0 before the end of the run"),
            (Some(Death::Signal(11)), 139, "died, killed by signal 11 (SIGSEGV)"),
            (Some(Death::Signal(7)), 135, "died, killed by signal 7 (SIGBUS)"),
            (Some(Death::Signal(4)), 132, "died, killed by signal 4 (SIGILL)"),
            (Some(Death::Signal(8)), 136, "died, killed by signal 8 (SIGFPE)"),
            (Some(Death::Signal(6)), 134, "died, killed by signal 6 (SIGABRT)"),
        ] {
            for rank in [0, size - 1] {
                let mut world = World::new(size);
                assert_eq!(world.verdict_now(), None);
                if let Some(death) = death {
                    world.hear(rank, Heard::Dying(death));
                }
                world.hear(rank, Heard::Closed);
                let verdict = world.verdict_now().unwrap();
                assert_eq!((verdict.kind, verdict.rank, verdict.step), (Kind::Dead, rank, 9));
                assert_eq!((verdict.code_of(rank), verdict.code_of(1 - rank.min(1))), (code, 76));
                assert!(verdict.text.contains(words), "{}", verdict.text);
                assert_eq!(verdict.folder(), "lost-9");
            }
        }
    }
}

#[test]
fn the_report_names_all_that_is_known() {
    let mut world = World::new(8);
    world.wait_all_but(5);
    let (_, verdict) = world.verdict_within(20).unwrap();
    let expected = "retort: rank 5 (n01, pid 4005, GPU 1 GPU-3f) hung: all_reduce #1 of 4096 bytes not entered, \
                    step 9, phase forward, 11 s\n        \
                    ranks 0-4,6-7 wait in it; last heartbeat of rank 5 0.0 s ago; last sample 99";
    assert_eq!(verdict.text, expected);
    assert_eq!((verdict.code_of(5), verdict.code_of(0), verdict.folder().as_str()), (77, 77, "hang-9"));
}

#[test]
fn an_end_in_order_is_no_death() {
    let mut world = World::new(2);
    world.hear(1, Heard::Bye);
    world.hear(1, Heard::Dying(Death::Exit(0)));
    world.hear(1, Heard::Closed);
    assert!(!world.judge.all_finished());
    world.hear(0, Heard::Bye);
    assert!(world.judge.all_finished());
    world.stopped = vec![0, 1];
    assert_eq!(world.verdict_within(100), None);
}

#[test]
fn the_first_verdict_wins() {
    let mut world = World::new(8);
    world.hear(3, Heard::Failed { code: 71, text: "no GPU".into() });
    world.hear(3, Heard::Closed);
    world.hear(2, Heard::Failed { code: 65, text: "bad data".into() });
    world.hear(6, Heard::Closed);
    let verdict = world.verdict_now().unwrap();
    assert_eq!((verdict.kind, verdict.rank), (Kind::Failed, 3));
    assert_eq!((verdict.code_of(3), verdict.code_of(2), verdict.code_of(0)), (71, 76, 76));
    assert!(verdict.text.contains("failed with code 71, no GPU: step 9"), "{}", verdict.text);
    world.hear(1, Heard::Closed);
    world.stopped = (0..8).collect();
    assert_eq!(world.verdict_within(100), None);
}

#[test]
fn a_stuck_rank_is_named_in_each_phase_after_its_limit() {
    for size in [2, 8] {
        for (phase, limit) in [
            (Phase::Load, 10),
            (Phase::Forward, 10),
            (Phase::Update, 10),
            (Phase::Start, 40),
            (Phase::Resume, 40),
            (Phase::Evaluate, 40),
            (Phase::Checkpoint, 40),
            (Phase::End, 40),
        ] {
            let mut world = World::new(size);
            world.ranks[1].enter(phase);
            world.wait_all_but(1);
            let (seconds, verdict) = world.verdict_within(100).unwrap();
            assert_eq!((verdict.kind, verdict.rank, verdict.phase), (Kind::Hung, 1, phase));
            assert!((limit..=limit + 2).contains(&seconds), "{phase:?}: {seconds} s");
        }
    }
}

#[test]
fn a_stopped_rank_is_named_by_its_silence_whatever_the_phase() {
    for phase in [Phase::Load, Phase::Forward, Phase::Reduce, Phase::Evaluate, Phase::Checkpoint] {
        let mut world = World::new(8);
        world.ranks[6].enter(phase);
        // In a collective like all others, it is the silence alone that tells.
        if phase == Phase::Reduce {
            world.wait(6);
        }
        world.second();
        world.stopped.push(6);
        world.wait_all_but(6);
        let (seconds, verdict) = world.verdict_within(100).unwrap();
        assert_eq!((verdict.kind, verdict.rank, verdict.phase), (Kind::Hung, 6, phase));
        assert!((10..=12).contains(&seconds), "{phase:?}: {seconds} s");
        assert!(verdict.text.contains("last heartbeat of rank 6 11.0 s ago (it is stopped,"), "{}", verdict.text);
    }
}

#[test]
fn the_one_behind_is_named_not_those_who_wait() {
    // Rank 2 is stuck inside #1, the others passed it and wait in #2; rank 4 still computes before #2.
    let mut world = World::new(8);
    (0..8).for_each(|r| world.wait(r));
    (0..8).filter(|&r| r != 2).for_each(|r| world.ranks[r].end_collective());
    (0..8).filter(|&r| r != 2 && r != 4).for_each(|r| world.wait(r));
    let (_, verdict) = world.verdict_within(20).unwrap();
    assert_eq!(verdict.rank, 2);
    assert!(verdict.text.contains("hung: all_reduce #1 of 4096 bytes, step 9, phase all_reduce, "), "{}", verdict.text);
    // Nobody waits: the one that moved last longest ago.
    let mut world = World::new(2);
    (0..5).for_each(|_| {
        world.ranks[1].enter(Phase::Forward);
        assert_eq!(world.second(), []);
    });
    let (_, verdict) = world.verdict_within(20).unwrap();
    assert_eq!(verdict.rank, 0);
    assert!(verdict.text.contains("no rank waits in a collective"), "{}", verdict.text);
    // All are in it: no rank can be told from the others, and the report says so.
    let mut world = World::new(2);
    (0..2).for_each(|r| world.wait(r));
    let (_, verdict) = world.verdict_within(20).unwrap();
    assert!(verdict.text.contains("all ranks, also "), "{}", verdict.text);
}

/// Phase 0, of seven buckets.
fn gpu_at(world: &World, rank: usize, at: GpuAt) {
    world.ranks[rank].gpu_word().set(GpuPlace { phase: 0, at, buckets: 7 }.word());
}

#[test]
fn a_gpu_stuck_in_compute_is_told_from_those_that_wait_for_it_in_a_sum() {
    let mut world = World::new(8);
    (0..8).filter(|&r| r != 5).for_each(|r| gpu_at(&world, r, GpuAt::Sum(3)));
    gpu_at(&world, 5, GpuAt::Summed(2));
    let (_, verdict) = world.verdict_within(20).unwrap();
    assert_eq!((verdict.kind, verdict.rank), (Kind::Hung, 5));
    let place = "hung: all_reduce of bucket 3 of 7 not entered, step 9, phase forward, GPU past bucket 2 of 7, 11 s";
    assert!(verdict.text.contains(place), "{}", verdict.text);
    assert!(verdict.text.contains("ranks 0-4,6-7 wait in it; "), "{}", verdict.text);
    // One whose step never reached its GPU.
    let mut world = World::new(2);
    gpu_at(&world, 1, GpuAt::Sum(1));
    world.ranks[0].gpu_word();
    let (_, verdict) = world.verdict_within(20).unwrap();
    assert_eq!(verdict.rank, 0);
    let place = "all_reduce of bucket 1 of 7 not entered, step 9, phase forward, 1";
    assert!(verdict.text.contains(place), "{}", verdict.text);
    // All are in the sum: it is what lies between them.
    let mut world = World::new(2);
    (0..2).for_each(|r| gpu_at(&world, r, GpuAt::Sum(4)));
    let (_, verdict) = world.verdict_within(20).unwrap();
    assert!(verdict.text.contains("hung: all_reduce of bucket 4 of 7, step 9, phase forward, "), "{}", verdict.text);
    assert!(verdict.text.contains("all ranks, also "), "{}", verdict.text);
}

#[test]
fn a_gpu_that_goes_on_is_progress_and_a_step_begins_without_its_word() {
    let mut world = World::new(2);
    for bucket in 1..=7 {
        gpu_at(&world, 1, GpuAt::Summed(bucket));
        (0..9).for_each(|_| {
            world.ranks[0].enter(Phase::Forward);
            assert_eq!(world.second(), []);
        });
    }
    assert_eq!(world.ranks[1].look().gpu().unwrap().at, GpuAt::Summed(7));
    world.ranks[1].step(10, 0);
    assert_eq!(world.ranks[1].look().gpu(), None);
}

#[test]
fn waiting_for_a_slow_phase_or_a_working_rank_is_no_hang() {
    let mut world = World::new(8);
    world.ranks[0].enter(Phase::Checkpoint);
    world.wait_all_but(0);
    assert_eq!(world.verdict_within(39), None);
    let mut world = World::new(8);
    world.wait_all_but(3);
    for _ in 0..100 {
        world.ranks[3].enter(Phase::Forward);
        assert_eq!(world.second(), []);
    }
}

#[test]
fn long_steps_and_the_first_step_have_more_time() {
    let seen = |progress: &Progress, p99: Duration| -> Seen {
        let mut seen = progress.look();
        seen.p99 = p99;
        seen
    };
    for (first, p99, limit) in [(false, ms(900), 10), (false, ms(2_500), 25), (true, ms(0), 40)] {
        let mut judge = Judge::new(&[Member::default()], limits(), Duration::ZERO);
        let progress = Progress::new();
        progress.step(0, 0);
        if !first {
            progress.step(1, 0);
        }
        progress.enter(Phase::Forward);
        let found = (1..100).find(|&second| {
            let now = ms(1_000 * second);
            judge.observe(0, Heard::Beat(seen(&progress, p99)), now);
            !judge.tick(now).is_empty()
        });
        assert_eq!(found, Some(limit + 2));
    }
}

#[test]
fn ranks_starved_four_times_over_raise_no_alarm() {
    // Heartbeats and progress come 4 to 9 s apart, by a fixed pseudo-random rule; an hour.
    let mut judge = Judge::new(&vec![Member::default(); 8], limits(), Duration::ZERO);
    let ranks: Vec<Progress> = (0..8).map(|_| Progress::new()).collect();
    let mut next = [0_u64; 8];
    let mut random = 1_u64;
    for second in 0..3_600 {
        let now = ms(1_000 * second);
        for (rank, progress) in ranks.iter().enumerate() {
            if next[rank] == second {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                next[rank] = second + 4 + (random >> 33) % 6;
                progress.step(second, second);
                judge.observe(rank, Heard::Beat(progress.look()), now);
            }
        }
        assert_eq!(judge.tick(now), []);
    }
}

#[test]
fn a_judge_that_was_stopped_accuses_nobody() {
    let mut world = World::new(2);
    world.wait(0);
    world.second();
    world.now += ms(500_000);
    assert_eq!(world.judge.tick(world.now), []);
    // Time goes on from where it was: one second has passed, and one heartbeat of the gap counts.
    assert_eq!(world.verdict_within(8), None);
    assert_eq!(world.verdict_within(5).unwrap().1.rank, 1);
}

#[test]
fn who_lost_somebody_unknown_is_answered() {
    let mut world = World::new(8);
    world.hear(4, Heard::Lost);
    world.hear(5, Heard::Lost);
    assert_eq!(world.verdict_now(), None);
    world.hear(2, Heard::Closed);
    assert_eq!(world.verdict_now().unwrap().rank, 2);
    // Somebody left early.
    let mut world = World::new(8);
    world.hear(2, Heard::Bye);
    assert_eq!(world.verdict_now(), None);
    world.hear(4, Heard::Lost);
    let verdict = world.verdict_now().unwrap();
    assert_eq!((verdict.kind, verdict.rank, verdict.code), (Kind::Early, 2, 76));
    // Nobody is gone.
    let mut world = World::new(8);
    world.hear(4, Heard::Lost);
    (0..12).for_each(|_| (0..8).for_each(|r| world.ranks[r].enter(Phase::Forward)));
    let (seconds, verdict) = world.verdict_within(20).unwrap();
    assert_eq!((verdict.kind, verdict.rank, verdict.culprit_code), (Kind::Failed, 4, 76));
    assert!((11..=13).contains(&seconds), "{seconds}");
}

#[test]
fn the_others_judge_only_that_rank_0_is_gone_or_silent() {
    let member = Member { host: "n00".into(), pid: 7, ..Member::default() };
    let judge = || Judge::of_rank_0(&member, limits(), Duration::ZERO);
    let progress = Progress::new();
    progress.step(0, 0);
    progress.step(1, 0);
    progress.enter(Phase::Forward);
    // No progress, but heartbeats: rank 0 judges that itself.
    let mut quiet = judge();
    for second in 0..60 {
        quiet.observe(0, Heard::Beat(progress.look()), ms(1_000 * second));
        assert_eq!(quiet.tick(ms(1_000 * second)), []);
    }
    let silent = (60..100).find_map(|second| Some((second, verdict(quiet.tick(ms(1_000 * second)))?)));
    let (second, hung) = silent.unwrap();
    assert_eq!((second, hung.kind, hung.code, hung.rank), (70, Kind::Hung, 77, 0));
    assert!(hung.text.contains("all ranks lose their rank 0"), "{}", hung.text);
    let mut gone = judge();
    gone.observe(0, Heard::Closed, ms(1));
    let gone = verdict(gone.tick(ms(1))).unwrap();
    assert_eq!((gone.kind, gone.code, gone.rank), (Kind::Dead, 76, 0));
    let mut crashed = judge();
    crashed.observe(0, Heard::Dying(Death::Signal(11)), ms(1));
    assert!(verdict(crashed.tick(ms(1))).unwrap().text.contains("signal 11 (SIGSEGV): before its first heartbeat"));
    let mut done = judge();
    done.observe(0, Heard::Bye, ms(1));
    done.observe(0, Heard::Closed, ms(1));
    assert!(done.all_finished() && done.tick(ms(1)).is_empty());
}
