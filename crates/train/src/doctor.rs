//! Preflight: what a run would find on this machine, each finding with its remedy, in seconds and without a step.
//!
//! Checks run at once, each on a thread of its own, and tell what they find as they go. What does not come back in time is a
//! finding too, so a dead disk or a driver that hangs holds nothing up.

use crate::device::Device;
pub use crate::doctor_bandwidth::bandwidth;
pub use crate::doctor_skew::skew;
use crate::error::TrainError;
use crate::joined::Joined;
use crate::ranks::words_of;
use crate::recipe_parse::Loaded;
use crate::{doctor_disk, doctor_gpu, doctor_host, doctor_network, doctor_recipe};
use comm::Communicator;
use comm::discover::Place;
use comm::member::Member;
use serde::{Deserialize, Serialize};
use spec::Precision;
use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

/// Time for all checks, so that the whole stays below ten seconds.
pub const LIMIT: Duration = Duration::from_secs(8);

/// How good a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    Warn,
    Fail,
}

impl Display for State {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            State::Ok => "ok",
            State::Warn => "warn",
            State::Fail => "fail",
        })
    }
}

/// A number that differs from rank to rank though they found the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub least: f64,
    pub most: f64,
    pub unit: String,
}

impl Display for Measured {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let digits = if self.least < 100.0 { 1 } else { 0 };
        let (least, most) = (format!("{:.digits$}", self.least), format!("{:.digits$}", self.most));
        if least == most { write!(f, "{least} {}", self.unit) } else { write!(f, "{least} to {most} {}", self.unit) }
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is about: `GPU`, `disk`.
    pub area: String,
    pub state: State,
    pub found: String,
    /// Of a warning or failure: what to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remedy: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
    /// The ranks that found it; none if this process looked alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranks: Vec<u32>,
}

impl Finding {
    fn new(area: &str, state: State, found: impl ToString) -> Finding {
        let (area, found) = (area.to_string(), found.to_string());
        Finding { area, state, found, remedy: String::new(), measured: None, ranks: vec![] }
    }

    pub(crate) fn ok(area: &str, found: impl ToString) -> Finding {
        Finding::new(area, State::Ok, found)
    }

    pub(crate) fn warn(area: &str, found: impl ToString, remedy: impl ToString) -> Finding {
        Finding { remedy: remedy.to_string(), ..Finding::new(area, State::Warn, found) }
    }

    pub(crate) fn fail(area: &str, found: impl ToString, remedy: impl ToString) -> Finding {
        Finding { remedy: remedy.to_string(), ..Finding::new(area, State::Fail, found) }
    }

    /// From an error in the form of this program, `what; remedy`. `otherwise` is the remedy of one that has none.
    pub fn of_error(area: &str, state: State, text: &str, otherwise: &str) -> Finding {
        let (found, remedy) = text.split_once("; ").unwrap_or((text, otherwise));
        Finding { remedy: remedy.to_string(), ..Finding::new(area, state, found) }
    }

    pub(crate) fn measured(self, value: f64, unit: &str) -> Finding {
        self.measured_from(value, value, unit)
    }

    pub(crate) fn measured_from(self, least: f64, most: f64, unit: &str) -> Finding {
        Finding { measured: Some(Measured { least, most, unit: unit.to_string() }), ..self }
    }

    /// Takes in a finding that says the same on another rank. False if it does not.
    fn take(&mut self, other: &Finding) -> bool {
        let unit = |f: &Finding| f.measured.as_ref().map(|m| m.unit.clone());
        let says = |f: &Finding| (f.area.clone(), f.state, f.found.clone(), f.remedy.clone(), unit(f));
        if says(self) != says(other) {
            return false;
        }
        if let (Some(own), Some(other)) = (&mut self.measured, &other.measured) {
            (own.least, own.most) = (own.least.min(other.least), own.most.max(other.most));
        }
        self.ranks.extend(&other.ranks);
        true
    }
}

/// What is looked at.
pub struct Asked {
    /// Who this process is, or why that is not known.
    pub place: Result<Place, String>,
    /// The recipe, if one was given, or what is wrong with it.
    pub recipe: Option<Result<Loaded, String>>,
    pub run_dir: Option<PathBuf>,
    pub device: Option<Device>,
    /// Whether the other ranks look too, and meet afterwards.
    pub all_ranks: bool,
}

impl Asked {
    pub(crate) fn world(&self) -> usize {
        self.place.as_ref().map_or(1, |p| p.world_size)
    }

    /// Ranks on this host, as far as that is known.
    pub(crate) fn local_ranks(&self) -> usize {
        self.place.as_ref().ok().and_then(|p| p.local_size).unwrap_or(1)
    }

