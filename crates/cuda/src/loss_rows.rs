//! Row losses: kernels/loss_rows.cu runs all of a step, with their gradients, from a table that is made here.

use crate::binding::{Bind, Blocks, Tensor};
use crate::command::Address;
use crate::loss::row_kernel;
use crate::scalars::{Divisor, Weight};
use bytemuck::{Pod, Zeroable};
use graph::{MaskRule, RowKind, RowMask, RowTable, RowTerm, Side, Target, Temperature};

/// Shared memory of a block of `loss_rows`: what every device grants, four times over on a multiprocessor.
const SHARED_BYTES: usize = 48 << 10;
/// No row, no statistics; not staged.
const NONE: u32 = u32::MAX;

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Row {
    address: Address,
    width: u32,
    staged: u32,
}
const _: () = assert!(size_of::<Row>() == 16);

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Stats {
    label: Address,
    tau: f64,
    row: u32,
    by_deviation: u32,
}
const _: () = assert!(size_of::<Stats>() == 24);

/// A term seen from one side.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Role {
    label: Address,
    second: Address,
    lambda: Address,
    candidates: Address,
    mask_label: Address,
    value: Address,
    weight: Weight,
    divisor: Divisor,
    on: f32,
    off: f32,
    total: f32,
    exponent: f32,
    threshold: f32,
    kind: u32,
    target: u32,
    mask: u32,
    gradient: u32,
    z: u32,
    t: u32,
    student: u32,
    teacher: u32,
    masks: [u32; 2],
    count: u32,
}
const _: () = assert!(size_of::<Role>() == 152);

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Segment {
    roles: Address,
    stats: Address,
    rows: Address,
    grad: Address,
    n: u32,
    classes: u32,
    roles_n: u32,
    stats_n: u32,
    rows_n: u32,
    pad: u32,
}
const _: () = assert!(size_of::<Segment>() == 56);

/// Bytes that a block adds for each: LossTerm of a role, LossSoftmax of a statistic, the address of a row.
const TERM_BYTES: usize = 40;
const SOFTMAX_BYTES: usize = 48;
const ROW_BYTES: usize = 8;

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Sum {
    rows: Address,
    value: Address,
    divisor: Divisor,
    n: u32,
    pad: u32,
}
const _: () = assert!(size_of::<Sum>() == 48);

/// Arguments of `loss_rows_*` (table of segments) and of `loss_rows_values` (table of sums).
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct TableArgs {
    table: Address,
    scalars: Address,
}
const _: () = assert!(size_of::<TableArgs>() == 16);

/// An operand of a term, from its first row on.
#[derive(Clone, Copy, Debug)]
struct View {
    input: usize,
    tensor: Tensor,
    start: usize,
}

impl View {
    fn width(&self) -> usize {
        if self.tensor.shape.dims().len() > 1 { self.tensor.last() } else { 1 }
    }

    /// The row `r` of the term.
    fn at(&self, r: usize) -> Address {
        self.tensor.address + ((self.start + r) * self.width() * self.tensor.dtype.size()) as Address
    }
}

/// A line of the table.
struct Line {
    term: RowTerm,
    rows: usize,
    views: Vec<View>,
    /// Weight of the gradient, per side.
    grads: [Option<graph::Weight>; 2],
    /// f32 [rows] for the row values, if they are wanted.
    values: Option<Address>,
}

/// One segment: rows of one logits tensor that the same roles read.
#[derive(Default)]
struct Part {
    roles: Vec<Role>,
    stats: Vec<Stats>,
    rows: Vec<Row>,
    n: usize,
    classes: usize,
    grad: Address,
}

impl Part {
    /// The row table's entry of a view, for terms' rows from `skip` on.
    fn row(&mut self, view: &View, skip: usize) -> u32 {
        let (address, width) = (view.at(skip), view.width() as u32);
        let known = self.rows.iter().position(|r| (r.address, r.width) == (address, width));
        let at = known.unwrap_or_else(|| {
            self.rows.push(Row { address, width, staged: NONE });
            self.rows.len() - 1
        });
        at as u32
    }

    /// Statistics of a row; those without a label serve, and become, those with one.
    fn stats(&mut self, row: u32, temperature: Temperature, label: Address) -> u32 {
        let (tau, by_deviation) = match temperature {
            Temperature::Fixed(tau) => (tau, 0),
            Temperature::Std { scale } => (scale, 1),
        };
        let like = |s: &Stats| (s.row, s.tau, s.by_deviation) == (row, tau, by_deviation);
        let fits = |s: &Stats| like(s) && (s.label == label || s.label == 0 || label == 0);
        let at = self.stats.iter().position(fits).unwrap_or_else(|| {
            self.stats.push(Stats { label, tau, row, by_deviation });
            self.stats.len() - 1
        });
        self.stats[at].label = self.stats[at].label.max(label);
        at as u32
    }

