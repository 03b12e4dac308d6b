//! lower: the plan as executors run it: launches with addresses, grouped by section. Aliases need no launch.

use crate::bucket::ReduceLayout;
use crate::cost::{Cost, cost};
use crate::place::{Loc, Placement, alias};
use crate::step::{Phase, StepGraph};
use graph::{Graph, NodeId, Op, Place, Section, ValueId};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use tensor::{Dtype, Shape};

/// An operand of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Arg {
    pub value: ValueId,
    pub loc: Loc,
    pub shape: Shape,
    /// The shape in memory: an image may have a fourth channel of zeros.
    pub stored: Shape,
    pub dtype: Dtype,
}

#[derive(Clone, Debug)]
pub struct Launch {
    pub node: NodeId,
    pub op: Op,
    pub path: String,
    pub inputs: Vec<Arg>,
    pub outputs: Vec<Arg>,
    /// States that the op writes in place, in the order of `Op::states`.
    pub states: Vec<Arg>,
    pub cost: Cost,
}

/// A compiled step.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Identity in this process, for caches of executors.
    pub key: u64,
    pub graph: Graph,
    pub phases: Vec<Phase>,
    pub placement: Placement,
    pub reduce: ReduceLayout,
    pub launches: Vec<Launch>,
    sections: Vec<(Place, Range<usize>)>,
}

impl Plan {
    /// The launches of a place, in order.
    pub fn section(&self, phase: usize, section: Section) -> &[Launch] {
        let place = Place { phase: phase as u32, section };
        let range = self.sections.iter().find(|s| s.0 == place).map(|s| s.1.clone());
        &self.launches[range.unwrap_or(0..0)]
    }

    /// Where a value lies; it must be one that the plan still makes.
    pub fn loc(&self, value: ValueId) -> Loc {
        self.placement.locs[value.0 as usize].expect("a placed value")
    }

    /// The operand form of a value.
    pub fn arg(&self, value: ValueId) -> Arg {
        let graph::Value { shape, dtype, .. } = *self.graph.value(value);
        Arg { value, loc: self.loc(value), shape, stored: self.placement.stored[value.0 as usize], dtype }
    }
}

static NEXT_KEY: AtomicU64 = AtomicU64::new(0);

pub fn lower(step: StepGraph, placement: Placement, reduce: ReduceLayout) -> Plan {
    let StepGraph { graph, phases } = step;
    let key = NEXT_KEY.fetch_add(1, Ordering::Relaxed);
    let mut plan = Plan { key, graph, phases, placement, reduce, launches: vec![], sections: vec![] };
    for (id, node) in plan.graph.iter() {
        let in_place = node.op == Op::Accumulate;
        if alias(&plan.graph, node).is_some() && !in_place {
            continue;
        }
        let args = |ids: &[ValueId]| ids.iter().map(|&v| plan.arg(v)).collect();
        let states = node.op.states().into_iter().map(|s| {
            let graph::State { shape, dtype, .. } = *plan.graph.state(s);
            let (value, loc) = (ValueId(u32::MAX), plan.placement.states[s.0 as usize]);
            Arg { value, loc, shape, stored: shape, dtype }
        });
        let launch = Launch {
            node: id,
            op: node.op.clone(),
            path: node.path.clone(),
            inputs: args(&node.inputs),
            outputs: args(&node.outputs),
            states: states.collect(),
            cost: cost(&plan.graph, node, &plan.placement.stored),
        };
        let at = plan.launches.len();
        match plan.sections.last_mut() {
            Some((place, range)) if *place == node.place => range.end = at + 1,
            _ => plan.sections.push((node.place, at..at + 1)),
        }
        plan.launches.push(launch);
    }
    plan
}
