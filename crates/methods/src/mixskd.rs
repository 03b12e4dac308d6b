//! MixSKD: self-distillation from mixup. Yang, An, Zhou, Cai, Zhi, Wu, Xu, Zhang 2022, arXiv:2208.05768.
//!
//! x̃ = λ x + (1 − λ) x[π]; one network sees [x; x̃] in one batch-norm group. Branches carry the maps of the earlier stages through
//! copies of the later ones: features F_1..F_S and logits z_1..z_S, S the network's own. mix(·) interpolates plain rows with λ and π:
//! A_s = mix(F_s), M_s = F_s of x̃; u_s = mix(z_s), v_s = z_s of x̃; h is the self-teacher, e = h(A_1..A_S), e' = h(M_1..M_S);
//! CE~(z) = λ CE(z, y) + (1 − λ) CE(z, y[π]); D(t → z) = T² KL(sg(t)/T ‖ z/T).
//!
//! cls    = Σ_s CE(z_s of x, y)                      mixcls = Σ_s CE~(v_s)                 stcls = CE~(e) + CE~(e')
//! kl_st  = D(e' → u_S) + D(e → v_S)                 kl_pair = Σ_{s<S} D(v_s → u_s) + D(u_s → v_s)
//! fea    = Σ_s MSE(A_s, M_s)                        gan = Σ_s BCE(d_s(pool [A_s; M_s]), [1,0 for A; 0,1 for M])
//! loss B = all, as in the paper; loss A = without mixcls and stcls, the released CIFAR script (methods/3-mixskd 3.7)

use crate::branches::{Branch, grow};
use crate::check;
use crate::mixskd_settings::{Discriminators, MixSkd, MixSkdLoss};
use spec::{
    DrawKind, DrawSpec, Expr, Loss, Losses, Method, Net, PhaseSpec, RowKind, RowMask, Setting, Spec, Step, Taps,
    TrainRange,
};

/// Rows [plain; mixed] of a value, and how the plain ones are interpolated.
#[derive(Clone, Copy)]
struct Halves<'g> {
    mix: [Expr<'g>; 2],
    units: usize,
}

