//! check: runs the plan on symbols. Memory is a map from byte ranges to the value and the micro-batch that wrote them;
//! every read, those of the reduction and of the host included, must find exactly what the graph says it reads, and what
//! a launch writes must lie in its arena, apart from what it reads. It knows launches and addresses, nothing of liveness.

use crate::lower::{Arg, Launch, Plan};
use crate::place::{Arena, Loc, alias};
use crate::step::Phase;
use graph::{Op, Section, ValueId};
use std::collections::BTreeMap;
use thiserror::Error;

/// A buffer that is overwritten while it is still needed, read before it was written, or outside its arena: a bug in a
/// pass.
#[derive(Debug, Error)]
#[error("plan: {by}: {value} at {arena:?}+{offset}: expected {expected}, found {found}")]
pub struct CheckError {
    /// The path and the op of the reader or writer.
    pub by: String,
    pub value: String,
    pub arena: Arena,
    pub offset: usize,
    pub expected: String,
    pub found: String,
}

/// Who wrote a range: a value, and for bodies the micro-batch.
type Tag = (ValueId, usize);
/// What holds once micro-batches are summed.
const SUMMED: usize = usize::MAX;

struct Memory<'a> {
    plan: &'a Plan,
    written: BTreeMap<(Arena, usize), (usize, Tag)>,
}

/// Proves that no buffer is overwritten while it is needed and every read was written, for two micro-batches.
pub fn check(plan: &Plan) -> Result<(), CheckError> {
    let mut memory = Memory { plan, written: BTreeMap::new() };
    memory.addresses()?;
    memory.run(plan.section(0, Section::Prepare), 0)?;
    for phase in 0..plan.phases.len() {
        for micro in 0..2 {
            for input in &plan.graph.batch {
                memory.write(&plan.arg(input.value), (input.value, micro), micro);
            }
            for input in &plan.graph.batch {
                memory.read((&input.name, "input"), &plan.arg(input.value), micro)?; // they are filled in any order
            }
            memory.run(plan.section(phase, Section::Body), micro)?;
            for value in reduced(plan, phase) {
                memory.read(("reduction", "read"), &plan.arg(value), micro)?;
            }
        }
        for value in reduced(plan, phase) {
            memory.write(&plan.arg(value), (value, SUMMED), 0);
        }
        memory.run(plan.section(phase, Section::Update), SUMMED)?;
    }
    for value in plan.phases.iter().flat_map(Phase::held) {
        if let Some(node) = plan.graph.producer(value) {
            let micro = if node.place.section == Section::Update { SUMMED } else { 1 };
            memory.read(("host", "read"), &plan.arg(value), micro)?;
        }
    }
    Ok(())
}

/// Values of the reduce arena that a phase makes.
fn reduced(plan: &Plan, phase: usize) -> impl Iterator<Item = ValueId> {
    let range = plan.reduce.phases[phase].clone();
    plan.reduce.entries.iter().filter(move |e| range.contains(&e.2.start)).map(|e| e.1)
}

