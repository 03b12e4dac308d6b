//! Where things lie: the regions of device memory, their sizes for a set of plans, the addresses of a launch.
//!
//! Pure but for `allocate`. Sizes are known before anything is allocated: what does not fit is said with both figures.

use crate::binding::Addresses;
use crate::command::Address;
use crate::error::{CudaError, size};
use graph::{Op, Section};
use plan::{Arena, Arg, Launch, Plan};
use std::ops::Range;
use tensor::Dtype;

/// A piece of device memory. The carry region is a staging slot, which bodies write, then a slot per micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Region {
    State,
    /// bf16 copies of what convolutions read of the states and of what was prepared, at half the offset.
    HalfState,
    Prepared,
    HalfPrepared,
    Batch,
    /// Twice the batch: inputs on their way to it.
    Staging,
    Reduce,
    /// What is reduced in bf16 on its way between ranks, at half the offset; only where ranks exchange it so.
    HalfReduce,
    Carry,
    Work,
    Scratch,
    Constants,
    Scalars,
}

impl Region {
    /// States, sums, inputs and what is carried begin as zeros, as on the CPU; the rest is written before it is read.
    pub(crate) fn begins_as_zeros(self) -> bool {
        match self {
            Region::State | Region::HalfState | Region::Batch | Region::Reduce | Region::Carry | Region::Scalars => {
                true
            }
            Region::Prepared | Region::HalfPrepared | Region::Staging | Region::HalfReduce => false,
            Region::Work | Region::Scratch | Region::Constants => false,
        }
    }
}

pub(crate) const REGIONS: [Region; 13] = [
    Region::State,
    Region::HalfState,
    Region::Prepared,
    Region::HalfPrepared,
    Region::Batch,
    Region::Staging,
    Region::Reduce,
    Region::HalfReduce,
    Region::Carry,
    Region::Work,
    Region::Scratch,
    Region::Constants,
    Region::Scalars,
];

/// By `Region`: bytes, or the address of the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PerRegion<T>([T; REGIONS.len()]);

impl<T> std::ops::Index<Region> for PerRegion<T> {
    type Output = T;

    fn index(&self, region: Region) -> &T {
        &self.0[region as usize]
    }
}

impl<T> std::ops::IndexMut<Region> for PerRegion<T> {
    fn index_mut(&mut self, region: Region) -> &mut T {
        &mut self.0[region as usize]
    }
}

/// Addresses that stand for those of regions while sizes are counted: aligned as real ones are, and none is 0.
pub(crate) fn pretended() -> PerRegion<Address> {
    PerRegion(std::array::from_fn(|i| (i as Address + 1) << 40))
}

/// The ranges of the state table and of the prepared arena that have bf16 copies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Halves {
    pub state: Range<usize>,
    pub prepared: Range<usize>,
}

/// The f32 filter of a convolution in bf16: its input of that index is read as a bf16 copy.
pub(crate) fn filter(launch: &Launch) -> Option<usize> {
    let conv = matches!(launch.op, Op::Conv(_) | Op::ConvStats { .. } | Op::ConvAct { .. } | Op::ConvDgrad { .. });
    let mixed = || launch.inputs[0].dtype == Dtype::Bf16 && launch.inputs[1].dtype == Dtype::F32;
    (conv && mixed()).then_some(1)
}

impl Halves {
    pub(crate) fn of(plans: &[&Plan]) -> Halves {
        let mut halves = Halves::default();
        for launch in plans.iter().flat_map(|p| &p.launches) {
            let Some(arg) = filter(launch).map(|i| &launch.inputs[i]) else { continue };
            let range = match arg.loc.arena {
                Arena::State => &mut halves.state,
                Arena::Prepared => &mut halves.prepared,
                other => panic!("{}: the filter lies in {other:?}, of which there are no bf16 copies", launch.path),
            };
            let end = arg.loc.offset + arg.shape.elements() * 4;
            let start = if range.start == range.end { arg.loc.offset } else { range.start.min(arg.loc.offset) };
            *range = start..range.end.max(end);
        }
        halves
    }

    /// Address of the copy of a value; 0 where there is none.
    pub(crate) fn address(&self, arg: &Arg, bases: &PerRegion<Address>) -> Address {
        let (range, base) = match arg.loc.arena {
            Arena::State => (&self.state, bases[Region::HalfState]),
            Arena::Prepared => (&self.prepared, bases[Region::HalfPrepared]),
            _ => return 0,
        };
        if range.contains(&arg.loc.offset) { base + ((arg.loc.offset - range.start) / 2) as Address } else { 0 }
    }
}

/// Where a plan's values lie.
#[derive(Clone, Debug)]
pub(crate) struct Map {
    pub bases: PerRegion<Address>,
    pub halves: Halves,
}

