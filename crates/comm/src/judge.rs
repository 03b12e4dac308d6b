//! Who is dead, hung or slow, from what rank 0 hears of all ranks. Pure: no clock, no socket, no file.
//!
//! Times count only while the judge is awake: a gap between two calls is taken off everybody's account, so a rank 0 that was
//! itself stopped or starved accuses nobody. The first verdict is the last.

use crate::death::Death;
use crate::gpu_word::GpuPlace;
use crate::limits::Limits;
use crate::member::Member;
use crate::progress::{Phase, Seen, WINDOW};
use crate::straggler::{self, Cause};
use crate::verdict::{HANG, Kind, PEER_LOST, Verdict, ranges};
use std::time::Duration;

/// Members give rank 0 so much longer than it gives them, so that its verdict comes first.
const GRACE: Duration = Duration::from_millis(500);
/// A rank that is this many heartbeats late may be stopped.
const LATE: u32 = 3;
/// A slow rank is told of once in so many steps.
const QUIET_STEPS: u64 = 1_000;

/// What reached the judge from a rank.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// A heartbeat.
    Beat(Seen),
    /// It tells what it dies of.
    Dying(Death),
    /// It cannot go on and will leave with this code.
    Failed { code: u8, text: String },
    /// All ranks found, together, that the run cannot go on, and all leave with this code. `culprit`: whose fault it is, if one rank's.
    Agreed { culprit: Option<u32>, code: u8, text: String },
    /// A collective failed on it because some other rank is gone.
    Lost,
    /// It is done, in order.
    Bye,
    /// Its connection ended.
    Closed,
}

/// What the judge found.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    Verdict(Verdict),
    /// The run goes on; `text` is a line to show.
    Straggler {
        rank: usize,
        ratio: f64,
        cause: Cause,
        text: String,
    },
}

/// What a judge may decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Office {
    /// At rank 0: everything.
    All,
    /// At another rank, where only rank 0 is heard: that it is gone or silent.
    RankZero,
}

/// One run's judge.
pub struct Judge {
    office: Office,
    limits: Limits,
    ranks: Vec<Rank>,
    now: Duration,
    /// The first thing that ends the run.
    fault: Option<(usize, Fault)>,
    /// The first rank that lost somebody unknown, and when.
    lost: Option<(usize, Duration)>,
    /// The verdict's words before and after the place.
    judged: Option<(String, String)>,
}

struct Rank {
    member: Member,
    seen: Option<Seen>,
    heard_at: Duration,
    moved_at: Duration,
    finished: bool,
    /// Step at which it was told of as slow.
    told: Option<u64>,
}

enum Fault {
    Dead(Death),
    Failed { code: u8, text: String },
    Agreed { code: u8, text: String },
    Early,
}

impl Judge {
    /// The judge at rank 0. `members` are all ranks in order.
    pub fn new(members: &[Member], limits: Limits, now: Duration) -> Self {
        let rank = |member: &Member| Rank {
            member: member.clone(),
            seen: None,
            heard_at: now,
            moved_at: now,
            finished: false,
            told: None,
        };
        let ranks = members.iter().map(rank).collect();
        Self { office: Office::All, limits, ranks, now, fault: None, lost: None, judged: None }
    }

    /// The judge at another rank: hears rank 0 only, and knows only whether it is there.
    pub fn of_rank_0(member: &Member, limits: Limits, now: Duration) -> Self {
        Self { office: Office::RankZero, ..Self::new(std::slice::from_ref(member), limits, now) }
    }

    /// Takes the time in which nobody judged off all accounts.
    fn advance(&mut self, now: Duration) {
        let beat = self.limits.heartbeat;
        let gap = now.saturating_sub(self.now);
        if gap > 2 * beat {
            let away = gap - beat;
            let starts = self.ranks.iter_mut().flat_map(|r| [&mut r.heard_at, &mut r.moved_at]);
            starts.chain(self.lost.as_mut().map(|(_, at)| at)).for_each(|at| *at = (*at + away).min(now));
        }
        self.now = self.now.max(now);
    }