impl Memory<'_> {
    fn run(&mut self, launches: &[Launch], micro: usize) -> Result<(), CheckError> {
        for launch in launches {
            let by = (launch.path.as_str(), launch.op.name());
            for arg in &launch.inputs {
                self.read(by, arg, micro)?;
            }
            for arg in &launch.outputs {
                self.write(arg, (arg.value, micro), micro);
            }
            // What it writes lies apart from all else that it reads and writes; `Accumulate` alone works in place.
            let apart = &launch.inputs[usize::from(launch.op == Op::Accumulate)..];
            for arg in apart.iter().chain(&launch.outputs) {
                self.read(by, arg, micro)?;
            }
        }
        Ok(())
    }

    /// The range of an operand; carried values have a slot per micro-batch.
    fn range(&self, arg: &Arg, micro: usize) -> (usize, usize) {
        let slot = if arg.loc.arena == Arena::Carry && micro != SUMMED { micro } else { 0 };
        let start = arg.loc.offset + slot * self.plan.placement.layout.carry_bytes;
        (start, start + self.plan.placement.storage.size(arg.stored, arg.dtype))
    }

    /// Whether every value ends inside its arena and every view lies where its rows do.
    fn addresses(&self) -> Result<(), CheckError> {
        let (by, p) = (("plan", "place"), &self.plan.placement);
        let size = |arg: &Arg| p.storage.size(arg.stored, arg.dtype);
        for id in (0..p.locs.len()).filter(|&i| p.locs[i].is_some()).map(|i| ValueId(i as u32)) {
            let arg = self.plan.arg(id);
            let (end, bytes) = (arg.loc.offset + size(&arg), p.bytes(arg.loc.arena));
            if end > bytes {
                return Err(self.error(by, &arg, format!("an end within {bytes}"), end.to_string()));
            }
            let view = self.plan.graph.producer(id).and_then(|node| alias(&self.plan.graph, node));
            if let Some((base, start)) = view.map(|(base, start)| (self.plan.arg(base), start)) {
                let row = size(&base) / base.shape.dims().first().map_or(1, |&rows| rows.max(1));
                if arg.loc != (Loc { offset: base.loc.offset + start * row, ..base.loc }) {
                    let expected = format!("row {start} of {}", self.plan.graph.name(base.value));
                    return Err(self.error(by, &arg, expected, "another place".into()));
                }
            }
        }
        Ok(())
    }

    fn error(&self, by: (&str, &str), arg: &Arg, expected: String, found: String) -> CheckError {
        let (by, value, Loc { arena, offset }) =
            (format!("{} ({})", by.0, by.1), self.plan.graph.name(arg.value), arg.loc);
        CheckError { by, value, arena, offset, expected, found }
    }

    fn write(&mut self, arg: &Arg, tag: Tag, micro: usize) {
        let (start, end) = self.range(arg, micro);
        let arena = arg.loc.arena;
        let hit: Vec<_> =
            self.written.range((arena, 0)..(arena, end)).filter(|(_, v)| v.0 > start).map(|(k, v)| (*k, *v)).collect();
        for ((_, s), (e, old)) in hit {
            self.written.remove(&(arena, s));
            if s < start {
                self.written.insert((arena, s), (start, old));
            }
            if e > end {
                self.written.insert((arena, end), (e, old));
            }
        }
        if end > start {
            self.written.insert((arena, start), (end, tag));
        }
    }

    fn read(&self, by: (&str, &str), arg: &Arg, micro: usize) -> Result<(), CheckError> {
        if arg.loc.arena == Arena::State {
            return Ok(()); // states hold the last commit, whoever made it
        }
        let (value, micros) = self.source(arg.value, micro);
        for m in micros {
            let (start, end) = self.range(arg, m);
            let found = self.written.range((arg.loc.arena, 0)..=(arg.loc.arena, start)).next_back();
            if end > start && !found.is_some_and(|(_, &(e, tag))| e >= end && tag == (value, m)) {
                let name = |v: ValueId| self.plan.graph.name(v);
                let found = found.filter(|f| f.1.0 > start).map_or("nothing".to_string(), |(_, (_, t))| name(t.0));
                return Err(self.error(by, arg, name(value), found));
            }
        }
        Ok(())
    }

    /// The value that a name stands for, through aliases, and the micro-batches whose copies are read.
    fn source(&self, mut value: ValueId, micro: usize) -> (ValueId, Vec<usize>) {
        let mut micros = vec![micro];
        while let Some(node) = self.plan.graph.producer(value) {
            match node.op {
                Op::Reduce => micros = vec![SUMMED],
                Op::Carry => micros = vec![0, 1],
                Op::Slice { .. } if alias(&self.plan.graph, node).is_some() => {}
                _ => break,
            }
            value = node.inputs[0];
        }
        if let Some(node) = self.plan.graph.producer(value)
            && node.place.section == Section::Prepare
        {
            micros = vec![0];
        }
        (value, micros)
    }
}