impl<'g> Halves<'g> {
    fn plain(&self, x: Expr<'g>) -> Expr<'g> {
        x.slice_rows(0, self.units)
    }

    fn mixed(&self, x: Expr<'g>) -> Expr<'g> {
        x.slice_rows(self.units, self.units)
    }

    fn interpolated(&self, x: Expr<'g>) -> Expr<'g> {
        self.plain(x).mix(self.mix[0], self.mix[1])
    }

    fn cross_entropy(&self, z: Expr<'g>, label: Expr<'g>) -> Loss {
        z.cross_entropy_mixed(label, self.mix)
    }
}

/// Features [n,h,w,c] of one shape and logits [n,classes] of the branches, then those of the network itself.
fn branches<'g>(step: &Step<'g>, taps: &Taps<'g>) -> Result<(Vec<Expr<'g>>, Vec<Expr<'g>>), String> {
    let stages = taps.stages.len().saturating_sub(1);
    let net = step.module("auxiliary_classifier");
    let (mut maps, mut logits) = (Vec::new(), Vec::new());
    for b in 1..stages {
        let name = |stage| net.scope(&format!("block_extractor{b}.{}", stage - b - 1));
        maps.push(grow(step, taps, Branch { from: b, blocks: None }, name)?);
        logits.push(net.linear(&format!("fc{b}"), maps[b - 1].mean_hw(), step.setting.classes));
    }
    let last = *taps.stages.last().ok_or("the network has no stages; use a residual network")?;
    maps.push(last);
    logits.push(taps.logits);
    let shape = last.shape();
    let (d, square) = (shape.dims(), shape.dims()[1] == shape.dims()[2]);
    if stages < 2 || !square || maps.iter().any(|m| m.shape() != shape) {
        return Err(format!(
            "the method needs two stages and square maps of one shape; the last map is {}x{}",
            d[1], d[2]
        ));
    }
    Ok((maps, logits))
}

/// Logits of the self-teacher, [n,classes]: it is linear in pooled features, so it is run on those (3.3).
fn self_teacher<'g>(step: &Step<'g>, pooled: &[Expr<'g>]) -> Expr<'g> {
    let net = step.module("final_aux_classifier"); // its initialisation is the default everywhere
    let channels = pooled[0].shape().dims()[3];
    let x = net.conv("conv", pooled[0].concat_channels(&pooled[1..]), channels, 1, 1).mean_hw();
    net.linear("fc", x, step.setting.classes)
}

impl MixSkd {
    fn discriminate<'g>(&self, net: &Net<'g>, features: Expr<'g>) -> Expr<'g> {
        // 2 sg(x) − x is x with its gradient turned round.
        let reversed = self.discriminators == Discriminators::Reversed;
        let x = if reversed { features.detach().scale(2.0) - features } else { features };
        net.linear("2", net.linear("0", x, 128).relu(), 2)
    }

    fn trains(&self) -> Vec<TrainRange> {
        let mut trains =
            ["student.", "method.auxiliary_classifier.", "method.final_aux_classifier."].map(TrainRange::new).to_vec();
        if self.discriminators != Discriminators::Frozen {
            trains.push(TrainRange::new("method.discriminator"));
        }
        trains
    }
}

impl Method for MixSkd {
    fn spec(&self, _setting: &Setting) -> Result<Spec, String> {
        check::temperature(self.temperature)?;
        for (key, weight) in [
            ("mix_alpha", self.mix_alpha),
            ("cls_weight", self.cls_weight),
            ("mixcls_weight", self.mixcls_weight),
            ("stcls_weight", self.stcls_weight),
            ("kl_st_weight", self.kl_st_weight),
            ("kl_pair_weight", self.kl_pair_weight),
            ("fea_weight", self.fea_weight),
            ("gan_weight", self.gan_weight),
        ] {
            check::weight(key, weight)?;
        }
        let draw = |name: &str, kind| DrawSpec { name: name.into(), kind };
        Ok(Spec {
            draws: vec![
                draw("permutation", DrawKind::Permutation),
                draw("lambda", DrawKind::Lambda { alpha: self.mix_alpha }),
            ],
            phases: vec![PhaseSpec { name: "train".into(), trains: self.trains() }],
            ..Spec::default()
        })
    }

    fn fits<'g>(&self, step: &Step<'g>) -> Result<(), String> {
        branches(step, &step.student(step.image())).map(drop)
    }

    fn losses<'g>(&self, _phase: usize, step: &Step<'g>) -> Losses {
        let half = Halves { mix: [step.draw("permutation"), step.draw("lambda")], units: step.units() };
        let (image, label, t) = (step.image(), step.label(), self.temperature);
        let taps = step.student(image.concat_rows(&[image.mix(half.mix[0], half.mix[1])]));
        let (maps, logits) = branches(step, &taps).expect("`fits` was asked before");
        let (own, side) = (logits.len() - 1, maps[0].shape().dims()[1]);
        let pooled: Vec<_> = maps.iter().map(|f| f.avg_pool(side, side, 0)).collect(); // [2n,1,1,c]
        let teacher = self_teacher(step, &pooled);
        let (e, e_mixed) = (half.interpolated(teacher), half.mixed(teacher));
        let (u, v): (Vec<_>, Vec<_>) = logits.iter().map(|&z| (half.interpolated(z), half.mixed(z))).unzip();

        let sum = |terms: Vec<Loss>| terms.into_iter().fold(Loss::default(), |sum, term| sum + term);
        let cls = sum(logits.iter().map(|&z| half.plain(z).cross_entropy(label)).collect());
        let kl_st = u[own].kl(e_mixed.detach(), t) + v[own].kl(e.detach(), t);
        let kl_pair = sum((0..own).map(|s| u[s].kl(v[s].detach(), t) + v[s].kl(u[s].detach(), t)).collect());
        let fea = sum(maps.iter().map(|&f| half.interpolated(f).mse(half.mixed(f))).collect());
        let gan = sum(pooled
            .iter()
            .enumerate()
            .map(|(s, &p)| {
                let (net, p) = (step.module(&format!("discriminator{}", s + 1)), p.mean_hw());
                let told = self.discriminate(&net, half.interpolated(p).concat_rows(&[half.mixed(p)])); // [2n,2]
                let bce = |rows: Expr<'g>, class| {
                    rows.row_loss(RowKind::BinaryCrossEntropy { class }, &[], RowMask::All, &[])
                };
                // Each half is a mean over its rows and a sum over 2 entries: a quarter makes the mean over all 2n × 2.
                0.25 * (bce(half.plain(told), 0) + bce(half.mixed(told), 1))
            })
            .collect());

        let mut losses = Losses::new().term("cls", self.cls_weight, cls);
        if self.loss == MixSkdLoss::B {
            let mixcls = sum(v.iter().map(|&z| half.cross_entropy(z, label)).collect());
            let stcls = half.cross_entropy(e, label) + half.cross_entropy(e_mixed, label);
            losses = losses.term("mixcls", self.mixcls_weight, mixcls).term("stcls", self.stcls_weight, stcls);
        }
        losses
            .term("kl_st", self.kl_st_weight * t * t, kl_st)
            .term("kl_pair", self.kl_pair_weight * t * t, kl_pair)
            .term("fea", self.fea_weight, fea)
            .term("gan", self.gan_weight, gan)
            .accuracy("top1", half.plain(taps.logits), label)
            .output("logits", taps.logits)
    }

    fn other_heads<'g>(&self, step: &Step<'g>) -> Vec<(String, Expr<'g>)> {
        let (_, logits) = branches(step, &step.student(step.image())).expect("`fits` was asked before");
        let own = logits.len() - 1;
        logits[..own].iter().enumerate().map(|(b, &z)| (format!("branch{}_top1", b + 1), z)).collect()
    }
}
