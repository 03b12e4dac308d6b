//! Oracles of chapter 7 on what the data side draws for a method: partners, and CutMix's box and share.

use crate::comparators_runs::small_set;
use data::{
    Augment, Batch, BatchSpec, ClassLists, Epoch, EpochKey, Holdout, Loader, Micro, OnBad, Sampler, Source, SourceSpec,
    Split,
};
use methods::MethodSpec;
use spec::{DrawSpec, PairRule, Setting, Spec};
use std::path::Path;
use std::sync::Arc;

fn spec_of(section: &str) -> Spec {
    let setting = Setting::new(10, [28, 28, 1], 22, 2);
    toml::from_str::<MethodSpec>(section).unwrap().build().spec(&setting).unwrap()
}

/// The small set: class 9 has one image.
fn set(folder: &Path, draws: Vec<DrawSpec>) -> (Loader, Arc<ClassLists>) {
    small_set(folder);
    let holdout = Holdout { per_class: 0, seed: 0 };
    let spec = SourceSpec { set: "fashion".into(), folder: folder.into(), split: Split::Train, holdout };
    let source = Source::open(&spec).unwrap();
    let lists = Arc::new(ClassLists::of(source.dataset.as_ref()));
    let spec = BatchSpec { augment: Augment::None, views: vec![], draws, on_bad: OnBad::Fail, pad_units: 0 };
    (Loader::new(Arc::from(source.dataset), spec).unwrap(), lists)
}

fn batch(loader: &Loader, epoch: &Epoch, number: u32) -> Batch {
    loader.batch(epoch, &Micro { step: 0, number, first_slot: 0, units: epoch.units() as u32, leaf: 0 }).unwrap()
}

/// 7.9, 7.11: a partner has its anchor's label; an image without others of its class is its own partner.
#[test]
fn partners_are_of_the_anchors_class() {
    let folder = tempfile::tempdir().unwrap();
    let (loader, lists) = set(folder.path(), vec![]);
    let alone = lists.class(9)[0] as i32;
    assert_eq!(lists.class(9).len(), 1);
    for section in ["name = \"cs_kd\"", "name = \"bake\"", "name = \"ips\"\npair = \"partition\""] {
        let spec::Sampler::Pairs { rule, partners } = spec_of(section).sampler else { panic!("{section}: pairs") };
        for number in 0..5 {
            let key = EpochKey { seed: 3, stage: 0, epoch: number };
            let epoch = Epoch::new(Sampler::Pairs { rule, partners }, lists.clone(), key).unwrap();
            let batch = batch(&loader, &epoch, number);
            let units = epoch.units();
            assert_eq!(batch.row_labels.len(), units * (1 + partners), "{section}");
            for (unit, &anchor) in batch.index[..units].iter().enumerate() {
                let own = units + unit * partners..units + (unit + 1) * partners;
                assert!(batch.row_labels[own.clone()].iter().all(|l| *l == batch.row_labels[unit]), "{section}");
                let itself = batch.index[own].iter().filter(|&&p| p == anchor).count();
                if anchor == alone {
                    assert_eq!(itself, partners, "{section}: alone in its class");
                } else if rule == PairRule::WithoutSelf {
                    assert_eq!(itself, 0, "{section}: others of the class");
                }
            }
            assert!(batch.index[..units].contains(&alone), "{section}: every image is an anchor once an epoch");
        }
    }
}

/// 7.17: λ is the share of pixels outside the box, exactly; a side is cut at the edges and an odd one comes out one shorter.
#[test]
fn cutmix_lambda_is_the_share_of_unchanged_pixels() {
    let folder = tempfile::tempdir().unwrap();
    let (loader, lists) = set(folder.path(), spec_of("name = \"cutmix\"").draws);
    let key = EpochKey { seed: 3, stage: 0, epoch: 0 };
    let epoch = Epoch::new(Sampler::Shuffle, lists, key).unwrap();
    let (mut empty, mut clipped, mut sum) = (0, 0, 0.0);
    for number in 0..400 {
        let draws = batch(&loader, &epoch, number).draws;
        let (data::DrawData::Box([top, left, bottom, right]), data::DrawData::F32(lambda)) =
            (&draws["box"], &draws["lambda"])
        else {
            panic!("a box and its share: {draws:?}")
        };
        assert!(0 <= *top && top <= bottom && *bottom <= 28 && 0 <= *left && left <= right && *right <= 28);
        let inside = |r: i32, c: i32| (*top..*bottom).contains(&r) && (*left..*right).contains(&c);
        let unchanged = (0..28 * 28).filter(|i| !inside(i / 28, i % 28)).count();
        assert_eq!(*lambda, (unchanged as f64 / 784.0) as f32, "box {top} {left} {bottom} {right}");
        let (height, width) = (bottom - top, right - left);
        let cut = [*top == 0, *left == 0, *bottom == 28, *right == 28].contains(&true);
        assert!(cut || (height % 2 == 0 && height == width), "{height} x {width}");
        (empty, clipped, sum) =
            (empty + i32::from(unchanged == 784), clipped + i32::from(cut), sum + f64::from(*lambda));
    }
    assert!(empty > 0 && clipped > 100, "{empty} boxes without a pixel, {clipped} at an edge");
    // λ ~ U(0, 1) by area before the cut, which makes boxes smaller: more than a half stays.
    assert!((0.55..0.85).contains(&(sum / 400.0)), "{}", sum / 400.0);
}
