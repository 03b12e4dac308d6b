//! Convolution in f32: geometry, checks, and the choice of algorithm.
//!
//! Layouts: activations NHWC, filters KRSC with C/groups channels, outputs NPQK, all contiguous.
//! NOTE: the work is cut and every sum ordered by the geometry alone, so results are bit-identical for any number of
//! threads. Call inside the rayon pool that is to do the work.

use crate::conv_depthwise;
use crate::conv_direct::Direct;
use crate::conv_wgrad;
use crate::simd::Isa;

/// Sizes of a convolution: image `n·h·w·c`, `k` filters of `r·s` taps, output `p·q`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvGeom {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub k: usize,
    pub r: usize,
    pub s: usize,
    pub p: usize,
    pub q: usize,
    pub stride: usize,
    pub pad: usize,
    pub groups: usize,
}

impl ConvGeom {
    /// Floats of the image, NHWC.
    pub fn x_len(&self) -> usize {
        self.n * self.h * self.w * self.c
    }

    /// Floats of the filters, KRSC.
    pub fn w_len(&self) -> usize {
        self.k * self.filter_len()
    }

    /// Floats of the output, NPQK.
    pub fn y_len(&self) -> usize {
        self.n * self.p * self.q * self.k
    }

    /// Floats of one filter, r·s·c/groups.
    pub fn filter_len(&self) -> usize {
        self.r * self.s * self.c / self.groups
    }

    /// Multiplications and additions of one direction.
    pub fn flops(&self) -> u64 {
        2 * (self.y_len() * self.filter_len()) as u64
    }

    /// One channel in and out per group.
    fn depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.c && self.groups == self.k
    }

    #[track_caller]
    fn check(&self, x: usize, w: usize, y: usize) {
        let g = self;
        let fits = |size: usize, taps: usize, out: usize| out == (size + 2 * g.pad).saturating_sub(taps) / g.stride + 1;
        assert!(g.stride > 0 && g.groups > 0 && g.r > 0 && g.s > 0, "empty filter, stride or groups in {g:?}");
        assert!(g.c.is_multiple_of(g.groups) && g.k.is_multiple_of(g.groups), "groups do not divide channels in {g:?}");
        assert!(g.r <= g.h + 2 * g.pad && g.s <= g.w + 2 * g.pad, "filter larger than the padded image in {g:?}");
        assert!(fits(g.h, g.r, g.p) && fits(g.w, g.s, g.q), "output size does not follow from {g:?}");
        assert!(
            (x, w, y) == (g.x_len(), g.w_len(), g.y_len()),
            "image, filter, output hold {x}, {w}, {y} values, {g:?} needs {}, {}, {}",
            g.x_len(),
            g.w_len(),
            g.y_len()
        );
    }
}

/// What happens to an output value before it is stored, in this order: bias, addend, ReLU, rounding to bf16.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// One value per output channel.
    pub bias: Option<&'a [f32]>,
    /// Same shape as the output.
    pub add: Option<&'a [f32]>,
    pub relu: bool,
    pub round_bf16: bool,
}

impl<'a> Epilogue<'a> {
    /// For the output columns from `column` on.
    pub(crate) fn columns(self, column: usize) -> Epilogue<'a> {
        Epilogue { bias: self.bias.map(|bias| &bias[column..]), ..self }
    }
}

/// A convolution on an instruction set. Panics where a slice does not have the size the geometry gives.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    pub geom: ConvGeom,
    pub isa: Isa,
}

impl Conv {
    /// With the fastest instruction set of this machine.
    pub fn new(geom: ConvGeom) -> Conv {
        Conv { geom, isa: Isa::detect() }
    }

    /// y = epilogue(conv(x, w)); overwrites `y`.
    #[track_caller]
    pub fn fprop(&self, x: &[f32], w: &[f32], y: &mut [f32], epilogue: Epilogue) {
        self.geom.check(x.len(), w.len(), y.len());
        check_epilogue(&epilogue, self.geom.k, y.len());
        if self.geom.depthwise() {
            conv_depthwise::fprop(self, x, w, y, epilogue);
        } else {
            Direct::fprop(self, w).run(x, y, epilogue);
        }
    }

    /// dx = epilogue(gradient by the image); overwrites `dx`. `epilogue.add` takes the gradient of a fork's other branch.
    #[track_caller]
    pub fn dgrad(&self, dy: &[f32], w: &[f32], dx: &mut [f32], epilogue: Epilogue) {
        self.geom.check(dx.len(), w.len(), dy.len());
        check_epilogue(&epilogue, self.geom.c, dx.len());
        if self.geom.depthwise() {
            conv_depthwise::dgrad(self, dy, w, dx, epilogue);
        } else {
            Direct::dgrad(self, w).run(dy, dx, epilogue);
        }
    }

    /// dw = gradient by the filters, summed over the batch; overwrites `dw`.
    #[track_caller]
    pub fn wgrad(&self, x: &[f32], dy: &[f32], dw: &mut [f32]) {
        self.geom.check(x.len(), dw.len(), dy.len());
        if self.geom.depthwise() {
            conv_depthwise::wgrad(self, x, dy, dw);
        } else {
            conv_wgrad::wgrad(self, x, dy, dw);
        }
    }
}

#[track_caller]
fn check_epilogue(epilogue: &Epilogue, channels: usize, len: usize) {
    assert!(epilogue.bias.is_none_or(|bias| bias.len() == channels), "bias does not have {channels} values");
    assert!(epilogue.add.is_none_or(|add| add.len() == len), "addend does not have {len} values");
}
