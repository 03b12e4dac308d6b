//! Planted faults of placement: the checker finds those that matter and no others.
//!
//! Which fault matters is decided here from the graph, by comparing pairs of values: a value lives from the launch that
//! makes it to the last that reads it or a view of it (to the end if the host reads it; through its phase if it is summed
//! or carried over micro-batches; always if it is an input or prepared). A fault matters if two values that live together,
//! ends included, share bytes, if a view lies elsewhere than its rows, or if a value ends outside its arena. States are left
//! out: their table only grows.

use crate::random::random_step;
use crate::rng::Rng;
use crate::support::options;
use plan::{Arena, Fusion, Loc, Placement, ReduceLayout, StateTable, StepGraph, Storage, check, lower};
use spec::{Axis, Graph, Node, Op, Section, Source, ValueId};

/// A step before `lower`, and its addresses.
struct Placed {
    step: StepGraph,
    reduce: ReduceLayout,
    placement: Placement,
}

fn placed(seed: u64) -> Placed {
    let fusion = if seed.is_multiple_of(3) { Fusion::Off } else { Fusion::Full };
    let options = options(fusion);
    let step = plan::optimize(&plan::differentiate(&random_step(seed)), &options.optimizer, true);
    let step = plan::order(&plan::fuse(&step, fusion), Storage::CpuF64);
    let reduce = plan::bucket(&step, &options);
    let placement = plan::place(&step, &reduce, Storage::CpuF64, &mut StateTable::default(), None);
    Placed { step, reduce, placement }
}

/// The value and row that a node's output is a view of.
fn view(graph: &Graph, node: &Node) -> Option<(ValueId, usize)> {
    let carried = |v: ValueId| graph.nodes.iter().any(|n| matches!(n.op, Op::Reduce | Op::Carry) && n.inputs[0] == v);
    match node.op {
        Op::Reduce | Op::Carry | Op::Accumulate => Some((node.inputs[0], 0)),
        Op::Slice { axis: Axis::Batch, start, .. } if !carried(node.outputs[0]) => Some((node.inputs[0], start)),
        _ => None,
    }
}

/// A value with memory of its own.
struct Life {
    value: ValueId,
    loc: Loc,
    bytes: usize,
    from: usize,
    to: usize,
}

impl Placed {
    fn graph(&self) -> &Graph {
        &self.step.graph
    }

    fn bytes(&self, v: ValueId) -> usize {
        self.placement.storage.size(self.graph().shape(v), self.graph().value(v).dtype)
    }

    fn loc(&self, v: ValueId) -> Option<Loc> {
        self.placement.locs[v.0 as usize]
    }

    fn root(&self, mut v: ValueId) -> ValueId {
        while let Some((base, _)) = self.graph().producer(v).and_then(|n| view(self.graph(), n)) {
            v = base;
        }
        v
    }

    /// Values with memory of their own outside the states, in the order in which they are made.
    fn lives(&self) -> Vec<Life> {
        let (graph, end) = (self.graph(), self.graph().nodes.len());
        let mut to = vec![0; graph.values.len()];
        for (i, node) in graph.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|v| to[self.root(*v).0 as usize] = i);
        }
        for phase in &self.step.phases {
            let host = phase.losses.outputs.iter().map(|o| o.1).chain(phase.reduced.iter().map(|r| r.1));
            host.chain(phase.norm.into_iter().flatten()).for_each(|v| to[self.root(v).0 as usize] = end);
        }
        let mut lives = Vec::new();
        for (i, &last_read) in to.iter().enumerate() {
            let value = ValueId(i as u32);
            let from = match graph.value(value).source {
                Source::Node(n, _) if self.root(value) == value => n.0 as usize,
                Source::Batch(_) => 0,
                _ => continue,
            };
            let Some(loc) = self.loc(value).filter(|l| l.arena != Arena::State) else { continue };
            let (first, last) = match loc.arena {
                Arena::Work => (from, last_read.max(from)),
                // Summed or carried over all bodies of the phase, read by its update.
                Arena::Reduce | Arena::Carry => (self.phase_of(from).0, self.phase_of(from).1.max(last_read)),
                Arena::State | Arena::Batch | Arena::Prepared => (0, end),
            };
            lives.push(Life { value, loc, bytes: self.bytes(value), from: first, to: last });
        }
        lives
    }

    /// First and last node of the phase of a node.
    fn phase_of(&self, node: usize) -> (usize, usize) {
        let nodes = &self.graph().nodes;
        let same = |n: &Node| n.place.phase == nodes[node].place.phase && n.place.section != Section::Prepare;
        (nodes.iter().position(same).unwrap_or(node), nodes.iter().rposition(same).unwrap_or(node))
    }

    /// Why the placement is wrong, if it is.
    fn fault(&self) -> Option<String> {
        let (lives, graph) = (self.lives(), self.graph());
        for (i, a) in lives.iter().enumerate() {
            if a.loc.offset + a.bytes > self.placement.bytes(a.loc.arena) {
                return Some(format!("{} ends outside", graph.name(a.value)));
            }
            for b in &lives[..i] {
                let bytes = a.loc.offset < b.loc.offset + b.bytes && b.loc.offset < a.loc.offset + a.bytes;
                if a.loc.arena == b.loc.arena && bytes && a.from <= b.to && b.from <= a.to {
                    return Some(format!("{} and {} overlap", graph.name(a.value), graph.name(b.value)));
                }
            }
        }
        for node in &graph.nodes {
            let Some((base, start)) = view(graph, node) else { continue };
            let row = self.bytes(base) / graph.shape(base).dims().first().copied().unwrap_or(1).max(1);
            let (at, of) = (self.loc(node.outputs[0])?, self.loc(base)?);
            let elsewhere = at.offset != of.offset + start * row;
            if elsewhere {
                return Some(format!("{} is no view of {}", graph.name(node.outputs[0]), graph.name(base)));
            }
        }
        None
    }

    /// Moves a value and its views.
    fn move_to(&mut self, v: ValueId, offset: usize) {
        let Some(old) = self.loc(v) else { return };
        for i in 0..self.placement.locs.len() {
            if self.root(ValueId(i as u32)) == v
                && let Some(loc) = &mut self.placement.locs[i]
            {
                loc.offset = loc.offset - old.offset + offset;
            }
        }
    }
}

