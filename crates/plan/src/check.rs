//! check: runs the plan on symbols. Memory is a map from byte ranges to the value and the micro-batch that wrote them;
//! every read, those of the reduction and of the host included, must find exactly what the graph says it reads, and what
//! a launch writes must lie in its arena, apart from what it reads. It knows launches and addresses, nothing of liveness.

use crate::lower::{Arg, Launch, Plan};
use crate::place::Arena;
use graph::{Op, Section, Source, ValueId};
use std::collections::BTreeMap;
use thiserror::Error;

/// A buffer that is overwritten while it is still needed, read before it was written, or outside its arena: a bug in a
/// pass.
#[derive(Debug, Error)]
#[error("plan: {path} ({op}): {value} at {arena:?}+{offset}: expected {expected}, found {found}")]
pub struct CheckError {
    pub path: String,
    pub op: &'static str,
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

/// Who reads: a path and an op.
type Reader<'a> = (&'a str, &'static str);

struct Memory<'a> {
    plan: &'a Plan,
    written: BTreeMap<(Arena, usize), (usize, Tag)>,
}

/// Proves that no buffer is overwritten while it is needed and every read was written, for two micro-batches.
pub fn check(plan: &Plan) -> Result<(), CheckError> {
    let mut memory = Memory { plan, written: BTreeMap::new() };
    memory.run(plan.section(0, Section::Prepare), 0)?;
    for phase in 0..plan.phases.len() {
        for micro in 0..2 {
            for input in &plan.graph.batch {
                let arg = plan.arg(input.value);
                memory.inside((&input.name, "input"), &arg)?;
                memory.write(&arg, (input.value, micro), micro);
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
    for phase in &plan.phases {
        let sums =
            phase.reduced.iter().map(|r| (r.1, SUMMED)).chain(phase.norm.into_iter().flatten().map(|v| (v, SUMMED)));
        let outputs = phase.losses.outputs.iter().map(|o| (o.1, 1));
        for (value, micro) in sums.chain(outputs).filter(|(v, _)| plan.graph.producer(*v).is_some()) {
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
            self.apart(by, launch, micro)?;
            for arg in &launch.outputs {
                self.write(arg, (arg.value, micro), micro);
            }
        }
        Ok(())
    }

    /// The range of an operand; carried values have a slot per micro-batch.
    fn range(&self, arg: &Arg, micro: usize) -> (usize, usize) {
        let slot = if arg.loc.arena == Arena::Carry && micro != SUMMED { micro } else { 0 };
        let start = arg.loc.offset + slot * self.plan.placement.layout.carry_bytes;
        (start, start + self.plan.placement.storage.size(arg.shape, arg.dtype))
    }

    /// Whether a value lies inside its arena; that of states grows with the table.
    fn inside(&self, by: Reader<'_>, arg: &Arg) -> Result<(), CheckError> {
        let p = &self.plan.placement;
        let bytes = match arg.loc.arena {
            Arena::State => return Ok(()),
            Arena::Batch => p.batch_bytes,
            Arena::Prepared => p.prepared_bytes,
            Arena::Reduce => p.layout.reduce_bytes,
            Arena::Carry => p.layout.carry_bytes,
            Arena::Work => p.work_bytes,
        };
        let end = arg.loc.offset + p.storage.size(arg.shape, arg.dtype);
        if end <= bytes { Ok(()) } else { Err(self.error(by, arg, format!("an end within {bytes}"), end.to_string())) }
    }

    /// Whether what a launch writes lies inside its arena and apart from all else that it reads and writes. `Accumulate`
    /// alone works in place.
    fn apart(&self, by: Reader<'_>, launch: &Launch, micro: usize) -> Result<(), CheckError> {
        let in_place = usize::from(launch.op == Op::Accumulate);
        let reads = &launch.inputs[in_place..];
        for (i, output) in launch.outputs.iter().enumerate() {
            if let Some(sum) = launch.inputs[..in_place].iter().find(|sum| sum.loc != output.loc) {
                let expected = format!("the place of {}", self.plan.graph.name(sum.value));
                return Err(self.error(by, output, expected, "another place".into()));
            }
            self.inside(by, output)?;
            let (start, end) = self.range(output, micro);
            for other in reads.iter().chain(&launch.outputs[..i]) {
                let (s, e) = self.range(other, micro);
                if other.loc.arena == output.loc.arena && start < e && s < end {
                    let expected = "memory of its own".to_string();
                    return Err(self.error(by, output, expected, self.plan.graph.name(other.value)));
                }
            }
        }
        Ok(())
    }

    fn error(&self, by: Reader<'_>, arg: &Arg, expected: String, found: String) -> CheckError {
        let (value, path, op) = (self.plan.graph.name(arg.value), by.0.to_string(), by.1);
        CheckError { path, op, value, arena: arg.loc.arena, offset: arg.loc.offset, expected, found }
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

    fn read(&self, by: Reader<'_>, arg: &Arg, micro: usize) -> Result<(), CheckError> {
        if arg.loc.arena == Arena::State {
            return Ok(()); // states hold the last commit, whoever made it
        }
        let (value, skipped, micros) = self.source(arg.value, micro);
        let at = self.plan.loc(value).offset + skipped;
        if arg.loc.offset != at {
            return Err(self.error(
                by,
                arg,
                format!("{} from {at}", self.plan.graph.name(value)),
                "another place".into(),
            ));
        }
        for m in micros {
            let (start, end) = self.range(arg, m);
            let found = self.written.range((arg.loc.arena, 0)..=(arg.loc.arena, start)).next_back();
            match found {
                Some((_, &(e, tag))) if e >= end && tag == (value, m) => {}
                _ if end == start => {}
                _ => {
                    let name = |v: ValueId| self.plan.graph.name(v);
                    let found = found.filter(|f| f.1.0 > start).map_or("nothing".to_string(), |(_, (_, t))| name(t.0));
                    return Err(self.error(by, arg, name(value), found));
                }
            }
        }
        Ok(())
    }

    /// The value that a name stands for, through aliases, the bytes of it that are skipped, and the micro-batches whose
    /// copies are read.
    fn source(&self, mut value: ValueId, micro: usize) -> (ValueId, usize, Vec<usize>) {
        let (mut micros, mut skipped) = (vec![micro], 0);
        while let Some(node) = self.plan.graph.producer(value) {
            match node.op {
                Op::Reduce => micros = vec![SUMMED],
                Op::Carry => micros = vec![0, 1],
                Op::Slice { start, .. } if crate::place::alias(&self.plan.graph, node).is_some() => {
                    let base = self.plan.arg(node.inputs[0]);
                    let rows = base.shape.dims()[0].max(1);
                    skipped += start * (self.plan.placement.storage.size(base.shape, base.dtype) / rows);
                }
                _ => break,
            }
            value = node.inputs[0];
        }
        if let Some(node) = self.plan.graph.producer(value)
            && node.place.section == Section::Prepare
        {
            micros = vec![0];
        }
        debug_assert!(!matches!(self.plan.graph.value(value).source, Source::Dropped));
        (value, skipped, micros)
    }
}
