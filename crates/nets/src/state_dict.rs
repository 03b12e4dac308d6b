//! The state of a built network as its published PyTorch implementation lists it (`state_dict`).

use spec::{Graph, StateId, StateKind};
use tensor::{KRSC_TO_KCRS, Shape};

/// One entry of a `state_dict`.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Published name, without the module: `layer1.0.bn1.weight`.
    pub name: String,
    /// Published shape: filters are KCRS, where the state is KRSC.
    pub shape: Shape,
    pub value: EntryValue,
}

/// Where an entry's value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryValue {
    State(StateId),
    /// `num_batches_tracked`, i64: the program keeps none. A micro-batch of this graph adds `moves`, as often as it moves
    /// the running statistics; 0 in a graph that only reads them.
    Counter {
        moves: usize,
    },
}

/// The entries of a module (`student`, `teacher`) in the published order.
pub fn state_dict(graph: &Graph, module: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (i, state) in graph.states.iter().enumerate() {
        let name = state.name.strip_prefix(module).and_then(|rest| rest.strip_prefix('.'));
        let (Some(name), StateKind::Param | StateKind::Buffer) = (name, state.kind) else { continue };
        let filter = state.shape.rank() == 4;
        let shape = if filter { Shape::new(&KRSC_TO_KCRS.map(|axis| state.shape[axis])) } else { state.shape };
        let id = StateId(i as u32);
        entries.push(Entry { name: name.to_string(), shape, value: EntryValue::State(id) });
        if let Some(bn) = name.strip_suffix("running_var") {
            let uses = graph.bn_uses.iter().filter(|used| used.var == id);
            let moves = uses.map(|used| used.updates * graph.shape(used.stats[0])[0]).sum(); // statistics are [groups,c]
            let (name, shape) = (format!("{bn}num_batches_tracked"), Shape::new(&[]));
            entries.push(Entry { name, shape, value: EntryValue::Counter { moves } });
        }
    }
    entries
}