impl Map {
    /// Address of a value as a section sees it: a body makes carried values in the staging slot, an update reads the first
    /// micro-batch's slot and those after it.
    pub(crate) fn address(&self, plan: &Plan, arg: &Arg, section: Section) -> Address {
        let (region, skip) = match arg.loc.arena {
            Arena::State => (Region::State, 0),
            Arena::Batch => (Region::Batch, 0),
            Arena::Prepared => (Region::Prepared, 0),
            Arena::Reduce => (Region::Reduce, 0),
            Arena::Work => (Region::Work, 0),
            Arena::Carry if section == Section::Update => (Region::Carry, plan.placement.layout.carry_bytes),
            Arena::Carry => (Region::Carry, 0),
        };
        self.bases[region] + (skip + arg.loc.offset) as Address
    }

    /// The addresses of a launch whose constants lie `constants` bytes into their region.
    pub(crate) fn addresses(&self, plan: &Plan, launch: &Launch, section: Section, constants: usize) -> Addresses {
        let all = |args: &[Arg]| args.iter().map(|a| self.address(plan, a, section)).collect();
        let half = |(i, arg)| if filter(launch) == Some(i) { self.halves.address(arg, &self.bases) } else { 0 };
        Addresses {
            inputs: all(&launch.inputs),
            outputs: all(&launch.outputs),
            states: all(&launch.states),
            half: launch.inputs.iter().enumerate().map(half).collect(),
            slot_bytes: plan.placement.layout.carry_bytes,
            scalars: self.bases[Region::Scalars],
            scratch: self.bases[Region::Scratch],
            constants: self.bases[Region::Constants] + constants as Address,
        }
    }
}

/// What a run needs, by region, and the partial sums of micro-batches beside them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Need {
    pub regions: PerRegion<usize>,
    pub parts: usize,
    pub part_bytes: usize,
    /// Of the plan that needs most: what grows with its batch, and the batch.
    variable: usize,
    units: usize,
}

impl Need {
    /// All but what binding finds out: scratch and constants.
    pub(crate) fn of(plans: &[&Plan], state_bytes: usize, micro_batches: usize) -> Need {
        let most = |bytes: &dyn Fn(&Plan) -> usize| plans.iter().map(|p| bytes(p)).max().unwrap_or(0);
        let grows = |p: &Plan| 3 * p.placement.batch_bytes + p.placement.work_bytes;
        let halves = Halves::of(plans);
        let mut need = Need::default();
        let r = &mut need.regions;
        r[Region::State] = state_bytes;
        r[Region::HalfState] = halves.state.len() / 2;
        r[Region::Prepared] = most(&|p| p.placement.prepared_bytes);
        r[Region::HalfPrepared] = halves.prepared.len() / 2;
        r[Region::Batch] = most(&|p| p.placement.batch_bytes);
        r[Region::Staging] = 2 * r[Region::Batch];
        r[Region::Reduce] = most(&|p| p.placement.layout.reduce_bytes);
        r[Region::Carry] = most(&|p| p.placement.layout.carry_bytes) * (1 + micro_batches);
        r[Region::Work] = most(&|p| p.placement.work_bytes);
        r[Region::Scalars] = crate::scalars::bytes(micro_batches);
        need.part_bytes = most(&|p| 4 * p.reduce.phases.iter().map(|r| r.len()).max().unwrap_or(0));
        // A binary tree over them holds a part per level, and the one that comes.
        need.parts = if micro_batches > 1 { micro_batches.ilog2() as usize + 2 } else { 0 };
        if let Some(largest) = plans.iter().max_by_key(|p| grows(p)) {
            (need.variable, need.units) = (grows(largest), largest.graph.units[0]);
        }
        need
    }

    pub(crate) fn total(&self) -> usize {
        let aligned = |bytes: usize| bytes.next_multiple_of(512);
        self.regions.0.iter().map(|&b| aligned(b)).sum::<usize>() + self.parts * aligned(self.part_bytes)
    }

