//! fuse/rows: all row losses of a phase, and the gradients of their logits, become one launch driven by a table.
//!
//! Views of rows (halves of a batch) are resolved to the tensor they are cut from; sums of row gradients over terms and
//! views become one gradient per tensor. The order of the sum is that of the table.

use crate::fuse::{Rewrite, base_of};
use crate::step::{Phase, StepGraph};
use graph::{Axis, Binary, Node, Op, RowTable, RowTableTerm, RowTerm, RowView, Section, Side, ValueId, Weight};
use std::collections::HashMap;

/// One gradient contribution: a term's side, its weight, and the first row it lands on.
#[derive(Clone, Debug)]
struct Line {
    term: RowTerm,
    operands: Vec<ValueId>,
    side: Side,
    weight: Weight,
    start: usize,
}

/// A value that is nothing but a sum of row gradients of `base`.
#[derive(Clone, Debug)]
struct Combo {
    base: ValueId,
    lines: Vec<Line>,
}

pub(crate) fn row_losses(step: &StepGraph) -> StepGraph {
    let mut rewrite = Rewrite::new(step);
    for phase in 0..step.phases.len() as u32 {
        let body: Vec<usize> = (0..step.graph.nodes.len())
            .filter(|&i| step.graph.nodes[i].place.phase == phase && step.graph.nodes[i].place.section == Section::Body)
            .collect();
        let losses: Vec<usize> =
            body.iter().copied().filter(|&i| matches!(step.graph.nodes[i].op, Op::RowLoss(_))).collect();
        if let Some(&last) = losses.last() {
            let combos = combos(step, &body);
            let node = table(step, &mut rewrite, &losses, &combos);
            for i in body {
                let node = &step.graph.nodes[i];
                if matches!(node.op, Op::RowLoss(_)) || node.outputs.iter().any(|o| combos.contains_key(o)) {
                    rewrite.nodes[i] = None;
                }
            }
            rewrite.nodes[last] = Some(node);
        }
    }
    let fused = rewrite.finish();
    // Slices of logits and labels that only the losses read are gone with them.
    let roots: Vec<_> = fused.phases.iter().flat_map(Phase::held).collect();
    StepGraph { graph: fused.graph.pruned(&roots), phases: fused.phases }
}

/// Every value of the body that is a sum of row gradients.
fn combos(step: &StepGraph, body: &[usize]) -> HashMap<ValueId, Combo> {
    let graph = &step.graph;
    let mut combos: HashMap<ValueId, Combo> = HashMap::new();
    for &i in body {
        let node = &graph.nodes[i];
        let combo = match node.op {
            Op::RowLossGrad { term, side, weight } => {
                let line = Line { term, operands: node.inputs.clone(), side, weight, start: 0 };
                Some(Combo { base: node.inputs[side as usize], lines: vec![line] })
            }
            Op::Unslice { axis: Axis::Batch, start, .. } => combos.get(&node.inputs[0]).and_then(|inner| {
                let slice = graph.producer(inner.base)?;
                let mut combo = Combo { base: slice.inputs[0], ..inner.clone() };
                combo.lines.iter_mut().for_each(|l| l.start += start);
                matches!(slice.op, Op::Slice { axis: Axis::Batch, start: s, .. } if s == start).then_some(combo)
            }),
            Op::Binary(Binary::Add) => match (combos.get(&node.inputs[0]), combos.get(&node.inputs[1])) {
                (Some(a), Some(b)) if a.base == b.base => {
                    Some(Combo { base: a.base, lines: [&a.lines[..], &b.lines[..]].concat() })
                }
                _ => None,
            },
            _ => None,
        };
        if let Some(combo) = combo {
            combos.insert(node.outputs[0], combo);
        }
    }
    combos
}

struct Table {
    inputs: Vec<ValueId>,
    /// The gradient made for each input, if any.
    grads: Vec<Option<ValueId>>,
    terms: Vec<RowTableTerm>,
    operands: Vec<Vec<ValueId>>,
    values: Vec<ValueId>,
}

