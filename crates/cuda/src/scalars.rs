//! Scalars, weights and divisors as kernels read them: the layouts of kernels/include/step.cuh.

use bytemuck::{Pod, Zeroable};
use graph::SlotId;
use plan::Scalars;

/// Most slots of a step.
pub(crate) const MAX_SLOTS: usize = 64;

/// The head of the device's scalars; units of each micro-batch, u32 [leaves,2], follow it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Head {
    slot: [f64; MAX_SLOTS],
    micro: u32,
    leaves: u32,
    before: [u32; 2],
    full_units: u32,
    running: u32,
    pad: [u32; 2],
}
const _: () = assert!(size_of::<Head>() == 544);

/// Bytes of the scalars of a step of `leaves` micro-batches.
pub(crate) fn bytes(leaves: usize) -> usize {
    size_of::<Head>() + leaves * 8
}

/// The device's form of a step's scalars: kernels/include/step.cuh.
pub fn encode(scalars: &Scalars) -> Vec<u8> {
    let mut slot = [0.0; MAX_SLOTS];
    slot[..scalars.slots.len()].copy_from_slice(&scalars.slots);
    let units = |role: usize| scalars.units_before(role) as u32;
    let head = Head {
        slot,
        micro: scalars.micro as u32,
        leaves: scalars.micro_units.len() as u32,
        before: [units(0), units(1)],
        full_units: scalars.micro_units.iter().map(|u| u[0]).max().unwrap_or(0) as u32,
        running: scalars.running.min(scalars.micro_units.len()) as u32,
        pad: [0; 2],
    };
    let mut out = bytemuck::bytes_of(&head).to_vec();
    for units in &scalars.micro_units {
        out.extend(units.iter().flat_map(|&u| (u as u32).to_le_bytes()));
    }
    out
}

/// A weight: a constant, or a constant times a slot (-1: none).
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Weight {
    factor: f64,
    slot: i32,
    pad: i32,
}
const _: () = assert!(size_of::<Weight>() == 16);

impl From<graph::Weight> for Weight {
    fn from(w: graph::Weight) -> Weight {
        Weight { factor: w.factor, slot: w.slot.map_or(-1, |SlotId(s)| s as i32), pad: 0 }
    }
}

/// The count that a mean divides by.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Divisor {
    constant: f64,
    per_unit: [f64; 2],
}

impl From<graph::Divisor> for Divisor {
    fn from(d: graph::Divisor) -> Divisor {
        Divisor { constant: d.constant as f64, per_unit: d.per_unit.map(|u| u as f64) }
    }
}
