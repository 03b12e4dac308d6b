//! Sets of feature vectors: written, opened, batched, noisy by cluster; damage and misuse.

mod common;

use common::{epoch, error, open, spec};
use data::{Augment, Dataset, Deal, Features, Holdout, LastBatch, Loader, Noise, NoiseKind, NoisyLabels, RawImage};
use data::{Sampler, Source, SourceSpec, Split};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const SIZE: usize = 3;

/// Two groups of two classes and one class apart, ten samples each.
fn rows() -> (Vec<f32>, Vec<u32>) {
    let centres = [[4.0, 1.0, 0.0], [4.0, -1.0, 0.0], [-4.0, 0.0, 1.0], [-4.0, 0.0, -1.0], [0.0, 9.0, 9.0]];
    let labels: Vec<u32> = (0..50).map(|i| i % 5).collect();
    let jitter = |i: usize, k: usize| ((i * 7 + k * 3) % 5) as f32 * 0.1;
    let value = |at: usize| centres[labels[at / SIZE] as usize][at % SIZE] + jitter(at / SIZE, at % SIZE);
    ((0..50 * SIZE).map(value).collect(), labels.clone())
}

fn names() -> Vec<String> {
    ["a", "b \"c\"", "d", "e", "ü"].map(String::from).to_vec()
}

fn write(folder: &Path, split: &str) {
    let (rows, labels) = rows();
    let from = BTreeMap::from([("network".to_string(), "resnet8".to_string())]);
    Features::write(&folder.join(format!("{split}.safetensors")), &rows, &labels, &names(), from).unwrap();
}

#[test]
fn what_is_written_is_read_and_batched() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "train");
    let source = open("features", folder.path(), Split::Train).unwrap();
    assert_eq!((source.stats.mean, source.stats.std), (vec![0.0], vec![1.0]));
    let set: Arc<dyn Dataset> = Arc::from(source.dataset);
    assert_eq!(
        (set.name(), set.classes(), set.size(), set.channels()),
        ("features/train", &names()[..], Some([1, 1]), 3)
    );
    let order = epoch(&*set, Sampler::Shuffle, 0);
    let loader = Loader::new(set.clone(), data::BatchSpec { pad_units: 8, ..spec(Augment::None) }).unwrap();
    assert_eq!(loader.image_shape(), [1, 1, SIZE]);
    let micro = Deal::new(50, 8, 8, LastBatch::Keep).unwrap().deal(6, 0, 1)[0];
    let batch = loader.batch(&order, &micro).unwrap();
    assert_eq!((batch.shape, batch.images.len(), batch.floats.len()), ([8, 1, 1, SIZE], 0, 8 * SIZE));
    let (rows, labels) = rows();
    for row in 0..2 {
        let index = batch.index[row] as usize;
        assert_eq!(batch.floats[row * SIZE..][..SIZE], rows[index * SIZE..][..SIZE]);
        assert_eq!(batch.row_labels[row], labels[index] as i32);
    }
    assert!(batch.floats[2 * SIZE..].iter().all(|&x| x == 0.0), "padding is zero");
    assert_eq!(batch.weight, [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
}

#[test]
fn a_validation_split_keeps_its_rows() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "train");
    let part = |split| {
        let holdout = Holdout { per_class: 3, seed: 1 };
        Source::open(&SourceSpec { set: "features".into(), folder: folder.path().into(), split, holdout })
            .unwrap()
            .dataset
    };
    let (kept, held) = (part(Split::Train), part(Split::Val));
    assert_eq!((kept.len(), held.len()), (35, 15));
    let all = |set: &dyn Dataset| (0..set.len()).map(|i| set.floats(i).unwrap().to_vec()).collect::<Vec<_>>();
    let mut found = [all(&*kept), all(&*held)].concat();
    let mut expected: Vec<Vec<f32>> = rows().0.chunks(SIZE).map(<[f32]>::to_vec).collect();
    found.sort_by(|a, b| a.partial_cmp(b).unwrap());
    expected.sort_by(|a, b| a.partial_cmp(b).unwrap());
    assert_eq!(found, expected);
}

