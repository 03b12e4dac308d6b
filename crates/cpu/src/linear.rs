//! Convolutions and matrix products: the packed kernels in f32, plain loops in f64.

use crate::conv::{Conv, ConvGeom, Epilogue};
use crate::conv_reference as reference;
use crate::elementwise::{map, relu};
use crate::gemm::{Gemm, gemm};
use crate::io::{Io, Real};
use graph::{ConvArgs, MatmulArgs, conv_out};
use std::borrow::Cow;
use tensor::Dtype;

/// The heavy products of a float type.
pub trait Kernels: Sized {
    fn fprop(geom: ConvGeom, x: &[Self], w: &[Self], y: &mut [Self], tail: Tail<'_, Self>);
    /// `tail` has no bias and no ReLU.
    fn dgrad(geom: ConvGeom, dy: &[Self], w: &[Self], dx: &mut [Self], tail: Tail<'_, Self>);
    fn wgrad(geom: ConvGeom, x: &[Self], dy: &[Self], dw: &mut [Self]);
    /// c [rows, outputs] = x [rows, inputs] · w [outputs, inputs]ᵀ, and the two gradients; `size`: rows, inputs, outputs.
    fn matmul(kind: Gemm, size: (usize, usize, usize), factors: (&[Self], &[Self]), c: &mut [Self]);
}

/// What is added to a product before it is stored: bias, then the addend, then ReLU.
#[derive(Clone, Copy, Debug)]
pub struct Tail<'a, T> {
    pub bias: Option<&'a [T]>,
    pub add: Option<&'a [T]>,
    pub relu: bool,
}

impl Kernels for f32 {
    fn fprop(geom: ConvGeom, x: &[f32], w: &[f32], y: &mut [f32], tail: Tail<'_, f32>) {
        let Tail { bias, add, relu } = tail;
        Conv::new(geom).fprop(x, w, y, Epilogue { bias, add, relu, round_bf16: false });
    }
    fn dgrad(geom: ConvGeom, dy: &[f32], w: &[f32], dx: &mut [f32], tail: Tail<'_, f32>) {
        Conv::new(geom).dgrad(dy, w, dx, Epilogue { add: tail.add, ..Epilogue::default() });
    }
    fn wgrad(geom: ConvGeom, x: &[f32], dy: &[f32], dw: &mut [f32]) {
        Conv::new(geom).wgrad(x, dy, dw);
    }
    fn matmul(kind: Gemm, size: (usize, usize, usize), factors: (&[f32], &[f32]), c: &mut [f32]) {
        gemm(kind, size, factors, c, Epilogue::default());
    }
}

impl Kernels for f64 {
    fn fprop(geom: ConvGeom, x: &[f64], w: &[f64], y: &mut [f64], tail: Tail<'_, f64>) {
        reference::fprop(&geom, x, w, y);
        finish(y, tail);
    }
    fn dgrad(geom: ConvGeom, dy: &[f64], w: &[f64], dx: &mut [f64], tail: Tail<'_, f64>) {
        reference::dgrad(&geom, dy, w, dx);
        finish(dx, tail);
    }
    fn wgrad(geom: ConvGeom, x: &[f64], dy: &[f64], dw: &mut [f64]) {
        reference::wgrad(&geom, x, dy, dw);
    }
    fn matmul(kind: Gemm, size: (usize, usize, usize), (a, b): (&[f64], &[f64]), c: &mut [f64]) {
        let (n, inputs, outputs) = size;
        let geom =
            ConvGeom { n, h: 1, w: 1, c: inputs, k: outputs, r: 1, s: 1, p: 1, q: 1, stride: 1, pad: 0, groups: 1 };
        match kind {
            Gemm::Nt => reference::fprop(&geom, a, b, c),
            Gemm::Nn => reference::dgrad(&geom, a, b, c),
            Gemm::Tn => reference::wgrad(&geom, b, a, c),
        }
    }
}

fn finish<T: Real>(y: &mut [T], tail: Tail<'_, T>) {
    if let Some(bias) = tail.bias {
        y.chunks_exact_mut(bias.len()).for_each(|y| y.iter_mut().zip(bias).for_each(|(y, &b)| *y += b));
    }
    if let Some(add) = tail.add {
        y.iter_mut().zip(add).for_each(|(y, &a)| *y += a);
    }
    if tail.relu {
        y.iter_mut().for_each(|y| *y = relu(*y));
    }
}

/// The weights as the GPU keeps them: rounded to bf16 where the activations are bf16.
fn weight<'a, T: Real>(io: &Io<'a>, i: usize, bf16: bool) -> Cow<'a, [T]> {
    let w = io.real::<T>(i);
    if !bf16 || io.inputs[i].dtype == Dtype::Bf16 {
        return Cow::Borrowed(w);
    }
    let mut rounded = vec![T::ZERO; w.len()];
    map(&mut rounded, [w], |[w]| w.round_bf16());
    Cow::Owned(rounded)
}

