//! Proofs of the design: steps shaped like the hard methods, each with one and three micro-batches, a short last batch,
//! and one, two, four and eight ranks as threads. In `reproducible` mode the bits of every state are equal at any number of ranks.

#[allow(dead_code)] // other tests read more of it
mod proof;

use proof::{Run, SIDE, run, states_of};
use spec::{
    Expr, Losses, Method, Net, Network, PhaseSpec, RowMask, Setting, Spec, StateSpec, StateUse, Step, Taps, TrainRange,
    View,
};

/// conv 3→6, batch norm, ReLU, mean, linear.
#[derive(Debug)]
struct Tiny;

impl Network for Tiny {
    fn build<'g>(&self, net: &Net<'g>, image: Expr<'g>) -> Taps<'g> {
        let x = net.bn("bn1", net.conv("conv1", image, 6, 3, 1)).relu();
        let pooled = x.mean_hw();
        Taps { stages: vec![x], pooled, logits: net.linear("fc", pooled, 4) }
    }

    fn classifier(&self) -> &'static str {
        "fc"
    }
}

/// (i) Two phases: the second reads what the first updated, one parameter has two momenta, a term no image enters.
#[derive(Debug)]
struct TwoPhases {
    phases: usize,
}

impl Method for TwoPhases {
    fn spec(&self, _: &Setting) -> Result<Spec, String> {
        let main =
            PhaseSpec { name: "main".into(), trains: vec![TrainRange::new("student."), TrainRange::new("teacher.")] };
        let range = TrainRange { momentum: "momentum.bias".into(), ..TrainRange::new("teacher.fc.bias") };
        let bias = PhaseSpec { name: "bias".into(), trains: vec![range] };
        Ok(Spec { phases: [main, bias][..self.phases].to_vec(), teachers: 1, ..Spec::default() })
    }

    fn losses<'g>(&self, phase: usize, step: &Step<'g>) -> Losses {
        let teacher = step.teacher_in_training(0, step.image());
        if phase == 1 {
            return Losses::new().term("bias", 1.0, teacher.logits.cross_entropy(step.label()));
        }
        let student = step.student(step.image());
        let name = "teacher.conv1.weight";
        let anchor = step.param(name).squared_distance(step.initial(name));
        Losses::new()
            .term("mse", 1.0, student.stages[0].mse(teacher.stages[0]))
            .term("ce", 1.0, student.logits.cross_entropy(step.label()))
            .term("teacher", 0.5, teacher.logits.cross_entropy(step.label()))
            .term("anchor", 0.5, anchor)
    }
}

/// (ii) Two views in two batch-norm groups, terms masked by the teacher's confidence.
#[derive(Debug)]
struct TwoViews {
    grouped: bool,
}

impl Method for TwoViews {
    fn spec(&self, _: &Setting) -> Result<Spec, String> {
        let view = |name: &str| View { name: name.into(), augment: spec::Augment::Recipe };
        Ok(Spec { views: vec![view("weak"), view("strong")], teachers: 1, ..Spec::default() })
    }

    fn losses<'g>(&self, _: usize, step: &Step<'g>) -> Losses {
        let (tw, ts) = step.teacher(step.image()).logits.detach().halves();
        let (zw, zs) = if self.grouped {
            step.student_grouped(step.image(), 2).logits.halves()
        } else {
            (step.student(step.view("weak")).logits, step.student(step.view("strong")).logits)
        };
        let confident = RowMask::Confident { threshold: 0.26 };
        let label = step.unit_label();
        Losses::new()
            .term("ce", 1.0, zw.cross_entropy(label) + zs.cross_entropy(label))
            .term("within", 2.0, zw.kl_where(tw, 4.0, confident, &[tw]) + zs.kl_where(ts, 4.0, confident, &[tw]))
            .term("cross", 0.5, zs.kl_where(tw, 4.0, confident, &[ts]) + zw.kl_where(ts, 4.0, confident, &[ts]))
    }

    fn head<'g>(&self, step: &Step<'g>) -> Expr<'g> {
        step.student(step.image()).logits
    }
}

