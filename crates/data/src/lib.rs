//! Data sets, their files, the order of an epoch, everything random in a step, and the threads that prepare batches ahead.
//!
//! Invariant: a [`Batch`] is a pure function of (data set, settings, seed, stage, epoch, micro-batch): it does not depend on
//! ranks, threads or what came before. Knows no network, no method and no device. Bytes from files yield values or errors,
//! never a panic, and never memory beyond a small multiple of the file and the limits in [`limits`].

mod augment;
mod batch;
mod cifar;
mod codec;
mod dataset;
mod deal;
mod decode;
mod draw;
mod error;
mod folder;
mod idx;
mod loader;
mod pack;
mod packed;
mod philox;
mod prefetch;
mod sampler;
mod source;
mod split;

pub use augment::{Augment, center_crop_origin, resized_short_side};
pub use batch::{BadSample, Batch, BatchSpec, CellRule, DrawData, DrawKind, DrawSpec, OnBad};
pub use cifar::{Cifar, CifarKind};
pub use dataset::{Dataset, Meta, RawImage, Stats, limits, sample_hash};
pub use deal::{Deal, LastBatch, Micro};
pub use decode::decode_image;
pub use draw::{EpochKey, Purpose, Stream};
pub use error::DataError;
pub use folder::Folder;
pub use idx::Idx;
pub use loader::Loader;
pub use pack::{PackCodec, PackReport, PackSettings, pack};
pub use packed::Packed;
pub use philox::philox4x32_10;
pub use prefetch::Prefetch;
pub use sampler::{ClassLists, Epoch, PairRule, Sampler};
pub use source::{Holdout, Source, SourceSpec, Split};
pub use split::{Subset, holdout};
