//! What a GPU can do, measured with commands and kernels of our own, and what plans would take of one, counted without any.

use crate::arena::{Halves, Map, Need, Region, pretended};
use crate::bind::bind;
use crate::binding::{Addresses, Math};
use crate::command::Command;
use crate::driver::{Buffer, Event, EventKind, Gpu, Stream};
use crate::error::CudaError;
use crate::executor::Executor;
use crate::module::stems;
use crate::program::{Bind, Collected, Step, bind_plan};
use graph::{ConvArgs, NodeId, Op, ValueId};
use plan::{Arena, Arg, Cost, Launch, Loc, Plan, StateTable};
use tensor::{Dtype, Shape};

/// Timed repeats of a measurement, of which the median counts.
pub(crate) const REPEATS: usize = 10;

/// What plans would take of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Device memory, partial sums of micro-batches included.
    pub bytes: usize,
    /// Kernels, copies and fills of all lists.
    pub commands: usize,
}

/// Bytes of a GPU's memory that are free, and all of them. Makes a context there while it asks.
pub fn free_memory(ordinal: usize) -> Result<(usize, usize), CudaError> {
    Gpu::open(ordinal)?.memory()
}

/// Binds every launch of the plans of a run to made-up addresses, for a GPU of so many multiprocessors. No GPU is needed.
/// Errors: a kernel that no file of this program holds.
pub fn footprint(
    plans: &[&Plan],
    states: &StateTable,
    micro_batches: usize,
    target: (Math, u32),
) -> Result<Footprint, CudaError> {
    let map = Map { bases: pretended(), halves: Halves::of(plans) };
    let (mut counted, mut commands) = (Collected::default(), 0);
    for plan in plans {
        let binds = bind_plan(plan, &map, target, &mut counted).into_iter().flat_map(|b| b.binds);
        for Bind { path, op, commands: of_launch, .. } in binds {
            commands += of_launch.len();
            for command in of_launch {
                let Command::Kernel(kernel) = command else { continue };
                if !stems().any(|stem| kernel.name.starts_with(stem)) {
                    return Err(CudaError::NoKernel { path, op, kernel: kernel.name });
                }
            }
        }
    }
    let mut need = Need::of(plans, states.bytes, micro_batches);
    need.regions[Region::Scratch] = counted.scratch_bytes;
    need.regions[Region::Constants] = counted.constants.len();
    Ok(Footprint { bytes: need.total(), commands })
}

impl Executor {
    /// Bytes per second, read and written both counted, of copies of `bytes` on the GPU.
    pub fn copy_rate(&self, bytes: usize) -> Result<f64, CudaError> {
        let (from, to) = (Buffer::new(&self.gpu, bytes)?, Buffer::new(&self.gpu, bytes)?);
        let copy = || {
            let done = self.stream.copy(to.address, from.address, bytes);
            done.map_err(|fault| CudaError::Driver { what: "copying on the GPU".into(), fault })
        };
        Ok(2.0 * bytes as f64 / self.seconds(copy)?)
    }

    /// FLOPs per second of the product of two `n` × `n` matrices of a dtype, `n` a multiple of 64: a convolution with filters of one
    /// pixel, by the kernels that most of a step's FLOPs go through.
    pub fn product_rate(&self, n: usize, dtype: Dtype) -> Result<f64, CudaError> {
        let (image, filter) = (Shape::new(&[n / 64, 8, 8, n]), Shape::new(&[n, 1, 1, n]));
        let buffer = || Buffer::new(&self.gpu, n * n * dtype.size());
        let (x, w, y) = (buffer()?, buffer()?, buffer()?);
        for factor in [&x, &w] {
            // 0x3f in every byte is 0.75 or close to it, in f32 and bf16.
            let done = self.stream.fill(factor.address, 0x3f, factor.bytes);
            done.map_err(|fault| CudaError::Driver { what: "filling memory".into(), fault })?;
        }
        let loc = Loc { arena: Arena::Work, offset: 0 };
        let arg = |shape| Arg { value: ValueId(0), loc, shape, stored: shape, dtype };
        let launch = Launch {
            node: NodeId(0),
            op: Op::Conv(ConvArgs { stride: 1, pad: 0, groups: 1 }),
            path: "measured product".to_string(),
            inputs: vec![arg(image), arg(filter)],
            outputs: vec![arg(image)],
            states: vec![],
            cost: Cost::default(),
        };
        let mut addresses = Addresses {
            inputs: vec![x.address, w.address],
            outputs: vec![y.address],
            states: vec![],
            half: vec![0, 0],
            slot_bytes: 0,
            scalars: pretended()[Region::Scalars],
            scratch: pretended()[Region::Scratch],
            constants: pretended()[Region::Constants],
        };
        let sms = self.facts().sms;
        let counted = bind(&launch, &addresses, self.math(), sms);
        let scratch = Buffer::new(&self.gpu, counted.scratch_bytes)?;
        let constants = Buffer::new(&self.gpu, counted.constants.len())?;
        (addresses.scratch, addresses.constants) = (scratch.address, constants.address);
        let bound = bind(&launch, &addresses, self.math(), sms);
        self.store(constants.address, &bound.constants)?;
        let bind = Bind { path: launch.path, op: "conv_fprop", cost: launch.cost, commands: bound.commands };
        let step = Step::new(bind, &mut self.modules.borrow_mut(), None)?;
        let product = || step.commands.iter().try_for_each(|c| c.issue(&self.stream, &step));
        Ok(2.0 * (n as f64).powi(3) / self.seconds(product)?)
    }

    fn seconds(&self, work: impl Fn() -> Result<(), CudaError>) -> Result<f64, CudaError> {
        median_seconds(&self.stream, work)
    }
}

/// Seconds of what `work` puts on the stream: the median, after one that is not counted.
pub(crate) fn median_seconds(stream: &Stream, work: impl Fn() -> Result<(), CudaError>) -> Result<f64, CudaError> {
    let (begin, end) = (Event::new(&stream.gpu, EventKind::Time)?, Event::new(&stream.gpu, EventKind::Time)?);
    work()?;
    let mut times = Vec::with_capacity(REPEATS);
    for _ in 0..REPEATS {
        begin.record(stream)?;
        work()?;
        end.record(stream)?;
        end.synchronize()?;
        times.push(begin.elapsed_ms(&end)?);
    }
    times.sort_by(f32::total_cmp);
    Ok(f64::from(times[REPEATS / 2]) / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::Mode;

    #[test]
    fn rates_are_measured() {
        let gpu = match Executor::new(0, Mode::Captured, Math::F32) {
            Ok(gpu) => gpu,
            Err(e) => return println!("skipped: {e}"),
        };
        assert!(gpu.copy_rate(1 << 16).unwrap() > 0.0);
        for dtype in [Dtype::F32, Dtype::Bf16] {
            assert!(gpu.product_rate(64, dtype).unwrap() > 0.0);
        }
    }
}