/// (iii) The previous batch once more, its logits rolling state.
#[derive(Debug)]
struct Previous;

impl Method for Previous {
    fn spec(&self, setting: &Setting) -> Result<Spec, String> {
        let state = StateSpec { name: "previous.logits".into(), usage: StateUse::Rolling, row: vec![setting.classes] };
        Ok(Spec { previous: true, states: vec![state], ..Spec::default() })
    }

    fn losses<'g>(&self, _: usize, step: &Step<'g>) -> Losses {
        let state = step.state("previous.logits");
        let now = step.student(step.image()).logits;
        let losses = Losses::new().assign(state, now);
        if step.previous_units() == 0 {
            return losses.term("ce", 1.0, now.cross_entropy(step.label()));
        }
        let again = step.student(step.previous_image()).logits;
        let label = step.label().concat_rows(&[step.previous_label()]);
        losses.term("ce", 1.0, now.concat_rows(&[again]).cross_entropy(label)).term(
            "kl",
            9.0,
            again.kl(step.rolling(state), 3.0),
        )
    }
}

/// (iv) A row of memory per sample, read and written back.
#[derive(Debug)]
struct Memory;

impl Method for Memory {
    fn spec(&self, setting: &Setting) -> Result<Spec, String> {
        let state = StateSpec { name: "memory".into(), usage: StateUse::PerSample, row: vec![setting.classes] };
        Ok(Spec { states: vec![state], ..Spec::default() })
    }

    fn losses<'g>(&self, _: usize, step: &Step<'g>) -> Losses {
        let (state, index) = (step.state("memory"), step.index());
        let logits = step.student(step.image()).logits;
        Losses::new()
            .term("ce", 1.0, logits.cross_entropy(step.label()))
            .term("memory", 0.5, logits.cross_entropy_soft(step.recall(state, index)))
            .remember(state, index, logits.softmax(1.0))
    }
}

/// (v) Modules whose gradient is absent (only detached), zero (weight 0), and present.
#[derive(Debug)]
struct AbsentAndZero;

impl Method for AbsentAndZero {
    fn spec(&self, _: &Setting) -> Result<Spec, String> {
        Ok(Spec::default())
    }

    fn losses<'g>(&self, _: usize, step: &Step<'g>) -> Losses {
        let taps = step.student(step.image());
        let absent = step.module("absent").linear("fc", taps.pooled, 4).detach();
        let zero = step.module("zero").linear("fc", taps.pooled, 4);
        Losses::new()
            .term("ce", 1.0, taps.logits.cross_entropy(step.label()))
            .term("kl", 1.0, taps.logits.kl(absent, 2.0))
            .term("zero", 0.0, zero.cross_entropy(step.label()))
    }
}

/// (vi) The head that is evaluated is the method's own.
#[derive(Debug)]
struct OwnHead;

impl Method for OwnHead {
    fn spec(&self, _: &Setting) -> Result<Spec, String> {
        Ok(Spec::default())
    }

    fn losses<'g>(&self, _: usize, step: &Step<'g>) -> Losses {
        let head = self.head(step);
        Losses::new().term("ce", 1.0, head.cross_entropy(step.label()))
    }

    fn head<'g>(&self, step: &Step<'g>) -> Expr<'g> {
        step.module("head").linear("fc", step.student(step.image()).pooled, 4)
    }
}

type Make = Box<dyn Fn() -> Box<dyn Method> + Sync>;

fn all() -> Vec<(&'static str, Make)> {
    vec![
        ("two phases", Box::new(|| Box::new(TwoPhases { phases: 2 }))),
        ("two views", Box::new(|| Box::new(TwoViews { grouped: true }))),
        ("previous", Box::new(|| Box::new(Previous))),
        ("memory", Box::new(|| Box::new(Memory))),
        ("absent and zero", Box::new(|| Box::new(AbsentAndZero))),
        ("own head", Box::new(|| Box::new(OwnHead))),
    ]
}

