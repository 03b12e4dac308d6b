//! A plan as lists of commands: every launch bound to its addresses, kernels found, constants laid out.

use crate::arena::{Halves, Map, Region, filter};
use crate::bind::bind;
use crate::binding::{Bound, Math};
use crate::command::{Address, Command};
use crate::driver::{Function, Stream};
use crate::error::CudaError;
use crate::module::Modules;
use crate::ranks::{Between, Ranks};
use crate::update;
use graph::Section;
use plan::{Arena, Arg, Cost, Launch, Plan};
use std::ops::Range;
use std::rc::Rc;

/// The commands of a launch, or of an upkeep of the executor's own.
#[derive(Clone, Debug)]
pub(crate) struct Bind {
    pub path: String,
    pub op: &'static str,
    pub cost: Cost,
    pub commands: Vec<Command>,
}

/// A step of a list, ready to go.
#[derive(Debug)]
pub(crate) struct Step {
    pub path: String,
    pub op: &'static str,
    pub cost: Cost,
    pub commands: Vec<Ready>,
}

#[derive(Debug)]
pub(crate) enum Ready {
    Kernel { name: &'static str, function: Function, shape: [[u32; 3]; 2], shared_bytes: u32, args: Vec<u128> },
    Zero { to: Address, bytes: usize },
    Copy { to: Address, from: Address, bytes: usize },
    Between(Between),
}

impl Ready {
    fn new(
        command: Command,
        modules: &mut Modules,
        ranks: Option<&Rc<Ranks>>,
        (path, op): (&str, &'static str),
    ) -> Result<Ready, CudaError> {
        Ok(match command {
            Command::Gather(parts) => {
                let ranks = ranks.expect("a plan for several ranks runs where they have joined").clone();
                Ready::Between(Between::Gather { ranks, parts })
            }
            Command::Zero { to, bytes } => Ready::Zero { to, bytes },
            Command::Copy { to, from, bytes } => Ready::Copy { to, from, bytes },
            Command::Kernel(kernel) => {
                let function = modules.function(&kernel, path, op)?;
                let mut args = vec![0u128; kernel.args.len().div_ceil(16)];
                bytemuck::cast_slice_mut(&mut args)[..kernel.args.len()].copy_from_slice(&kernel.args);
                let shape = [kernel.grid, [kernel.block, 1, 1]];
                Ready::Kernel { name: kernel.name, function, shape, shared_bytes: kernel.shared_bytes, args }
            }
        })
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Ready::Kernel { name, .. } => name,
            Ready::Zero { .. } => "zero",
            Ready::Copy { .. } => "copy",
            Ready::Between(command) => command.name(),
        }
    }

    /// Puts it on the stream; an error names `step`.
    pub(crate) fn issue(&self, stream: &Stream, step: &Step) -> Result<(), CudaError> {
        let done = match self {
            Ready::Kernel { function, shape, shared_bytes, args, .. } => {
                stream.launch(function, *shape, *shared_bytes, args)
            }
            Ready::Zero { to, bytes } => stream.fill(*to, 0, *bytes),
            Ready::Copy { to, from, bytes } => stream.copy(*to, *from, *bytes),
            Ready::Between(command) => return command.issue(stream),
        };
        done.map_err(|fault| self.failed(step, fault))
    }

    pub(crate) fn failed(&self, step: &Step, fault: crate::error::Fault) -> CudaError {
        let command = match self {
            Ready::Kernel { name, shape: [grid, block], .. } => {
                format!("kernel {name}, grid {grid:?}, block {}", block[0])
            }
            other => other.name().to_string(),
        };
        CudaError::Launch { path: step.path.clone(), op: step.op, command, fault }
    }
}

impl Step {
    /// A command that concerns all ranks.
    pub(crate) fn between(command: Between) -> Step {
        let (path, op) = ("ranks".to_string(), command.name());
        Step { path, op, cost: Cost::default(), commands: vec![Ready::Between(command)] }
    }

