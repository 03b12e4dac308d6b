//! The printed plan: a line per launch, then what it adds up to.

use crate::live::live_bytes;
use crate::lower::{Arg, Launch, Plan};
use crate::place::{Arena, alias};
use graph::{Node, Op, Section, ValueId};
use std::collections::BTreeMap;
use std::fmt::{Display, Formatter, Result, Write as _};

const LEGEND: &str = "\
# A line per launch: bytes read and written, FLOPs, bytes alive in the work arena while it runs, then
#   path: outputs = op(inputs)
# Each output is followed by its place, arena+offset in hex: w work (shared by liveness), b batch, p prepared, r reduced
# (losses and gradients), c carried to the update (a slot per micro-batch). sum(x) is x over all micro-batches and ranks,
# all(x) its copy of each micro-batch, x[a..b] rows of it, no copy. A name without % is a state or an input.
";

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(LEGEND)?;
        let live = self.live_bytes();
        for phase in 0..self.phases.len() {
            for section in [Section::Prepare, Section::Body, Section::Update] {
                let launches = self.section(phase, section);
                if launches.is_empty() {
                    continue;
                }
                let when = match section {
                    Section::Prepare => "prepare (once, after loading)",
                    Section::Body => "body (per micro-batch)",
                    Section::Update => "update (per step)",
                };
                writeln!(f, "\nphase {}, {when}", self.phases[phase].name)?;
                writeln!(f, "{:>9} {:>9} {:>9} {:>9}  launch", "read", "written", "flops", "live")?;
                for launch in launches {
                    line(self, launch, live[launch.node.0 as usize], f)?;
                }
            }
        }
        write!(f, "\n{}", summary(self))
    }
}

fn line(plan: &Plan, launch: &Launch, live: usize, f: &mut Formatter<'_>) -> Result {
    // What is left out are the tensors of an update, all of one kind.
    let inputs: Vec<_> = launch.inputs.iter().take(8).map(|a| operand(plan, a.value)).collect();
    let left = launch.inputs.len() - inputs.len();
    let more = if left > 0 { format!(", … {left} more") } else { String::new() };
    let output = |a: &Arg| {
        let arena = format!("{:?}", a.loc.arena)[..1].to_lowercase();
        format!("{} {}{} {arena}+{:x}", plan.graph.name(a.value), a.dtype.name(), a.shape, a.loc.offset)
    };
    let outputs: Vec<_> = launch.outputs.iter().map(output).collect();
    let made = if outputs.is_empty() { String::new() } else { outputs.join(", ") + " = " };
    let (read, written, flops) = (unit(launch.cost.read), unit(launch.cost.written), unit(launch.cost.flops));
    writeln!(
        f,
        "{read:>9} {written:>9} {flops:>9} {:>9}  {}: {made}{}({}{more})",
        unit(live as u64),
        launch.path,
        launch.op,
        inputs.join(", ")
    )
}

/// The name of a value; one that is a view says of what.
fn operand(plan: &Plan, value: ValueId) -> String {
    match plan.graph.producer(value) {
        Some(Node { op: Op::Reduce, inputs, .. }) => format!("sum({})", operand(plan, inputs[0])),
        Some(Node { op: Op::Carry, inputs, .. }) => format!("all({})", operand(plan, inputs[0])),
        Some(node @ Node { op: Op::Slice { start, len, .. }, inputs, .. }) if alias(&plan.graph, node).is_some() => {
            format!("{}[{start}..{}]", operand(plan, inputs[0]), start + len)
        }
        _ => plan.graph.name(value),
    }
}

/// Four significant places with a decimal unit.
fn unit(n: u64) -> String {
    match n {
        0 => "-".to_string(),
        1..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{:.2}k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2}M", n as f64 / 1e6),
        _ => format!("{:.2}G", n as f64 / 1e9),
    }
}

impl Plan {
    /// Bytes of the work arena alive during each node.
    pub fn live_bytes(&self) -> Vec<usize> {
        let in_work = |v: ValueId| self.placement.locs[v.0 as usize].is_some_and(|loc| loc.arena == Arena::Work);
        let size = |arg: Arg| self.placement.storage.size(arg.stored, arg.dtype);
        live_bytes(&self.graph, &self.phases, |v| if in_work(v) { size(self.arg(v)) } else { 0 })
    }

    /// Bytes read and written and FLOPs of bodies and updates, per image row of the micro-batch.
    pub fn per_image(&self) -> (f64, f64) {
        let rows =
            self.graph.batch.iter().find(|b| b.name == "image").map_or(1, |b| self.graph.shape(b.value).dims()[0]);
        let steps = self.launches.iter().filter(|l| self.graph.node(l.node).place.section != Section::Prepare);
        let (bytes, flops) = steps.fold((0, 0), |(b, fl), l| (b + l.cost.read + l.cost.written, fl + l.cost.flops));
        (bytes as f64 / rows as f64, flops as f64 / rows as f64)
    }
}

/// Peak memory, traffic and FLOPs per image, and the share of each op.
pub fn summary(plan: &Plan) -> String {
    let mut out = String::new();
    let p = &plan.placement;
    let (bytes, flops) = plan.per_image();
    let mb = |b: usize| b as f64 / 1e6;
    let _ = writeln!(
        out,
        "memory: work {:.1} MB, gradients {:.1} MB, batch {:.1} MB, carried {:.2} MB a micro-batch, prepared {:.1} MB",
        mb(p.work_bytes),
        mb(p.layout.reduce_bytes),
        mb(p.batch_bytes),
        mb(p.layout.carry_bytes),
        mb(p.prepared_bytes)
    );
    let launches = plan.launches.iter().filter(|l| plan.graph.node(l.node).place.section != Section::Prepare);
    let _ = writeln!(
        out,
        "per image: {:.2} MB moved, {:.4} GFLOP; {} launches a step",
        bytes / 1e6,
        flops / 1e9,
        launches.clone().count()
    );
    let mut families: BTreeMap<&str, (usize, u64, u64)> = BTreeMap::new();
    for launch in launches {
        let family = families.entry(launch.op.name()).or_default();
        *family = (family.0 + 1, family.1 + launch.cost.read + launch.cost.written, family.2 + launch.cost.flops);
    }
    let (all_bytes, all_flops) = families.values().fold((1, 1), |(b, fl), f| (b + f.1, fl + f.2));
    for (name, (count, bytes, flops)) in families {
        let share = |part: u64, all: u64| 100.0 * part as f64 / all as f64;
        let _ = writeln!(
            out,
            "{name:>22} {count:>4} launches {:>5.1} % of bytes {:>5.1} % of FLOPs",
            share(bytes, all_bytes),
            share(flops, all_flops)
        );
    }
    out
}
