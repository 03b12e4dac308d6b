//! A small interpreter: a buffer per value, nodes in order. Shares nothing with the planner or an executor.

use cpu::io::{Input, Io, Output, Real, Scalars};
use graph::{
    Cotangents, Graph, NodeId, Op, Place, Precision, Rows, Section, SlotId, Source, ValueId, Weight, gradient,
};
use std::collections::HashMap;
use tensor::{Dtype, Shape};

pub(crate) const BODY: Place = Place { phase: 0, section: Section::Body };

/// A value in memory, aligned to any element.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Buffer {
    pub(crate) shape: Shape,
    pub(crate) dtype: Dtype,
    words: Vec<u64>,
}

impl Buffer {
    /// Filled with a pattern that no test mistakes for a result.
    pub(crate) fn new(shape: Shape, dtype: Dtype) -> Buffer {
        Buffer { shape, dtype, words: vec![0x7ff7_dead_7fc0_dead; shape.elements().max(1)] }
    }

    pub(crate) fn real<T: Real>(shape: &[usize], values: impl IntoIterator<Item = f64>) -> Buffer {
        let dtype = if size_of::<T>() == 8 { Dtype::F64 } else { Dtype::F32 };
        let mut buffer = Buffer::new(Shape::new(shape), dtype);
        let mut count = 0;
        let out = &mut bytemuck::cast_slice_mut::<u64, T>(&mut buffer.words);
        for (out, value) in out.iter_mut().zip(values) {
            *out = T::of(value);
            count += 1;
        }
        assert_eq!(count, buffer.shape.elements().min(count.max(1)), "values do not fill {shape:?}");
        buffer
    }

    pub(crate) fn i32(shape: &[usize], values: &[i32]) -> Buffer {
        let mut buffer = Buffer::new(Shape::new(shape), Dtype::I32);
        bytemuck::cast_slice_mut(&mut buffer.words)[..values.len()].copy_from_slice(values);
        buffer
    }

    pub(crate) fn u8(shape: &[usize], values: &[u8]) -> Buffer {
        let mut buffer = Buffer::new(Shape::new(shape), Dtype::U8);
        bytemuck::cast_slice_mut(&mut buffer.words)[..values.len()].copy_from_slice(values);
        buffer
    }

    /// All bytes of the buffer, of slots that follow each other too.
    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words)
    }

    pub(crate) fn get<T: Real>(&self) -> &[T] {
        &bytemuck::cast_slice(&self.words)[..self.shape.elements()]
    }

    pub(crate) fn get_mut<T: Real>(&mut self) -> &mut [T] {
        let len = self.shape.elements();
        &mut bytemuck::cast_slice_mut(&mut self.words)[..len]
    }

    pub(crate) fn get_u8(&self) -> &[u8] {
        &self.bytes()[..self.shape.elements()]
    }

    pub(crate) fn f64s<T: Real>(&self) -> Vec<f64> {
        match self.dtype {
            Dtype::U8 => self.get_u8().iter().map(|&x| x.into()).collect(),
            Dtype::I32 => bytemuck::cast_slice::<u64, i32>(&self.words)[..self.shape.elements()]
                .iter()
                .map(|&x| x.into())
                .collect(),
            _ => self.get::<T>().iter().map(|x| x.to_f64()).collect(),
        }
    }

    /// The same elements with another dtype in name: an f32 that holds bf16.
    pub(crate) fn named(mut self, dtype: Dtype) -> Buffer {
        self.dtype = dtype;
        self
    }

    pub(crate) fn shaped(mut self, shape: &[usize]) -> Buffer {
        self.shape = Shape::new(shape);
        self
    }

    pub(crate) fn input(&self) -> Input<'_> {
        Input { shape: self.shape, dtype: self.dtype, bytes: self.bytes(), slot_bytes: 0 }
    }

    pub(crate) fn output(&mut self) -> Output<'_> {
        Output { shape: self.shape, dtype: self.dtype, bytes: bytemuck::cast_slice_mut(&mut self.words) }
    }
}

/// One op on buffers; `outputs` as inferred.
pub(crate) fn launch<T: Real>(
    op: &Op,
    inputs: &[&Buffer],
    outputs: &[(Shape, Dtype)],
    scalars: &Scalars,
) -> Vec<Buffer> {
    let mut made: Vec<_> = outputs.iter().map(|&(shape, dtype)| Buffer::new(shape, dtype)).collect();
    T::run(
        op,
        &mut Io {
            inputs: inputs.iter().map(|b| b.input()).collect(),
            outputs: made.iter_mut().map(Buffer::output).collect(),
            states: vec![],
            scalars,
        },
    );
    made
}