#[test]
fn noise_by_cluster_stays_inside_and_reports_lone_classes() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "train");
    let set = open("features", folder.path(), Split::Train).unwrap().dataset;
    let noisy = NoisyLabels::new(set, Noise { kind: NoiseKind::Cc, rate: 0.5, seed: 4 }).unwrap();
    let truth = noisy.truth();
    let group = |label: u32| label / 2;
    assert!(noisy.labels().iter().zip(truth.iter()).all(|(&given, &truth)| group(given) == group(truth)));
    assert!(noisy.labels().iter().zip(truth.iter()).any(|(given, truth)| given != truth));
    assert!(
        noisy.describe().ends_with("1 classes are alone in their cluster and stay clean: ü"),
        "{}",
        noisy.describe()
    );
    assert_eq!(noisy.floats(7), Some(&rows().0[7 * SIZE..][..SIZE]));
}

#[test]
fn images_are_not_features_and_features_no_images() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "train");
    let set: Arc<dyn Dataset> = Arc::from(open("features", folder.path(), Split::Train).unwrap().dataset);
    let read = error(set.read(0, &mut RawImage::default()));
    assert!(read.contains("feature vectors"), "{read}");
    let augment = error(Loader::new(set.clone(), spec(Augment::PadCropFlip { pad: 4 })));
    assert!(augment.contains("data.augment = \"none\""), "{augment}");
    let strong = data::BatchSpec { views: vec![::spec::Augment::Strong], ..spec(Augment::None) };
    assert!(error(Loader::new(set, strong)).contains("feature vectors"));
    assert!(error(open("features", folder.path(), Split::Test)).contains("test.safetensors"));
}

#[test]
fn damage_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.safetensors");
    write(folder.path(), "train");
    let good = std::fs::read(&path).unwrap();
    let reopened = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        error(open("features", folder.path(), Split::Train))
    };
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    assert!(reopened(&flipped).contains("the file is damaged"));
    assert!(reopened(&good[..good.len() - 1]).contains("train.safetensors"));
    let (mut rows, labels) = rows();
    rows[4] = f32::NAN;
    Features::write(&path, &rows, &labels, &names(), BTreeMap::new()).unwrap();
    let nan = error(open("features", folder.path(), Split::Train));
    assert!(nan.contains("value 1 of feature 1 is NaN"), "{nan}");
    rows[4] = 0.0;
    Features::write(&path, &rows, &labels, &names()[..4], BTreeMap::new()).unwrap();
    let label = error(open("features", folder.path(), Split::Train));
    assert!(label.contains("label 4 is 4; expected 0 to 3"), "{label}");
}

/// What `retort features --resize exact` does before the network.
#[test]
fn exact_resize_keeps_nothing_of_the_aspect_ratio() {
    let set = common::Memory::new(&[0, 0], 1, [6, 12]);
    let at = |augment| {
        let set: Arc<dyn Dataset> = Arc::new(common::Memory::new(&[0, 0], 1, [6, 12]));
        let order = epoch(&*set, Sampler::Sequential, 0);
        let micro = Deal::new(2, 2, 2, LastBatch::Keep).unwrap().deal(0, 0, 1)[0];
        Loader::new(set, spec(augment)).unwrap().batch(&order, &micro).unwrap()
    };
    let half = at(Augment::ResizeExact { size: 6 });
    assert_eq!(half.shape, [2, 6, 6, 1]);
    // Halving columns by Pillow's triangle filter: weights 1 3 3 1 over 8 around each pair.
    let pixels = set.image(0).pixels;
    let column = |k: usize| f64::from(pixels[12 + k]);
    let expected = (column(3) + 3.0 * column(4) + 3.0 * column(5) + column(6)) / 8.0;
    assert!((f64::from(half.images[6 + 2]) - expected).abs() <= 1.0, "{} {expected}", half.images[6 + 2]);
}