    /// Whether it fits what is free; else the error with both figures and the batch that would.
    pub(crate) fn check(&self, gpu: &str, free: usize, total: usize) -> Result<(), CudaError> {
        let need = self.total();
        if need <= free {
            return Ok(());
        }
        // Scratch grows with the batch as far as it is not split sums; counting it as fixed errs on the safe side.
        let fixed = need - self.variable;
        let fits = free.saturating_sub(fixed) as u128 * self.units as u128 / self.variable.max(1) as u128;
        let remedy = match fits {
            0 => "not even a batch of 1 fits: use a smaller network or image, or a GPU with more memory".to_string(),
            n => format!(
                "a batch of about {n} fits (the largest plan has {}): lower it, or train.micro_batch",
                self.units
            ),
        };
        let gpu = gpu.to_string();
        Err(CudaError::Memory { gpu, need: size(need), free: size(free), total: size(total), remedy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_indexed_by_their_place() {
        let mut bytes = PerRegion::<usize>::default();
        REGIONS.iter().enumerate().for_each(|(i, &r)| bytes[r] = i);
        assert!(REGIONS.iter().enumerate().all(|(i, &r)| bytes[r] == i && r as usize == i));
    }

    #[test]
    fn too_little_memory_is_said_with_both_figures_and_the_batch_that_fits() {
        let mut need = Need { variable: 3 << 30, units: 96, ..Need::default() };
        need.regions[Region::Work] = 3 << 30;
        need.regions[Region::State] = 1 << 30;
        assert!(need.check("0 (X)", 4 << 30, 8 << 30).is_ok());
        let text = need.check("0 (X)", 2 << 30, 8 << 30).unwrap_err().to_string();
        let expected = "GPU 0 (X): the run needs 4.00 GiB, 2.00 GiB of 8.00 GiB are free; a batch of about 32 fits (the largest \
                        plan has 96): lower it, or train.micro_batch";
        assert_eq!(text, expected);
        let text = need.check("0 (X)", 1 << 29, 8 << 30).unwrap_err().to_string();
        assert!(text.contains("512.00 MiB of 8.00 GiB") && text.contains("not even a batch of 1"), "{text}");
    }

    /// Cross-entropy of a small network in bf16.
    fn plan() -> (Plan, plan::StateTable) {
        let setting = spec::Setting::new(5, [8, 8, 3], 64, 1);
        let (method, network) = (methods::Ce::default(), nets::NetworkSpec::new("resnet8").build(5).unwrap());
        let source = plan::StepSource {
            method: &method,
            spec: &spec::Method::spec(&method, &setting).unwrap(),
            setting: &setting,
            student: network.as_ref(),
            teachers: &[],
            input: None,
            precision: graph::Precision::Bf16,
            units: [4, 0],
            rolling_units: 4,
        };
        let options = plan::Options {
            fusion: plan::Fusion::Full,
            optimizer: plan::OptimizerArgs::default(),
            storage: plan::Storage::Device,
            bucket_bytes: 1 << 20,
            keep_outputs: false,
        };
        let mut states = plan::StateTable::default();
        (plan::compile(source.training(), &options, &mut states, None).unwrap(), states)
    }

    #[test]
    fn filters_have_copies_at_half_their_offset() {
        let (plan, _) = plan();
        let map = Map { bases: pretended(), halves: Halves::of(&[&plan]) };
        let (base, bytes) = (map.bases[Region::HalfState], map.halves.state.len() / 2);
        let mut filters = 0;
        for launch in &plan.launches {
            let addresses = map.addresses(&plan, launch, Section::Body, 0);
            for (i, &half) in addresses.half.iter().enumerate() {
                if filter(launch) != Some(i) {
                    assert_eq!(half, 0, "{}", launch.path);
                    continue;
                }
                filters += 1;
                let (end, from) = (half + 2 * launch.inputs[i].shape.elements() as Address, addresses.inputs[i]);
                assert!(half >= base && end <= base + bytes as Address && half % 16 == 0, "{}", launch.path);
                let state = map.bases[Region::State] + map.halves.state.start as Address;
                assert_eq!(2 * (half - base), from - state, "{}", launch.path);
            }
        }
        assert_eq!(filters, 9 + 8, "nine convolutions, and the gradients of all but the first");
        assert_eq!(map.halves.prepared, 0..0);
    }

    #[test]
    fn carried_values_are_made_in_the_staging_slot_and_read_behind_it() {
        let (plan, states) = plan();
        let map = Map { bases: pretended(), halves: Halves::default() };
        let (slot, base) = (plan.placement.layout.carry_bytes as Address, map.bases[Region::Carry]);
        let bodies = plan.section(0, Section::Body).iter().flat_map(|l| &l.outputs);
        let made: Vec<_> = bodies.filter(|a| a.loc.arena == Arena::Carry).collect();
        assert!(!made.is_empty());
        for arg in made {
            let [body, update] = [Section::Body, Section::Update].map(|s| map.address(&plan, arg, s));
            assert!((base..base + slot).contains(&body) && update == body + slot);
        }
        let need = Need::of(&[&plan], states.bytes, 3);
        assert_eq!(need.regions[Region::Carry], 4 * slot as usize);
        assert_eq!(need.regions[Region::Staging], 2 * plan.placement.batch_bytes);
        assert_eq!(need.regions[Region::State], states.bytes);
        assert_eq!((need.parts, need.part_bytes), (3, 4 * plan.reduce.phases[0].len()));
    }
}
