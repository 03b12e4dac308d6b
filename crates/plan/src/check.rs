//! check: runs the plan on symbols. Memory is a map from byte ranges to the value and the micro-batch that wrote them;
//! every read must find exactly what the graph says it reads. It knows launches and addresses, nothing of liveness.

use crate::lower::{Arg, Launch, Plan};
use crate::place::Arena;
use graph::{Op, Section, Source, ValueId};
use std::collections::BTreeMap;
use thiserror::Error;

/// A buffer that is overwritten while it is still needed, or read before it was written: a bug in a pass.
#[derive(Debug, Error)]
#[error("plan: {path} ({op}) reads {value} at {arena:?}+{offset}: expected {expected}, found {found}")]
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
                memory.write(&plan.arg(input.value), (input.value, micro), micro);
            }
            memory.run(plan.section(phase, Section::Body), micro)?;
        }
        for (_, value, _) in plan.reduce.entries.iter().filter(|e| plan.reduce.phases[phase].contains(&e.2.start)) {
            memory.write(&plan.arg(*value), (*value, SUMMED), 0);
        }
        memory.run(plan.section(phase, Section::Update), SUMMED)?;
    }
    Ok(())
}

impl Memory<'_> {
    fn run(&mut self, launches: &[Launch], micro: usize) -> Result<(), CheckError> {
        for launch in launches {
            for arg in &launch.inputs {
                self.read(launch, arg, micro)?;
            }
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

    fn read(&self, launch: &Launch, arg: &Arg, micro: usize) -> Result<(), CheckError> {
        if arg.loc.arena == Arena::State {
            return Ok(()); // states hold the last commit, whoever made it
        }
        let (value, micros) = self.source(arg.value, micro);
        for m in micros {
            let (start, end) = self.range(arg, m);
            let found = self.written.range((arg.loc.arena, 0)..=(arg.loc.arena, start)).next_back();
            match found {
                Some((_, &(e, tag))) if e >= end && tag == (value, m) => {}
                _ if end == start => {}
                _ => {
                    let name = |v: ValueId| self.plan.graph.name(v);
                    let found = found.filter(|f| f.1.0 > start).map_or("nothing".to_string(), |(_, (_, t))| name(t.0));
                    return Err(CheckError {
                        path: launch.path.clone(),
                        op: launch.op.name(),
                        value: name(arg.value),
                        arena: arg.loc.arena,
                        offset: start,
                        expected: name(value),
                        found,
                    });
                }
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
                Op::Slice { .. } if crate::place::alias(&self.plan.graph, node).is_some() => {}
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
        (value, micros)
    }
}
