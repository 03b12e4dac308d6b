//! The order of an epoch and its division over ranks.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::{Memory, epoch, error, key, labels};
use data::{ClassLists, Deal, Epoch, LastBatch, Micro, PairRule, Sampler};

const RULES: [PairRule; 3] = [PairRule::WithSelf, PairRule::WithoutSelf, PairRule::Partition];

fn set() -> Memory {
    Memory::new(&labels(), 1, [2, 2])
}

fn members(epoch: &Epoch) -> Vec<Vec<u32>> {
    (0..epoch.units() as u32).map(|slot| epoch.members(slot)).collect()
}

#[test]
fn every_index_is_an_anchor_once() {
    let all: Vec<u32> = (0..41).collect();
    let samplers = [
        Sampler::Sequential,
        Sampler::Shuffle,
        Sampler::Views { views: 2 },
        Sampler::Pairs { rule: PairRule::WithSelf, partners: 1 },
        Sampler::Pairs { rule: PairRule::WithoutSelf, partners: 3 },
    ];
    for sampler in samplers {
        let units = members(&epoch(&set(), sampler, 0));
        let mut anchors: Vec<u32> = units.iter().map(|unit| unit[0]).collect();
        assert_eq!(anchors == all, sampler == Sampler::Sequential);
        anchors.sort_unstable();
        assert_eq!(anchors, all, "{sampler:?}");
        assert!(units.iter().all(|unit| unit.len() == sampler.images_per_unit()));
    }
}

#[test]
fn partners_have_the_anchor_s_class() {
    let labels = labels();
    for rule in RULES {
        for number in 0..5 {
            for unit in members(&epoch(&set(), Sampler::Pairs { rule, partners: 1 }, number)) {
                assert_eq!(labels[unit[0] as usize], labels[unit[1] as usize], "{rule:?} {unit:?}");
                // Image 17 is alone in its class.
                assert!(rule != PairRule::WithoutSelf || unit[0] != unit[1] || unit[0] == 17);
                assert!(unit[0] != 17 || unit[1] == 17);
            }
        }
    }
}

#[test]
fn partners_are_uniform_over_the_class() {
    let set = Memory::new(&[0; 5], 1, [1, 1]);
    for (rule, own) in [(PairRule::WithSelf, 1000), (PairRule::WithoutSelf, 0)] {
        let mut counts = [[0_i32; 5]; 5];
        for number in 0..5000 {
            for unit in members(&epoch(&set, Sampler::Pairs { rule, partners: 1 }, number)) {
                counts[unit[0] as usize][unit[1] as usize] += 1;
            }
        }
        for (anchor, row) in counts.iter().enumerate() {
            for (partner, count) in row.iter().enumerate() {
                let expected = if anchor == partner { own } else { (5000 - own) / 4 };
                assert!((count - expected).abs() < 170, "{rule:?} {counts:?}");
            }
        }
    }
}

#[test]
fn several_partners_are_distinct_where_the_class_allows() {
    let set = Memory::new(&[0, 0, 0, 0, 1, 1, 2], 1, [1, 1]);
    for unit in members(&epoch(&set, Sampler::Pairs { rule: PairRule::WithoutSelf, partners: 3 }, 0)) {
        let distinct: BTreeSet<u32> = unit.iter().copied().collect();
        match unit[0] {
            0..4 => assert_eq!(distinct.len(), 4),
            4 | 5 => assert_eq!(unit[1..], [9 - unit[0]; 3]),
            _ => assert_eq!(unit, [6; 4]),
        }
    }
}

/// Three of the four others, each set of three and each place as often as any other.
#[test]
fn several_partners_are_uniform() {
    let set = Memory::new(&[0; 5], 1, [1, 1]);
    let mut counts = std::collections::BTreeMap::new();
    for number in 0..2400 {
        let epoch = epoch(&set, Sampler::Pairs { rule: PairRule::WithoutSelf, partners: 3 }, number);
        let unit = (0..5).map(|slot| epoch.members(slot)).find(|unit| unit[0] == 2).unwrap();
        *counts.entry(unit[1..].to_vec()).or_insert(0) += 1;
    }
    // 24 ordered choices, 100 ± 9.8 each.
    assert_eq!(counts.len(), 24);
    assert!(counts.iter().all(|(unit, n)| !unit.contains(&2) && (*n - 100_i32).abs() < 40), "{counts:?}");
}

