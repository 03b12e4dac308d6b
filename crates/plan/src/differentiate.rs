//! differentiate: appends the backward nodes of every phase.
//!
//! In: the forward graph of a step. Out: the same nodes, those that no image enters moved to the update, then the
//! backward ones; each phase knows the gradient of every parameter it trains. Keeps names and state.
//! A gradient is `Absent` where no term's structure reaches the parameter, `Zero` where only terms of weight 0 do.

use crate::step::{Grad, Phase, StepGraph};
use graph::{
    Cotangents, Graph, Node, NodeId, Op, Place, Section, Source, StateId, StateKind, ValueId, Weight, gradient,
};
use std::collections::HashMap;

pub fn differentiate(step: &StepGraph) -> StepGraph {
    let mut step = split_sections(step);
    for p in 0..step.phases.len() {
        let phase = &step.phases[p];
        let params = trained(&step.graph, phase);
        let wants = wants_gradient(&step.graph, p, &params);
        let reached = reached(&step, p, &wants);
        let made = backward(&mut step.graph, p, &step.phases[p], &wants);
        let grads = params.into_iter().map(|(state, range)| {
            let value = step.graph.values.iter().position(|v| v.source == Source::State(state));
            let leaf = value.map(|i| ValueId(i as u32));
            let get = |section| leaf.and_then(|l| made.get(&(l, section)).copied());
            let grad = match (get(Section::Body), get(Section::Update)) {
                (None, None) if leaf.is_some_and(|l| reached[l.0 as usize]) => Grad::Zero,
                (None, None) => Grad::Absent,
                (body, update) => Grad::Value { body, update },
            };
            (state, range, grad)
        });
        step.phases[p].grads = grads.collect();
    }
    step.graph = step.graph.with_nodes(step.graph.nodes.clone());
    step
}

/// Moves nodes that no image enters to the update, where they run once a step; a copy of each stays for those of the body
/// that read it, and is dropped by `optimize` where none does.
fn split_sections(step: &StepGraph) -> StepGraph {
    let (fed, mut graph) = (step.fed(), step.graph.clone());
    let mut copies: HashMap<ValueId, ValueId> = HashMap::new();
    let mut nodes = Vec::with_capacity(graph.nodes.len());
    for node in &step.graph.nodes {
        let mut body = node.clone();
        body.inputs.iter_mut().for_each(|v| *v = *copies.get(v).unwrap_or(v));
        if !node.outputs.iter().any(|o| fed[o.0 as usize]) {
            nodes.push(Node { place: Place { section: Section::Update, ..node.place }, ..node.clone() });
            for output in &mut body.outputs {
                let copy = graph.add_value(graph.value(*output).clone());
                copies.insert(std::mem::replace(output, copy), copy);
            }
        }
        nodes.push(body);
    }
    StepGraph { graph: graph.with_nodes(nodes), phases: step.phases.clone() }
}

/// Parameters that the phase trains, each with the first range that names it.
fn trained(graph: &Graph, phase: &Phase) -> Vec<(StateId, usize)> {
    let range = |name: &str| phase.trains.iter().position(|t| name.starts_with(&t.prefix));
    let params = graph.states.iter().enumerate().filter(|(_, s)| s.kind == StateKind::Param);
    params.filter_map(|(i, s)| range(&s.name).map(|r| (StateId(i as u32), r))).collect()
}

/// Values of the phase through which a gradient can flow to a trained parameter.
fn wants_gradient(graph: &Graph, phase: usize, params: &[(StateId, usize)]) -> Vec<bool> {
    let leaf = |v: &graph::Value| matches!(v.source, Source::State(s) if params.iter().any(|p| p.0 == s));
    let mut wants: Vec<bool> = graph.values.iter().map(leaf).collect();
    for node in graph.nodes.iter().filter(|n| n.place.phase as usize == phase) {
        let stops = matches!(node.op, Op::Detach | Op::Softmax { .. } | Op::Correct { .. } | Op::BnStats { .. });
        if !stops && node.inputs.iter().any(|i| wants[i.0 as usize]) {
            wants[node.outputs[0].0 as usize] = true;
        }
    }
    wants
}

/// Values that some term, whatever its weight, depends on through differentiable ops.
fn reached(step: &StepGraph, phase: usize, wants: &[bool]) -> Vec<bool> {
    let mut reached = vec![false; step.graph.values.len()];
    for part in step.phases[phase].losses.terms.iter().flat_map(|t| &t.loss.parts) {
        reached[part.1.0 as usize] = true;
    }
    for node in step.graph.nodes.iter().rev().filter(|n| n.place.phase as usize == phase) {
        if node.outputs.first().is_some_and(|o| reached[o.0 as usize] && wants[o.0 as usize]) {
            node.inputs.iter().for_each(|i| reached[i.0 as usize] |= wants[i.0 as usize]);
        }
    }
    reached
}

type Made = HashMap<(ValueId, Section), ValueId>;

/// Appends the backward nodes; returns the gradient of each value, per section that makes a part of it.
fn backward(graph: &mut Graph, phase: usize, of: &Phase, wants: &[bool]) -> Made {
    let mut weights: HashMap<ValueId, Vec<Weight>> = HashMap::new();
    for term in of.losses.terms.iter().filter(|t| !t.weight.is_zero()) {
        for (weight, value) in term.loss.parts.iter().filter(|(w, _)| !w.is_zero()) {
            weights.entry(*value).or_default().push(term.weight.times(*weight));
        }
    }
    let mut made = Made::new();
    for id in (0..graph.nodes.len()).rev().map(|i| NodeId(i as u32)) {
        let node = graph.node(id);
        if node.place.phase as usize != phase {
            continue;
        }
        let section = node.place.section;
        let outputs: Vec<_> = node.outputs.iter().map(|&o| made.get(&(o, section)).copied()).collect();
        let seeds = node.outputs.first().and_then(|o| weights.get(o)).cloned().unwrap_or_default();
        let wanted: Vec<bool> = node.inputs.iter().map(|i| wants[i.0 as usize]).collect();
        if !wanted.contains(&true) {
            continue;
        }
        let mut flows: Vec<_> = seeds.iter().map(|&w| Cotangents { outputs: vec![], weight: Some(w) }).collect();
        if outputs.iter().any(Option::is_some) {
            flows.push(Cotangents { outputs, weight: None });
        }
        for flow in flows {
            let grads = gradient(graph, id, &flow, &wanted);
            collect(graph, id, &grads, &wanted, &mut made);
        }
    }
    made
}

/// Adds the gradients of a node's inputs to what other readers of these values have sent.
fn collect(graph: &mut Graph, id: NodeId, grads: &[Option<ValueId>], wanted: &[bool], made: &mut Made) {
    let node = graph.node(id).clone();
    for (i, &input) in node.inputs.iter().enumerate() {
        let Some(grad) = grads[i].filter(|_| wanted[i]) else { continue };
        let key = (input, node.place.section);
        let sum = match made.get(&key) {
            None => grad,
            Some(&other) => {
                let path = graph.producer(input).map_or_else(|| node.path.clone(), |n| n.path.clone());
                graph.push(Op::Binary(graph::Binary::Add), &[other, grad], &path, node.place)[0]
            }
        };
        made.insert(key, sum);
    }
}
