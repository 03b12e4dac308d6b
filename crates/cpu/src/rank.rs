//! Ranks of classes: counts of correct rows, and the classes that come first. Of equal logits the lower class comes first.

use crate::elementwise::for_blocks;
use crate::io::{Io, Real};
use crate::row_loss::rows_of_block;
use std::cmp::Ordering;

/// logits, label → rows whose label is first, and among the first `k`. A row with a NaN is wrong, one without label not counted.
pub(crate) fn correct<T: Real>(io: &mut Io<'_>, k: usize) {
    let (logits, label, classes) = (io.real::<T>(0), io.inputs[1].i32(), io.dims(0)[1]);
    let mut counts = [0.0; 2];
    for (z, &label) in logits.chunks_exact(classes).zip(label) {
        let Ok(label) = usize::try_from(label) else { continue };
        // A NaN anywhere comes before the label: the row is wrong.
        let before = |(j, z_j): &(usize, &T)| match z_j.partial_cmp(&&z[label]) {
            Some(Ordering::Less) => false,
            Some(Ordering::Equal) => *j < label,
            Some(Ordering::Greater) | None => true,
        };
        let rank = z.iter().enumerate().filter(before).count();
        counts[0] += f64::from(rank == 0);
        counts[1] += f64::from(rank < k);
    }
    io.out::<T>().iter_mut().zip(counts).for_each(|(out, count)| *out = T::of(count));
}

/// logits → i32 [n,k], the largest first; −1 in all of a row with a NaN.
pub(crate) fn top_k<T: Real>(io: &mut Io<'_>, k: usize) {
    let (logits, classes) = (io.real::<T>(0), io.dims(0)[1]);
    let rows = rows_of_block(classes);
    for_blocks(io.outputs[0].i32(), (rows * k).max(1), |i, out| {
        let mut order: Vec<i32> = vec![];
        for (out, z) in out.chunks_exact_mut(k).zip(logits[i * rows * classes..].chunks_exact(classes)) {
            if z.iter().any(|z| z.is_nan()) {
                out.fill(-1);
                continue;
            }
            order.clear();
            order.extend(0..classes as i32);
            // Stable: equal logits stay in the order of classes.
            order.sort_by(|&a, &b| z[b as usize].partial_cmp(&z[a as usize]).unwrap_or(Ordering::Equal));
            out.copy_from_slice(&order[..k]);
        }
    });
}
