//! What the ranks of a run exchange between their GPUs, by NCCL.
//!
//! Sums of gradients go on a stream of their own, a bucket as soon as the body has made it, beside the rest of the body; the update
//! waits for all of them. Everything may be captured. Parts, carried values and batch statistics are exchanged on the compute stream.

use crate::command::{Address, Gathered};
use crate::driver::{Event, Gpu, Stream};
use crate::error::CudaError;
use crate::marks::Marks;
use crate::program::Step;
use comm::{Aborter, Element, GpuWord, Library, Nccl, NcclError, NcclSettings};
use plan::Plan;
use std::collections::HashSet;
use std::fmt::{Debug, Formatter};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// How a rank meets the others.
pub struct Meeting {
    pub library: Arc<Library>,
    /// Of rank 0, the same on all.
    pub id: [u8; 128],
    pub rank: usize,
    pub world: usize,
    pub settings: NcclSettings,
    pub gradients: Gradients,
    /// Where the GPU tells how far it is, if anybody watches.
    pub word: Option<Arc<GpuWord>>,
}

/// What gradients are summed over ranks as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gradients {
    #[default]
    F32,
    /// Rounded on their way: half the bytes. Losses and what the methods watch stay f32.
    Bf16,
}

/// This rank's communicator, and the stream on which gradients are summed.
pub(crate) struct Ranks {
    // First: NCCL waits for nothing that is still on its stream.
    stream: Stream,
    nccl: Nccl,
    pub marks: Option<Marks>,
    pub gradients: Gradients,
}

impl Debug for Ranks {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.nccl.rank(), self.nccl.world())
    }
}

impl Ranks {
    pub(crate) fn join(gpu: &Rc<Gpu>, meeting: Meeting) -> Result<Ranks, CudaError> {
        gpu.enter()?;
        let Meeting { library, id, rank, world, settings, gradients, word } = meeting;
        let nccl = Nccl::join(library, id, rank, world, &settings).map_err(|e| named("joining the other ranks", e))?;
        Ok(Ranks { stream: Stream::new(gpu)?, nccl, marks: Marks::new(gpu, word)?, gradients })
    }

    pub(crate) fn rank(&self) -> usize {
        self.nccl.rank()
    }

    pub(crate) fn world(&self) -> usize {
        self.nccl.world()
    }

    pub(crate) fn aborter(&self) -> Aborter {
        self.nccl.aborter()
    }

    /// An error that NCCL met on its own, since the last call of anything.
    pub(crate) fn check(&self) -> Result<(), CudaError> {
        self.nccl.async_error().map_err(|e| named("between the ranks", e))
    }

    /// Sums elements over the ranks, on the stream of sums.
    fn sum(&self, address: Address, elements: usize, element: Element) -> Result<(), CudaError> {
        // SAFETY: a range of the reduce arena or of its bf16 twin, which live as long as the lists and graphs that use them; events
        // order this stream's use of it and the compute stream's.
        let done = unsafe { self.nccl.all_reduce_sum(address, elements, element, self.stream.raw.cast()) };
        done.map_err(|e| named("sum over ranks", e))
    }

    /// Tells the watch where the GPU is, once the stream gets there.
    fn tell(&self, mark: Option<Address>, stream: &Stream) -> Result<(), CudaError> {
        let told = mark.zip(self.marks.as_ref()).map(|(from, marks)| marks.issue(from, stream));
        told.unwrap_or(Ok(()))
    }

    /// Gives every rank the ranges of their owners: address, bytes, rank.
    pub(crate) fn share(&self, ranges: &[(Address, usize, usize)], compute: &Stream) -> Result<(), CudaError> {
        let broadcast = |&(address, bytes, owner): &(Address, usize, usize)| {
            // SAFETY: as in `sum`; parts go back to their pool, whose use is ordered by the same stream.
            unsafe { self.nccl.broadcast(address, bytes, owner, compute.raw.cast()) }
        };
        let some = || ranges.iter().filter(|r| r.1 > 0);
        if some().next().is_none() {
            return Ok(());
        }
        self.nccl.group(|| some().try_for_each(broadcast)).map_err(|e| named("exchange between ranks", e))
    }
}

impl Ranks {
    /// Gives every rank the bytes of all, as one launch.
    pub(crate) fn gather(&self, parts: &[Gathered], compute: &Stream) -> Result<(), CudaError> {
        let one = |&Gathered { to, from, bytes }: &Gathered| {
            // SAFETY: operands of one launch in the work arena, or constants, which live as long as the lists and graphs that use
            // them; the plan's checker proved that they lie apart, and one stream orders their use.
            unsafe { self.nccl.all_gather(from, to, bytes, compute.raw.cast()) }
        };
        self.nccl.group(|| parts.iter().try_for_each(one)).map_err(|e| named("exchange of batch statistics", e))
    }
}