/// Three steps of 24 units and a short one of 10, in micro-batches of 24 or 8, of 6 for four ranks, of 3 for eight.
const UNITS: [usize; 4] = [24, 24, 24, 10];

#[test]
fn reproducible_mode_has_the_same_bits_at_any_number_of_ranks() {
    for (name, method) in all() {
        for micro in [24, 8, 6, 3] {
            let plan = Run { micro, units: &UNITS, lr: 0.1, ..Run::default() };
            let one = run(&Tiny, method.as_ref(), &Run { ranks: 1, ..plan });
            assert!(one.values.iter().all(|v| v.nonfinite.is_none() && v.loss.is_finite()), "{name}");
            for ranks in [2, 4, 8] {
                let many = run(&Tiny, method.as_ref(), &Run { ranks, ..plan });
                assert_eq!(one.values, many.values, "{name}: values at {ranks} ranks, micro-batches of {micro}");
                assert_eq!(one.states, many.states, "{name}: states at {ranks} ranks, micro-batches of {micro}");
            }
        }
    }
}

#[test]
fn fast_mode_has_the_same_bits_twice_and_agrees_with_reproducible_mode() {
    for (name, method) in all() {
        let plan = Run { micro: 6, ranks: 4, units: &UNITS, lr: 0.1, ..Run::default() };
        let fast = run(&Tiny, method.as_ref(), &Run { reproducible: false, ..plan });
        assert_eq!(fast.states, run(&Tiny, method.as_ref(), &Run { reproducible: false, ..plan }).states, "{name}");
        let slow = run(&Tiny, method.as_ref(), &plan);
        for (a, b) in fast.values.iter().zip(&slow.values) {
            assert!((a.loss - b.loss).abs() <= 1e-5 * b.loss.abs(), "{name}: {} and {}", a.loss, b.loss);
        }
    }
}

#[test]
fn the_second_phase_reads_what_the_first_updated() {
    let units = &UNITS[..1];
    let plan = Run { units, lr: 0.3, ..Run::default() };
    let both = run(&Tiny, &|| Box::new(TwoPhases { phases: 2 }), &plan);
    // The first phase alone, then both with rate 0 from where it ended: the same second loss.
    let first = run(&Tiny, &|| Box::new(TwoPhases { phases: 1 }), &plan);
    let from = Run { lr: 0.0, start: Some(&first.states), ..plan };
    let then = run(&Tiny, &|| Box::new(TwoPhases { phases: 2 }), &from);
    let bias = |r: &proof::Result| r.values[0].terms.iter().find(|t| t.0 == "bias").unwrap().2;
    assert_eq!(bias(&both), bias(&then));
    let before = run(&Tiny, &|| Box::new(TwoPhases { phases: 2 }), &Run { lr: 0.0, ..plan });
    assert_ne!(bias(&both), bias(&before), "the update of the first phase matters");
    let momenta: Vec<_> =
        both.states.keys().filter(|k| k.ends_with("teacher.fc.bias") && k.starts_with("momentum")).collect();
    assert_eq!(momenta, ["momentum.bias.teacher.fc.bias", "momentum.teacher.fc.bias"]);
}

#[test]
fn the_anchor_enters_once_whatever_the_number_of_micro_batches() {
    // At the start the anchor's value is 0; after a step it is Σ (w − w₀)², read off the states.
    for micro in [24, 8] {
        let plan = Run { micro, units: &UNITS[..2], lr: 0.1, ..Run::default() };
        let result = run(&Tiny, &|| Box::new(TwoPhases { phases: 2 }), &plan);
        let once = run(&Tiny, &|| Box::new(TwoPhases { phases: 2 }), &Run { units: &UNITS[..1], ..plan });
        let (w, w0) = (&once.states["teacher.conv1.weight"], &once.states["anchor.teacher.conv1.weight"]);
        let expected: f64 = w.iter().zip(w0).map(|(a, b)| (a - b) * (a - b)).sum();
        let anchor = |i: usize| result.values[i].terms.iter().find(|t| t.0 == "anchor").unwrap().2;
        assert_eq!(anchor(0), 0.0);
        assert!((anchor(1) - expected).abs() <= 1e-6 * expected, "{} and {expected}", anchor(1));
    }
}

