//! Adaptive teaching with a shared classifier. arXiv:2406.08528 (2024).
//!
//! The teacher trains along, held near where it began, and its classifier reads the student's projected features:
//! main = Σ_i [b/N MSE(P_i(f_S), f_i) + w Σ over anchored tensors |W − W⁰|²] + c CE(z_S, y) + d T² KL(z_i/T ‖ z_S/T)
//! then, for each teacher, a second forward with the updated weights: bias = CE(z_i', y), which trains the classifier's bias alone.
//! Nothing is detached. Evaluation: mean over i of W_i GAP(P_i(f_S)) + b_i.
//!
//! As released (`anchor_bn = false`, card `atsc-ref`) the features' scale shrinks until nothing is learnt; anchoring the teacher's
//! batch-norm parameters too (card `atsc`, default) removes it (methods/4-atsc 4.11). N > 1 teachers: 4.8, our choice.

use crate::atsc_settings::{Atsc, TeacherMode};
use crate::check;
use crate::projector::{aligned, last_map, maps_fit, project};
use spec::{
    Decay, Divisor, Expr, Loss, Losses, Measure, Method, PhaseSpec, Setting, Spec, Step, Taps, TrainRange, numbered,
    teacher_module,
};

/// The features of a teacher fall to this share of what they were: a collapse (4.7).
const COLLAPSED: f64 = 0.1;

impl Atsc {
    fn adaptive(&self) -> bool {
        self.teacher == TeacherMode::Adaptive
    }

    fn teacher_taps<'g>(&self, step: &Step<'g>, i: usize) -> Taps<'g> {
        if self.adaptive() { step.teacher_in_training(i, step.image()) } else { step.frozen_teacher(i, step.image()) }
    }

    /// Projected features of the student and teacher `i`'s own.
    fn features<'g>(&self, step: &Step<'g>, i: usize, student: Expr<'g>, teacher: Expr<'g>) -> (Expr<'g>, Expr<'g>) {
        let (student, teacher) = aligned(student, teacher);
        let channels = teacher.shape().dims()[3];
        (project(step, &numbered("projector", i), student, channels, self.projector_factor), teacher)
    }

    /// Σ |W − W⁰|² over what is anchored of teacher `i`.
    fn anchor<'g>(&self, step: &Step<'g>, i: usize) -> Loss {
        let module = teacher_module(i) + ".";
        let bias = format!("{module}{}.bias", step.teachers[i].classifier());
        let names = step.params(&module, if self.anchor_bn { 1 } else { 2 }).into_iter().filter(|name| *name != bias);
        names.fold(Loss::default(), |sum, name| sum + step.param(&name).squared_distance(step.initial(&name)))
    }

    fn main<'g>(&self, step: &Step<'g>) -> Losses {
        let (student, label, count) = (step.student(step.image()), step.label(), step.teachers.len());
        let mut losses = Losses::new();
        let mut shared = Vec::new();
        for i in 0..count {
            let teacher = self.teacher_taps(step, i);
            let (projected, target) = self.features(step, i, last_map(&student), last_map(&teacher));
            shared.push(step.teacher_classifier(i, projected.mean_hw()));
            let (mse, size) = (projected.mse(target), last_map(&teacher).mean_square());
            let (mse_value, size_value) = (mse.parts[0].1, size.parts[0].1);
            let named = |name: &str| numbered(name, i);
            losses = losses.term(&named("mse"), self.mse_weight / count as f64, mse);
            if self.adaptive() {
                losses = losses.term(&named("anchor"), self.anchor_weight, self.anchor(step, i));
            }
            let (own, kd) = (student.logits, self.kd_weight * self.temperature.powi(2));
            losses = losses
                .term(&named("kd"), kd, own.kl(teacher.logits, self.temperature))
                .accuracy(&named("teacher_top1"), teacher.logits, label)
                .monitor(&named("relative_mse"), mse_value, Divisor::ONE, Measure::Ratio { to: size_value })
                .monitor(&named("feature_rms"), size_value, Divisor::ONE, Measure::Root)
                .alarm_below(COLLAPSED)
                .output(&named("teacher.logits"), teacher.logits);
            if let Some(scale) = step.last_scale(&teacher_module(i)) {
                losses = losses.monitor(&named("bn_scale"), scale.id(), Divisor::ONE, Measure::MeanMagnitude);
            }
        }
        let shared = mean(&shared);
        losses
            .term("ce", self.ce_weight, student.logits.cross_entropy(label))
            .accuracy("top1", shared, label)
            .output("logits", shared)
    }
}