    /// Takes note. What follows from it comes out of the next [`tick`](Self::tick).
    pub fn observe(&mut self, rank: usize, heard: Heard, now: Duration) {
        self.advance(now);
        let from = &mut self.ranks[rank];
        from.heard_at = now;
        let fault = match heard {
            Heard::Beat(seen) => {
                if from.seen.is_none_or(|last| (last.moves, last.gpu_word()) != (seen.moves, seen.gpu_word())) {
                    from.moved_at = now;
                }
                from.seen = Some(seen);
                return;
            }
            Heard::Lost => {
                self.lost.get_or_insert((rank, now));
                return;
            }
            Heard::Bye => {
                from.finished = true;
                return;
            }
            Heard::Closed | Heard::Dying(_) if from.finished => return,
            Heard::Closed => Fault::Dead(Death::Silent),
            Heard::Dying(death) => Fault::Dead(death),
            Heard::Failed { code, text } => Fault::Failed { code, text },
            Heard::Agreed { culprit, code, text } => {
                let known = culprit.map(|rank| rank as usize).filter(|&rank| rank < self.ranks.len());
                self.fault.get_or_insert((known.unwrap_or(rank), Fault::Agreed { code, text }));
                return;
            }
        };
        self.fault.get_or_insert((rank, fault));
    }

    /// Whether every rank that this judge hears is done.
    pub fn all_finished(&self) -> bool {
        self.ranks.iter().all(|r| r.finished)
    }

    /// Whether a rank may be stopped: its heartbeats are late.
    pub fn is_late(&self, rank: usize) -> bool {
        self.silence(rank) > LATE * self.limits.heartbeat
    }

    /// What there is to say at `now`; call it at least every heartbeat, after all that was heard until then.
    pub fn tick(&mut self, now: Duration) -> Vec<Finding> {
        self.advance(now);
        if self.judged.is_some() {
            return Vec::new();
        }
        if self.fault.is_none() {
            self.fault = self.loss();
        }
        let verdict = match self.fault.take() {
            Some((rank, fault)) => Some(self.ended(rank, fault)),
            None => self.hung(),
        };
        match verdict {
            Some((mut verdict, words)) => {
                self.judged = Some(words);
                self.describe(&mut verdict);
                vec![Finding::Verdict(verdict)]
            }
            None => self.stragglers(),
        }
    }

    /// Writes the report of the verdict from what is known by now: its first two lines.
    pub fn describe(&self, verdict: &mut Verdict) {
        let Some((before, after)) = &self.judged else { return };
        let rank = verdict.rank;
        let Member { host, pid, device, uuid, .. } = &self.ranks[rank].member;
        let device = match (device.as_str(), uuid.as_str()) {
            ("", _) => String::new(),
            (device, "") => format!(", {device}"),
            (device, uuid) => format!(", {device} {uuid}"),
        };
        let (place, others) = (self.place(rank), self.others(rank));
        verdict.text =
            format!("retort: rank {rank} ({host}, pid {pid}{device}) {before}: {place}{after}\n        {others}");
    }

    fn silence(&self, rank: usize) -> Duration {
        self.now.saturating_sub(self.ranks[rank].heard_at)
    }

    fn idle(&self, rank: usize) -> Duration {
        self.now.saturating_sub(self.ranks[rank].moved_at)
    }

    fn working(&self) -> Vec<usize> {
        (0..self.ranks.len()).filter(|&r| !self.ranks[r].finished).collect()
    }

    fn seen(&self, rank: usize) -> Option<&Seen> {
        self.ranks[rank].seen.as_ref()
    }

    fn is_inside(&self, rank: usize) -> bool {
        self.seen(rank).is_some_and(|s| s.inside || s.gpu().is_some_and(GpuPlace::is_sum))
    }