    /// Adds a term on its rows from `skip` on, as a side sees it.
    fn role(&mut self, line: &Line, side: Side, skip: usize) {
        let (term, views) = (line.term, &line.views);
        let z = self.row(&views[0], skip);
        let grad = line.grads[side as usize].filter(|_| term.kind != RowKind::Count);
        let value = line.values.filter(|_| side == Side::Student);
        let mut role = Role {
            value: value.map_or(0, |v| v + (skip * 4) as Address),
            weight: grad.unwrap_or(0.0.into()).into(),
            divisor: term.divisor.into(),
            gradient: grad.map_or(0, |_| 1 + side as u32),
            z,
            t: NONE,
            student: NONE,
            teacher: NONE,
            masks: [NONE; 2],
            ..Role::zeroed()
        };
        self.kind(&mut role, line, skip);
        let masks = &views[1 + term.kind.targets()..];
        let mut mask = |part: &mut Part, i: usize| {
            let row = part.row(&masks[i], skip);
            role.masks[i] = part.stats(row, Temperature::Fixed(1.0), 0);
        };
        role.mask = match term.mask {
            RowMask::All => 0,
            RowMask::Confident { threshold } => {
                mask(self, 0);
                role.threshold = threshold as f32;
                1
            }
            RowMask::LabelProb { rule } => {
                mask(self, 0);
                mask(self, 1);
                role.mask_label = masks[2].at(skip);
                if rule == MaskRule::Greater { 2 } else { 3 }
            }
        };
        self.roles.push(role);
    }

    /// What the kind of a term reads.
    fn kind(&mut self, role: &mut Role, line: &Line, skip: usize) {
        let (views, z) = (&line.views, role.z);
        role.kind = match line.term.kind {
            RowKind::CrossEntropy { target, temperature } => {
                self.target(role, line, skip, (target, Temperature::Fixed(temperature)));
                0
            }
            RowKind::Kl { target, temperature } => {
                self.target(role, line, skip, (target, temperature));
                1
            }
            RowKind::TargetKl { temperature } | RowKind::NonTargetKl { temperature } => {
                role.t = self.row(&views[1], skip);
                role.label = views[2].at(skip);
                role.student = self.stats(z, temperature, role.label);
                role.teacher = self.stats(role.t, temperature, role.label);
                if matches!(line.term.kind, RowKind::TargetKl { .. }) { 2 } else { 3 }
            }
            RowKind::GeneralizedCrossEntropy { q } => {
                (role.exponent, role.candidates, role.count) = (q as f32, views[1].at(skip), views[1].width() as u32);
                role.student = self.stats(z, Temperature::Fixed(1.0), 0);
                4
            }
            RowKind::BinaryCrossEntropy { class } => {
                role.count = class as u32;
                5
            }
            RowKind::Count => 6,
        };
    }

    /// The target of a cross-entropy or KL.
    fn target(&mut self, role: &mut Role, line: &Line, skip: usize, of: (Target, Temperature)) {
        let ((target, temperature), views) = (of, &line.views);
        role.student = self.stats(role.z, temperature, 0);
        role.target = match target {
            Target::Label { on, off } => {
                role.label = views[1].at(skip);
                let total = on + off * (views[0].width() as f64 - 1.0);
                (role.on, role.off, role.total) = (on as f32, off as f32, total as f32);
                0
            }
            Target::MixedLabel => {
                (role.label, role.second) = (views[1].at(skip), views[2].at(skip));
                role.lambda = views[3].tensor.address;
                1
            }
            Target::Probabilities => {
                role.t = self.row(&views[1], skip);
                2
            }
            Target::Logits => {
                role.t = self.row(&views[1], skip);
                role.teacher = self.stats(role.t, temperature, 0);
                3
            }
        };
    }

    /// Stages rows in shared memory while they fit; gives a block's bytes.
    fn stage(&mut self) -> usize {
        let tables = self.roles.len() * (size_of::<Role>() + TERM_BYTES)
            + self.stats.len() * (size_of::<Stats>() + SOFTMAX_BYTES)
            + self.rows.len() * (size_of::<Row>() + ROW_BYTES);
        assert!(
            tables <= SHARED_BYTES,
            "{} row losses of one tensor: more than a block's memory holds",
            self.roles.len()
        );
        let mut floats = 0;
        for row in &mut self.rows {
            if tables + (floats + row.width as usize) * 4 <= SHARED_BYTES {
                row.staged = floats as u32;
                floats += row.width as usize;
            }
        }
        tables + floats * 4
    }
}