    /// What this rank would compute on.
    pub(crate) fn chosen(&self) -> Result<Device, TrainError> {
        let recipe = self.recipe.as_ref().and_then(|r| r.as_ref().ok());
        let precision = recipe.map_or(Precision::F32, |l| l.recipe.train.precision);
        Device::choose(self.device, precision)?.of_rank(self.place.as_ref().ok().and_then(|p| p.local_rank))
    }
}

/// Where a check tells what it found.
pub(crate) struct Tell {
    check: usize,
    to: Sender<(usize, Option<Finding>)>,
}

impl Tell {
    /// Nobody may listen any more: then it is too late.
    pub(crate) fn tell(&self, finding: Finding) {
        let _ = self.to.send((self.check, Some(finding)));
    }
}

type Check = (&'static str, Box<dyn FnOnce(&Asked, &Tell) + Send>);

/// Looks at everything that was asked for. Takes [`LIMIT`] at most.
pub fn examine(asked: Asked) -> Vec<Finding> {
    let (predicted, needed) = channel();
    let checks: Vec<Check> = vec![
        ("program", Box::new(doctor_host::program)),
        ("launcher", Box::new(doctor_host::launcher)),
        ("GPU", Box::new(doctor_gpu::gpus)),
        ("NCCL", Box::new(doctor_gpu::nccl)),
        ("MPI", Box::new(doctor_network::mpi)),
        ("network", Box::new(doctor_network::network)),
        ("limits", Box::new(doctor_host::limits)),
        ("recipe", Box::new(move |asked, tell| doctor_recipe::recipe(asked, tell, predicted))),
        ("disk", Box::new(move |asked, tell| doctor_disk::disk(asked, tell, &needed))),
    ];
    run(checks, asked, LIMIT)
}

fn run(checks: Vec<Check>, asked: Asked, limit: Duration) -> Vec<Finding> {
    let (asked, until) = (Arc::new(asked), Instant::now() + limit);
    let (to, told) = channel();
    let mut found: Vec<Vec<Finding>> = vec![vec![]; checks.len()];
    let mut open: BTreeSet<usize> = (0..checks.len()).collect();
    let names: Vec<&str> = checks.iter().map(|c| c.0).collect();
    for (check, (name, work)) in checks.into_iter().enumerate() {
        let (asked, tell) = (asked.clone(), Tell { check, to: to.clone() });
        let spawned = std::thread::Builder::new().name(format!("doctor-{name}")).spawn(move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(&asked, &tell))) {
                let what = format!("a bug: the check panicked: {}", words_of(panic.as_ref()));
                tell.tell(Finding::fail(name, what, "report it"));
            }
            let _ = tell.to.send((tell.check, None)); // as in `tell`
        });
        if let Err(e) = spawned {
            found[check].push(Finding::fail(name, format!("cannot start a thread: {e}"), "raise ulimit -u"));
            open.remove(&check);
        }
    }
    while !open.is_empty() {
        match told.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok((check, Some(finding))) => found[check].push(finding),
            Ok((check, None)) => {
                open.remove(&check);
            }
            Err(_) => break,
        }
    }
    for check in open {
        let what = format!("not done within {:.1} s; what it found so far is above", limit.as_secs_f64());
        let remedy = "run it again on an idle machine; if it stays so, a driver, a disk or a name server hangs";
        found[check].push(Finding::warn(names[check], what, remedy));
    }
    by_area(found.concat())
}

/// What all ranks found, equal findings as one. Errors: a rank is gone.
pub fn together(joined: &Joined, own: &[Finding]) -> Result<Vec<Finding>, TrainError> {
    let unreadable = |e: serde_json::Error| TrainError::Setting(format!("findings of a rank: {e}"));
    let own = serde_json::to_vec(own).map_err(unreadable)?;
    let all = joined.comm()?.all_gather_varied(&own)?;
    let all = all.iter().map(|bytes| serde_json::from_slice(bytes).map_err(unreadable)).collect::<Result<_, _>>()?;
    Ok(collapsed(all))
}

/// Ranks whose cores are of another NUMA node than their GPU.
pub fn bindings(joined: &Joined) -> Vec<Finding> {
    collapsed(joined.members.iter().map(|m| bound_apart(m).into_iter().collect()).collect())
}

fn bound_apart(member: &Member) -> Option<Finding> {
    let node = member.gpu_apart()?;
    let what = format!("the GPU is on NUMA node {node}, the cores on {}", nodes(&member.core_nodes));
    let remedy = "launch/bind.sh binds a rank to the node of its GPU; or bind none: --bind-to none, --cpu-bind=none";
    Some(Finding::warn("binding", what, remedy))
}

