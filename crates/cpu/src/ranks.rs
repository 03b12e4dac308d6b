//! What batch norms over ranks exchange, and make of it. Values of all ranks lie in rank order, so sums are equal on all of them.

use crate::io::{Io, Real};
use std::error::Error;
use std::fmt::Debug;

/// The way to the other ranks of a run, from within a body. Every rank runs the same bodies in the same order.
pub trait Gather: Debug {
    /// The bytes of all ranks, in rank order; each gives as many. Errors: whatever made a rank fail to take part.
    fn all_gather(&self, own: &[u8]) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>>;
}

/// What this rank gives to GatherRanks: its values, one after another, and its count.
pub(crate) fn own<T: Real>(io: &Io<'_>, count: usize) -> Vec<u8> {
    let mut own: Vec<u8> = io.inputs.iter().flat_map(|x| x.raw::<T>().0).copied().collect();
    own.extend_from_slice(bytemuck::bytes_of(&T::of(count as f64)));
    own
}

/// GatherRanks: what all ranks gave → each value of all ranks, counts.
#[track_caller]
pub(crate) fn spread<T: Real>(io: &mut Io<'_>, all: &[u8], world: usize) {
    let each = all.len() / world;
    let mut from = 0;
    for output in &mut io.outputs {
        let output = output.raw::<T>();
        let bytes = output.len() / world;
        assert!(from + bytes <= each, "values of {world} ranks: without `meet` an executor has those of one");
        for (output, of_rank) in output.chunks_exact_mut(bytes.max(1)).zip(all.chunks_exact(each)) {
            output.copy_from_slice(&of_rank[from..from + bytes]);
        }
        from += bytes;
    }
}

/// mean, var [world,g,c], rows [world] → mean, biased and unbiased variance [g,c], by Chan's formula in rank order.
pub(crate) fn merge<T: Real>(io: &mut Io<'_>) {
    let [means, vars, rows] = std::array::from_fn(|i| io.real::<T>(i));
    let channels = means.len() / rows.len();
    for at in 0..channels {
        let (mut count, mut mean, mut m2) = (0.0, 0.0, 0.0);
        for (rank, rows) in rows.iter().map(|n| n.to_f64()).enumerate() {
            let of_rank = rank * channels + at;
            let (total, delta) = (count + rows, means[of_rank].to_f64() - mean);
            mean += delta * rows / total;
            m2 += vars[of_rank].to_f64() * rows + delta * delta * count * rows / total;
            count = total;
        }
        let values = [mean, m2 / count, m2 / (count - 1.0).max(1.0)];
        io.outputs.iter_mut().zip(values).for_each(|(out, value)| out.real::<T>()[at] = T::of(value));
    }
}

/// sums [world,g,2,c], rows [world] → sums over ranks, times this rank's rows over those of all: what BnGradApply divides by its
/// own rows is then the mean over all.
pub(crate) fn sum<T: Real>(io: &mut Io<'_>, count: usize) {
    let [sums, rows] = std::array::from_fn(|i| io.real::<T>(i));
    let share = count as f64 / rows.iter().map(|n| n.to_f64()).sum::<f64>();
    let each = sums.len() / rows.len();
    let out = io.out::<T>();
    for (at, out) in out.iter_mut().enumerate() {
        *out = T::of(share * sums[at..].iter().step_by(each).map(|s| s.to_f64()).sum::<f64>());
    }
}
