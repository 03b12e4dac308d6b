//! The graph: nodes in execution order over values with a shape and a dtype. Tables and `u32` ids, nothing shared.

use crate::infer::infer;
use crate::op::Op;
use tensor::{Dtype, Shape};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StateId(pub u32);
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u32);

impl SlotId {
    /// The learning rate.
    pub const LR: SlotId = SlotId(0);
    /// Units of the global batch, role 0 (the batch) and role 1 (the previous batch).
    pub const UNITS: [SlotId; 2] = [SlotId(1), SlotId(2)];
    /// Decay of the weights' moving average.
    pub const EMA_DECAY: SlotId = SlotId(3);
}

/// How many rows of axis 0 a value has per unit of each role; all zero when axis 0 is no batch axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Rows(pub [u32; 2]);

/// Dtypes of a step. Activations follow the precision; logits, losses, statistics, gradients of parameters and state do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    F64,
    F32,
    Tf32,
    Bf16,
}

impl Precision {
    /// Dtype of activations and their gradients.
    pub fn act(self) -> Dtype {
        match self {
            Precision::F64 => Dtype::F64,
            Precision::F32 | Precision::Tf32 => Dtype::F32,
            Precision::Bf16 => Dtype::Bf16,
        }
    }

    /// Dtype of logits, losses, statistics, parameter gradients and state.
    pub fn acc(self) -> Dtype {
        match self {
            Precision::F64 => Dtype::F64,
            _ => Dtype::F32,
        }
    }
}

/// When a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Section {
    /// Once after the state was loaded: what depends on frozen state alone.
    Prepare,
    /// Once per micro-batch.
    Body,
    /// Once per step, after the micro-batches and ranks were summed.
    Update,
}

/// A phase and its section. Phases run in order; `Prepare` has phase 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    pub phase: u32,
    pub section: Section,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Node(NodeId, u32),
    /// Index into `Graph::batch`.
    Batch(u32),
    State(StateId),
    /// Nothing any more: a pass dropped or replaced the node.
    Dropped,
}

#[derive(Clone, Debug)]
pub struct Value {
    pub shape: Shape,
    pub dtype: Dtype,
    pub rows: Rows,
    pub source: Source,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub op: Op,
    pub inputs: Vec<ValueId>,
    pub outputs: Vec<ValueId>,
    /// `student/layer3.0/conv2`: reaches errors, profiles and the printed plan.
    pub path: String,
    pub place: Place,
}

/// What a state is for; the optimizer, checkpoints and deployed models ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StateKind {
    Param,
    /// Running mean or variance.
    Buffer,
    Momentum,
    Ema,
    /// Rolling or per-sample state of a method.
    Memory,
    /// A copy taken after loading, never written again (weight anchors).
    Anchor,
}

/// The initial value of a state.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    Const(f64),
    /// Uniform in ±bound.
    Uniform(f64),
    Normal(f64),
    /// A copy of another state as it is after loading.
    CopyOf(StateId),
}

#[derive(Clone, Debug)]
pub struct State {
    /// `student.layer1.0.conv1.weight`: the part before the first dot is the module, the rest the published name.
    pub name: String,
    pub shape: Shape,
    pub dtype: Dtype,
    pub kind: StateKind,
    pub init: Init,
}

/// A value that the data side delivers for each micro-batch.
#[derive(Clone, Debug)]
pub struct BatchInput {
    pub name: String,
    pub value: ValueId,
}

/// A batch norm that takes statistics: its running mean and variance move at the end of the phase.
#[derive(Clone, Copy, Debug)]
pub struct BnUse {
    pub mean: StateId,
    pub var: StateId,
    /// Mean and unbiased variance of the batch.
    pub stats: [ValueId; 2],
    pub updates: usize,
}

