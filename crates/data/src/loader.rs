//! Makes one micro-batch: reads, augments, draws. A pure function of (epoch, micro-batch), so any thread may do it.

use std::sync::Arc;

use fast_image_resize::Resizer;

use crate::augment::{Augment, pad_crop, random_box, resize_box, resize_center_crop, whole};
use crate::batch::{BadSample, Batch, BatchSpec, DrawData, OnBad};
use crate::dataset::{Dataset, RawImage};
use crate::deal::Micro;
use crate::draw::{EpochKey, Purpose, Stream};
use crate::error::DataError;
use crate::named;
use crate::operators::Canvas;
use crate::sampler::{ClassLists, Epoch};
use crate::strong::StrongView;

/// Tries to replace a bad sample before the run ends.
const SUBSTITUTE_TRIES: usize = 8;

/// A data set with the settings of its batches.
pub struct Loader {
    dataset: Arc<dyn Dataset>,
    spec: BatchSpec,
    /// `[height, width]` of the images in a batch.
    size: [usize; 2],
}

/// Buffers of one call.
struct Workspace {
    image: RawImage,
    resizer: Resizer,
    scratch: Vec<u8>,
}

/// A row of a batch: where its numbers come from, and whether it is a strong view.
#[derive(Clone, Copy)]
struct Row {
    number: usize,
    key: EpochKey,
    slot: u32,
    role: u8,
    strong: bool,
}

impl Row {
    fn stream(&self, purpose: Purpose) -> Stream {
        self.key.stream(purpose, self.slot, self.role)
    }

    fn crop(&self, pad: usize) -> [usize; 2] {
        let mut stream = self.stream(Purpose::CROP);
        [(); 2].map(|()| stream.below(2 * pad as u32 + 1) as usize)
    }

    fn flip(&self) -> bool {
        self.stream(Purpose::FLIP).bernoulli(0.5)
    }
}

/// The image that stands in a row: its index, and whether its pixels are in the workspace.
#[derive(Clone, Copy)]
struct Held {
    asked: u32,
    index: u32,
    good: bool,
}

impl Loader {
    /// Checks the settings against the set.
    pub fn new(dataset: Arc<dyn Dataset>, spec: BatchSpec) -> Result<Loader, DataError> {
        let size = spec.augment.output_size(dataset.size())?;
        let strong = spec.views.contains(&spec::Augment::Strong);
        if dataset.floats(0).is_some() && (spec.augment != Augment::None || strong) {
            return Err(DataError::Setting(format!(
                "{} holds feature vectors, which cannot be augmented; set data.augment = \"none\", and a method without a strong view",
                dataset.name()
            )));
        }
        named::check(&spec.draws, size)?;
        Ok(Loader { dataset, spec, size })
    }

    /// Shape of `Batch::images` without rows: [height, width, channels].
    pub fn image_shape(&self) -> [usize; 3] {
        [self.size[0], self.size[1], self.dataset.channels()]
    }

    pub fn dataset(&self) -> &Arc<dyn Dataset> {
        &self.dataset
    }

    /// Makes the micro-batch. The epoch must be of this loader's set.
    pub fn batch(&self, epoch: &Epoch, micro: &Micro) -> Result<Batch, DataError> {
        let (mut batch, units) = self.empty(epoch, micro);
        let sampler = epoch.sampler();
        let image_values: usize = self.image_shape().iter().product();
        let mut work = Workspace { image: RawImage::default(), resizer: Resizer::new(), scratch: Vec::new() };
        for unit in 0..micro.units as usize {
            let slot = micro.first_slot + unit as u32;
            let mut held: Option<Held> = None;
            for (role, asked) in epoch.members(slot).into_iter().enumerate() {
                // Views of one image share one decode.
                let image = match held {
                    Some(image) if image.asked == asked => image,
                    _ => self.fetch(epoch, asked, &mut work.image, &mut batch.bad)?,
                };
                held = Some(image);
                let strong = self.spec.views.get(sampler.view(role)) == Some(&spec::Augment::Strong);
                let number = sampler.row(units, unit, role);
                let row = Row { number, key: epoch.key(), slot, role: role as u8, strong };
                let label = self.dataset.label(image.index as usize) as i32;
                batch.labels[unit] = label;
                batch.row_labels[number] = label;
                batch.index[number] = image.index as i32;
                if let Some(vector) = self.dataset.floats(image.index as usize) {
                    batch.weight[number] = 1.0;
                    batch.floats[number * image_values..][..image_values].copy_from_slice(vector);
                } else if image.good {
                    batch.weight[number] = 1.0;
                    let out = &mut batch.images[number * image_values..][..image_values];
                    self.render(&mut work, &row, out);
                }
                self.leave_to_step(&row, &mut batch);
            }
        }
        Ok(batch)
    }

