//! Batch norm over ranks: kernels/bn_ranks.cu.

use crate::binding::{Bind, Blocks};
use crate::command::{Address, Gathered};
use crate::update::f32_address;
use bytemuck::{Pod, Zeroable};

/// Values → each of them of all ranks, in rank order, and their counts.
pub(crate) fn gather(b: &mut Bind<'_>, world: usize, count: usize) {
    let count = b.table(&[count as f32]);
    let inputs = (0..b.launch.inputs.len()).map(|i| (b.input(i).address, b.input(i).bytes()));
    let parts = inputs.chain([(count, size_of::<f32>())]).enumerate();
    let parts: Vec<_> = parts.map(|(i, (from, bytes))| Gathered { to: b.output(i).address, from, bytes }).collect();
    if world > 1 {
        return b.gather(parts);
    }
    parts.into_iter().for_each(|Gathered { to, from, bytes }| b.copy(to, from, bytes));
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct MergeArgs {
    means: Address,
    vars: Address,
    rows: Address,
    mean: Address,
    var: Address,
    unbiased: Address,
    n: u32,
    world: u32,
}
const _: () = assert!(size_of::<MergeArgs>() == 56);

/// mean, var [world,g,c], rows [world] → mean, biased and unbiased variance [g,c].
pub(crate) fn merge(b: &mut Bind<'_>) {
    let [means, vars, rows] = [0, 1, 2].map(|i| f32_address(b.input(i)));
    let [mean, var, unbiased] = [0, 1, 2].map(|i| f32_address(b.output(i)));
    let (n, world) = (b.output(0).elements(), b.input(2).elements() as u32);
    let args = MergeArgs { means, vars, rows, mean, var, unbiased, n: n as u32, world };
    b.kernel("bn_ranks_merge", Blocks::line(n.div_ceil(128), 128), &args);
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct SumArgs {
    sums: Address,
    rows: Address,
    out: Address,
    count: f64,
    n: u32,
    world: u32,
}
const _: () = assert!(size_of::<SumArgs>() == 40);

/// sums [world,g,2,c], rows [world] → sums over ranks, times `count` rows of this rank over those of all.
pub(crate) fn sum(b: &mut Bind<'_>, count: usize) {
    let [sums, rows] = [0, 1].map(|i| f32_address(b.input(i)));
    let (n, world) = (b.output(0).elements(), b.input(1).elements() as u32);
    let args = SumArgs { sums, rows, out: f32_address(b.output(0)), count: count as f64, n: n as u32, world };
    b.kernel("bn_ranks_sum", Blocks::line(n.div_ceil(128), 128), &args);
}
