//! The order of an epoch as a pure function of (seed, stage, epoch): which images form each unit.
//!
//! A unit is what batches are counted in: an image, an image in several views, or an anchor with partners of its class.
//! Pairs follow CS-KD's and BAKE's samplers: anchors are a permutation of all images, partners come from the whole set.

use std::sync::Arc;

use spec::PairRule;

use crate::dataset::Dataset;
use crate::draw::{EpochKey, Purpose};
use crate::error::DataError;

/// What the units of an epoch are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampler {
    /// Every image once, in file order: evaluation.
    Sequential,
    /// Every image once, in a fresh permutation.
    Shuffle,
    /// As `Shuffle`, each image in `views` independently augmented copies.
    Views { views: usize },
    /// Anchors in a fresh permutation, each with `partners` images of its class.
    Pairs { rule: PairRule, partners: usize },
}

impl Sampler {
    /// Images of one unit, which are its roles 0, 1, …
    pub fn images_per_unit(&self) -> usize {
        match *self {
            Sampler::Sequential | Sampler::Shuffle => 1,
            Sampler::Views { views } => views,
            Sampler::Pairs { partners, .. } => 1 + partners,
        }
    }

    /// View that an image of a unit belongs to: anchor and partners are one view.
    pub fn view(&self, role: usize) -> usize {
        if let Sampler::Views { .. } = self { role } else { 0 }
    }

    /// Row of an image in a micro-batch of `units`: views one after the other ([view 0…, view 1…]), or all anchors, then the
    /// partners grouped by anchor. For two images a unit both are the same: [first…, second…].
    pub fn row(&self, units: usize, unit: usize, role: usize) -> usize {
        match *self {
            Sampler::Pairs { partners, .. } if role > 0 => units + unit * partners + role - 1,
            _ => role * units + unit,
        }
    }

    fn check(&self) -> Result<(), DataError> {
        let images = self.images_per_unit();
        let partition = matches!(self, Sampler::Pairs { rule: PairRule::Partition, .. });
        if images == 0 || images > 255 || (partition && images != 2) {
            return Err(DataError::Setting(format!(
                "{self:?} has {images} images a unit; expected 1 to 255, and 2 for a partition"
            )));
        }
        Ok(())
    }
}

/// Labels of a set and the images of each class, ascending.
#[derive(Debug)]
pub struct ClassLists {
    labels: Vec<u32>,
    members: Vec<Vec<u32>>,
}

impl ClassLists {
    /// The lists of a data set.
    pub fn of(dataset: &dyn Dataset) -> ClassLists {
        let labels = dataset.labels().to_vec();
        let mut members = vec![Vec::new(); dataset.classes().len()];
        for (index, &label) in labels.iter().enumerate() {
            members[label as usize].push(index as u32);
        }
        ClassLists { labels, members }
    }

    /// Images of `class`, ascending.
    pub fn class(&self, class: u32) -> &[u32] {
        &self.members[class as usize]
    }

    pub fn label(&self, index: u32) -> u32 {
        self.labels[index as usize]
    }

    pub fn images(&self) -> usize {
        self.labels.len()
    }

    pub fn classes(&self) -> usize {
        self.members.len()
    }
}

/// One epoch's units by global slot.
#[derive(Debug)]
pub struct Epoch {
    sampler: Sampler,
    key: EpochKey,
    lists: Arc<ClassLists>,
    order: Order,
}

#[derive(Debug)]
enum Order {
    Sequential,
    Anchors(Vec<u32>),
    Pairs(Vec<[u32; 2]>),
}

impl Epoch {
    /// Draws the order. Equal arguments give equal epochs, on any rank.
    pub fn new(sampler: Sampler, lists: Arc<ClassLists>, key: EpochKey) -> Result<Epoch, DataError> {
        sampler.check()?;
        let order = match sampler {
            Sampler::Sequential => Order::Sequential,
            Sampler::Pairs { rule: PairRule::Partition, .. } => Order::Pairs(partition(&lists, key)),
            _ => Order::Anchors(key.stream(Purpose::ORDER, 0, 0).permutation(lists.images())),
        };
        Ok(Epoch { sampler, key, lists, order })
    }

    /// Number of units; slots are 0..units.
    pub fn units(&self) -> usize {
        match &self.order {
            Order::Pairs(pairs) => pairs.len(),
            _ => self.lists.images(),
        }
    }

    /// Data set indices of the unit's images, role by role.
    pub fn members(&self, slot: u32) -> Vec<u32> {
        let anchor = match &self.order {
            Order::Sequential => slot,
            Order::Anchors(anchors) => anchors[slot as usize],
            Order::Pairs(pairs) => return pairs[slot as usize].to_vec(),
        };
        match self.sampler {
            Sampler::Pairs { rule: PairRule::WithoutSelf, partners } => self.others(slot, anchor, partners),
            Sampler::Pairs { partners, .. } => {
                let class = self.lists.class(self.lists.label(anchor));
                let mut stream = self.key.stream(Purpose::PARTNER, slot, 0);
                let drawn = (0..partners).map(|_| class[stream.below(class.len() as u32) as usize]);
                std::iter::once(anchor).chain(drawn).collect()
            }
            _ => vec![anchor; self.sampler.images_per_unit()],
        }
    }

    pub fn sampler(&self) -> Sampler {
        self.sampler
    }

    pub fn key(&self) -> EpochKey {
        self.key
    }

    pub fn lists(&self) -> &ClassLists {
        &self.lists
    }

    /// The anchor and `partners` others of its class. Repeats are drawn again unless the class is too small.
    fn others(&self, slot: u32, anchor: u32, partners: usize) -> Vec<u32> {
        let class = self.lists.class(self.lists.label(anchor));
        let others = class.len() - 1;
        let mut members = vec![anchor];
        if others == 0 {
            members.resize(1 + partners, anchor);
            return members;
        }
        let own = class.binary_search(&anchor).expect("an image is in the list of its class");
        let mut stream = self.key.stream(Purpose::PARTNER, slot, 0);
        while members.len() <= partners {
            let drawn = stream.below(others as u32) as usize;
            let partner = class[drawn + usize::from(drawn >= own)];
            if others < partners || !members.contains(&partner) {
                members.push(partner);
            }
        }
        members
    }
}

fn partition(lists: &ClassLists, key: EpochKey) -> Vec<[u32; 2]> {
    let mut pairs = Vec::with_capacity(lists.images() / 2 + lists.classes());
    for class in 0..lists.classes() as u32 {
        let mut members = lists.class(class).to_vec();
        let mut stream = key.stream(Purpose::PARTITION, class, 0);
        stream.shuffle(&mut members);
        pairs.extend(members.chunks(2).map(|pair| match *pair {
            [a, b] => [a, b],
            _ => [pair[0], members[stream.below(members.len() as u32) as usize]],
        }));
    }
    key.stream(Purpose::ORDER, 0, 0).shuffle(&mut pairs);
    pairs
}
