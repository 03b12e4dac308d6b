//! Layers with parameters, under the names of the published PyTorch implementation.

use graph::{BnArgs, BnUse, Builder, ConvArgs, Expr, Init, Op, State, StateId, StateKind, StatsSource};
use tensor::Shape;

/// What a network hands back.
#[derive(Clone, Debug)]
pub struct Taps<'g> {
    /// Stem, then the end of each stage, [n,h,w,c].
    pub stages: Vec<Expr<'g>>,
    /// [n,c]
    pub pooled: Expr<'g>,
    /// [n,classes]
    pub logits: Expr<'g>,
}

/// Which statistics a batch norm uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BnMode {
    /// Of the batch, each of `groups` equal runs by itself; running statistics move.
    Train { groups: usize },
    /// As `Train`, of the same micro-batch of all ranks.
    TrainOver { groups: usize, ranks: usize },
    /// Running ones.
    Eval,
}

/// How convolutions and linear layers start (chapter 8.0, codes D, F, F0, FN, I0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitScheme {
    /// D: PyTorch's default, uniform in ±1/sqrt(fan_in).
    Default,
    /// F: convolutions N(0, 2/(kh·kw·Cout)), the rest default.
    FanOut,
    /// F0: F with zero linear bias.
    FanOutZeroBias,
    /// I0: convolutions N(0, 2/(kh·kw·Cin/groups)), zero linear bias, the rest default.
    FanInZeroBias,
    /// FN: F with zero conv bias, linear weights N(0, 0.01²) and zero linear bias.
    FanOutNormal,
}

/// Kernel, stride, padding and groups of a convolution layer.
#[derive(Clone, Copy, Debug)]
pub struct ConvSpec {
    pub out: usize,
    pub kernel: usize,
    pub stride: usize,
    pub pad: usize,
    pub groups: usize,
}

impl ConvSpec {
    /// "Same" padding, one group.
    pub fn new(out: usize, kernel: usize, stride: usize) -> ConvSpec {
        ConvSpec { out, kernel, stride, pad: kernel / 2, groups: 1 }
    }
}

/// A place in a module where layers get their names. Asking for a name again gives the same parameters.
#[derive(Clone, Debug)]
pub struct Net<'g> {
    builder: &'g Builder,
    /// `student`, `teacher`, `method.projector`.
    module: String,
    /// `layer1.0.`, the prefix of names, and `student/layer1.0/`, that of paths.
    scope: String,
    path: String,
    pub bn: BnMode,
    pub scheme: InitScheme,
}

impl<'g> Net<'g> {
    pub fn new(builder: &'g Builder, module: &str, bn: BnMode) -> Net<'g> {
        let (module, scope, path) = (module.to_string(), String::new(), format!("{module}/"));
        Net { builder, module, scope, path, bn, scheme: InitScheme::Default }
    }

    /// The same module with another initialisation.
    pub fn init(mut self, scheme: InitScheme) -> Net<'g> {
        self.scheme = scheme;
        self
    }

