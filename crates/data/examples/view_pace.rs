//! Images a second of the strong view on one thread, next to the plain one: `view_pace`.
//!
//! Random images from memory, a pad-crop-flip recipe, 30,000 views at 32² and 1,000 at 224²; and microseconds of each operator.

use std::sync::Arc;
use std::time::Instant;

use data::{
    Augment, BatchSpec, Canvas, ClassLists, DataError, Dataset, Epoch, EpochKey, Loader, Meta, Micro, OnBad, Operator,
    Purpose, RawImage, Sampler,
};

const KEY: EpochKey = EpochKey { seed: 1, stage: 0, epoch: 0 };

/// One random image under many indices.
struct Noise {
    meta: Meta,
    image: RawImage,
}

impl Dataset for Noise {
    fn meta(&self) -> &Meta {
        &self.meta
    }
    fn read(&self, _index: usize, image: &mut RawImage) -> Result<(), DataError> {
        image.clone_from(&self.image);
        Ok(())
    }
    fn place(&self, index: usize) -> String {
        format!("noise {index}")
    }
}

fn noise(side: usize, images: usize) -> Noise {
    let mut stream = KEY.stream(Purpose::named("noise"), 0, 0);
    let pixels = (0..side * side * 3).map(|_| stream.u32() as u8).collect();
    let (classes, labels) = (vec!["noise".into()], vec![0; images]);
    let meta = Meta { name: "noise".into(), classes, channels: 3, size: Some([side, side]), labels };
    Noise { meta, image: RawImage { height: side, width: side, channels: 3, pixels } }
}

fn main() -> Result<(), DataError> {
    for (side, images) in [(32, 30_000), (224, 1_000)] {
        for augment in [spec::Augment::Recipe, spec::Augment::Strong] {
            let set = noise(side, images);
            let epoch = Epoch::new(Sampler::Shuffle, Arc::new(ClassLists::of(&set)), KEY)?;
            let recipe = Augment::PadCropFlip { pad: side / 8 };
            let spec =
                BatchSpec { augment: recipe, views: vec![augment], draws: vec![], on_bad: OnBad::Fail, pad_units: 0 };
            let loader = Loader::new(Arc::new(set), spec)?;
            let start = Instant::now();
            for number in 0..images as u32 / 50 {
                loader.batch(&epoch, &Micro { step: number, leaf: 0, number, first_slot: 50 * number, units: 50 })?;
            }
            println!("{side}² {augment:?}: {:.0} images/s", images as f64 / start.elapsed().as_secs_f64());
        }
        let (set, mut scratch) = (noise(side, 1), vec![]);
        for operator in Operator::ALL {
            let mut pixels = set.image.pixels.clone();
            let magnitude = operator.range()[0] * 0.3 + operator.range()[1] * 0.7;
            let start = Instant::now();
            for _ in 0..images / 10 {
                let mut canvas = Canvas { height: side, width: side, channels: 3, pixels: &mut pixels };
                operator.apply(magnitude, &mut canvas, &mut scratch);
            }
            println!("  {operator:?}: {:.1} µs", start.elapsed().as_secs_f64() * 1e7 / images as f64);
        }
    }
    Ok(())
}
