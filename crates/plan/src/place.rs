//! place: an address for every value. States lie in a table that all plans of a run share; what is reduced or carried
//! lies in arenas of its own; the rest shares the work arena by liveness. Compute and communication never share memory.
//!
//! In: an ordered graph and the reduce layout. Out: a location per value; the graph is unchanged.

use crate::bucket::ReduceLayout;
use crate::live::{Life, lifetimes};
use crate::step::StepGraph;
use graph::{Axis, Graph, Init, Node, Op, Section, Source, State, StateId, StateKind, ValueId};
use std::collections::HashMap;
use tensor::{Dtype, Shape};

/// What bytes a dtype takes: the CPU stores every float in the type it computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    CpuF32,
    CpuF64,
    Device,
}

impl Storage {
    pub fn bytes(self, dtype: Dtype) -> usize {
        let float = matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::Bf16);
        match self {
            Storage::CpuF32 if float => 4,
            Storage::CpuF64 if float => 8,
            _ => dtype.size(),
        }
    }

    pub fn size(self, shape: Shape, dtype: Dtype) -> usize {
        shape.elements() * self.bytes(dtype)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arena {
    State,
    Batch,
    /// Made once from frozen state; of this plan.
    Prepared,
    /// Loss values and gradients, summed over micro-batches and ranks.
    Reduce,
    /// One slot per micro-batch.
    Carry,
    Work,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Loc {
    pub arena: Arena,
    /// Bytes.
    pub offset: usize,
}

/// A state of the run and where it lies.
#[derive(Clone, Debug)]
pub struct StateEntry {
    pub name: String,
    pub shape: Shape,
    pub dtype: Dtype,
    pub kind: StateKind,
    pub init: Init,
    /// Name of the state that `Init::CopyOf` means.
    pub copy_of: Option<String>,
    pub offset: usize,
}

/// The states of a run, by name; every plan of the run finds its own in it.
#[derive(Clone, Debug, Default)]
pub struct StateTable {
    pub entries: Vec<StateEntry>,
    pub bytes: usize,
    index: HashMap<String, usize>,
}

impl StateTable {
    pub fn find(&self, name: &str) -> Option<&StateEntry> {
        self.index.get(name).map(|&i| &self.entries[i])
    }

    fn locate(&mut self, graph: &Graph, id: StateId, storage: Storage) -> Loc {
        let state = graph.state(id);
        if self.find(&state.name).is_none() {
            let State { name, shape, dtype, kind, init } = state.clone();
            let copy_of = if let Init::CopyOf(of) = init { Some(graph.state(of).name.clone()) } else { None };
            let bytes = storage.size(shape, dtype).next_multiple_of(ALIGN);
            self.index.insert(name.clone(), self.entries.len());
            self.entries.push(StateEntry { name, shape, dtype, kind, init, copy_of, offset: self.bytes });
            self.bytes += bytes;
        }
        Loc { arena: Arena::State, offset: self.entries[self.index[&state.name]].offset }
    }
}

/// What bodies of different shapes share: places in the reduce and carry arenas, by name, in bytes.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    pub reduce: HashMap<String, usize>,
    pub carry: HashMap<String, usize>,
    pub reduce_bytes: usize,
    /// Bytes of one micro-batch's slot.
    pub carry_bytes: usize,
}

#[derive(Clone, Debug)]
pub struct Placement {
    pub locs: Vec<Option<Loc>>,
    pub stored: Vec<Shape>,
    pub states: Vec<Loc>,
    pub layout: Layout,
    pub work_bytes: usize,
    pub batch_bytes: usize,
    pub prepared_bytes: usize,
    pub storage: Storage,
}

impl Placement {
    /// Bytes of an arena, one slot of those with several; that of states is the table's.
    pub fn bytes(&self, arena: Arena) -> usize {
        match arena {
            Arena::State => usize::MAX,
            Arena::Batch => self.batch_bytes,
            Arena::Prepared => self.prepared_bytes,
            Arena::Reduce => self.layout.reduce_bytes,
            Arena::Carry => self.layout.carry_bytes,
            Arena::Work => self.work_bytes,
        }
    }
}

pub(crate) const ALIGN: usize = 256;

pub fn place(
    step: &StepGraph,
    reduce: &ReduceLayout,
    storage: Storage,
    table: &mut StateTable,
    shared: Option<&Layout>,
) -> Placement {
    let graph = &step.graph;
    let states = locate_states(graph, storage, table);
    let layout = shared.cloned().unwrap_or_else(|| new_layout(step, reduce, storage));
    let mut locs: Vec<Option<Loc>> = vec![None; graph.values.len()];
    let stored = crate::stored::stored(step, storage);
    let size = |v: ValueId| storage.size(stored[v.0 as usize], graph.value(v).dtype);
    let (mut batch_bytes, mut prepared_bytes) = (0, 0);
    let bump = |arena, total: &mut usize, bytes: usize| {
        let offset = *total;
        *total += bytes.next_multiple_of(ALIGN);
        Some(Loc { arena, offset })
    };
    for (i, value) in graph.values.iter().enumerate() {
        locs[i] = match value.source {
            Source::State(s) => Some(states[s.0 as usize]),
            Source::Batch(_) => bump(Arena::Batch, &mut batch_bytes, size(ValueId(i as u32))),
            Source::Node(n, _) if graph.node(n).place.section == Section::Prepare => {
                bump(Arena::Prepared, &mut prepared_bytes, size(ValueId(i as u32)))
            }
            _ => None,
        };
    }
    for (name, value, _) in &reduce.entries {
        locs[value.0 as usize] = layout.reduce.get(name).map(|&offset| Loc { arena: Arena::Reduce, offset });
    }
    for (name, value) in carried(graph) {
        locs[value.0 as usize] = layout.carry.get(&name).map(|&offset| Loc { arena: Arena::Carry, offset });
    }
    let lives = lifetimes(graph, &step.phases, |v| locs[v.0 as usize].is_none());
    let (offsets, work_bytes) = pack(&lives, |v| size(v).next_multiple_of(ALIGN));
    for (value, offset) in offsets {
        locs[value.0 as usize] = Some(Loc { arena: Arena::Work, offset });
    }
    for node in &graph.nodes {
        if let Some((base, start)) = alias(graph, node) {
            let row = size(base) / graph.shape(base).dims().first().copied().unwrap_or(1).max(1);
            let at = locs[base.0 as usize].map(|loc| Loc { offset: loc.offset + start * row, ..loc });
            locs[node.outputs[0].0 as usize] = at;
        }
    }
    Placement { locs, stored, states, layout, work_bytes, batch_bytes, prepared_bytes, storage }
}

/// States in the order of the optimizer first, so that a range of parameters is a slice.
fn locate_states(graph: &Graph, storage: Storage, table: &mut StateTable) -> Vec<Loc> {
    for node in &graph.nodes {
        let params = node.op.trained();
        for state in params.iter().map(|p| p.param).chain(params.iter().map(|p| p.momentum)) {
            table.locate(graph, state, storage);
        }
    }
    (0..graph.states.len()).map(|i| table.locate(graph, StateId(i as u32), storage)).collect()
}

fn new_layout(step: &StepGraph, reduce: &ReduceLayout, storage: Storage) -> Layout {
    let element = storage.bytes(step.graph.precision.acc());
    let mut layout = Layout { reduce_bytes: reduce.elements * element, ..Layout::default() };
    layout.reduce = reduce.entries.iter().map(|(name, _, range)| (name.clone(), range.start * element)).collect();
    for (name, value) in carried(&step.graph) {
        let bytes = storage.size(step.graph.shape(value), step.graph.value(value).dtype);
        layout.carry.insert(name, layout.carry_bytes);
        layout.carry_bytes += bytes.next_multiple_of(ALIGN);
    }
    layout
}

/// Values that the update sees once per micro-batch, with names that do not depend on their shape.
fn carried(graph: &Graph) -> Vec<(String, ValueId)> {
    let mut seen = std::collections::HashSet::new();
    let mut values = Vec::new();
    for node in graph.nodes.iter().filter(|n| n.op == Op::Carry && seen.insert(n.inputs[0])) {
        let Source::Node(_, k) = graph.value(node.inputs[0]).source else { continue }; // `optimize` copies the rest
        let repeats = values.iter().filter(|(name, _): &&(String, ValueId)| name.starts_with(&node.path)).count();
        values.push((format!("{}#{}.{k}.{repeats}", node.path, node.place.phase), node.inputs[0]));
    }
    values
}

/// The value whose memory the node's output is, and the first row of it; such a node needs no launch.
pub(crate) fn alias(graph: &Graph, node: &Node) -> Option<(ValueId, usize)> {
    match node.op {
        Op::Reduce | Op::Carry | Op::Accumulate => Some((node.inputs[0], 0)),
        Op::Slice { axis: Axis::Batch, start, .. } => {
            let moved = |n: &Node| matches!(n.op, Op::Reduce | Op::Carry) && n.inputs[0] == node.outputs[0];
            (!graph.nodes.iter().any(moved)).then_some((node.inputs[0], start))
        }
        _ => None,
    }
}

/// Offsets such that values that live together do not overlap: the largest first, each as low as it fits.
fn pack(lives: &[Life], size: impl Fn(ValueId) -> usize) -> (Vec<(ValueId, usize)>, usize) {
    let mut by_size: Vec<&Life> = lives.iter().collect();
    by_size.sort_by_key(|l| (std::cmp::Reverse(size(l.value)), l.start, l.value));
    let mut placed: Vec<(usize, usize, &Life)> = Vec::with_capacity(lives.len());
    let mut total = 0;
    for life in by_size {
        let bytes = size(life.value);
        let mut offset = 0;
        for &(begin, end, _) in placed.iter().filter(|(_, _, l)| l.start <= life.end && life.start <= l.end) {
            if offset + bytes <= begin {
                break;
            }
            offset = offset.max(end);
        }
        let at = placed.partition_point(|p| p.0 < offset);
        placed.insert(at, (offset, offset + bytes, life));
        total = total.max(offset + bytes);
    }
    (placed.iter().map(|&(offset, _, life)| (life.value, offset)).collect(), total)
}