    /// Names below this one: `layer1.0`.
    pub fn scope(&self, name: &str) -> Net<'g> {
        Net { scope: format!("{}{name}.", self.scope), path: format!("{}{name}/", self.path), ..self.clone() }
    }

    pub fn builder(&self) -> &'g Builder {
        self.builder
    }

    fn path(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// The state of this name, made at the first call.
    #[track_caller]
    pub fn state(&self, name: &str, shape: &[usize], kind: StateKind, init: Init) -> StateId {
        let name = format!("{}.{}{name}", self.module, self.scope);
        self.builder.edit(|g| {
            if let Some(known) = g.find_state(&name) {
                let found = g.state(known).shape;
                assert_eq!(found.dims(), shape, "{name}: a name stands for one shape");
                return known;
            }
            let dtype = g.precision.acc();
            g.add_state(State { name, shape: Shape::new(shape), dtype, kind, init })
        })
    }

    fn param(&self, name: &str, shape: &[usize], init: Init) -> Expr<'g> {
        self.builder.read(self.state(name, shape, StateKind::Param, init))
    }

    /// Convolution without bias, "same" padding.
    #[track_caller]
    pub fn conv(&self, name: &str, x: Expr<'g>, out: usize, kernel: usize, stride: usize) -> Expr<'g> {
        self.conv_spec(name, x, ConvSpec::new(out, kernel, stride))
    }

    /// Convolution without bias.
    #[track_caller]
    pub fn conv_spec(&self, name: &str, x: Expr<'g>, spec: ConvSpec) -> Expr<'g> {
        let channels = x.shape().dims()[3];
        let ConvSpec { out, kernel, stride, pad, groups } = spec;
        let init = match self.scheme {
            InitScheme::Default => Init::Uniform(1.0 / ((kernel * kernel * channels / groups) as f64).sqrt()),
            InitScheme::FanInZeroBias => Init::Normal((2.0 / (kernel * kernel * channels / groups) as f64).sqrt()),
            _ => Init::Normal((2.0 / (kernel * kernel * out) as f64).sqrt()),
        };
        let w = self.param(&format!("{name}.weight"), &[out, kernel, kernel, channels / groups], init);
        self.builder.push(Op::Conv(ConvArgs { stride, pad, groups }), &[x, w], &self.path(name))[0]
    }

    /// Bias of a convolution whose `fan_in` sets its default bound.
    #[track_caller]
    pub fn bias(&self, name: &str, x: Expr<'g>, fan_in: usize) -> Expr<'g> {
        let channels = *x.shape().dims().last().expect("a bias needs channels");
        let init = match self.scheme {
            InitScheme::FanOutNormal => Init::Const(0.0),
            _ => Init::Uniform(1.0 / (fan_in as f64).sqrt()),
        };
        let b = self.param(&format!("{name}.bias"), &[channels], init);
        self.builder.push(Op::AddBias, &[x, b], &self.path(name))[0]
    }

    /// Batch norm, eps 1e-5, momentum 0.1.
    #[track_caller]
    pub fn bn(&self, name: &str, x: Expr<'g>) -> Expr<'g> {
        self.bn_updating(name, x, 1)
    }

    /// Batch norm whose running statistics take each batch `updates` times (a quirk of the published WRNs).
    #[track_caller]
    pub fn bn_updating(&self, name: &str, x: Expr<'g>, updates: usize) -> Expr<'g> {
        let c = [*x.shape().dims().last().expect("a batch norm needs channels")];
        let gamma = self.param(&format!("{name}.weight"), &c, Init::Const(1.0));
        let beta = self.param(&format!("{name}.bias"), &c, Init::Const(0.0));
        let mean = self.state(&format!("{name}.running_mean"), &c, StateKind::Buffer, Init::Const(0.0));
        let var = self.state(&format!("{name}.running_var"), &c, StateKind::Buffer, Init::Const(1.0));
        let path = self.path(name);
        let (groups, source, stats) = match self.bn {
            BnMode::Train { groups } | BnMode::TrainOver { groups, .. } => {
                let stats = self.batch_statistics(x, groups, &path);
                let stats_ids = [stats[0].id(), stats[2].id()];
                self.builder.edit(|g| g.bn_uses.push(BnUse { mean, var, stats: stats_ids, updates }));
                (groups, StatsSource::Batch, stats)
            }
            BnMode::Eval => (1, StatsSource::Running, [mean, var].map(|s| self.builder.read(s)).to_vec()),
        };
        let bn = BnArgs { eps: 1e-5, groups };
        self.builder.push(Op::BnApply { bn, source }, &[x, stats[0], stats[1], gamma, beta], &path)[0]
    }

    /// Mean, biased and unbiased variance of each group, [g,c].
    fn batch_statistics(&self, x: Expr<'g>, groups: usize, path: &str) -> Vec<Expr<'g>> {
        let own = self.builder.push(Op::BnStats { groups }, &[x], path);
        match self.bn {
            BnMode::TrainOver { ranks, .. } if ranks > 1 => {
                let count = x.shape().elements() / own[0].shape().elements();
                let all = self.builder.push(Op::GatherRanks { world: ranks, count }, &own[..2], path);
                self.builder.push(Op::BnMergeRanks, &all, path)
            }
            _ => own,
        }
    }

    /// y = x wᵀ + b.
    #[track_caller]
    pub fn linear(&self, name: &str, x: Expr<'g>, out: usize) -> Expr<'g> {
        let fan_in = x.shape().dims()[1];
        let bias = match self.scheme {
            InitScheme::Default | InitScheme::FanOut => Init::Uniform(1.0 / (fan_in as f64).sqrt()),
            InitScheme::FanOutZeroBias | InitScheme::FanInZeroBias | InitScheme::FanOutNormal => Init::Const(0.0),
        };
        let w = self.linear_weight(name, fan_in, out);
        x.linear(w, Some(self.param(&format!("{name}.bias"), &[out], bias)), &self.path(name))
    }

    /// As `linear`, the parameters named by the scope alone: `weight` and `bias`.
    #[track_caller]
    pub fn linear_here(&self, x: Expr<'g>, out: usize) -> Expr<'g> {
        let fan_in = x.shape().dims()[1];
        let bound = Init::Uniform(1.0 / (fan_in as f64).sqrt());
        let (w, b) = (self.param("weight", &[out, fan_in], bound.clone()), self.param("bias", &[out], bound));
        x.linear(w, Some(b), self.path.trim_end_matches('/'))
    }

    /// y = x wᵀ.
    #[track_caller]
    pub fn linear_without_bias(&self, name: &str, x: Expr<'g>, out: usize) -> Expr<'g> {
        x.linear(self.linear_weight(name, x.shape().dims()[1], out), None, &self.path(name))
    }

    fn linear_weight(&self, name: &str, fan_in: usize, out: usize) -> Expr<'g> {
        let init = match self.scheme {
            InitScheme::FanOutNormal => Init::Normal(0.01),
            _ => Init::Uniform(1.0 / (fan_in as f64).sqrt()),
        };
        self.param(&format!("{name}.weight"), &[out, fan_in], init)
    }
}
