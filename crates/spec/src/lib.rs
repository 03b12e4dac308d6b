//! The language that networks and methods are written in: layers with names (`Net`), what a method asks for (`Spec`), what
//! it is given (`Step`). Everything of `graph` comes along.
//!
//! Invariant: this crate builds graphs and changes none; it knows no network, no method and no device.

mod net;
mod spec;
mod step;

pub use graph::*;
pub use net::{BnMode, ConvSpec, InitScheme, Net, Taps};
pub use spec::{
    Augment, CellRule, Decay, DrawKind, DrawSpec, PairRule, PhaseSpec, Ramp, Sampler, Setting, SlotSpec, Spec,
    StateSpec, StateUse, TrainRange, View,
};
pub use step::{Method, Network, Step, StepInput, numbered, teacher_module};