fn named(what: &str, error: NcclError) -> CudaError {
    CudaError::Ranks { what: what.to_string(), source: Box::new(error) }
}

/// A command of a list that concerns all ranks.
#[derive(Debug)]
pub(crate) enum Between {
    /// Starts the sum of a bucket that the body has just made, beside what follows: of its f32 elements, and of those that go as bf16.
    /// Marks tell when the GPU is in it and beyond it.
    Sum { ranks: Rc<Ranks>, made: Event, whole: (Address, usize), halved: Option<Halved>, marks: [Option<Address>; 2] },
    /// What follows waits for all sums.
    Summed { ranks: Rc<Ranks>, done: Event },
    /// Gives every rank the ranges of their owners.
    Share { ranks: Rc<Ranks>, ranges: Vec<(Address, usize, usize)> },
    /// Gives every rank the bytes of all, within a body.
    Gather { ranks: Rc<Ranks>, parts: Vec<Gathered> },
    /// Tells the watch where the GPU is.
    Mark { ranks: Rc<Ranks>, from: Address },
}

/// Elements that go between ranks as bf16: a cast, their sum, a cast back.
#[derive(Debug)]
pub(crate) struct Halved {
    pub down: Vec<Step>,
    pub address: Address,
    pub elements: usize,
    pub up: Vec<Step>,
}

impl Between {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Between::Sum { .. } => "all_reduce",
            Between::Summed { .. } => "wait for all_reduce",
            Between::Share { .. } => "broadcasts",
            Between::Gather { .. } => "all_gather",
            Between::Mark { .. } => "mark",
        }
    }

    pub(crate) fn issue(&self, compute: &Stream) -> Result<(), CudaError> {
        match self {
            Between::Sum { ranks, made, whole, halved, marks } => {
                let issue = |steps: &[Step]| {
                    steps.iter().try_for_each(|s| s.commands.iter().try_for_each(|c| c.issue(&ranks.stream, s)))
                };
                made.record(compute)?;
                ranks.stream.wait(made)?;
                ranks.tell(marks[0], &ranks.stream)?;
                if whole.1 > 0 {
                    ranks.sum(whole.0, whole.1, Element::F32)?;
                }
                if let Some(halved) = halved {
                    issue(&halved.down)?;
                    ranks.sum(halved.address, halved.elements, Element::Bf16)?;
                    issue(&halved.up)?;
                }
                ranks.tell(marks[1], &ranks.stream)
            }
            Between::Summed { ranks, done } => {
                done.record(&ranks.stream)?;
                compute.wait(done)
            }
            Between::Share { ranks, ranges } => ranks.share(ranges, compute),
            Between::Gather { ranks, parts } => ranks.gather(parts, compute),
            Between::Mark { ranks, from } => ranks.tell(Some(*from), compute),
        }
    }
}

/// A sum over ranks that begins within a body.
pub(crate) struct Begin {
    /// After so many of its launches.
    pub after: usize,
    /// Elements of the reduce arena that go as they are, and then those that go as `Gradients` says.
    pub whole: Range<usize>,
    pub gradients: Range<usize>,
}

/// The sums of a phase, a bucket each. Losses and monitors come before the gradients.
pub(crate) fn sums(plan: &Plan, phase: usize) -> Vec<Begin> {
    let is_gradient = |name: &str| name.split('/').nth(1) == Some("grad");
    let begin = |bucket: &plan::Bucket| {
        let within = plan.reduce.entries.iter().filter(|e| bucket.range.contains(&e.2.start));
        let others = within.filter(|e| !is_gradient(&e.0)).map(|e| e.2.end);
        // A bucket begins where its first entry does; what follows the last other value is gradients.
        let middle = others.max().map_or(bucket.range.start, |end| end.next_multiple_of(64).min(bucket.range.end));
        let after = launches_until(plan, phase, bucket);
        Begin { after, whole: bucket.range.start..middle, gradients: middle..bucket.range.end }
    };
    plan.reduce.buckets.iter().filter(|b| b.phase == phase).map(begin).collect()
}

/// Launches of the body up to the one that completes a bucket.
fn launches_until(plan: &Plan, phase: usize, bucket: &plan::Bucket) -> usize {
    let nodes = plan.graph.iter().map(|(id, _)| id);
    let made: HashSet<_> = nodes.take_while(|&id| id != bucket.ready_after).collect();
    let body = plan.section(phase, graph::Section::Body).iter();
    body.take_while(|launch| launch.node == bucket.ready_after || made.contains(&launch.node)).count()
}

/// The command that gives every rank what all carried; `slots` are each rank's micro-batches.
pub(crate) fn carried(slots: &[Range<usize>], first: Address, slot_bytes: usize) -> Vec<(Address, usize, usize)> {
    let range = |(owner, slots): (usize, &Range<usize>)| {
        (first + (slots.start * slot_bytes) as Address, slots.len() * slot_bytes, owner)
    };
    slots.iter().enumerate().map(range).collect()
}
