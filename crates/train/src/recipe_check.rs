//! What a recipe must be beyond its types. Each message: key, expected, got, remedy.

use super::Loaded;
use super::recipe_error::{RecipeError, nearest};
use crate::link::{Bandwidth, Latency};
use crate::recipe::{Augment, BnPolicy, Gradients, OptimizerName, Recipe};
use crate::schedule::{Schedule, ScheduleName};
use nets::{NetError, NetworkSpec};
use toml_edit::{DocumentMut, Item};

const SETS: [&str; 6] = ["fashion", "cifar10", "cifar100", "folder", "packed", "features"];

/// Key, whether it is as expected, and what is expected; the remedy.
type Rule = (&'static str, bool, &'static str);

impl Loaded {
    /// Everything that can be checked without data and ranks; writes out the defaults of the network and of LARS.
    pub(super) fn check(&mut self, document: &DocumentMut) -> Result<(), RecipeError> {
        let decay = document.get("optimizer").and_then(|o| o.get("decay_bn_bias")).and_then(Item::as_bool);
        self.recipe.optimizer.resolve(decay);
        let recipe = &self.recipe;
        let rules =
            [counts(recipe), numbers(recipe), combinations(recipe), of_lars(recipe), of_polynomial(recipe)].concat();
        if let Some((key, _, expected)) = rules.into_iter().find(|rule| !rule.1) {
            let item = key.split('.').try_fold(document.as_item(), |item, part| item.get(part));
            let got = item.and_then(Item::as_value).map(|v| format!(", got {}", v.clone().decorated("", "")));
            let got = got.unwrap_or_default();
            let (expected, remedy) = expected.split_once("; ").unwrap_or((expected, ""));
            return Err(self.fault(key, &format!("{key}: expected {expected}{got}"), remedy));
        }
        if !SETS.contains(&recipe.data.set.as_str()) {
            let what = format!("data.set: expected one of {}, got {:?}", SETS.join(", "), recipe.data.set);
            let meant = nearest(&recipe.data.set, SETS).map(|name| format!("did you mean `{name}`?"));
            return Err(self.fault("data.set", &what, &meant.unwrap_or_default()));
        }
        for (i, teacher) in recipe.teacher.iter().enumerate() {
            let network = NetworkSpec::new(&teacher.name).resolved();
            network.map_err(|e| self.network_fault(&format!("teacher.{i}"), &e))?;
        }
        let network = recipe.network.clone().resolved();
        self.recipe.network = network.map_err(|e| self.network_fault("network", &e))?;
        self.check_divisible("micro_batch", self.recipe.train.micro_batch.unwrap_or(1))
    }

    /// Whether the global batch can be shared among ranks.
    pub fn check_ranks(&self, world_size: usize) -> Result<(), RecipeError> {
        let train = &self.recipe.train;
        if train.reproducible && train.bn != BnPolicy::Local && world_size > 1 {
            let what = format!(
                "train.bn: expected \"local\" with train.reproducible and {world_size} ranks, since with any other the weights \
                depend on the number of ranks"
            );
            return Err(self.fault("train.bn", &what, "use train.bn = \"local\", or train.reproducible = false"));
        }
        if train.micro_batch.is_some() {
            return Ok(());
        }
        self.check_divisible("world_size", world_size)?;
        if train.reproducible && world_size > 1 {
            let what =
                format!("train.reproducible: {world_size} ranks need train.micro_batch, the unit that they share");
            let help = format!("for example train.micro_batch = {}", train.global_batch / world_size);
            return Err(self.fault("train.reproducible", &what, &help));
        }
        Ok(())
    }

    fn check_divisible(&self, name: &str, by: usize) -> Result<(), RecipeError> {
        let batch = self.recipe.train.global_batch;
        if by > 0 && batch.is_multiple_of(by) {
            return Ok(());
        }
        let (low, high) = (batch / by.max(1) * by, batch.next_multiple_of(by.max(1)));
        let lower = if low > 0 { format!("{low} or ") } else { String::new() };
        let what = format!("global_batch {batch} is not divisible by {name} {by}");
        Err(self.fault("train.global_batch", &what, &format!("use {lower}{high}")))
    }