#[test]
fn a_partition_takes_every_image_once() {
    let labels = labels();
    let pairs = members(&epoch(&set(), Sampler::Pairs { rule: PairRule::Partition, partners: 1 }, 4));
    let per_class = |class| labels.iter().filter(|&&l| l == class).count();
    assert_eq!(pairs.len(), (0..3).map(|c| per_class(c).div_ceil(2)).sum::<usize>());
    let mut counts = [0; 41];
    pairs.iter().flatten().for_each(|&i| counts[i as usize] += 1);
    // An odd class has one image more than once: the leftover's partner (or the leftover itself, where it is alone).
    let odd = (0..3).filter(|&c| per_class(c) % 2 == 1).count();
    assert_eq!(counts.iter().filter(|&&c| c == 2).count(), odd);
    assert!(counts.iter().all(|&c| c == 1 || c == 2));
    // Pairs of a class do not stand together.
    assert!(!pairs.is_sorted_by_key(|pair| labels[pair[0] as usize]));
}

#[test]
fn epochs_are_pure_and_differ() {
    let sampler = Sampler::Pairs { rule: PairRule::WithSelf, partners: 1 };
    let at = |number| members(&epoch(&set(), sampler, number));
    assert_eq!(at(3), at(3));
    assert_ne!(at(3), at(4));
    let lists = Arc::new(ClassLists::of(&set()));
    let staged = Epoch::new(sampler, lists, data::EpochKey { stage: 1, ..key(3) }).unwrap();
    assert_ne!(at(3), members(&staged));
}

#[test]
fn rows_are_laid_out_by_role() {
    let views = Sampler::Views { views: 3 };
    assert_eq!([views.row(4, 1, 0), views.row(4, 1, 1), views.row(4, 1, 2)], [1, 5, 9]);
    // Partners are grouped by anchor.
    let pairs = Sampler::Pairs { rule: PairRule::WithSelf, partners: 2 };
    assert_eq!([pairs.row(4, 1, 0), pairs.row(4, 1, 1), pairs.row(4, 1, 2), pairs.row(4, 2, 1)], [1, 6, 7, 8]);
}

#[test]
fn wrong_samplers_are_refused() {
    let lists = Arc::new(ClassLists::of(&set()));
    for sampler in [
        Sampler::Views { views: 0 },
        Sampler::Pairs { rule: PairRule::WithSelf, partners: 255 },
        Sampler::Pairs { rule: PairRule::Partition, partners: 2 },
    ] {
        assert!(error(Epoch::new(sampler, lists.clone(), key(0))).contains("images a unit"));
    }
}

/// All micro-batches of a step by leaf, whichever rank has them.
fn step(deal: &Deal, step: usize, world: usize) -> Vec<Micro> {
    (0..world).flat_map(|rank| deal.deal(step, rank, world)).collect()
}

#[test]
fn a_deal_covers_every_slot_once_at_any_world_size() {
    for (units, global, micro) in [(41, 8, 2), (41, 8, 8), (64, 16, 4), (7, 16, 2), (1, 4, 1), (1000, 96, 8)] {
        for last in [LastBatch::Keep, LastBatch::Drop] {
            let Ok(deal) = Deal::new(units, global, micro, last) else {
                assert!(last == LastBatch::Drop && units < global);
                continue;
            };
            let kept = if last == LastBatch::Keep { units } else { units / global * global };
            let mut slots = Vec::new();
            for s in 0..deal.steps() {
                let alone = step(&deal, s, 1);
                assert_eq!(alone.iter().map(|m| m.units as usize).sum::<usize>(), deal.step_units(s));
                for world in [2, 3, 4, 8] {
                    assert_eq!(step(&deal, s, world), alone, "{units} {global} {micro} world {world}");
                }
                slots.extend(alone.iter().flat_map(|m| m.first_slot..m.first_slot + m.units));
                assert!(alone.iter().all(|m| m.number as usize == s * deal.leaves() + m.leaf as usize));
            }
            assert_eq!(slots, (0..kept as u32).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_short_last_step_leaves_ranks_their_leaves() {
    let deal = Deal::new(41, 16, 4, LastBatch::Keep).unwrap();
    assert_eq!((deal.steps(), deal.leaves(), deal.step_units(2)), (3, 4, 9));
    let micro = |leaf, units| Micro { step: 2, leaf, number: 8 + leaf, first_slot: 32 + 4 * leaf, units };
    assert_eq!(deal.deal(2, 0, 2), [micro(0, 4), micro(1, 4)]);
    assert_eq!(deal.deal(2, 1, 2), [micro(2, 1)]);
    assert_eq!(deal.deal(2, 3, 4), []);
    assert_eq!(Deal::new(41, 16, 4, LastBatch::Drop).unwrap().steps(), 2);
}

#[test]
fn wrong_deals_say_what_fits() {
    let message = error(Deal::new(100, 250, 64, LastBatch::Keep));
    assert_eq!(message, "global_batch 250 is not divisible by micro_batch 64; use 192 or 256");
    assert!(error(Deal::new(100, 8, 0, LastBatch::Keep)).contains("positive"));
    assert!(error(Deal::new(7, 8, 4, LastBatch::Drop)).contains("no step"));
    assert!(error(Deal::new(usize::MAX, 8, 4, LastBatch::Keep)).contains("2^32"));
}