#[derive(Clone, Debug)]
pub struct Graph {
    pub precision: Precision,
    pub values: Vec<Value>,
    pub nodes: Vec<Node>,
    pub states: Vec<State>,
    pub batch: Vec<BatchInput>,
    pub bn_uses: Vec<BnUse>,
    /// Names of the scalars, by `SlotId`.
    pub slots: Vec<String>,
    /// Units of a micro-batch, per role.
    pub units: [usize; 2],
    /// Most units of a global batch: rows of rolling state.
    pub rolling_units: usize,
}

impl Graph {
    pub fn new(precision: Precision, units: [usize; 2]) -> Graph {
        let slots = ["lr", "units", "units.previous", "ema_decay"].map(String::from).to_vec();
        Graph {
            precision,
            values: vec![],
            nodes: vec![],
            states: vec![],
            batch: vec![],
            bn_uses: vec![],
            slots,
            units,
            rolling_units: units[0],
        }
    }

    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub fn state(&self, id: StateId) -> &State {
        &self.states[id.0 as usize]
    }

    pub fn shape(&self, id: ValueId) -> Shape {
        self.value(id).shape
    }

    /// The node that makes the value, if a node does.
    pub fn producer(&self, id: ValueId) -> Option<&Node> {
        match self.value(id).source {
            Source::Node(node, _) => Some(self.node(node)),
            _ => None,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(i, node)| (NodeId(i as u32), node))
    }

    /// Readers of each value, in execution order; a node that reads a value twice is listed twice.
    pub fn readers(&self) -> Vec<Vec<NodeId>> {
        let mut readers = vec![Vec::new(); self.values.len()];
        for (id, node) in self.iter() {
            for input in &node.inputs {
                readers[input.0 as usize].push(id);
            }
        }
        readers
    }

    /// Appends a node and its outputs. Panics, naming the node and its shapes, when the op does not take the inputs:
    /// that is a mistake of the code that builds the graph, never of its user.
    #[track_caller]
    pub fn push(&mut self, op: Op, inputs: &[ValueId], path: &str, place: Place) -> Vec<ValueId> {
        let outputs = match infer(self, &op, inputs) {
            Ok(outputs) => outputs,
            Err(why) => {
                let shapes: Vec<_> = inputs.iter().map(|&i| self.shape(i).to_string()).collect();
                panic!("{path}: {op} does not take {}: {why}", shapes.join(", "))
            }
        };
        let id = NodeId(self.nodes.len() as u32);
        let rows = self.rows_of(&op, inputs);
        let mut ids = Vec::with_capacity(outputs.len());
        for (k, (shape, dtype)) in outputs.into_iter().enumerate() {
            let full = shape.dims().first().is_some_and(|&n| n == self.count_rows(rows) && n > 0);
            let rows = if full { rows } else { Rows::default() };
            ids.push(self.add_value(Value { shape, dtype, rows, source: Source::Node(id, k as u32) }));
        }
        self.nodes.push(Node { op, inputs: inputs.to_vec(), outputs: ids.clone(), path: path.to_string(), place });
        ids
    }

    pub fn add_value(&mut self, value: Value) -> ValueId {
        self.values.push(value);
        ValueId(self.values.len() as u32 - 1)
    }

    pub fn add_state(&mut self, state: State) -> StateId {
        self.states.push(state);
        StateId(self.states.len() as u32 - 1)
    }

    pub fn find_state(&self, name: &str) -> Option<StateId> {
        self.states.iter().position(|s| s.name == name).map(|i| StateId(i as u32))
    }

    /// A value that reads the state, made once per state and place of use.
    pub fn read(&mut self, state: StateId) -> ValueId {
        if let Some(i) = self.values.iter().position(|v| v.source == Source::State(state)) {
            return ValueId(i as u32);
        }
        let State { shape, dtype, .. } = *self.state(state);
        self.add_value(Value { shape, dtype, rows: Rows::default(), source: Source::State(state) })
    }

    pub fn add_slot(&mut self, name: &str) -> SlotId {
        let found = self.slots.iter().position(|s| s == name);
        SlotId(found.unwrap_or_else(|| {
            self.slots.push(name.to_string());
            self.slots.len() - 1
        }) as u32)
    }