const KINDS: [&str; 8] = [
    "two values of the work arena exchanged",
    "a value 64 bytes further",
    "a value 64 bytes nearer",
    "a lifetime that ends before a later value begins",
    "two values of another arena in one place",
    "a carried slot too small",
    "a view beside its rows",
    "an arena too small",
];

/// Plants a fault of a kind; false where the step has no place for it.
fn plant(p: &mut Placed, kind: usize, rng: &mut Rng) -> bool {
    let lives = p.lives();
    let of = |arenas: &[Arena]| -> Vec<(ValueId, usize)> {
        lives.iter().filter(|l| arenas.contains(&l.loc.arena)).map(|l| (l.value, l.loc.offset)).collect()
    };
    let work = of(&[Arena::Work]);
    let any = of(&[Arena::Work, Arena::Reduce, Arena::Carry, Arena::Prepared, Arena::Batch]);
    match kind {
        0 => {
            let ((a, at), (b, bt)) = (rng.pick(&work), rng.pick(&work));
            p.move_to(a, bt);
            p.move_to(b, at);
        }
        1 => {
            let (v, at) = rng.pick(&any);
            p.move_to(v, at + 64);
        }
        2 => {
            let (v, at) = rng.pick(&any);
            p.move_to(v, at.saturating_sub(64));
        }
        3 => {
            let old: Vec<&Life> = lives.iter().filter(|l| l.loc.arena == Arena::Work).collect();
            let a = old[rng.below(old.len())];
            let later: Vec<&&Life> = old.iter().filter(|b| b.from > a.from && b.from <= a.to).collect();
            let Some(b) = (!later.is_empty()).then(|| later[rng.below(later.len())]) else { return false };
            p.move_to(a.value, b.loc.offset);
        }
        4 => {
            let arena = rng.pick(&[Arena::Reduce, Arena::Carry, Arena::Prepared, Arena::Batch]);
            let of = of(&[arena]);
            if of.len() < 2 {
                return false;
            }
            let ((a, _), (_, bt)) = (rng.pick(&of), rng.pick(&of));
            p.move_to(a, bt);
        }
        5 => {
            if of(&[Arena::Carry]).is_empty() {
                return false;
            }
            p.placement.layout.carry_bytes -= rng.pick(&[64, 256]);
        }
        6 => {
            let graph = p.graph();
            let views: Vec<ValueId> =
                graph.nodes.iter().filter(|n| view(graph, n).is_some()).map(|n| n.outputs[0]).collect();
            if views.is_empty() {
                return false;
            }
            let v = rng.pick(&views);
            if let Some(loc) = &mut p.placement.locs[v.0 as usize] {
                loc.offset += 64;
            }
        }
        _ => {
            let placement = &mut p.placement;
            let bytes = rng.pick(&[0, 1, 2]);
            let arena = [&mut placement.work_bytes, &mut placement.batch_bytes, &mut placement.layout.reduce_bytes];
            let limit = arena.into_iter().nth(bytes).unwrap();
            *limit = limit.saturating_sub(256);
        }
    }
    true
}

#[test]
fn the_checker_finds_every_fault_that_matters() {
    let mut table = [[0usize; 4]; KINDS.len()]; // planted, matter, of these found, harmless but reported
    for seed in 0..60 {
        let mut rng = Rng::new(seed ^ 0xfa17);
        assert_eq!(placed(seed).fault(), None, "seed {seed}: as planned");
        for round in 0..3 * KINDS.len() {
            let kind = round % KINDS.len();
            let mut p = placed(seed);
            if !plant(&mut p, kind, &mut rng) {
                continue;
            }
            let why = p.fault();
            let found = check(&lower(p.step, p.placement, p.reduce));
            table[kind][0] += 1;
            table[kind][1] += usize::from(why.is_some());
            table[kind][2] += usize::from(why.is_some() && found.is_err());
            table[kind][3] += usize::from(why.is_none() && found.is_err());
            if why.is_some() != found.is_err() {
                println!("seed {seed}, {}: {why:?}, {found:?}", KINDS[kind]);
            }
        }
    }
    for (name, [planted, matter, found, harmless]) in KINDS.iter().zip(table) {
        println!("{name:<50} planted {planted:>4}, matter {matter:>4}, found {found:>4}, harmless reported {harmless}");
        assert!(matter >= 20, "{name}: {matter} faults that matter say little");
    }
    let sum = |k: usize| table.iter().map(|t| t[k]).sum::<usize>();
    assert_eq!(sum(2), sum(1), "faults that matter and were not found");
    assert_eq!(sum(3), 0, "faults that do not matter and were reported");
}