    /// A batch of padding with the named draws made, and its number of units.
    fn empty(&self, epoch: &Epoch, micro: &Micro) -> (Batch, usize) {
        let units = self.spec.pad_units.max(micro.units as usize);
        let rows = units * epoch.sampler().images_per_unit();
        let [height, width, channels] = self.image_shape();
        let named = self.spec.draws.iter().map(|d| (d.name.clone(), named::values(d, epoch.key(), micro, units)));
        let values = rows * height * width * channels;
        let is_vectors = self.dataset.floats(0).is_some();
        let mut batch = Batch {
            micro: *micro,
            images: vec![0; if is_vectors { 0 } else { values }],
            floats: vec![0.0; if is_vectors { values } else { 0 }],
            shape: [rows, height, width, channels],
            labels: vec![0; units],
            row_labels: vec![0; rows],
            index: vec![0; rows],
            weight: vec![0.0; rows],
            draws: named.collect(),
            bad: Vec::new(),
        };
        if self.spec.augment.pad().is_some() {
            batch.draws.insert("crop".into(), DrawData::I32(vec![0; 2 * rows]));
        }
        if self.spec.augment.flips() {
            batch.draws.insert("flip".into(), DrawData::I32(vec![0; rows]));
        }
        (batch, units)
    }

    /// Reads the image into `image`, or what the policy on bad samples puts in its place.
    fn fetch(
        &self,
        epoch: &Epoch,
        asked: u32,
        image: &mut RawImage,
        bad: &mut Vec<BadSample>,
    ) -> Result<Held, DataError> {
        let Err(error) = self.read(asked, image) else {
            return Ok(Held { asked, index: asked, good: true });
        };
        if self.spec.on_bad == OnBad::Fail {
            return Err(error);
        }
        let epoch_number = epoch.key().epoch;
        bad.push(BadSample { epoch: epoch_number, ..BadSample::new(&*self.dataset, asked as usize, &error) });
        if self.spec.on_bad == OnBad::Skip {
            return Ok(Held { asked, index: asked, good: false });
        }
        match self.substitute(epoch.key().seed, epoch.lists(), asked, image) {
            Some(index) => Ok(Held { asked, index, good: true }),
            None => Err(DataError::Sample {
                index: asked as usize,
                place: self.dataset.place(asked as usize),
                reason: format!("{error}; {SUBSTITUTE_TRIES} tries for another image of its class failed too"),
            }),
        }
    }

    /// Another image of the class of `bad`, read into `image`. Depends on seed and index alone.
    fn substitute(&self, seed: u64, lists: &ClassLists, bad: u32, image: &mut RawImage) -> Option<u32> {
        let class = lists.class(lists.label(bad));
        let mut stream = EpochKey { seed, stage: 0, epoch: 0 }.stream(Purpose::SUBSTITUTE, bad, 0);
        (0..SUBSTITUTE_TRIES)
            .map(|_| class[stream.below(class.len() as u32) as usize])
            .find(|&index| index != bad && self.read(index, image).is_ok())
    }

    fn read(&self, index: u32, image: &mut RawImage) -> Result<(), DataError> {
        if self.dataset.floats(index as usize).is_some() {
            return Ok(());
        }
        self.dataset.read(index as usize, image)
    }

    /// What is left to the step: where it crops and whether it flips.
    fn leave_to_step(&self, row: &Row, batch: &mut Batch) {
        if let (Some(pad), Some(DrawData::I32(crop))) = (self.spec.augment.pad(), batch.draws.get_mut("crop")) {
            let origin = if row.strong { [pad; 2] } else { row.crop(pad) };
            crop[2 * row.number..][..2].copy_from_slice(&origin.map(|v| v as i32));
        }
        if let Some(DrawData::I32(flip)) = batch.draws.get_mut("flip") {
            flip[row.number] = i32::from(!row.strong && row.flip());
        }
    }

    /// Pixels of the image in the workspace as the batch holds them, into `out`.
    fn render(&self, work: &mut Workspace, row: &Row, out: &mut [u8]) {
        let image = &work.image;
        match self.spec.augment {
            Augment::PadCrop { pad } | Augment::PadCropFlip { pad } if row.strong => {
                pad_crop(image, pad, row.crop(pad), out);
            }
            Augment::None | Augment::PadCrop { .. } | Augment::PadCropFlip { .. } => out.copy_from_slice(&image.pixels),
            Augment::RandomResizedCropFlip { scale, ratio, .. } => {
                let size = [image.height, image.width];
                let part = random_box(&mut row.stream(Purpose::RESIZED_CROP), size, scale, ratio);
                resize_box(image, part, self.size, out, &mut work.resizer);
            }
            Augment::ResizeCenterCrop { resize, size } => resize_center_crop(image, resize, size, out),
            Augment::ResizeExact { .. } => resize_box(image, whole(image), self.size, out, &mut work.resizer),
        }
        if row.strong {
            let [height, width] = self.size;
            let mut canvas = Canvas { height, width, channels: image.channels, pixels: out };
            if self.spec.augment.flips() && row.flip() {
                canvas.mirror();
            }
            StrongView::draw(row.key, row.slot, row.role, self.size).apply(&mut canvas, &mut work.scratch);
        }
    }
}