    /// How far a rank has come: the collective that it calls next, or is in; then its GPU, which works between collectives.
    fn position(&self, rank: usize) -> (u64, bool, u32) {
        self.seen(rank).map_or((0, false, 0), |s| (s.sequence, s.inside, s.gpu_word()))
    }

    fn hang_limit(&self) -> Duration {
        let p99 = self.ranks.iter().filter_map(|r| Some(r.seen.as_ref()?.p99)).max().unwrap_or_default();
        self.limits.hang.max(10 * p99)
    }

    fn limit(&self, rank: usize) -> Duration {
        let step = self.hang_limit();
        let slow = self.seen(rank).is_none_or(|s| s.phase.is_slow() || s.steps <= 1);
        if slow { step.max(self.limits.slow_phase) } else { step }
    }

    /// A rank lost somebody: whoever left early, else, when nobody turns out to be gone, the rank's own failure.
    fn loss(&self) -> Option<(usize, Fault)> {
        let (rank, since) = self.lost?;
        if let Some(early) = self.ranks.iter().position(|r| r.finished) {
            return Some((early, Fault::Early));
        }
        let text = "a collective failed for want of a peer, but no rank is known to be gone".to_owned();
        (self.now.saturating_sub(since) > self.limits.link + self.limits.heartbeat)
            .then_some((rank, Fault::Failed { code: PEER_LOST, text }))
    }

    fn ended(&self, rank: usize, fault: Fault) -> (Verdict, (String, String)) {
        let (kind, code, what) = match fault {
            Fault::Dead(death) => (Kind::Dead, death.code(), format!("died, {death}")),
            Fault::Failed { code, text } => (Kind::Failed, code, format!("failed with code {code}, {text}")),
            Fault::Agreed { code, text } => {
                return (
                    self.verdict(rank, Kind::Failed, (code, code)),
                    (format!("ends the run, {text}"), String::new()),
                );
            }
            Fault::Early => (Kind::Early, PEER_LOST, "said that it is done while others still work".to_owned()),
        };
        (self.verdict(rank, kind, (code, PEER_LOST)), (what, String::new()))
    }

    fn hung(&self) -> Option<(Verdict, (String, String))> {
        let working = self.working();
        let silent = working.iter().copied().max_by_key(|&r| self.silence(r))?;
        let (culprit, since) = match self.office {
            Office::RankZero => (silent, Some(self.silence(silent)).filter(|&s| s > self.hang_limit() + GRACE)?),
            Office::All if self.silence(silent) > self.hang_limit() => (silent, self.silence(silent)),
            // It may be stopped, which explains everything else: wait until that is sure.
            Office::All if self.is_late(silent) => return None,
            Office::All => {
                let waited_for = working.iter().map(|&r| self.position(r)).min()?;
                let someone_waits = working.iter().any(|&r| self.is_inside(r));
                let suspects = working.iter().copied().filter(|&r| !someone_waits || self.position(r) == waited_for);
                let stuck = suspects.filter(|&r| self.idle(r) > self.limit(r)).max_by_key(|&r| self.idle(r))?;
                (stuck, self.idle(stuck))
            }
        };
        Some((self.verdict(culprit, Kind::Hung, (HANG, HANG)), ("hung".to_owned(), format!(", {}", seconds(since)))))
    }

    /// Ranks that wait in a collective for `culprit`, in order.
    fn waiting(&self, culprit: usize) -> Vec<usize> {
        let at = self.position(culprit);
        self.working().into_iter().filter(|&r| r != culprit && self.is_inside(r) && self.position(r) >= at).collect()
    }