    fn network_fault(&self, section: &str, error: &NetError) -> RecipeError {
        let key = match error {
            NetError::Name { .. } => "name",
            NetError::WrnBn { .. } => "wrn_bn",
        };
        self.fault(&format!("{section}.{key}"), &error.to_string(), "")
    }
}

fn counts(r: &Recipe) -> Vec<Rule> {
    let (t, o) = (&r.train, &r.output);
    let counts = [
        ("train.epochs", t.epochs),
        ("train.global_batch", t.global_batch),
        ("train.micro_batch", t.micro_batch.unwrap_or(1)),
        ("train.max_steps", t.max_steps.unwrap_or(1) as usize),
        ("data.size", r.data.size),
        ("data.workers", r.data.workers),
        ("eval.batch", r.eval.batch),
        ("eval.every", r.eval.every),
        ("output.checkpoint_every", o.checkpoint_every),
        ("output.checkpoint_steps", o.checkpoint_steps.unwrap_or(1) as usize),
        ("output.keep", o.keep),
        ("output.log_every", o.log_every as usize),
    ];
    counts.map(|(key, n)| (key, n >= 1, "at least 1; use 1 or more")).to_vec()
}

fn numbers(r: &Recipe) -> Vec<Rule> {
    const SECONDS: &str = "0.01 to 1000000 seconds; without the key a default holds";
    const RATE: &str = "a finite number above 0; 0.1 and 0.05 are usual";
    let (o, t) = (&r.optimizer, &r.train);
    let positive = |x: f64| x > 0.0 && x.is_finite();
    let shares = r.teacher.iter().filter_map(|t| t.expect_top1).all(|x| x > 0.0 && x <= 1.0);
    let below_one = |x: f64| (0.0..1.0).contains(&x);
    let (limits, seconds) = (&r.ranks, |x: f64| (0.01..=1e6).contains(&x));
    vec![
        ("ranks.rendezvous_s", seconds(limits.rendezvous_s), SECONDS),
        ("ranks.heartbeat_s", seconds(limits.heartbeat_s), SECONDS),
        (
            "ranks.hang_s",
            limits.hang_s <= 1e6 && limits.hang_s >= 3.0 * limits.heartbeat_s,
            "three heartbeats or more; 60 is the default",
        ),
        (
            "ranks.term_s",
            limits.term_s == 0.0 || seconds(limits.term_s),
            "0, or 0.01 to 1000000 seconds; without the key the launcher decides",
        ),
        ("ranks.slow_phase_s", seconds(limits.slow_phase_s), SECONDS),
        ("ranks.link", limits.link.parse::<Bandwidth>().is_ok(), "a bandwidth; 460GB/s, 46.5GB/s or 400Gb/s are usual"),
        ("ranks.latency", limits.latency.parse::<Latency>().is_ok(), "a time; 20us and 50us are usual"),
        (
            "ranks.gradients",
            limits.gradients == Gradients::F32 || !r.train.reproducible,
            "\"f32\" with train.reproducible; remove the key",
        ),
        ("optimizer.lr", o.lr.is_none_or(positive), RATE),
        ("optimizer.lr_per_256", o.lr_per_256.is_none_or(positive), RATE),
        ("optimizer.momentum", below_one(o.momentum), "at least 0 and below 1; 0.9 is usual, 0 turns it off"),
        ("optimizer.weight_decay", positive(o.weight_decay + 1e-300), "a finite number of at least 0; 0 turns it off"),
        ("schedule.gamma", positive(r.schedule.gamma), "a finite number above 0; 0.1 is the default"),
        (
            "train.clip_norm",
            t.clip_norm.is_none_or(positive),
            "a finite number above 0; remove the key to clip nothing",
        ),
        ("train.ema_decay", t.ema_decay.is_none_or(|d| d > 0.0 && d < 1.0), "above 0 and below 1; 0.9999 is usual"),
        ("data.max_bad", (0.0..=1.0).contains(&r.data.max_bad), "a share, 0 to 1; 0.001 is the default"),
        ("teacher", shares, "expect_top1 as a share above 0, at most 1; write 0.732 for 73.2 %"),
    ]
}

