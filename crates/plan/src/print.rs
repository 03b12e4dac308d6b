//! The printed plan: a line per launch, then what it adds up to.

use crate::lower::{Launch, Plan};
use crate::place::{Arena, Loc};
use graph::{Section, ValueId};
use std::collections::BTreeMap;
use std::fmt::{Display, Formatter, Result, Write as _};

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let live = self.live_bytes();
        for phase in 0..self.phases.len() {
            for section in [Section::Prepare, Section::Body, Section::Update] {
                let launches = self.section(phase, section);
                if launches.is_empty() {
                    continue;
                }
                let when = match section {
                    Section::Prepare => "once, after loading",
                    Section::Body => "per micro-batch",
                    Section::Update => "per step",
                };
                writeln!(f, "phase {} {section:?} ({when})", self.phases[phase].name)?;
                writeln!(f, "{:>9} {:>9} {:>9} {:>9} {:>9}  launch", "read", "written", "flops", "live", "at")?;
                for launch in launches {
                    line(self, launch, live[launch.node.0 as usize], f)?;
                }
            }
        }
        f.write_str(&summary(self))
    }
}

fn line(plan: &Plan, launch: &Launch, live: usize, f: &mut Formatter<'_>) -> Result {
    let name = |v: ValueId| plan.graph.name(v);
    let inputs: Vec<_> = launch.inputs.iter().take(6).map(|a| name(a.value)).collect();
    let more = if launch.inputs.len() > 6 { format!(", … {} more", launch.inputs.len() - 6) } else { String::new() };
    let outputs: Vec<_> =
        launch.outputs.iter().map(|a| format!("{} {}{}", name(a.value), a.dtype.name(), a.shape)).collect();
    let at = launch.outputs.first().map_or(String::new(), |a| place_of(a.loc));
    let (read, written, flops) = (unit(launch.cost.read), unit(launch.cost.written), unit(launch.cost.flops));
    writeln!(
        f,
        "{read:>9} {written:>9} {flops:>9} {:>9} {at:>9}  {}: {} = {}({}{more})",
        unit(live as u64),
        launch.path,
        outputs.join(", "),
        launch.op,
        inputs.join(", ")
    )
}

fn place_of(loc: Loc) -> String {
    let arena = match loc.arena {
        Arena::State => 's',
        Arena::Batch => 'b',
        Arena::Prepared => 'p',
        Arena::Reduce => 'r',
        Arena::Carry => 'c',
        Arena::Work => 'w',
    };
    format!("{arena}+{:x}", loc.offset)
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
    /// Work bytes alive during each node.
    pub fn live_bytes(&self) -> Vec<usize> {
        let mut change = vec![0isize; self.graph.nodes.len() + 1];
        let mut last = vec![None; self.graph.values.len()];
        for launch in &self.launches {
            for arg in launch.inputs.iter().chain(&launch.outputs).filter(|a| a.loc.arena == Arena::Work) {
                let bytes = self.placement.storage.size(arg.shape, arg.dtype) as isize;
                let at = launch.node.0 as usize;
                let seen: &mut Option<usize> = &mut last[arg.value.0 as usize];
                match *seen {
                    None => change[at] += bytes,
                    Some(previous) => change[previous + 1] += bytes,
                }
                change[at + 1] -= bytes;
                *seen = Some(at);
            }
        }
        change.pop();
        change
            .iter()
            .scan(0, |live, c| {
                *live += c;
                Some(*live as usize)
            })
            .collect()
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