impl Method for Atsc {
    fn spec(&self, setting: &Setting) -> Result<Spec, String> {
        check::weight("mse_weight", self.mse_weight)?;
        check::weight("anchor_weight", self.anchor_weight)?;
        check::weight("ce_weight", self.ce_weight)?;
        check::weight("kd_weight", self.kd_weight)?;
        check::temperature(self.temperature)?;
        let (pull, stable) = (2.0 * setting.lr * self.anchor_weight, 2.0 * (1.0 + setting.momentum));
        if pull >= stable {
            return Err(format!(
                "method.anchor_weight {} at lr {} diverges: 2 lr w must stay below 2 (1 + momentum) = {stable}, got {pull}; use at most {:.3}",
                self.anchor_weight,
                setting.lr,
                0.99 * stable / (2.0 * setting.lr)
            ));
        }
        let count = setting.teachers.len().max(1);
        let mut main = vec![TrainRange::new("student."), TrainRange::new("method.")];
        let mut phases = Vec::new();
        for (i, classifier) in setting.teachers.iter().enumerate().filter(|_| self.adaptive()) {
            let module = teacher_module(i);
            let bias = format!("{module}.{classifier}.bias");
            let decay = if self.teacher_bn_decay { Decay::All } else { Decay::ExceptBatchNorm };
            main.push(TrainRange { decay, ..TrainRange::new(&format!("{module}.")) });
            let trains = vec![TrainRange { momentum: "momentum.bias".into(), ..TrainRange::new(&bias) }];
            phases.extend(self.bias_step.then(|| PhaseSpec { name: numbered("bias", i), trains }));
        }
        phases.insert(0, PhaseSpec { name: "main".into(), trains: main });
        Ok(Spec { teachers: count, phases, ..Spec::default() })
    }

    fn fits<'g>(&self, step: &Step<'g>) -> Result<(), String> {
        let student = step.student(step.image());
        (0..step.teachers.len()).try_for_each(|i| maps_fit(step, i, &student, self.projector_factor))
    }

    fn losses<'g>(&self, phase: usize, step: &Step<'g>) -> Losses {
        if phase == 0 {
            return self.main(step);
        }
        let again = step.teacher_in_training(phase - 1, step.image()).logits;
        Losses::new().term(&numbered("bias", phase - 1), 1.0, again.cross_entropy(step.label()))
    }

    fn head<'g>(&self, step: &Step<'g>) -> Expr<'g> {
        let student = step.student(step.image());
        let shared = (0..step.teachers.len()).map(|i| {
            // The teacher's trunk is built for the size of its last map alone: nothing reads it.
            let teacher = step.frozen_teacher(i, step.image());
            let (projected, _) = self.features(step, i, last_map(&student), last_map(&teacher));
            step.teacher_classifier(i, projected.mean_hw())
        });
        mean(&shared.collect::<Vec<_>>())
    }

    fn other_heads<'g>(&self, step: &Step<'g>) -> Vec<(String, Expr<'g>)> {
        let teacher = |i| step.frozen_teacher(i, step.image()).logits;
        (0..step.teachers.len()).map(|i| (numbered("teacher_top1", i), teacher(i))).collect()
    }
}

fn mean<'g>(all: &[Expr<'g>]) -> Expr<'g> {
    match all {
        [one] => *one,
        _ => all[1..].iter().fold(all[0], |sum, &next| sum + next).scale(1.0 / all.len() as f64),
    }
}
