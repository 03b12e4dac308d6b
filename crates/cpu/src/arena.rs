//! The memory of a plan on the CPU, and the views that a launch gets of it.
//!
//! One of the crate's two modules with `unsafe`: a launch reads and writes disjoint ranges of the same arenas, which the
//! plan's checker proves and slices of one buffer cannot express.

use crate::io::{Input, Io, Output, Scalars};
use graph::Op;
use plan::{Arena, Arg, Launch, Loc, Plan};

/// Cache-line aligned bytes.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Vec<Line>);

#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
struct Line([u8; 64]);

// SAFETY: 64 bytes without padding, any bit pattern is valid.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above; `Line` is `Copy`, `repr(C)` and has no interior mutability.
unsafe impl bytemuck::Pod for Line {}

impl Buffer {
    /// Grows to at least so many bytes; what is new is zero.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        let lines = bytes.div_ceil(64);
        if lines > self.0.len() {
            self.0.resize(lines, Line([0; 64]));
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// The arenas of a run; `prepared` is that of the plan in use.
#[derive(Debug, Default)]
pub(crate) struct Arenas {
    pub state: Buffer,
    pub batch: Buffer,
    pub prepared: Buffer,
    pub reduce: Buffer,
    pub carry: Buffer,
    pub work: Buffer,
}

impl Arenas {
    pub(crate) fn get(&self, arena: Arena) -> &Buffer {
        match arena {
            Arena::State => &self.state,
            Arena::Batch => &self.batch,
            Arena::Prepared => &self.prepared,
            Arena::Reduce => &self.reduce,
            Arena::Carry => &self.carry,
            Arena::Work => &self.work,
        }
    }

    pub(crate) fn get_mut(&mut self, arena: Arena) -> &mut Buffer {
        match arena {
            Arena::State => &mut self.state,
            Arena::Batch => &mut self.batch,
            Arena::Prepared => &mut self.prepared,
            Arena::Reduce => &mut self.reduce,
            Arena::Carry => &mut self.carry,
            Arena::Work => &mut self.work,
        }
    }

    /// The operands of a launch. `slot` is the micro-batch whose carried values are made, `None` in an update, which reads
    /// the carried values of all.
    pub(crate) fn io<'a>(
        &'a mut self,
        plan: &Plan,
        launch: &Launch,
        slot: Option<usize>,
        scalars: &'a Scalars,
    ) -> Io<'a> {
        let slot_bytes = plan.placement.layout.carry_bytes;
        let size = |arg: &Arg| plan.placement.storage.size(arg.shape, arg.dtype);
        let at = |loc: Loc| loc.offset + if loc.arena == Arena::Carry { slot.unwrap_or(0) * slot_bytes } else { 0 };
        let inputs: Vec<_> = launch
            .inputs
            .iter()
            .map(|arg| {
                let all_slots = arg.loc.arena == Arena::Carry && slot.is_none();
                let len = if all_slots { self.carry.bytes().len() - arg.loc.offset } else { size(arg) };
                (arg, self.range(arg.loc.arena, at(arg.loc), len))
            })
            .collect();
        let written = launch.outputs.iter().chain(&launch.states);
        let outputs: Vec<_> = written.map(|arg| (arg, self.range(arg.loc.arena, at(arg.loc), size(arg)))).collect();
        debug_assert!(disjoint(&outputs), "{}: outputs overlap", launch.path);
        let input = |&(arg, (ptr, len)): &(&Arg, (*mut u8, usize))| {
            // SAFETY: the range lies inside its buffer (`range` checks), which `self` borrows for 'a; the plan's checker
            // proved that no output of this launch overlaps it.
            let bytes = unsafe { std::slice::from_raw_parts(ptr, len) };
            Input { shape: arg.shape, dtype: arg.dtype, bytes, slot_bytes }
        };
        let output = |&(arg, (ptr, len)): &(&Arg, (*mut u8, usize))| {
            // SAFETY: as above, and the outputs of a launch lie apart from each other.
            let bytes = unsafe { std::slice::from_raw_parts_mut(ptr, len) };
            Output { shape: arg.shape, dtype: arg.dtype, bytes }
        };
        let count = launch.outputs.len();
        let mut inputs: Vec<_> = inputs.iter().map(input).collect();
        if launch.op == Op::Accumulate {
            inputs[0].bytes = &[]; // it lies in the output's memory
        }
        Io {
            inputs,
            outputs: outputs[..count].iter().map(output).collect(),
            states: outputs[count..].iter().map(output).collect(),
            scalars,
        }
    }

    fn range(&mut self, arena: Arena, offset: usize, len: usize) -> (*mut u8, usize) {
        (self.get_mut(arena).bytes_mut()[offset..offset + len].as_mut_ptr(), len)
    }
}

fn disjoint(ranges: &[(&Arg, (*mut u8, usize))]) -> bool {
    let mut spans: Vec<_> =
        ranges.iter().filter(|r| r.1.1 > 0).map(|r| (r.1.0 as usize, r.1.0 as usize + r.1.1)).collect();
    spans.sort();
    spans.windows(2).all(|w| w[0].1 <= w[1].0)
}
