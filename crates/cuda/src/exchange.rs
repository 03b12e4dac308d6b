//! What an executor exchanges with those of other ranks; nothing of it happens before `join`.

use crate::arena::{Map, Region};
use crate::command::Address;
use crate::driver::{Event, EventKind};
use crate::error::CudaError;
use crate::executor::Executor;
use crate::part::Part;
use crate::program::{Bind, Step};
use crate::ranks::{self, Between, Gradients, Meeting, Ranks};
use crate::update;
use comm::{Aborter, GpuAt, GpuPlace};
use plan::{Cost, Plan};
use std::ops::Range;
use std::rc::Rc;

impl Executor {
    /// Joins the executors of the other ranks; comes before `reserve`. From then on `phase` is a phase of all ranks. What is returned
    /// ends the collectives from another thread.
    pub fn join(&mut self, meeting: Meeting) -> Result<Aborter, CudaError> {
        let ranks = Ranks::join(&self.gpu, meeting)?;
        let aborter = ranks.aborter();
        self.ranks = Some(Rc::new(ranks));
        Ok(aborter)
    }

    /// Whether other ranks were joined.
    pub fn is_joined(&self) -> bool {
        self.ranks.is_some()
    }

    /// What ranks exchange in a phase of one list: sums, each after so many launches of the body, and, into `between`, what follows the body.
    pub(crate) fn shared_steps(
        &self,
        plan: &Plan,
        phase: usize,
        map: &Map,
        between: &mut Vec<Step>,
    ) -> Result<Vec<(usize, Step)>, CudaError> {
        let Some(ranks) = &self.ranks else { return Ok(vec![]) };
        let slots: Vec<_> = (0..ranks.world()).map(|rank| rank..rank + 1).collect();
        let slot_bytes = plan.placement.layout.carry_bytes;
        let ranges = ranks::carried(&slots, map.bases[Region::Carry] + slot_bytes as Address, slot_bytes);
        between.push(Step::between(Between::Share { ranks: ranks.clone(), ranges }));
        let done = Event::new(&self.gpu, EventKind::Order)?;
        between.push(Step::between(Between::Summed { ranks: ranks.clone(), done }));
        let sums = ranks::sums(plan, phase);
        let place = |at| GpuPlace { phase, at, buckets: sums.len() };
        let marks = (1..=sums.len())
            .map(|bucket| Ok([self.mark(place(GpuAt::Sum(bucket)))?, self.mark(place(GpuAt::Summed(bucket)))?]));
        let marks = marks.collect::<Result<Vec<_>, CudaError>>()?;
        sums.into_iter().zip(marks).map(|(begin, marks)| self.sum_step(ranks, begin, marks, map)).collect()
    }

    /// The command that starts the sum of a bucket, and after how many launches.
    fn sum_step(
        &self,
        ranks: &Rc<Ranks>,
        begin: ranks::Begin,
        marks: [Option<Address>; 2],
        map: &Map,
    ) -> Result<(usize, Step), CudaError> {
        let ranks::Begin { after, mut whole, gradients } = begin;
        let address = |at: usize| map.bases[Region::Reduce] + 4 * at as Address;
        let mut halved = None;
        if ranks.gradients == Gradients::F32 {
            whole.end = gradients.end;
        } else if !gradients.is_empty() {
            let (elements, full, sms) = (gradients.len(), address(gradients.start), self.gpu.facts.sms);
            let half = map.bases[Region::HalfReduce] + 2 * gradients.start as Address;
            let cast = |path: &str, command| Bind {
                path: path.to_string(),
                op: "cast",
                cost: Cost { read: 3 * elements as u64, written: 3 * elements as u64, flops: 0 },
                commands: vec![command],
            };
            let down = self.steps(vec![cast("gradients to bf16", update::cast(half, full, elements, sms))])?;
            let up = self.steps(vec![cast("gradients from bf16", update::cast_back(full, half, elements, sms))])?;
            halved = Some(ranks::Halved { down, address: half, elements, up });
        }
        let (made, whole) = (Event::new(&self.gpu, EventKind::Order)?, (address(whole.start), whole.len()));
        Ok((after, Step::between(Between::Sum { ranks: ranks.clone(), made, whole, halved, marks })))
    }

    /// Sums the phase's range of the reduce arena over the joined ranks.
    pub fn all_reduce(&mut self, plan: &Plan, phase: usize) -> Result<(), CudaError> {
        self.gpu.enter()?;
        let program = &self.reserved().programs[&plan.key];
        let wait = program.between[phase].last().expect("what waits for the sums");
        let steps = program.sums[phase].iter().map(|(_, sum)| sum).chain([wait]);
        for step in steps {
            step.commands.iter().try_for_each(|c| c.issue(&self.stream, step))?;
        }
        self.joined().check()
    }

    /// Parts of all ranks on every rank: `owners` says, for each of the result, whose it is; own ones are given in order.
    pub fn share_parts(&mut self, own: Vec<Part>, owners: &[usize], elements: usize) -> Result<Vec<Part>, CudaError> {
        self.gpu.enter()?;
        let ranks = self.joined().clone();
        let mut own = own.into_iter();
        let part = |&owner: &usize| match owner == ranks.rank() {
            true => Ok(own.next().expect("a part for each that is this rank's")),
            false => self.reserved().parts.take(elements),
        };
        let parts = owners.iter().map(part).collect::<Result<Vec<_>, _>>()?;
        let range = |(part, &owner): (&Part, &usize)| (part.address(), 4 * elements, owner);
        let ranges: Vec<_> = parts.iter().zip(owners).map(range).collect();
        ranks.share(&ranges, &self.stream)?;
        Ok(parts)
    }

    /// Gives every rank what all carried: `slots` are each rank's micro-batches.
    pub fn share_carry(&mut self, plan: &Plan, slots: &[Range<usize>]) -> Result<(), CudaError> {
        self.gpu.enter()?;
        let ranges = ranks::carried(slots, self.carry(plan, 0).1, plan.placement.layout.carry_bytes);
        self.joined().share(&ranges, &self.stream)
    }

    fn joined(&self) -> &Rc<Ranks> {
        self.ranks.as_ref().expect("`join` comes before what ranks share")
    }
}
