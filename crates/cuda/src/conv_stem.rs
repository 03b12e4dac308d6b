//! Stems: convolutions of images that lie in memory with a fourth channel of zeros, which their filters lack. Filters are
//! widened before the product, gradients are narrowed as their splits are summed: kernels/conv_{fprop,wgrad}_stem.cu.

use crate::binding::{Bind, Divide, Operand, Tensor};
use crate::command::Address;
use crate::rows::count;
use bytemuck::{Pod, Zeroable};
use tensor::{Dtype, Shape};

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FilterArgs {
    from: Operand,
    to: Operand,
    by_row: Divide,
    taps: u32,
    n: u32,
    pad: u32,
}
const _: () = assert!(size_of::<FilterArgs>() == 56);

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct SumArgs {
    partial: Address,
    dw: Address,
    by_row3: Divide,
    row: u32,
    filters: u32,
    splits: u32,
    n: u32,
    pad: u32,
}
const _: () = assert!(size_of::<SumArgs>() == 48);

/// Do the filters [k,r,s,3] lack the image's fourth channel?
pub(crate) fn takes(x: Tensor, filter: Tensor) -> bool {
    (x.last(), filter.last()) == (4, 3)
}

/// The filters [k,r,s,4], which have no place yet.
pub(crate) fn widened(filter: Tensor, dtype: Dtype) -> Tensor {
    let [k, r, s, _] = filter.dims();
    Tensor { address: 0, shape: Shape::new(&[k, r, s, 4]), dtype }
}

/// Puts the filters with zeros in their fourth channel to `wide`, rows of k `row` elements long.
pub(crate) fn widen(b: &mut Bind<'_>, filter: Tensor, wide: Tensor, row: usize) {
    let [k, r, s, _] = filter.dims();
    let (by_row, n) = (Divide::by(row), count(k * row));
    let args = FilterArgs { from: filter.into(), to: wide.into(), by_row, taps: count(r * s), n, pad: 0 };
    b.kernel("conv_fprop_stem_filter", b.grid(k * row), &args);
}

/// dw [k,r,s,3] = the sum over splits, in order, of `partial` f32 [splits][k][row] without the fourth channel.
pub(crate) fn sum(b: &mut Bind<'_>, partial: Address, dw: Tensor, [splits, row]: [usize; 2]) {
    let ([k, r, s, _], n) = (dw.dims(), dw.elements());
    let by_row3 = Divide::by(3 * r * s);
    let [row, filters, splits, n32] = [row, k, splits, n].map(count);
    let args = SumArgs { partial, dw: dw.address, by_row3, row, filters, splits, n: n32, pad: 0 };
    b.kernel("conv_wgrad_stem_sum", b.grid(n), &args);
}
