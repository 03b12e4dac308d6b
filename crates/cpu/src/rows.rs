//! Rows and channels moved about: concat, slice, gather, scatter, mix. Copies work on values of any dtype.

use crate::elementwise::{block_rows, for_blocks, map};
use crate::io::{Io, Real};
use graph::Axis;

/// Bytes of what moves together: the whole tensor along the batch, a row of channels along channels.
fn width(dims: &[usize], axis: Axis, element: usize) -> usize {
    element * if axis == Axis::Batch { dims.iter().product() } else { dims.last().copied().unwrap_or(1) }
}

/// Copies a column of byte rows: rows of `to.1` bytes, at byte `to.2`, from rows of `from.1` bytes at `from.2`.
fn copy_columns(to: (&mut [u8], usize, usize), from: (&[u8], usize, usize)) {
    let len = (to.1 - to.2).min(from.1 - from.2);
    if len > 0 {
        for (to_row, from_row) in to.0.chunks_exact_mut(to.1).zip(from.0.chunks_exact(from.1)) {
            to_row[to.2..to.2 + len].copy_from_slice(&from_row[from.2..from.2 + len]);
        }
    }
}

pub(crate) fn concat<T: Real>(io: &mut Io<'_>, axis: Axis) {
    let mut at = 0;
    for i in 0..io.inputs.len() {
        let (x, element) = io.inputs[i].raw::<T>();
        let from = width(io.dims(i), axis, element);
        let to = width(io.outputs[0].shape.dims(), axis, element);
        copy_columns((io.outputs[0].raw::<T>(), to, at), (x, from, 0));
        at += from;
    }
}

/// x → `len` rows or channels from `start`, the output's shape saying how many.
pub(crate) fn slice<T: Real>(io: &mut Io<'_>, axis: Axis, start: usize) {
    let (x, element) = io.inputs[0].raw::<T>();
    let (from, to) = (width(io.dims(0), axis, element), width(io.outputs[0].shape.dims(), axis, element));
    let unit = if axis == Axis::Batch { x.len() / io.dims(0)[0].max(1) } else { element };
    copy_columns((io.outputs[0].raw::<T>(), to, 0), (x, from, start * unit));
}

/// dy → zeros with dy from `start`.
pub(crate) fn unslice<T: Real>(io: &mut Io<'_>, axis: Axis, start: usize) {
    let (dy, element) = io.inputs[0].raw::<T>();
    let (from, to) = (width(io.dims(0), axis, element), width(io.outputs[0].shape.dims(), axis, element));
    let unit = if axis == Axis::Batch { dy.len() / io.dims(0)[0].max(1) } else { element };
    let dx = io.outputs[0].raw::<T>();
    dx.fill(0);
    copy_columns((dx, to, start * unit), (dy, from, 0));
}

/// x, index → x[index]; a negative index gives zeros.
pub(crate) fn gather<T: Real>(io: &mut Io<'_>) {
    let ((x, _), index) = (io.inputs[0].raw::<T>(), io.inputs[1].i32());
    let row = x.len() / io.dims(0)[0].max(1);
    if row > 0 {
        for (out, &i) in io.outputs[0].raw::<T>().chunks_exact_mut(row).zip(index) {
            match usize::try_from(i) {
                Ok(i) => out.copy_from_slice(&x[i * row..][..row]),
                Err(_) => out.fill(0),
            }
        }
    }
}

/// x [..,c] → y[.., i] = x[.., (i mod g)(c/g) + i div g], g the groups.
pub(crate) fn shuffle<T: Real>(io: &mut Io<'_>, groups: usize) {
    let (x, c) = (io.real::<T>(0), io.outputs[0].shape[io.outputs[0].shape.rank() - 1]);
    let from: Vec<usize> = (0..c).map(|i| i % groups * (c / groups) + i / groups).collect();
    let size = block_rows(c) * c;
    for_blocks(io.out::<T>(), size.max(1), |i, out| {
        for (out, x) in out.chunks_exact_mut(c).zip(x[i * size..].chunks_exact(c)) {
            out.iter_mut().zip(&from).for_each(|(out, &from)| *out = x[from]);
        }
    });
}

/// dy, index → rows added in the order of the index.
pub(crate) fn scatter_add<T: Real>(io: &mut Io<'_>) {
    let (dy, index) = (io.real::<T>(0), io.inputs[1].i32());
    let row = dy.len() / index.len().max(1);
    let dx = io.out::<T>();
    dx.fill(T::ZERO);
    if row > 0 {
        for (dy, i) in dy.chunks_exact(row).zip(index).filter_map(|(dy, &i)| Some((dy, usize::try_from(i).ok()?))) {
            dx[i * row..][..row].iter_mut().zip(dy).for_each(|(dx, &dy)| *dx += dy);
        }
    }
}

/// x, permutation, λ → λ x + (1 − λ) x[permutation].
pub(crate) fn mix<T: Real>(io: &mut Io<'_>) {
    let (x, permutation, lambda) = (io.real::<T>(0), io.inputs[1].i32(), io.real::<T>(2)[0]);
    let row = x.len() / permutation.len().max(1);
    for_blocks(io.out::<T>(), row.max(1), |i, out| {
        let other = &x[permutation[i] as usize * row..][..row];
        map(out, [&x[i * row..][..row], other], |[a, b]| lambda * a + (T::ONE - lambda) * b);
    });
}

/// dy, permutation, λ → dx[i] = λ dy[i] + Σ over j that took row i of (1 − λ) dy[j], j ascending.
pub(crate) fn mix_grad<T: Real>(io: &mut Io<'_>) {
    let (dy, permutation, lambda) = (io.real::<T>(0), io.inputs[1].i32(), io.real::<T>(2)[0]);
    let row = dy.len() / permutation.len().max(1);
    for_blocks(io.out::<T>(), row.max(1), |i, dx| {
        map(dx, [&dy[i * row..][..row]], |[dy]| lambda * dy);
        for j in (0..permutation.len()).filter(|&j| permutation[j] as usize == i) {
            let dy = &dy[j * row..][..row];
            dx.iter_mut().zip(dy).for_each(|(dx, &dy)| *dx += (T::ONE - lambda) * dy);
        }
    });
}

/// The value as it is, of any dtype; nothing moves where it lies in the output's memory already.
pub(crate) fn copy<T: Real>(io: &mut Io<'_>) {
    if !io.inputs[0].in_place() {
        io.outputs[0].raw::<T>().copy_from_slice(io.inputs[0].raw::<T>().0);
    }
}

/// Rolling state → the rows of this micro-batch, zeros past the state's end.
pub(crate) fn rolling<T: Real>(io: &mut Io<'_>) {
    let (state, _) = io.inputs[0].raw::<T>();
    let row = state.len() / io.dims(0)[0].max(1);
    let state = state.get(io.scalars.units_before(1) * row..).unwrap_or_default();
    let out = io.outputs[0].raw::<T>();
    let (valid, rest) = out.split_at_mut(out.len().min(state.len()));
    valid.copy_from_slice(&state[..valid.len()]);
    rest.fill(0);
}