/// Cuts the rows of every tensor that a line reads as its logits, or that gets a gradient, where its roles begin and end.
fn parts(lines: &[Line], grads: &[(usize, Tensor)]) -> Vec<Part> {
    let mut roles: Vec<(&Line, Side)> = vec![];
    for line in lines {
        for side in [Side::Student, Side::Target] {
            let value = side == Side::Student && line.values.is_some();
            if value || line.grads[side as usize].is_some() {
                roles.push((line, side));
            }
        }
    }
    let mut owners: Vec<usize> =
        roles.iter().map(|&(l, side)| l.views[side as usize].input).chain(grads.iter().map(|g| g.0)).collect();
    owners.sort_unstable();
    owners.dedup();
    let mut parts = vec![];
    for owner in owners {
        let grad = grads.iter().find(|g| g.0 == owner).map(|g| g.1);
        let view = |&(line, side): &(&Line, Side)| line.views[side as usize];
        let mine: Vec<_> = roles.iter().copied().filter(|role| view(role).input == owner).collect();
        let mut cuts: Vec<usize> =
            mine.iter().flat_map(|role| [view(role).start, view(role).start + role.0.rows]).collect();
        cuts.extend(grad.iter().flat_map(|g| [0, g.shape.dims()[0]]));
        cuts.sort_unstable();
        cuts.dedup();
        for cut in cuts.windows(2) {
            let mut part = Part { n: cut[1] - cut[0], ..Part::default() };
            if let Some(grad) = grad {
                part.classes = grad.last();
                part.grad = grad.address + (cut[0] * grad.last() * 4) as Address;
            }
            let covers = |role: &&(&Line, Side)| (view(role).start..view(role).start + role.0.rows).contains(&cut[0]);
            mine.iter().filter(covers).for_each(|role| part.role(role.0, role.1, cut[0] - view(role).start));
            if part.grad != 0 || !part.roles.is_empty() {
                parts.push(part);
            }
        }
    }
    parts
}

/// The launch of all lines; a gradient's input is given by its index in the views.
fn launch(b: &mut Bind<'_>, lines: &[Line], grads: &[(usize, Tensor)]) {
    let mut parts = parts(lines, grads);
    let shared_bytes = parts.iter_mut().map(Part::stage).max().unwrap_or(0);
    let segments: Vec<Segment> = parts
        .iter()
        .map(|p| Segment {
            roles: b.table(&p.roles),
            stats: b.table(&p.stats),
            rows: b.table(&p.rows),
            grad: p.grad,
            n: p.n as u32,
            classes: p.classes as u32,
            roles_n: p.roles.len() as u32,
            stats_n: p.stats.len() as u32,
            rows_n: p.rows.len() as u32,
            pad: 0,
        })
        .collect();
    let rows = segments.iter().map(|s| s.n).max().unwrap_or(0);
    let widest = parts.iter().flat_map(|p| p.rows.iter().map(|r| r.width as usize)).max().unwrap_or(0);
    let (name, block) = row_kernel(widest, ["loss_rows_warp", "loss_rows_block"]);
    let args = TableArgs { table: b.table(&segments), scalars: b.scalars() };
    b.kernel(name, Blocks { grid: [rows, parts.len() as u32, 1], block, shared_bytes: shared_bytes as u32 }, &args);
}

/// The launch that sums row values, in row order.
fn sum_values(b: &mut Bind<'_>, lines: &[Line], first: usize) {
    let sum = |(i, line): (usize, &Line)| Sum {
        rows: line.values.expect("a line with row values"),
        value: b.output(first + i).address,
        divisor: line.term.divisor.into(),
        n: line.rows as u32,
        pad: 0,
    };
    let sums: Vec<Sum> = lines.iter().enumerate().map(sum).collect();
    let args = TableArgs { table: b.table(&sums), scalars: b.scalars() };
    b.kernel("loss_rows_values", Blocks::line(sums.len(), 256), &args);
}

/// The line of a term whose operands are the inputs, whole.
fn whole(b: &Bind<'_>, term: RowTerm) -> Line {
    let views = (0..term.operands()).map(|input| View { input, tensor: b.input(input), start: 0 }).collect();
    Line { term, rows: b.input(0).shape.dims()[0], views, grads: [None; 2], values: None }
}

pub(crate) fn value(b: &mut Bind<'_>, term: RowTerm) {
    let mut line = whole(b, term);
    line.values = Some(b.scratch(0, line.rows * 4));
    launch(b, std::slice::from_ref(&line), &[]);
    sum_values(b, &[line], 0);
}

pub(crate) fn gradient(b: &mut Bind<'_>, term: RowTerm, side: Side, weight: graph::Weight) {
    let mut line = whole(b, term);
    line.grads[side as usize] = Some(weight);
    launch(b, &[line], &[(side as usize, b.output(0))]);
}

/// A value per term, then a gradient per input of `grads`.
pub(crate) fn table(b: &mut Bind<'_>, table: &RowTable) {
    let (mut lines, mut scratch) = (vec![], 0);
    for line in &table.terms {
        let view = |v: &graph::RowView| View { input: v.input, tensor: b.input(v.input), start: v.start };
        let views: Vec<View> = line.views.iter().map(view).collect();
        let listed = |side: Side| table.grads.contains(&line.views[side as usize].input);
        let student = line.student_grad.filter(|_| listed(Side::Student));
        let target = line.target_grad.filter(|_| listed(Side::Target));
        let values = Some(b.scratch(scratch, line.rows * 4));
        scratch += line.rows * 4;
        lines.push(Line { term: line.term, rows: line.rows, views, grads: [student, target], values });
    }
    let output = |(i, &input): (usize, &usize)| (input, b.output(lines.len() + i));
    let grads: Vec<(usize, Tensor)> = table.grads.iter().enumerate().map(output).collect();
    launch(b, &lines, &grads);
    sum_values(b, &lines, 0);
}
