//! The fixed binary tree that sums micro-batches: leaf i and i+1 first, then pairs of pairs. The sum does not depend on
//! which rank made which leaves, nor on when they arrive. A missing sibling (short last batch) passes its twin through.

use crate::error::TrainError;
use crate::executor::Executor;
use std::collections::BTreeMap;

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

    /// The parts as bytes, for other ranks.
    pub(crate) fn to_bytes(&self, executor: &E) -> Result<Vec<u8>, TrainError> {
        let mut out = Vec::new();
        for (&(level, index), part) in &self.nodes {
            out.extend(level.to_le_bytes());
            out.extend((index as u64).to_le_bytes());
            out.extend_from_slice(bytemuck::cast_slice(&executor.part_to_host(part)?));
        }
        Ok(out)
    }

    /// Adds the parts of another rank, each of `len` values.
    pub(crate) fn absorb(&mut self, executor: &mut E, bytes: &[u8], len: usize) -> Result<(), TrainError> {
        for part in bytes.chunks_exact(12 + len * size_of::<E::Real>()) {
            let (head, body) = part.split_at(12);
            let level = u32::from_le_bytes(head[..4].try_into().expect("four bytes"));
            let index = u64::from_le_bytes(head[4..].try_into().expect("eight bytes"));
            let part = executor.part_from_host(&bytemuck::pod_collect_to_vec::<u8, E::Real>(body))?;
            self.insert(executor, (level, index as usize), part)?;
        }
        Ok(())
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

    type Cpu = cpu::Executor<f32>;

    /// A sum whose bits depend on its order.
    fn leaves(n: usize) -> Vec<Vec<f32>> {
        (0..n).map(|i| vec![0.1 + i as f32 * 1.7e-3, (i as f32).sin() * 1e4]).collect()
    }

    fn sum_over(ranks: usize, n: usize) -> Vec<f32> {
        let mut executor = Cpu::new(1).unwrap();
        let all = leaves(n);
        let mut parts = Vec::new();
        for rank in 0..ranks {
            let mut tree = Tree::<Cpu>::new();
            (n * rank / ranks..n * (rank + 1) / ranks)
                .for_each(|i| tree.push(&mut executor, i, all[i].clone()).unwrap());
            parts.push(tree.to_bytes(&executor).unwrap());
        }
        let mut tree = Tree::<Cpu>::new();
        parts.iter().for_each(|p| tree.absorb(&mut executor, p, 2).unwrap());
        tree.sum(&mut executor).unwrap().unwrap()
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
