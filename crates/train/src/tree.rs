//! The fixed binary tree that sums micro-batches: leaf i and i+1 first, then pairs of pairs. The sum does not depend on
//! which rank made which leaves, nor on when they arrive. A missing sibling (short last batch) passes its twin through.

use cpu::Real;
use std::collections::BTreeMap;

/// A complete part of the tree: leaves `index << level .. (index + 1) << level`.
type Key = (u32, usize);

/// Partial sums of one rank; each complete pair is added as soon as it is there, so log₂ leaves + 1 arenas live.
#[derive(Debug)]
pub(crate) struct Tree<T> {
    nodes: BTreeMap<Key, Vec<T>>,
}

impl<T: Real> Tree<T> {
    pub(crate) fn new() -> Tree<T> {
        Tree { nodes: BTreeMap::new() }
    }

    /// Adds a leaf. Leaves of a rank come in order.
    pub(crate) fn push(&mut self, leaf: usize, values: &[T]) {
        self.insert((0, leaf), values.to_vec());
    }

    fn insert(&mut self, (level, index): Key, mut values: Vec<T>) {
        if let Some(twin) = self.nodes.remove(&(level, index ^ 1)) {
            let right_is_new = index & 1 == 1;
            let (left, right) = if right_is_new { (twin, values) } else { (values, twin) };
            values = left;
            values.iter_mut().zip(&right).for_each(|(l, r)| *l += *r);
            self.insert((level + 1, index / 2), values);
        } else {
            self.nodes.insert((level, index), values);
        }
    }

    /// The parts as bytes, for other ranks.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (&(level, index), values) in &self.nodes {
            out.extend(level.to_le_bytes());
            out.extend((index as u64).to_le_bytes());
            out.extend_from_slice(bytemuck::cast_slice(values));
        }
        out
    }

    /// Adds the parts of another rank, each of `len` values.
    pub(crate) fn absorb(&mut self, bytes: &[u8], len: usize) {
        for part in bytes.chunks_exact(12 + len * size_of::<T>()) {
            let (head, body) = part.split_at(12);
            let level = u32::from_le_bytes(head[..4].try_into().expect("four bytes"));
            let index = u64::from_le_bytes(head[4..].try_into().expect("eight bytes"));
            self.insert((level, index as usize), bytemuck::pod_collect_to_vec(body));
        }
    }

    /// The sum over all leaves that came; `None` without any.
    pub(crate) fn sum(mut self) -> Option<Vec<T>> {
        while self.nodes.len() > 1 {
            // The deepest of the last part passes up until it meets its twin.
            let key = *self.nodes.keys().min_by_key(|k| (k.0, std::cmp::Reverse(k.1)))?;
            let values = self.nodes.remove(&key)?;
            self.insert((key.0 + 1, key.1 / 2), values);
        }
        self.nodes.into_values().next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sum whose bits depend on its order.
    fn leaves(n: usize) -> Vec<Vec<f32>> {
        (0..n).map(|i| vec![0.1 + i as f32 * 1.7e-3, (i as f32).sin() * 1e4]).collect()
    }

    fn sum_over(ranks: usize, n: usize) -> Vec<f32> {
        let all = leaves(n);
        let mut parts = Vec::new();
        for rank in 0..ranks {
            let mut tree = Tree::new();
            (n * rank / ranks..n * (rank + 1) / ranks).for_each(|i| tree.push(i, &all[i]));
            parts.push(tree.to_bytes());
        }
        let mut tree = Tree::new();
        parts.iter().for_each(|p| tree.absorb(p, 2));
        tree.sum().unwrap()
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
