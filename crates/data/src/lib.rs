//! Data sets, their files, the order of an epoch, everything random in a step, and the threads that prepare batches ahead.
//!
//! Invariant: a [`Batch`] is a pure function of (data set, settings, seed, stage, epoch, micro-batch): it does not depend on
//! ranks, threads or what came before. Knows no network, no method and no device. Bytes from files yield values or errors,
//! never a panic, and never memory beyond a small multiple of the file and the limits in [`limits`].

mod augment;
mod batch;
mod cifar;
mod class_map;
mod codec;
mod dataset;
mod deal;
mod decode;
mod draw;
mod error;
mod features;
mod folder;
mod idx;
mod loader;
mod named;
mod noise;
mod operators;
mod pack;
mod packed;
mod philox;
mod prefetch;
mod sampler;
mod source;
mod split;
mod strong;

pub use augment::{Augment, center_crop_origin, resized_short_side};
pub use batch::{BadSample, Batch, BatchSpec, DrawData, OnBad};
pub use cifar::{Cifar, CifarKind};
pub use class_map::{ClassMap, clusters};
pub use dataset::{Dataset, Meta, RawImage, Stats, limits, sample_hash};
pub use deal::{Deal, LastBatch, Micro, share};
pub use decode::decode_image;
pub use draw::{EpochKey, Purpose, Stream};
pub use error::DataError;
pub use features::Features;
pub use folder::Folder;
pub use idx::Idx;
pub use loader::Loader;
pub use noise::{CLUSTER_CUT, Noise, NoiseKind, NoisyLabels, draw_labels, transition};
pub use operators::{Canvas, Operator};
pub use pack::{PackCodec, PackReport, PackSettings, pack};
pub use packed::Packed;
pub use philox::philox4x32_10;
pub use prefetch::Prefetch;
pub use sampler::{ClassLists, Epoch, Sampler};
pub use source::{Holdout, Source, SourceSpec, Split};
pub use spec::{CellRule, DrawKind, DrawSpec, PairRule};
pub use split::{Subset, holdout};
pub use strong::{StrongView, cutout_rectangle};