/// `node 0`, `nodes 0, 2`
fn nodes(numbers: &[u32]) -> String {
    let all: Vec<String> = numbers.iter().map(u32::to_string).collect();
    format!("node{} {}", if all.len() == 1 { "" } else { "s" }, all.join(", "))
}

/// By rank. Areas stay in the order of the lowest rank that has them.
fn collapsed(all: Vec<Vec<Finding>>) -> Vec<Finding> {
    let mut joint: Vec<Finding> = Vec::new();
    for (rank, findings) in all.into_iter().enumerate() {
        for finding in findings {
            let finding = Finding { ranks: vec![rank as u32], ..finding };
            if !joint.iter_mut().any(|known| known.take(&finding)) {
                joint.push(finding);
            }
        }
    }
    by_area(joint)
}

/// Findings of an area together, areas in the order in which they first occur.
fn by_area(mut found: Vec<Finding>) -> Vec<Finding> {
    let areas: Vec<String> = found.iter().map(|f| f.area.clone()).collect();
    found.sort_by_key(|f| areas.iter().position(|a| *a == f.area));
    found
}

/// Bytes for people: `1.5 GB`, `20.0 MB`.
pub(crate) fn size(bytes: u64) -> String {
    let bytes = bytes as f64;
    if bytes >= 1e9 { format!("{:.1} GB", bytes / 1e9) } else { format!("{:.1} MB", bytes / 1e6) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing() -> Asked {
        Asked { place: Err("none".into()), recipe: None, run_dir: None, device: None, all_ranks: false }
    }

    #[test]
    fn a_check_that_hangs_or_panics_is_a_finding_and_holds_nothing_up() {
        let (never, wait) = channel::<()>();
        let checks: Vec<Check> = vec![
            (
                "hangs",
                Box::new(move |_, tell| {
                    tell.tell(Finding::ok("hangs", "begun"));
                    let _ = wait.recv();
                }),
            ),
            ("panics", Box::new(|_, _| panic!("on purpose"))),
            ("works", Box::new(|_, tell| tell.tell(Finding::ok("works", "well")))),
        ];
        let found = run(checks, nothing(), Duration::from_millis(300));
        let seen: Vec<_> = found.iter().map(|f| (f.area.as_str(), f.state, f.found.as_str())).collect();
        assert_eq!(seen[0], ("hangs", State::Ok, "begun"));
        assert!(seen[1].1 == State::Warn && seen[1].2.starts_with("not done within 0.3 s"), "{seen:?}");
        assert_eq!(seen[2], ("panics", State::Fail, "a bug: the check panicked: on purpose"));
        assert_eq!(seen[3], ("works", State::Ok, "well"));
        drop(never);
    }

    #[test]
    fn equal_findings_are_one_and_their_figures_a_range() {
        let speed = |value| Finding::ok("data", "read").measured(value, "img/s");
        let gpu = |n| Finding::warn("GPU", format!("GPU {n}"), "look");
        let all = vec![vec![gpu(0), speed(200.0)], vec![gpu(1), speed(100.0)], vec![gpu(0), speed(150.4)]];
        let joint = collapsed(all);
        let lines: Vec<_> = joint.iter().map(|f| (f.found.as_str(), f.ranks.clone())).collect();
        assert_eq!(lines, [("GPU 0", vec![0, 2]), ("GPU 1", vec![1]), ("read", vec![0, 1, 2])]);
        assert_eq!(joint[2].measured.as_ref().unwrap().to_string(), "100 to 200 img/s");
    }

    #[test]
    fn a_rank_whose_cores_are_far_from_its_gpu_is_warned() {
        let member = |uuid: &str, numa, core_nodes: &[u32]| Member {
            uuid: uuid.into(),
            numa,
            core_nodes: core_nodes.to_vec(),
            ..Member::default()
        };
        let far = bound_apart(&member("GPU-1", Some(1), &[0, 2])).unwrap();
        assert_eq!(
            (far.state, far.found.as_str()),
            (State::Warn, "the GPU is on NUMA node 1, the cores on nodes 0, 2")
        );
        assert!(far.remedy.contains("launch/bind.sh"));
        let near = [
            member("GPU-1", Some(1), &[0, 1]),
            member("GPU-1", None, &[0]),
            member("GPU-1", Some(1), &[]),
            member("", Some(1), &[0]),
        ];
        assert!(near.iter().all(|m| bound_apart(m).is_none()));
    }

    #[test]
    fn an_error_is_split_into_what_and_remedy() {
        let finding = Finding::of_error("disk", State::Fail, "full; free some; or not", "never");
        assert_eq!((finding.found.as_str(), finding.remedy.as_str()), ("full", "free some; or not"));
        assert_eq!(Finding::of_error("disk", State::Warn, "slow", "wait").remedy, "wait");
    }
}