fn combinations(r: &Recipe) -> Vec<Rule> {
    let (o, t, s) = (&r.optimizer, &r.train, &r.schedule);
    let [mean, std] = [&r.data.mean, &r.data.std].map(|s| s.as_deref().unwrap_or_default());
    let finite = mean.iter().chain(std).all(|x| x.is_finite()) && std.iter().all(|&x| x > 0.0);
    let own_val = r.data.validation_per_class > 0 || ["folder", "packed"].contains(&r.data.set.as_str());
    let (step, milestones) = (s.name == ScheduleName::Step, !s.milestones.is_empty());
    let (test, val) = (r.eval.split == "test", r.eval.split == "val");
    let fits = t.micro_batch.is_none_or(|m| m <= t.global_batch);
    let plain = r.data.set != "features" || r.data.augment == Augment::None;
    vec![
        ("optimizer", o.lr.is_some() || o.lr_per_256.is_some(), "a learning rate, got none; give lr or lr_per_256"),
        ("optimizer.lr_per_256", o.lr.is_none() || o.lr_per_256.is_none(), "it without lr; remove one of the two"),
        ("optimizer.nesterov", !o.nesterov || o.momentum > 0.0, "it with a momentum above 0; 0.9 is usual"),
        ("train.micro_batch", fits, "at most global_batch; make it smaller or remove the key"),
        ("schedule.milestones", s.milestones.is_sorted_by(|a, b| a < b), "ascending epochs; sort them, each once"),
        ("schedule.milestones", step || !milestones, "them with name = \"step\" only; set that or remove them"),
        (
            "schedule",
            !step || milestones,
            "milestones with \"step\", got none; for example milestones = [150, 180, 210]",
        ),
        ("eval.split", test || val, "\"test\" or \"val\"; \"test\" is the default"),
        (
            "eval.split",
            test || own_val,
            "\"test\", the set has no other; cut one off with data.validation_per_class = 50",
        ),
        ("eval.ema", !r.eval.ema || t.ema_decay.is_some(), "it with train.ema_decay; 0.9999 is usual"),
        ("data.augment", plain, "\"none\" with data.set = \"features\"; add augment = \"none\" to [data]"),
        ("data.mean", mean.len() == std.len(), "as many values as data.std; give both or neither"),
        ("data.std", finite, "deviations above 0 and finite means; they are of pixels from 0 to 1"),
    ]
}

fn of_lars(r: &Recipe) -> Vec<Rule> {
    const ONLY: &str = "it with name = \"lars\" only; remove the key or set the name";
    let o = &r.optimizer;
    let (lars, finite) = (o.name == OptimizerName::Lars, |x: f64| x.is_finite());
    let (trust, epsilon) = (o.trust_coefficient.unwrap_or(0.001), o.epsilon.unwrap_or(0.0));
    vec![
        ("optimizer.trust_coefficient", lars || o.trust_coefficient.is_none(), ONLY),
        ("optimizer.epsilon", lars || o.epsilon.is_none(), ONLY),
        ("optimizer.adapt_bn_bias", lars || o.adapt_bn_bias.is_none(), ONLY),
        ("optimizer.trust_coefficient", trust > 0.0 && finite(trust), "a finite number above 0; 0.001 is the default"),
        ("optimizer.epsilon", epsilon >= 0.0 && finite(epsilon), "a finite number of at least 0; 0 is the default"),
        (
            "optimizer.nesterov",
            !(lars && o.nesterov),
            "it with name = \"sgd\" only; LARS has no such form, remove the key",
        ),
        (
            "train.clip_norm",
            !lars || r.train.clip_norm.is_none(),
            "it with name = \"sgd\" only; LARS divides by the norm of each gradient, remove the key",
        ),
    ]
}

fn of_polynomial(r: &Recipe) -> Vec<Rule> {
    const ONLY: &str = "it with name = \"polynomial\" only; remove the key or set the name";
    let (s, plain) = (&r.schedule, Schedule::default());
    let polynomial = s.name == ScheduleName::Polynomial;
    let base = r.optimizer.base_lr(r.train.global_batch).0;
    vec![
        ("schedule.power", polynomial || s.power == plain.power, ONLY),
        ("schedule.end_lr", polynomial || s.end_lr == plain.end_lr, ONLY),
        ("schedule.power", s.power > 0.0 && s.power.is_finite(), "a finite number above 0; 2 is the default"),
        ("schedule.end_lr", (0.0..=base).contains(&s.end_lr), "at least 0 and at most the base rate; 0 is the default"),
    ]
}