    /// `all_reduce #18342 of 4096 bytes, step 9171, phase forward`, `all_reduce of bucket 3 of 7 not entered, step 9171, phase
    /// forward, GPU past bucket 2 of 7`
    fn place(&self, rank: usize) -> String {
        let Some(seen) = self.seen(rank) else { return "before its first heartbeat".to_owned() };
        let call = |s: &Seen, what: &str| match s.gpu().filter(|_| !s.inside) {
            Some(place) => format!("{place}{what}, "),
            None => {
                let (op, bytes) = s.call();
                format!("{op} #{} of {bytes} bytes{what}, ", s.sequence)
            }
        };
        let collective = match self.waiting(rank).first().and_then(|&r| self.seen(r)) {
            _ if self.is_inside(rank) => call(seen, ""),
            Some(waits) => call(waits, " not entered"),
            None => String::new(),
        };
        let gpu = match seen.gpu() {
            Some(place) if place.is_sum() && !seen.inside => String::new(), // that is the collective
            Some(place) => format!(", GPU {place}"),
            None => String::new(),
        };
        format!("{collective}step {}, phase {}{gpu}", seen.step, seen.phase.name())
    }

    /// Second line of the report: who waits, the last heartbeat, the last sample.
    fn others(&self, rank: usize) -> String {
        let waiting = self.waiting(rank);
        let everyone = self.is_inside(rank) && waiting.len() + 1 == self.working().len();
        let who = match waiting.as_slice() {
            _ if self.office == Office::RankZero => "all ranks lose their rank 0".to_owned(),
            [] => "no rank waits in a collective".to_owned(),
            _ if everyone && waiting.iter().all(|&r| self.position(r) == self.position(rank)) => {
                format!("all ranks, also {}, wait in it", ranges(&waiting))
            }
            [one] => format!("rank {one} waits in it"),
            _ => format!("ranks {} wait in it", ranges(&waiting)),
        };
        let stopped = if self.is_late(rank) { " (it is stopped, or its host or link is gone)" } else { "" };
        let sample = self.seen(rank).and_then(|s| s.sample).map(|s| format!("; last sample {s}")).unwrap_or_default();
        let silence = self.silence(rank).as_secs_f64();
        format!("{who}; last heartbeat of rank {rank} {silence:.1} s ago{stopped}{sample}")
    }

    fn verdict(&self, rank: usize, kind: Kind, (culprit_code, code): (u8, u8)) -> Verdict {
        let Rank { member, seen, .. } = &self.ranks[rank];
        Verdict {
            kind,
            rank,
            host: member.host.clone(),
            pid: member.pid,
            device: member.device.clone(),
            phase: seen.map_or(Phase::Start, |s| s.phase),
            step: seen.map_or(0, |s| s.step),
            sequence: seen.map_or(0, |s| s.sequence),
            sample: seen.and_then(|s| s.sample),
            culprit_code,
            code,
            text: String::new(),
        }
    }

    fn stragglers(&mut self) -> Vec<Finding> {
        let windows: Option<Vec<_>> =
            self.ranks.iter().map(|r| if r.finished { None } else { r.seen.as_ref()?.window }).collect();
        let Some(windows) = windows.filter(|_| self.office == Office::All) else { return Vec::new() };
        let mut findings = Vec::new();
        for slow in straggler::find(&windows) {
            let Rank { member, seen: Some(seen), told, .. } = &mut self.ranks[slow.rank] else { continue };
            if told.is_some_and(|step| seen.step < step + QUIET_STEPS) {
                continue;
            }
            *told = Some(seen.step);
            let (ratio, cause) = (slow.ratio, slow.cause);
            let text = format!(
                "warning: rank {} ({}) is {ratio:.1} x slower than the median over {WINDOW} steps: {cause}; the run goes on",
                slow.rank, member.host
            );
            findings.push(Finding::Straggler { rank: slow.rank, ratio, cause, text });
        }
        findings
    }
}

fn seconds(time: Duration) -> String {
    let s = time.as_secs_f64();
    if s < 10.0 { format!("{s:.1} s") } else { format!("{s:.0} s") }
}
