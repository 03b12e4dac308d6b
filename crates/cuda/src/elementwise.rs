//! Elementwise ops: kernels/elementwise.cu.

use crate::binding::{Bind, Operand, Tensor};
use crate::command::Address;
use crate::scalars::Weight;
use bytemuck::{Pod, Zeroable};
use graph::{Binary, Unary};

/// In the order of `ElementwiseOp` of the kernel.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Relu,
    Relu6,
    Sigmoid,
    ReluGrad,
    Relu6Grad,
    SigmoidGrad,
    Add,
    Sub,
    Mul,
    Scale,
    Copy,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Args {
    a: Operand,
    b: Operand,
    y: Operand,
    weight: Weight,
    scalars: Address,
    n: u32,
    op: u32,
    packed: u32,
    pad: u32,
}
const _: () = assert!(size_of::<Args>() == 88);

/// y = f(a [, b]) on all elements of y.
fn map(b: &mut Bind<'_>, kind: Kind, operands: [Option<Tensor>; 2], weight: graph::Weight) {
    let y = b.output(0);
    let aligned = |t: &Tensor| t.address.is_multiple_of(16);
    let packed = operands.iter().flatten().chain([&y]).all(aligned);
    let [a, second] = operands.map(|o| o.map_or(Operand::NONE, Operand::from));
    let n = u32::try_from(y.elements()).expect("fewer than 2^32 elements");
    let args = Args {
        a,
        b: second,
        y: y.into(),
        weight: weight.into(),
        scalars: b.scalars(),
        n,
        op: kind as u32,
        packed: packed.into(),
        pad: 0,
    };
    b.kernel("elementwise_map", b.grid(y.elements().div_ceil(8)), &args);
}

pub(crate) fn unary(b: &mut Bind<'_>, kind: Unary) {
    let kind = match kind {
        Unary::Relu => Kind::Relu,
        Unary::Relu6 => Kind::Relu6,
        Unary::Sigmoid => Kind::Sigmoid,
    };
    map(b, kind, [Some(b.input(0)), None], 1.0.into());
}

/// dy, y → dx.
pub(crate) fn unary_grad(b: &mut Bind<'_>, kind: Unary) {
    let kind = match kind {
        Unary::Relu => Kind::ReluGrad,
        Unary::Relu6 => Kind::Relu6Grad,
        Unary::Sigmoid => Kind::SigmoidGrad,
    };
    map(b, kind, [Some(b.input(0)), Some(b.input(1))], 1.0.into());
}

pub(crate) fn binary(b: &mut Bind<'_>, kind: Binary) {
    let kind = match kind {
        Binary::Add => Kind::Add,
        Binary::Sub => Kind::Sub,
        Binary::Mul => Kind::Mul,
    };
    map(b, kind, [Some(b.input(0)), Some(b.input(1))], 1.0.into());
}

pub(crate) fn scale(b: &mut Bind<'_>, weight: graph::Weight) {
    map(b, Kind::Scale, [Some(b.input(0)), None], weight);
}

/// The value as it is, of any dtype; nothing moves where it lies in the output's memory already.
pub(crate) fn copy(b: &mut Bind<'_>) {
    let (x, y) = (b.input(0), b.output(0));
    if x.dtype == y.dtype {
        b.copy(y.address, x.address, y.bytes());
    } else {
        map(b, Kind::Copy, [Some(x), None], 1.0.into());
    }
}

/// The output's memory, which is input 0's, += input 1.
pub(crate) fn accumulate(b: &mut Bind<'_>) {
    map(b, Kind::Add, [Some(b.output(0)), Some(b.input(1))], 1.0.into());
}