/// Sizes of the convolution of an image [n,h,w,c] with filters [k,r,s,c/groups].
fn geom(x: [usize; 4], filters: [usize; 3], args: ConvArgs) -> ConvGeom {
    let ([n, h, w, c], [k, r, s], ConvArgs { stride, pad, groups }) = (x, filters, args);
    let out = |size, kernel| conv_out(size, kernel, stride, pad).expect("shapes were inferred");
    ConvGeom { n, h, w, c, k, r, s, p: out(h, r), q: out(w, s), stride, pad, groups }
}

fn four(dims: &[usize]) -> [usize; 4] {
    [dims[0], dims[1], dims[2], dims[3]]
}

/// x, w, [addend] → y.
pub(crate) fn conv<T: Real>(io: &mut Io<'_>, args: ConvArgs) {
    let add = io.inputs.get(2).map(|x| x.real::<T>());
    fprop(io, args, Tail { bias: None, add, relu: false });
}

/// x, w, bias, [shortcut] → y.
pub(crate) fn conv_act<T: Real>(io: &mut Io<'_>, args: ConvArgs, relu: bool) {
    let (bias, add) = (Some(io.real(2)), io.inputs.get(3).map(|x| x.real::<T>()));
    fprop(io, args, Tail { bias, add, relu });
}

fn fprop<'a, T: Real>(io: &mut Io<'a>, args: ConvArgs, tail: Tail<'a, T>) {
    let [k, r, s, _] = four(io.dims(1));
    let geom = geom(four(io.dims(0)), [k, r, s], args);
    let (x, w) = (io.real(0), weight(io, 1, io.inputs[0].dtype == Dtype::Bf16));
    T::fprop(geom, x, &w, io.out(), tail);
}

/// dy, w, [dx of the other branch] → dx.
pub(crate) fn dgrad<T: Real>(io: &mut Io<'_>, args: ConvArgs) {
    let [k, r, s, _] = four(io.dims(1));
    let geom = geom(four(io.outputs[0].shape.dims()), [k, r, s], args);
    let (dy, w) = (io.real(0), weight(io, 1, io.inputs[0].dtype == Dtype::Bf16));
    let tail = Tail { bias: None, add: io.inputs.get(2).map(|x| x.real::<T>()), relu: false };
    T::dgrad(geom, dy, &w, io.out(), tail);
}

/// x, dy → dw.
pub(crate) fn wgrad<T: Real>(io: &mut Io<'_>, args: ConvArgs) {
    let [k, r, s, _] = four(io.outputs[0].shape.dims());
    let geom = geom(four(io.dims(0)), [k, r, s], args);
    T::wgrad(geom, io.real(0), io.real(1), io.out());
}

/// a, b, [bias] → c. A product of which any factor or the result is bf16 rounds both factors, as tensor cores take them.
pub(crate) fn matmul<T: Real>(io: &mut Io<'_>, args: MatmulArgs) {
    let bf16 = args.dtype == Dtype::Bf16 || io.inputs[..2].iter().any(|x| x.dtype == Dtype::Bf16);
    let (a, b) = (weight::<T>(io, 0, bf16), weight(io, 1, bf16));
    let (a_dims, b_dims, bias) = (io.dims(0), io.dims(1), io.inputs.get(2).map(|b| b.real::<T>()));
    let k = a_dims[usize::from(!args.ta)];
    let (m, n) = (a_dims[usize::from(args.ta)], b_dims[usize::from(!args.tb)]);
    let c = io.out();
    match (args.ta, args.tb) {
        (false, true) => T::matmul(Gemm::Nt, (m, k, n), (&a, &b), c),
        (false, false) => T::matmul(Gemm::Nn, (m, n, k), (&a, &b), c),
        (true, false) => T::matmul(Gemm::Tn, (k, n, m), (&a, &b), c),
        (true, true) => {
            let turned: Vec<T> = (0..m).flat_map(|row| (0..k).map(move |i| i * m + row)).map(|at| a[at]).collect();
            T::matmul(Gemm::Nt, (m, k, n), (&turned, &b), c);
        }
    }
    finish(c, Tail { bias, add: None, relu: false });
}