#[test]
fn two_groups_are_two_forwards() {
    let plan = Run { units: &UNITS[..2], lr: 0.1, micro: 8, ..Run::default() };
    let grouped = run(&Tiny, &|| Box::new(TwoViews { grouped: true }), &plan);
    let apart = run(&Tiny, &|| Box::new(TwoViews { grouped: false }), &plan);
    for (name, a) in states_of(&grouped, "student.") {
        let b = &apart.states[name];
        let close = a.iter().zip(b).all(|(x, y)| (x - y).abs() <= 1e-5 * (1.0 + y.abs()));
        assert!(close, "{name}: {a:?} and {b:?}");
    }
}

#[test]
fn a_rolling_state_holds_the_previous_logits() {
    // With rate 0 and the same images, the second forward of a batch gives the logits of the first: no divergence.
    let plan = Run { units: &UNITS, lr: 0.0, micro: 8, ..Run::default() };
    let result = run(&Tiny, &|| Box::new(Previous), &plan);
    assert_eq!(result.values[0].terms.len(), 2, "a step lists the terms of the recipe");
    for (i, values) in result.values.iter().enumerate().skip(1) {
        let kl = values.terms.iter().find(|t| t.0 == "kl").unwrap().2;
        // The last step is short: its previous batch is dealt to fewer micro-batches, whose statistics differ.
        let same_micro_batches = i < 3;
        assert_eq!(kl.abs() < 1e-10, same_micro_batches, "step {i}: {kl}");
    }
}

#[test]
fn memory_rows_are_those_of_the_samples_seen() {
    let result = run(&Tiny, &|| Box::new(Memory), &Run { units: &UNITS[..1], lr: 0.1, micro: 8, ..Run::default() });
    let memory = &result.states["method.memory"];
    for (sample, row) in memory.chunks(4).enumerate() {
        let sum: f64 = row.iter().sum();
        let seen = proof::samples(0, UNITS[0]).contains(&(sample as i32));
        assert!((sum - if seen { 1.0 } else { 0.0 }).abs() < 1e-6, "sample {sample}: {row:?}");
    }
    assert_eq!(result.values[0].terms[1].2, 0.0, "an empty memory has no cross-entropy");
}

#[test]
fn absent_gradients_skip_and_zero_gradients_decay() {
    let plan = Run { units: &UNITS[..2], lr: 0.1, ..Run::default() };
    let result = run(&Tiny, &|| Box::new(AbsentAndZero), &plan);
    let start = run(&Tiny, &|| Box::new(AbsentAndZero), &Run { lr: 0.0, ..plan });
    let name = |module: &str| format!("method.{module}.fc.weight");
    assert_eq!(result.states[&name("absent")], start.states[&name("absent")]);
    assert!(!result.states.contains_key(&format!("momentum.{}", name("absent"))));
    // Two steps of decay alone: m₁ = λw, w₁ = w(1 − ηλ); m₂ = μm₁ + λw₁, w₂ = w₁ − ηm₂.
    let (eta, lambda, mu) = (0.1, 5e-4, 0.9);
    for (w, w0) in result.states[&name("zero")].iter().zip(&start.states[&name("zero")]) {
        let w1 = w0 * (1.0 - eta * lambda);
        let w2 = w1 - eta * (mu * lambda * w0 + lambda * w1);
        assert!((w - w2).abs() <= 1e-7, "{w} and {w2}");
    }
}

#[test]
fn evaluation_asks_the_method_for_its_head() {
    let change = |name: &str| {
        let logits = |delta: f64| proof::logits(&Tiny, &|| Box::new(OwnHead), Some((name, delta)));
        logits(0.0) != logits(0.5)
    };
    assert!(change("method.head.fc.weight"));
    assert!(change("student.conv1.weight"));
    let own = proof::logits(&Tiny, &|| Box::new(OwnHead), None);
    assert_eq!(own.len() % (SIDE * SIDE / 16), 0);
}