/// An op of the update that writes states.
pub(crate) fn update<T: Real>(op: &Op, inputs: Vec<Input<'_>>, states: &mut [Buffer], scalars: &Scalars) {
    T::run(op, &mut Io { inputs, outputs: vec![], states: states.iter_mut().map(Buffer::output).collect(), scalars });
}

/// Scalars with this learning rate, units and decay of averages.
pub(crate) fn scalars(lr: f64, units: f64, decay: f64) -> Scalars {
    Scalars { slots: vec![lr, units, 0.0, decay], micro_units: vec![[units as usize, 0]], micro: 0, running: 1 }
}

/// A graph under test with the values of its leaves.
pub(crate) struct Case<T> {
    pub(crate) graph: Graph,
    pub(crate) leaves: HashMap<ValueId, Buffer>,
    pub(crate) scalars: Scalars,
    real: std::marker::PhantomData<T>,
}

impl<T: Real> Case<T> {
    pub(crate) fn new() -> Case<T> {
        let precision = if size_of::<T>() == 8 { Precision::F64 } else { Precision::F32 };
        let scalars = scalars(0.1, 1.0, 0.0);
        Case { graph: Graph::new(precision, [1, 1]), leaves: HashMap::new(), scalars, real: std::marker::PhantomData }
    }

    pub(crate) fn leaf(&mut self, buffer: Buffer) -> ValueId {
        let source = Source::Batch(self.leaves.len() as u32);
        let value = graph::Value { shape: buffer.shape, dtype: buffer.dtype, rows: Rows::default(), source };
        let id = self.graph.add_value(value);
        self.leaves.insert(id, buffer);
        id
    }

    pub(crate) fn push(&mut self, op: Op, inputs: &[ValueId]) -> Vec<ValueId> {
        self.graph.push(op, inputs, "test", BODY)
    }

    pub(crate) fn one(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        self.push(op, inputs)[0]
    }

    /// All values.
    pub(crate) fn evaluate(&self) -> HashMap<ValueId, Buffer> {
        let mut values = self.leaves.clone();
        for (_, node) in self.graph.iter() {
            let outputs: Vec<_> =
                node.outputs.iter().map(|&o| (self.graph.shape(o), self.graph.value(o).dtype)).collect();
            let inputs: Vec<_> = node.inputs.iter().map(|i| &values[i]).collect();
            let made = launch::<T>(&node.op, &inputs, &outputs, &self.scalars);
            values.extend(node.outputs.iter().copied().zip(made));
        }
        values
    }

    /// Adds the nodes of the backward: gradients of every float value that the seeds and weighted losses reach.
    pub(crate) fn backward(
        &mut self,
        seeds: &[(ValueId, ValueId)],
        losses: &[(ValueId, Weight)],
    ) -> HashMap<ValueId, ValueId> {
        let mut grads: HashMap<ValueId, ValueId> = seeds.iter().copied().collect();
        for i in (0..self.graph.nodes.len()).rev() {
            let node = self.graph.nodes[i].clone();
            let outputs: Vec<_> = node.outputs.iter().map(|o| grads.get(o).copied()).collect();
            let weight = losses.iter().find(|l| l.0 == node.outputs[0]).map(|l| l.1);
            if weight.is_none() && outputs.iter().all(Option::is_none) {
                continue;
            }
            let wants: Vec<_> = node.inputs.iter().map(|&x| self.graph.value(x).dtype.is_float()).collect();
            let made = gradient(&mut self.graph, NodeId(i as u32), &Cotangents { outputs, weight }, &wants);
            for (&x, dx) in node.inputs.iter().zip(made).filter_map(|(x, dx)| Some((x, dx?))) {
                let sum = match grads.get(&x) {
                    Some(&old) => self.one(Op::Binary(graph::Binary::Add), &[old, dx]),
                    None => dx,
                };
                grads.insert(x, sum);
            }
        }
        grads
    }
}

/// ‖a − b‖ / ‖b‖, or ‖a‖ where b is zero.
pub(crate) fn error(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "lengths");
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let scale = norm(&mut b.iter().copied());
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| a - b));
    if scale > 0.0 { difference / scale } else { difference }
}

/// Values without order: sin of large steps, in ±1, none close to 0.
pub(crate) fn noise(seed: u64) -> impl Iterator<Item = f64> + Clone {
    (0..u64::MAX).map(move |i| {
        let mut x = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let unit = ((x ^ (x >> 32)) >> 11) as f64 / (1u64 << 53) as f64;
        if unit < 0.5 { -0.05 - 1.9 * unit } else { 0.05 + 1.9 * (unit - 0.5) }
    })
}

/// The weight's slot 0 is the learning rate; tests scale by it.
pub(crate) const LR: SlotId = SlotId::LR;
