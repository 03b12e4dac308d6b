//! What a method asks for, as data that data side, plan and trainer read.

/// Facts of a run that a method may depend on.
#[derive(Clone, Debug)]
pub struct Setting {
    pub classes: usize,
    /// Height, width and channels of a training image.
    pub image: [usize; 3],
    /// Training samples.
    pub samples: usize,
    pub epochs: usize,
    /// Base learning rate and momentum of the optimizer.
    pub lr: f64,
    pub momentum: f64,
    /// Name of the last linear layer of each teacher that the recipe names.
    pub teachers: Vec<&'static str>,
}

impl Setting {
    /// Facts of the data; those of optimizer and teachers are filled in where they are known.
    pub fn new(classes: usize, image: [usize; 3], samples: usize, epochs: usize) -> Setting {
        Setting { classes, image, samples, epochs, lr: 0.0, momentum: 0.0, teachers: vec![] }
    }
}

/// How units are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampler {
    /// A unit is an image; a fresh permutation each epoch.
    Shuffle,
    /// A unit is an anchor and `partners` images of its class (chapter 0.6): rows [anchors; partners grouped by anchor].
    Pairs { rule: PairRule, partners: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairRule {
    /// Uniform over the class, with replacement; the anchor itself may be drawn.
    WithSelf,
    /// The anchor excluded, unless it is alone; without replacement where the class is large enough.
    WithoutSelf,
    /// Each class is shuffled and neighbours are paired: every image once an epoch; an odd one pairs with a random one.
    Partition,
}

/// What is done to the images of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Augment {
    /// The recipe's.
    Recipe,
    /// The recipe's with draws of its own, then two 8-bit operators and a cutout (chapter 5.3).
    Strong,
}

/// Images that a unit brings; the views of a unit lie one after the other in the image buffer, each with all its rows.
#[derive(Clone, Debug)]
pub struct View {
    pub name: String,
    pub augment: Augment,
}

/// How many cells of a grid are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CellRule {
    /// Each with this probability.
    Probability(f64),
    /// Exactly so many.
    Count(usize),
    /// Between 1 and all but one, uniformly.
    UniformCount,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DrawKind {
    /// u8 [units, cells]: with probability `gate` a mask by the rule, else zeros.
    CellMask { cells: usize, gate: f64, rule: CellRule },
    /// i32 [units]: a permutation of the micro-batch.
    Permutation,
    /// []: λ ~ Beta(alpha, alpha), one a micro-batch; 0.5 where alpha is 0.
    Lambda { alpha: f64 },
    /// i32 [4]: top, left, bottom, right (exclusive) of CutMix's box in an image of `size`, one a micro-batch; λ ~ Beta(alpha, alpha)
    /// sets its area (chapter 7.17).
    CutBox { alpha: f64, size: [usize; 2] },
    /// []: the share of the image outside the `CutBox` of the same micro-batch.
    CutShare { alpha: f64, size: [usize; 2] },
    /// i32 [units, 4]: a square of `side` about a uniform centre, clipped (chapter 7.17).
    Cutout { side: usize, size: [usize; 2] },
    /// i32 [units, 4]: with probability `p` a box of area and aspect ratio as random erasing has them, else an empty one.
    Erase { p: f64, size: [usize; 2] },
}

/// A random value that a step needs, drawn by the data side.
#[derive(Clone, Debug)]
pub struct DrawSpec {
    pub name: String,
    pub kind: DrawKind,
}

/// State of a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateUse {
    /// A row per training sample.
    PerSample,
    /// The rows of the previous step.
    Rolling,
}

#[derive(Clone, Debug)]
pub struct StateSpec {
    pub name: String,
    pub usage: StateUse,
    /// Shape of a row.
    pub row: Vec<usize>,
}

/// A weight that follows the epoch, counted from 0: `from` during the first `hold` epochs, then
/// `from + (to − from) min((epoch + 1) / epochs, 1)`; `to` when `epochs` is 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ramp {
    pub from: f64,
    pub to: f64,
    pub epochs: f64,
    pub hold: usize,
}

impl Ramp {
    /// From 0 to `to` over so many epochs.
    pub fn up(to: f64, epochs: f64) -> Ramp {
        Ramp { from: 0.0, to, epochs, hold: 0 }
    }

    pub fn at(&self, epoch: usize) -> f64 {
        if epoch < self.hold {
            return self.from;
        }
        let share = if self.epochs > 0.0 { ((epoch + 1) as f64 / self.epochs).min(1.0) } else { 1.0 };
        if share == 1.0 { self.to } else { self.from + (self.to - self.from) * share }
    }
}

#[derive(Clone, Debug)]
pub struct SlotSpec {
    pub name: String,
    pub ramp: Ramp,
}

/// Which parameters of a range decay, if the recipe's optimizer decays any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decay {
    All,
    /// Not scales and shifts of batch norms.
    ExceptBatchNorm,
}

/// Parameters of a phase that share their optimizer settings.
#[derive(Clone, Debug)]
pub struct TrainRange {
    /// Prefix of state names: `student.`, `teacher.fc.bias`.
    pub prefix: String,
    pub lr_factor: f64,
    pub decay: Decay,
    /// Name of the momentum buffers: a parameter trained in two phases has two.
    pub momentum: String,
}

impl TrainRange {
    pub fn new(prefix: &str) -> TrainRange {
        TrainRange { prefix: prefix.to_string(), lr_factor: 1.0, decay: Decay::All, momentum: "momentum".to_string() }
    }
}

/// A phase: a loss and the parameters that it trains.
#[derive(Clone, Debug)]
pub struct PhaseSpec {
    pub name: String,
    pub trains: Vec<TrainRange>,
}

/// What a method needs.
#[derive(Clone, Debug)]
pub struct Spec {
    pub sampler: Sampler,
    pub views: Vec<View>,
    pub draws: Vec<DrawSpec>,
    pub states: Vec<StateSpec>,
    pub slots: Vec<SlotSpec>,
    pub phases: Vec<PhaseSpec>,
    /// Whether the step also sees the images and labels of the previous one.
    pub previous: bool,
    /// Frozen teachers that the recipe must name.
    pub teachers: usize,
}

impl Default for Spec {
    /// One image a unit, one phase that trains the student and the method's modules.
    fn default() -> Spec {
        let trains = vec![TrainRange::new("student."), TrainRange::new("method.")];
        Spec {
            sampler: Sampler::Shuffle,
            views: vec![View { name: String::new(), augment: Augment::Recipe }],
            draws: vec![],
            states: vec![],
            slots: vec![],
            phases: vec![PhaseSpec { name: "train".to_string(), trains }],
            previous: false,
            teachers: 0,
        }
    }
}

impl Spec {
    /// Image rows that a unit brings: one per view, anchor and partners in a pair.
    pub fn rows_per_unit(&self) -> usize {
        let members = if let Sampler::Pairs { partners, .. } = self.sampler { 1 + partners } else { 1 };
        members * self.views.len()
    }
}

#[cfg(test)]
mod tests {
    use super::Ramp;

    #[test]
    fn a_ramp_reaches_its_end() {
        let r = Ramp::up(2.0, 4.0);
        assert_eq!((r.at(0), r.at(3), r.at(9)), (0.5, 2.0, 2.0));
        assert_eq!(Ramp::up(2.0, 0.0).at(0), 2.0);
        let held = Ramp { from: 1.0, to: 0.2, epochs: 10.0, hold: 1 };
        assert_eq!((held.at(0), held.at(4), held.at(9)), (1.0, 0.6, 0.2));
    }
}