    /// `ranks`: those that joined, for commands that concern all of them.
    pub(crate) fn new(bind: Bind, modules: &mut Modules, ranks: Option<&Rc<Ranks>>) -> Result<Step, CudaError> {
        let Bind { path, op, cost, commands } = bind;
        let ready = |c| Ready::new(c, modules, ranks, (&path, op));
        let commands = commands.into_iter().map(ready).collect::<Result<_, _>>()?;
        Ok(Step { path, op, cost, commands })
    }
}

/// A place of the plan with its launches bound.
#[derive(Clone, Debug)]
pub(crate) struct Bindings {
    pub phase: usize,
    pub section: Section,
    pub binds: Vec<Bind>,
}

/// What binding a set of plans counts and collects.
#[derive(Clone, Debug, Default)]
pub(crate) struct Collected {
    pub constants: Vec<u8>,
    pub scratch_bytes: usize,
}

/// Binds every launch of a plan, and adds the upkeep of bf16 copies after what changes them.
pub(crate) fn bind_plan(plan: &Plan, map: &Map, (math, sms): (Math, u32), all: &mut Collected) -> Vec<Bindings> {
    let update = (0..plan.phases.len()).flat_map(|p| [(p, Section::Body), (p, Section::Update)]);
    let places = std::iter::once((0, Section::Prepare)).chain(update);
    let of_place = |(phase, section)| {
        let launches = plan.section(phase, section);
        let mut binds: Vec<Bind> = launches
            .iter()
            .map(|launch| {
                let addresses = map.addresses(plan, launch, section, all.constants.len());
                let Bound { commands, constants, scratch_bytes } = bind(launch, &addresses, math, sms);
                all.constants.extend(constants);
                all.constants.resize(all.constants.len().next_multiple_of(256), 0);
                all.scratch_bytes = all.scratch_bytes.max(scratch_bytes);
                Bind { path: launch.path.clone(), op: launch.op.name(), cost: launch.cost, commands }
            })
            .collect();
        let upkeep = match section {
            Section::Prepare => halve_prepared(plan, map, sms),
            Section::Update => halve_states(changed(launches, &map.halves), map, sms),
            Section::Body => None,
        };
        binds.extend(upkeep);
        Bindings { phase, section, binds }
    };
    places.map(of_place).collect()
}

/// The range of states with bf16 copies that the launches write.
fn changed(launches: &[Launch], halves: &Halves) -> Range<usize> {
    let states = launches.iter().flat_map(|l| &l.states).map(|s| s.loc.offset..s.loc.offset + s.shape.elements() * 4);
    let hit = states.filter(|s| s.start < halves.state.end && s.end > halves.state.start);
    let whole = hit.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or_default();
    whole.start.max(halves.state.start)..whole.end.min(halves.state.end)
}

/// Makes the bf16 copies of a range of states anew.
pub(crate) fn halve_states(range: Range<usize>, map: &Map, sms: u32) -> Option<Bind> {
    let to = map.bases[Region::HalfState] + (range.start.saturating_sub(map.halves.state.start) / 2) as Address;
    let from = map.bases[Region::State] + range.start as Address;
    halve("states", range, (to, from), sms)
}

/// The copies of what this plan prepared: the arena holds one plan's at a time.
fn halve_prepared(plan: &Plan, map: &Map, sms: u32) -> Option<Bind> {
    let filters = plan.launches.iter().filter_map(|l| filter(l).map(|i| &l.inputs[i]));
    let filters = filters.filter(|a| a.loc.arena == Arena::Prepared);
    let spans = filters.map(|a| a.loc.offset..a.loc.offset + a.shape.elements() * 4);
    let range = spans.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))?;
    let to = map.bases[Region::HalfPrepared] + ((range.start - map.halves.prepared.start) / 2) as Address;
    let from = map.bases[Region::Prepared] + range.start as Address;
    halve("prepared", range, (to, from), sms)
}

fn halve(what: &str, range: Range<usize>, (to, from): (Address, Address), sms: u32) -> Option<Bind> {
    if range.is_empty() {
        return None;
    }
    let elements = range.len() / 4;
    let cost = Cost { read: 4 * elements as u64, written: 2 * elements as u64, flops: 0 };
    let commands = vec![update::cast(to, from, elements, sms)];
    Some(Bind { path: format!("bf16 copies/{what}"), op: "cast", cost, commands })
}

/// Copies between the staging slot and a micro-batch's own, of what a body reads without making it, and of what it makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    pub read: Vec<Range<usize>>,
    pub made: Vec<Range<usize>>,
}

impl Carried {
    pub(crate) fn of(plan: &Plan, phase: usize) -> Carried {
        let span = |a: &Arg| a.loc.offset..(a.loc.offset + a.stored.elements() * a.dtype.size()).next_multiple_of(256);
        let (mut read, mut made) = (vec![], vec![]);
        for launch in plan.section(phase, Section::Body) {
            let carried =
                |args: &[Arg]| -> Vec<_> { args.iter().filter(|a| a.loc.arena == Arena::Carry).map(span).collect() };
            read.extend(carried(&launch.inputs).into_iter().filter(|r| !made.contains(r)));
            made.extend(carried(&launch.outputs));
        }
        Carried { read: merged(read), made: merged(made) }
    }
}

/// Ranges that touch, as one.
pub(crate) fn merged(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_by_key(|r| (r.start, r.end));
    let mut out: Vec<Range<usize>> = Vec::new();
    for r in ranges {
        match out.last_mut() {
            Some(last) if r.start <= last.end => last.end = last.end.max(r.end),
            _ => out.push(r),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::merged;

    #[test]
    fn ranges_that_touch_are_one() {
        assert_eq!(merged(vec![512..768, 0..256, 256..300, 1024..1100]), vec![0..300, 512..768, 1024..1100]);
        assert!(merged(vec![]).is_empty());
    }
}
