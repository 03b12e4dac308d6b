//! Matrix products in f32, row-major, as 1×1 convolutions over `m` pixels: the three products of a linear layer.

use crate::conv::{Conv, ConvGeom, Epilogue};

/// Which factor is transposed. Sizes: `rows` of the layer's batch, `inputs`, `outputs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gemm {
    /// c[rows, outputs] = a[rows, inputs] · b[outputs, inputs]ᵀ: a linear layer.
    Nt,
    /// c[rows, inputs] = a[rows, outputs] · b[outputs, inputs]: its gradient by the input.
    Nn,
    /// c[outputs, inputs] = a[rows, outputs]ᵀ · b[rows, inputs]: its gradient by the weight.
    Tn,
}

/// c = epilogue(a · b); overwrites `c`. `size`: (rows, inputs, outputs). `Gemm::Tn` takes no epilogue.
#[track_caller]
pub fn gemm(kind: Gemm, size: (usize, usize, usize), factors: (&[f32], &[f32]), c: &mut [f32], epilogue: Epilogue) {
    let (rows, inputs, outputs) = size;
    let conv = Conv::new(ConvGeom {
        n: rows,
        h: 1,
        w: 1,
        c: inputs,
        k: outputs,
        r: 1,
        s: 1,
        p: 1,
        q: 1,
        stride: 1,
        pad: 0,
        groups: 1,
    });
    let (a, b) = factors;
    match kind {
        Gemm::Nt => conv.fprop(a, b, c, epilogue),
        Gemm::Nn => conv.dgrad(a, b, c, epilogue),
        Gemm::Tn => conv.wgrad(b, a, c),
    }
}
