//! A list run launch by launch, with all that each launch reads and writes brought to the host: the comparison with the CPU
//! node by node, and the search for the first value that is not finite.

use crate::command::Address;
use crate::error::CudaError;
use crate::executor::Executor;
use crate::replay::stepped;
use crate::transfer::numbers;
use graph::Section;
use plan::{Arena, Arg, Launch, NonFinite, Plan, Scalars};
use std::ops::ControlFlow;
use tensor::{Dtype, Shape};

/// A launch that ran, and the bytes of its operands, in the shapes and dtypes of the plan.
#[derive(Debug)]
pub struct Seen<'a> {
    pub launch: &'a Launch,
    /// Before it ran. A carried input of an update is that of all micro-batches, `slot_bytes` apart.
    pub inputs: Vec<Vec<u8>>,
    pub states_before: Vec<Vec<u8>>,
    pub outputs: Vec<Vec<u8>>,
    pub states: Vec<Vec<u8>>,
    pub slot_bytes: usize,
}

/// Which list is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Looked {
    pub phase: usize,
    pub section: Section,
    /// The rank's micro-batch, in a body.
    pub slot: usize,
}

/// The bytes of a value as they lie in memory, in the value's own shape: an image without its fourth channel.
fn narrow((bytes, arg): (Vec<u8>, &Arg)) -> Vec<u8> {
    if arg.stored == arg.shape {
        return bytes;
    }
    let pixel = |shape: Shape| shape.dims().last().map_or(1, |channels| channels * arg.dtype.size());
    bytes.chunks_exact(pixel(arg.stored)).flat_map(|p| &p[..pixel(arg.shape)]).copied().collect()
}

impl Executor {
    /// Runs a body or update launch by launch and shows each launch with its operands, until `visit` breaks off. What the list
    /// commits is committed.
    pub fn inspect<B>(
        &mut self,
        plan: &Plan,
        looked: Looked,
        scalars: &Scalars,
        mut visit: impl FnMut(&Seen<'_>) -> ControlFlow<B>,
    ) -> Result<Option<B>, CudaError> {
        let Looked { phase, section, slot } = looked;
        self.begin(scalars)?;
        if section == Section::Body {
            self.unslot(plan, phase, slot)?;
        }
        let launches = plan.section(phase, section);
        let slot_bytes = plan.placement.layout.carry_bytes;
        let places = |args: &[Arg]| -> Vec<(Address, usize)> {
            let place = |a: &Arg| {
                let bytes = a.stored.elements() * a.dtype.size();
                let all = a.loc.arena == Arena::Carry && section == Section::Update;
                let more = if all { (scalars.micro_units.len().max(1) - 1) * slot_bytes } else { 0 };
                (self.map().address(plan, a, section), bytes + more)
            };
            args.iter().map(place).collect()
        };
        for (i, step) in self.steps_of(plan, phase, section).iter().enumerate() {
            let Some(launch) = launches.get(i) else {
                stepped(step, &self.stream)?; // the executor's own upkeep
                continue;
            };
            let see = |args: &[Arg]| -> Result<Vec<Vec<u8>>, CudaError> {
                Ok(self.fetch(&places(args))?.into_iter().zip(args).map(narrow).collect())
            };
            let (inputs, states_before) = (see(&launch.inputs)?, see(&launch.states)?);
            stepped(step, &self.stream)?;
            let (outputs, states) = (see(&launch.outputs)?, see(&launch.states)?);
            let seen = Seen { launch, inputs, states_before, outputs, states, slot_bytes };
            if let ControlFlow::Break(found) = visit(&seen) {
                return Ok(Some(found));
            }
        }
        if section == Section::Body {
            self.enslot(plan, phase, slot)?;
        }
        Ok(None)
    }

    /// Runs a body launch by launch, to its end since other ranks may wait for what it gives, and names the first whose output is not
    /// finite.
    pub fn first_nonfinite(
        &mut self,
        plan: &Plan,
        phase: usize,
        slot: usize,
        scalars: &Scalars,
    ) -> Result<Option<NonFinite>, CudaError> {
        self.begin(scalars)?;
        self.unslot(plan, phase, slot)?;
        let launches = plan.section(phase, Section::Body);
        let mut found = None;
        for (step, launch) in self.steps_of(plan, phase, Section::Body).iter().zip(launches) {
            stepped(step, &self.stream)?;
            for output in launch.outputs.iter().filter(|o| matches!(o.dtype, Dtype::F32 | Dtype::Bf16)) {
                let place =
                    (self.map().address(plan, output, Section::Body), output.stored.elements() * output.dtype.size());
                let bytes = self.fetch(&[place])?.swap_remove(0);
                if found.is_none() && numbers(&bytes, output.dtype).iter().any(|x| !x.is_finite()) {
                    found = Some(NonFinite { path: step.path.clone(), op: step.op });
                }
            }
        }
        Ok(found)
    }
}