    /// Rows of axis 0 in a micro-batch of this graph.
    pub fn count_rows(&self, rows: Rows) -> usize {
        (0..2).map(|r| rows.0[r] as usize * self.units[r]).sum()
    }

    /// The graph with other nodes over the same values: ids of values never change, so whoever holds one keeps it.
    /// Nodes are put in order of place and, within a place, moved back only as far as their inputs demand.
    pub fn with_nodes(&self, nodes: Vec<Node>) -> Graph {
        let mut graph = self.clone();
        for value in &mut graph.values {
            if let Source::Node(..) = value.source {
                value.source = Source::Dropped;
            }
        }
        graph.nodes = sorted(nodes, graph.values.len());
        for (i, node) in graph.nodes.iter().enumerate() {
            for (k, output) in node.outputs.iter().enumerate() {
                graph.values[output.0 as usize].source = Source::Node(NodeId(i as u32), k as u32);
            }
        }
        graph
    }

    /// The graph without nodes whose outputs neither a kept node nor `roots` read; nodes without outputs are kept.
    pub fn pruned(&self, roots: &[ValueId]) -> Graph {
        let mut live = vec![false; self.values.len()];
        roots.iter().for_each(|r| live[r.0 as usize] = true);
        let mut kept: Vec<Node> = Vec::with_capacity(self.nodes.len());
        for node in self.nodes.iter().rev() {
            if node.outputs.is_empty() || node.outputs.iter().any(|o| live[o.0 as usize]) {
                node.inputs.iter().for_each(|i| live[i.0 as usize] = true);
                kept.push(node.clone());
            }
        }
        kept.reverse();
        self.with_nodes(kept)
    }

    fn rows_of(&self, op: &Op, inputs: &[ValueId]) -> Rows {
        use crate::op::Axis;
        let rows = |i: usize| self.value(inputs[i]).rows;
        match op {
            Op::Concat { axis: Axis::Batch } => inputs.iter().fold(Rows::default(), |sum, &i| {
                let r = self.value(i).rows;
                Rows([sum.0[0] + r.0[0], sum.0[1] + r.0[1]])
            }),
            Op::Slice { axis: Axis::Batch, len, .. } => {
                let role = usize::from(rows(0).0[0] == 0);
                let mut sliced = Rows::default();
                if rows(0) != Rows::default() && self.units[role] > 0 && len % self.units[role] == 0 {
                    sliced.0[role] = (len / self.units[role]) as u32;
                }
                sliced
            }
            Op::GatherRows => rows(1),
            _ => inputs.iter().map(|&i| self.value(i).rows).find(|r| *r != Rows::default()).unwrap_or_default(),
        }
    }
}

/// Nodes by place; within a place in the given order, except that a node waits for its inputs.
fn sorted(mut nodes: Vec<Node>, values: usize) -> Vec<Node> {
    nodes.sort_by_key(|n| n.place);
    let mut producer = vec![usize::MAX; values];
    for (i, node) in nodes.iter().enumerate() {
        node.outputs.iter().for_each(|o| producer[o.0 as usize] = i);
    }
    let mut order = Vec::with_capacity(nodes.len());
    let mut seen = vec![false; nodes.len()];
    let mut stack = Vec::new();
    for start in 0..nodes.len() {
        stack.push((start, 0));
        while let Some((i, next)) = stack.pop() {
            if next == 0 && std::mem::replace(&mut seen[i], true) {
                continue;
            }
            match nodes[i].inputs.get(next) {
                None => order.push(i),
                Some(input) => {
                    stack.push((i, next + 1));
                    let from = producer[input.0 as usize];
                    if from != usize::MAX && !seen[from] {
                        stack.push((from, 0));
                    }
                }
            }
        }
    }
    let mut slots: Vec<_> = nodes.into_iter().map(Some).collect();
    order.into_iter().map(|i| slots[i].take().expect("each node is ordered once")).collect()
}