impl Table {
    /// The input that a view without gradient reads.
    fn view(&mut self, step: &StepGraph, operand: ValueId) -> RowView {
        let (base, start) = base_of(&step.graph, operand);
        let known = self.inputs.iter().position(|&i| i == base);
        RowView { input: known.unwrap_or_else(|| self.push(base)), start }
    }

    fn push(&mut self, input: ValueId) -> usize {
        self.inputs.push(input);
        self.grads.push(None);
        self.inputs.len() - 1
    }

    /// The line of a term with a free place for this side's gradient, or a new one.
    fn term_for(&mut self, step: &StepGraph, rewrite: &mut Rewrite<'_>, line: &Line) -> usize {
        let free = |t: &RowTableTerm| match line.side {
            Side::Student => t.student_grad.is_none(),
            Side::Target => t.target_grad.is_none(),
        };
        let like = |&i: &usize| self.terms[i].term == line.term && self.operands[i] == line.operands;
        let same: Vec<usize> = (0..self.terms.len()).filter(like).collect();
        if let Some(&found) = same.iter().find(|&&i| free(&self.terms[i])) {
            return found;
        }
        let value = self.values[*same.first().expect("a gradient belongs to a loss of the phase")];
        let value = rewrite.graph.add_value(step.graph.value(value).clone());
        self.add(step, line.term, &line.operands, value)
    }

    fn add(&mut self, step: &StepGraph, term: RowTerm, operands: &[ValueId], value: ValueId) -> usize {
        let views = operands.iter().map(|&o| self.view(step, o)).collect();
        let rows = step.graph.shape(operands[0]).dims()[0];
        self.terms.push(RowTableTerm { term, rows, views, student_grad: None, target_grad: None });
        self.operands.push(operands.to_vec());
        self.values.push(value);
        self.terms.len() - 1
    }
}

fn table(step: &StepGraph, rewrite: &mut Rewrite<'_>, losses: &[usize], combos: &HashMap<ValueId, Combo>) -> Node {
    let mut table = Table { inputs: vec![], grads: vec![], terms: vec![], operands: vec![], values: vec![] };
    for &i in losses {
        let node = &step.graph.nodes[i];
        if let Op::RowLoss(term) = node.op {
            table.add(step, term, &node.inputs, node.outputs[0]);
        }
    }
    let readers = step.graph.readers();
    let outside = |value: &ValueId| {
        let inside = |r: &graph::NodeId| step.graph.node(*r).outputs.iter().any(|o| combos.contains_key(o));
        !readers[value.0 as usize].iter().all(inside)
    };
    let mut wanted: Vec<_> = combos.iter().filter(|(value, _)| outside(value)).collect();
    wanted.sort_by_key(|(value, _)| **value);
    for (&value, combo) in wanted {
        // A tensor that has its gradient already is listed again for the next one.
        let free = (0..table.inputs.len()).find(|&i| table.inputs[i] == combo.base && table.grads[i].is_none());
        let input = free.unwrap_or_else(|| table.push(combo.base));
        table.grads[input] = Some(value);
        for line in &combo.lines {
            let at = table.term_for(step, rewrite, line);
            let term = &mut table.terms[at];
            term.views[line.side as usize] = RowView { input, start: line.start };
            match line.side {
                Side::Student => term.student_grad = Some(line.weight),
                Side::Target => term.target_grad = Some(line.weight),
            }
        }
    }
    let last = &step.graph.nodes[*losses.last().expect("a phase with losses")];
    let grads: Vec<usize> = (0..table.inputs.len()).filter(|&i| table.grads[i].is_some()).collect();
    let outputs = table.values.iter().copied().chain(grads.iter().filter_map(|&i| table.grads[i])).collect();
    let op = Op::RowLosses(Box::new(RowTable { terms: table.terms, grads }));
    Node { op, inputs: table.inputs, outputs, path: "losses".to_string(), place: last.place }
}
