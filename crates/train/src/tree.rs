//! The fixed binary tree that sums micro-batches: leaf i and i+1 first, then pairs of pairs. The sum does not depend on
//! which rank made which leaves, nor on when they arrive. A missing sibling (short last batch) passes its twin through.

use crate::error::TrainError;
use crate::executor::Executor;
use comm::Communicator;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// A complete part of the tree: leaves `index << level .. (index + 1) << level`.
type Key = (u32, usize);

/// Partial sums of one rank, in its executor's memory; each complete pair is added as soon as it is there, so log₂ leaves + 1
/// arenas live.
pub(crate) struct Tree<E: Executor> {
    nodes: BTreeMap<Key, E::Part>,
}

impl<E: Executor> Tree<E> {
    pub(crate) fn new() -> Tree<E> {
        Tree { nodes: BTreeMap::new() }
    }

    /// Adds a leaf. Leaves of a rank come in order.
    pub(crate) fn push(&mut self, executor: &mut E, leaf: usize, part: E::Part) -> Result<(), TrainError> {
        self.insert(executor, (0, leaf), part)
    }

    fn insert(&mut self, executor: &mut E, (level, index): Key, part: E::Part) -> Result<(), TrainError> {
        let Some(twin) = self.nodes.remove(&(level, index ^ 1)) else {
            self.nodes.insert((level, index), part);
            return Ok(());
        };
        let right_is_new = index & 1 == 1;
        let (mut left, right) = if right_is_new { (twin, part) } else { (part, twin) };
        executor.add_parts(&mut left, &right)?;
        drop(right);
        self.insert(executor, (level + 1, index / 2), left)
    }

    /// The parts that leaves `range` come to, in the order in which a tree holds them.
    fn parts_of(range: &Range<usize>) -> Vec<Key> {
        let mut keys = BTreeSet::new();
        for leaf in range.clone() {
            let mut key = (0, leaf);
            while keys.remove(&(key.0, key.1 ^ 1)) {
                key = (key.0 + 1, key.1 / 2);
            }
            keys.insert(key);
        }
        keys.into_iter().collect()
    }

    /// A tree of the parts of all ranks, of `len` values each. `shares` are the leaves of each rank.
    pub(crate) fn share(
        self,
        executor: &mut E,
        comm: &dyn Communicator,
        shares: &[Range<usize>],
        len: usize,
    ) -> Result<Self, TrainError> {
        let keys: Vec<(Key, usize)> =
            shares.iter().enumerate().flat_map(|(r, s)| Self::parts_of(s).into_iter().map(move |k| (k, r))).collect();
        let owners: Vec<usize> = keys.iter().map(|k| k.1).collect();
        let parts = executor.share_parts(comm, self.nodes.into_values().collect(), &owners, len)?;
        let mut all = Self::new();
        for ((key, _), part) in keys.into_iter().zip(parts) {
            all.insert(executor, key, part)?;
        }
        Ok(all)
    }

    /// The sum over all leaves that came; `None` without any.
    pub(crate) fn sum(mut self, executor: &mut E) -> Result<Option<E::Part>, TrainError> {
        while self.nodes.len() > 1 {
            // The deepest of the last part passes up until it meets its twin.
            let key = *self.nodes.keys().min_by_key(|k| (k.0, std::cmp::Reverse(k.1))).expect("more than one");
            let part = self.nodes.remove(&key).expect("a key of the tree");
            self.insert(executor, (key.0 + 1, key.1 / 2), part)?;
        }
        Ok(self.nodes.into_values().next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use comm::Threads;

    type Cpu = cpu::Executor<f32>;

    /// A sum whose bits depend on its order.
    fn leaves(n: usize) -> Vec<Vec<f32>> {
        (0..n).map(|i| vec![0.1 + i as f32 * 1.7e-3, (i as f32).sin() * 1e4]).collect()
    }

    fn rank_main(comm: &dyn Communicator, n: usize) -> Vec<f32> {
        let mut executor = Cpu::new(1).unwrap();
        let all = leaves(n);
        let shares: Vec<_> = (0..comm.world_size()).map(|r| data::share(n, r, comm.world_size())).collect();
        let mut tree = Tree::<Cpu>::new();
        shares[comm.rank()].clone().for_each(|i| tree.push(&mut executor, i, all[i].clone()).unwrap());
        assert_eq!(tree.nodes.keys().copied().collect::<Vec<_>>(), Tree::<Cpu>::parts_of(&shares[comm.rank()]));
        let tree = tree.share(&mut executor, comm, &shares, 2).unwrap();
        tree.sum(&mut executor).unwrap().unwrap()
    }

    /// The sum on every rank, which is one.
    fn sum_over(ranks: usize, n: usize) -> Vec<f32> {
        std::thread::scope(|scope| {
            let spawn = |comm: Threads| scope.spawn(move || rank_main(&comm, n));
            let ranks: Vec<_> = Threads::world(ranks).into_iter().map(spawn).collect();
            let mut sums: Vec<_> = ranks.into_iter().map(|r| r.join().unwrap()).collect();
            assert!(sums.windows(2).all(|w| w[0] == w[1]));
            sums.swap_remove(0)
        })
    }

    #[test]
    fn the_sum_has_the_same_bits_for_any_number_of_ranks() {
        for n in 1..=17 {
            let one = sum_over(1, n);
            for ranks in [2, 3, 4, 8] {
                assert_eq!(one, sum_over(ranks, n), "{n} leaves on {ranks} ranks");
            }
        }
    }

    #[test]
    fn four_leaves_are_added_in_pairs() {
        let all = leaves(4);
        let pair = |a: &[f32], b: &[f32]| [a[0] + b[0], a[1] + b[1]];
        let expected = pair(&pair(&all[0], &all[1]), &pair(&all[2], &all[3]));
        assert_eq!(sum_over(1, 4), expected);
    }
}
