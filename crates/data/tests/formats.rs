//! Files of every format: what is written is read, and the constants of the sets.

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use common::{Memory, error, labels, open, repository};
use data::{
    Dataset, Holdout, PackCodec, PackSettings, Packed, RawImage, Source, SourceSpec, Split, Stats, holdout, pack,
    sample_hash,
};
use flate2::{Compression, write::GzEncoder};
use image::{DynamicImage, ImageFormat};

fn read(set: &dyn Dataset, index: usize) -> RawImage {
    let mut image = RawImage::default();
    set.read(index, &mut image).unwrap();
    image
}

fn stats(channels: usize) -> Stats {
    Stats { mean: vec![0.25; channels], std: vec![0.5; channels] }
}

fn settings(codec: PackCodec, channels: usize) -> PackSettings {
    PackSettings { codec, short_side: None, stats: stats(channels) }
}

fn assert_same(a: &dyn Dataset, b: &dyn Dataset) {
    assert_eq!((a.len(), a.labels(), a.classes(), a.channels()), (b.len(), b.labels(), b.classes(), b.channels()));
    for index in 0..a.len() {
        assert_eq!(read(a, index), read(b, index), "image {index}");
    }
    assert_eq!(sample_hash(a), sample_hash(b));
}

#[test]
fn packed_sets_equal_their_source() {
    let folder = tempfile::tempdir().unwrap();
    for codec in [PackCodec::Raw, PackCodec::Deflate, PackCodec::File] {
        for channels in [1, 3] {
            for grows in [0, 4] {
                let source = Memory::growing(&[labels(), labels()].concat(), channels, [9, 7], grows);
                let path = folder.path().join("train.pack");
                let mut done = Vec::new();
                let mut progress = |images, all| done.push((images, all));
                let report = pack(&source, &settings(codec, channels), &path, &mut progress).unwrap();
                assert_eq!(done, [(64, 82), (82, 82)]);
                assert_eq!((report.packed, report.bytes), (82, fs::metadata(&path).unwrap().len()));
                let packed = Packed::open(&path).unwrap();
                assert_same(&source, &packed);
                assert_eq!((packed.size(), packed.name(), packed.stats()), (source.size(), "memory", stats(channels)));
                assert!(packed.place(3).ends_with("record 3"));
            }
        }
    }
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["train.pack"], "no temporary file stays behind");
}

#[test]
fn packing_lists_bad_images_and_keeps_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.pack");
    let mut source = Memory::new(&labels(), 3, [4, 4]);
    source.bad.extend([(2, "torn"), (40, "grey half")]);
    let report = pack(&source, &settings(PackCodec::Raw, 3), &path, &mut |_, _| {}).unwrap();
    let listed: Vec<_> = report.bad.iter().map(|b| (b.index, b.place.as_str(), b.reason.as_str())).collect();
    assert_eq!(listed, [(2, "memory 2", "torn"), (40, "memory 40", "grey half")]);
    assert_eq!(report.bad[0].class, source.classes()[source.labels()[2] as usize]);
    let packed = Packed::open(&path).unwrap();
    assert_eq!((report.packed, packed.len()), (39, 39));
    assert_eq!((read(&packed, 2), packed.label(2)), (source.image(3), source.label(3)));
    // None good: an error, and the old file stays.
    source.bad.extend((0..41).map(|i| (i, "all")));
    assert!(error(pack(&source, &settings(PackCodec::Raw, 3), &path, &mut |_, _| {})).contains("none of 41"));
    assert_eq!(Packed::open(&path).unwrap().len(), 39);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(error(pack(&source, &settings(PackCodec::Raw, 1), &path, &mut |_, _| {})).contains("3 entries"));
}

#[test]
fn packing_can_resize() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("val.pack");
    let source = Memory::new(&[0, 1], 3, [20, 31]);
    let with_side = |codec, side| PackSettings { short_side: Some(side), ..settings(codec, 3) };
    pack(&source, &with_side(PackCodec::Deflate, 10), &path, &mut |_, _| {}).unwrap();
    let Source { dataset, .. } = open("packed", folder.path(), Split::Val).unwrap();
    assert_eq!(dataset.size(), Some([10, 15]));
    assert!(error(pack(&source, &with_side(PackCodec::File, 10), &path, &mut |_, _| {})).contains("short side"));
}

fn write_gz(path: &Path, bytes: &[u8]) {
    let mut file = GzEncoder::new(File::create(path).unwrap(), Compression::default());
    file.write_all(bytes).unwrap();
    file.finish().unwrap();
}

#[test]
fn idx_files_plain_and_zipped() {
    let pixels: Vec<u8> = (0..3 * 2 * 4).collect();
    let images = [&[0, 0, 8, 3, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 4][..], &pixels].concat();
    let labels = [0, 0, 8, 1, 0, 0, 0, 3, 9, 0, 5];
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("train-images-idx3-ubyte"), &images).unwrap();
    fs::write(at("train-labels-idx1-ubyte"), labels).unwrap();
    write_gz(&at("t10k-images-idx3-ubyte.gz"), &images);
    write_gz(&at("t10k-labels-idx1-ubyte.gz"), &labels);
    for split in [Split::Train, Split::Test] {
        let Source { dataset, stats } = open("fashion", folder.path(), split).unwrap();
        assert_eq!((dataset.len(), dataset.size(), dataset.channels()), (3, Some([2, 4]), 1));
        assert_eq!((dataset.labels().to_vec(), dataset.classes()[9].as_str()), (vec![9, 0, 5], "Ankle boot"));
        assert_eq!(read(&*dataset, 1).pixels, &pixels[8..16]);
        assert_eq!((stats.mean, stats.std), (vec![0.2860], vec![0.3530]));
    }
    assert!(error(open("fashion", folder.path(), Split::Val)).contains("hold images"));
    fs::write(at("train-images-idx3-ubyte"), &images[..39]).unwrap();
    assert!(error(open("fashion", folder.path(), Split::Train)).contains("needs 24 bytes; found 23"));
    fs::write(at("train-images-idx3-ubyte"), [&images[..], &[0]].concat()).unwrap();
    assert!(error(open("fashion", folder.path(), Split::Train)).contains("needs 24 bytes; found more"));
    fs::write(at("train-images-idx3-ubyte"), &images).unwrap();
    fs::write(at("train-labels-idx1-ubyte"), [0, 0, 8, 1, 0, 0, 0, 3, 9, 10, 5]).unwrap();
    assert!(error(open("fashion", folder.path(), Split::Train)).contains("label 1 is 10; expected below 10"));
    fs::write(at("train-labels-idx1-ubyte"), [0, 0, 8, 1, 0, 0, 0, 2, 9, 1]).unwrap();
    assert!(error(open("fashion", folder.path(), Split::Train)).contains("2 labels; expected 3"));
}

#[test]
fn cifar_records_become_rgb_pixels() {
    let folder = tempfile::tempdir().unwrap();
    let planes = |n: usize| -> Vec<u8> { (0..3072).map(|i| (i / 1024 * 50 + i % 32 + n) as u8).collect() };
    let ten = folder.path().join("cifar-10-batches-bin");
    fs::create_dir(&ten).unwrap();
    fs::write(ten.join("batches.meta.txt"), "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n").unwrap();
    for batch in 1..=5 {
        fs::write(ten.join(format!("data_batch_{batch}.bin")), [&[batch as u8][..], &planes(batch)].concat()).unwrap();
    }
    let Source { dataset, .. } = open("cifar10", folder.path(), Split::Train).unwrap();
    assert_eq!(
        (dataset.labels().to_vec(), dataset.name(), dataset.classes().len()),
        (vec![1, 2, 3, 4, 5], "cifar10/train", 10)
    );
    assert_eq!(read(&*dataset, 2).pixels[..6], [3, 53, 103, 4, 54, 104]);
    let fine: String = (0..100).map(|i| format!("fine{i}\n")).collect();
    fs::write(folder.path().join("fine_label_names.txt"), fine).unwrap();
    fs::write(folder.path().join("test.bin"), [&[3, 99][..], &planes(0), &[4, 7], &planes(1)].concat()).unwrap();
    let Source { dataset, stats } = open("cifar100", folder.path(), Split::Test).unwrap();
    assert_eq!((dataset.labels().to_vec(), dataset.size(), stats.mean[0]), (vec![99, 7], Some([32, 32]), 0.5071));
    assert_eq!(read(&*dataset, 1).pixels[3071], 100 + 31 + 1);
    fs::write(folder.path().join("test.bin"), vec![100; 3074]).unwrap();
    assert!(error(open("cifar100", folder.path(), Split::Test)).contains("record 0: label 100; expected below 100"));
    fs::write(folder.path().join("test.bin"), vec![0; 3075]).unwrap();
    assert!(error(open("cifar100", folder.path(), Split::Test)).contains("multiple of 3074"));
    assert!(error(open("cifar100", folder.path(), Split::Val)).contains("hold images"));
}

/// The image of `tests/fixtures`, made by Pillow: red grows to the right, green downwards.
fn assert_fixture(image: &RawImage, expected: [[u8; 3]; 4]) {
    assert_eq!((image.height, image.width, image.channels), (20, 24, 3));
    for ([x, y], pixel) in [[0, 0], [23, 0], [0, 19], [12, 10]].into_iter().zip(expected) {
        let at = 3 * (y * 24 + x);
        for (found, wanted) in image.pixels[at..at + 3].iter().zip(pixel) {
            assert!(found.abs_diff(wanted) <= 4, "at {x},{y}: {:?} against {pixel:?}", &image.pixels[at..at + 3]);
        }
    }
}

#[test]
fn folders_are_sorted_and_decoded_by_magic() {
    let folder = tempfile::tempdir().unwrap();
    let class = |name: &str| folder.path().join("train").join(name);
    for name in ["n02", "n01", "Z"] {
        fs::create_dir_all(class(name)).unwrap();
    }
    let fixture =
        |name: &str| fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap();
    let rgb = [[1, 1, 245], [222, 5, 138], [13, 221, 159], [122, 119, 146]];
    fs::write(class("Z").join("b.JPEG"), fixture("rgb.jpg")).unwrap();
    fs::write(class("Z").join("a.jpg"), fixture("progressive.jpg")).unwrap();
    fs::write(class("n01").join("grey.jpeg"), fixture("grey.jpg")).unwrap();
    fs::write(class("n01").join("notes.txt"), "not an image").unwrap();
    fs::write(class("n02").join("cmyk.JPG"), fixture("cmyk.jpg")).unwrap();
    fs::write(folder.path().join("train/README"), "not a class").unwrap();
    // A PNG named .JPEG, 16 bits, with alpha: high bytes, alpha dropped.
    let deep = image::ImageBuffer::from_fn(2, 1, |x, _| image::Rgba([0x1234_u16, 0x80ff, 0xffff * x as u16, 0]));
    let mut png = std::io::Cursor::new(Vec::new());
    DynamicImage::ImageRgba16(deep).write_to(&mut png, ImageFormat::Png).unwrap();
    fs::write(class("n02").join("deep.JPEG"), png.into_inner()).unwrap();
    fs::write(class("n02").join("empty.png"), []).unwrap();

    let Source { dataset, stats } = open("folder", folder.path(), Split::Train).unwrap();
    assert_eq!((dataset.classes(), dataset.size()), (&["Z", "n01", "n02"].map(String::from)[..], None));
    assert_eq!((dataset.labels().to_vec(), stats.std[2]), (vec![0, 0, 1, 2, 2, 2], 0.225));
    assert!(dataset.place(0).ends_with("train/Z/a.jpg"));
    assert_fixture(&read(&*dataset, 0), rgb);
    assert_fixture(&read(&*dataset, 1), rgb);
    assert_fixture(&read(&*dataset, 2), [[29; 3], [85; 3], [152; 3], [123; 3]]);
    assert_fixture(&read(&*dataset, 3), [[0, 0, 255], [230, 0, 140], [0, 227, 161], [121, 121, 145]]);
    assert_eq!(read(&*dataset, 4).pixels, [0x12, 0x80, 0, 0x12, 0x80, 0xff]);
    assert!(error(dataset.read(5, &mut RawImage::default())).contains("empty.png): the file is empty"));

    // Packing with files kept: equal pixels, and the bad one is listed.
    let path = folder.path().join("train.pack");
    let report = pack(&*dataset, &settings(PackCodec::File, 3), &path, &mut |_, _| {}).unwrap();
    assert_eq!((report.packed, report.bad[0].index), (5, 5));
    let packed = Packed::open(&path).unwrap();
    assert_eq!((packed.size(), packed.encoded(1).unwrap()), (None, Some(fixture("rgb.jpg"))));
    assert!((0..5).all(|i| read(&packed, i) == read(&*dataset, i)));

    fs::create_dir(class("n03")).unwrap();
    assert!(error(open("folder", folder.path(), Split::Train)).contains("n03: class folder has no"));
    fs::create_dir(folder.path().join("val")).unwrap();
    assert!(error(open("folder", folder.path(), Split::Val)).contains("0 class folders"));
    assert!(error(open("folder", folder.path(), Split::Test)).contains("test"));
}

#[test]
fn png_colour_types_become_rgb() {
    let encode = |image: DynamicImage| {
        let mut png = std::io::Cursor::new(Vec::new());
        image.write_to(&mut png, ImageFormat::Png).unwrap();
        let mut raw = RawImage::default();
        data::decode_image(&png.into_inner(), &mut raw).unwrap();
        raw.pixels
    };
    use image::{GrayAlphaImage, GrayImage, ImageBuffer, Luma, RgbImage, RgbaImage};
    assert_eq!(
        encode(DynamicImage::ImageLuma8(GrayImage::from_vec(2, 1, vec![7, 200]).unwrap())),
        [7, 7, 7, 200, 200, 200]
    );
    assert_eq!(encode(DynamicImage::ImageLumaA8(GrayAlphaImage::from_vec(1, 1, vec![9, 0]).unwrap())), [9, 9, 9]);
    assert_eq!(encode(DynamicImage::ImageRgb8(RgbImage::from_vec(1, 1, vec![1, 2, 3]).unwrap())), [1, 2, 3]);
    assert_eq!(encode(DynamicImage::ImageRgba8(RgbaImage::from_vec(1, 1, vec![1, 2, 3, 0]).unwrap())), [1, 2, 3]);
    let deep: ImageBuffer<Luma<u16>, _> = ImageBuffer::from_vec(1, 1, vec![0x7fff]).unwrap();
    assert_eq!(encode(DynamicImage::ImageLuma16(deep)), [0x7f; 3]);
}

#[test]
fn a_holdout_is_balanced_fixed_and_complete() {
    let labels: Vec<u32> = (0..300).map(|i| i * i % 7 % 3).collect();
    let set = Memory::new(&labels, 1, [1, 1]);
    let (kept, held) = holdout(&set, 20, 5).unwrap();
    for class in 0..3 {
        assert_eq!(held.iter().filter(|&&i| labels[i as usize] == class).count(), 20);
    }
    let mut all = [kept.clone(), held.clone()].concat();
    all.sort_unstable();
    assert_eq!(all, (0..300).collect::<Vec<_>>());
    assert!(kept.is_sorted() && held.is_sorted());
    assert_eq!(holdout(&set, 20, 5).unwrap().1, held);
    assert_ne!(holdout(&set, 20, 6).unwrap().1, held);
    assert!(error(holdout(&set, 300, 5)).contains("lower the number"));
}

#[test]
fn the_embedded_set_is_what_its_readme_says() {
    let folder = repository().join("data/fashion");
    let readme = fs::read_to_string(folder.join("README.md")).unwrap();
    for (split, per_class, bytes) in [(Split::Train, 1000, 4_711_448), (Split::Test, 200, 943_343)] {
        let Source { dataset, stats } = open("fashion", &folder, split).unwrap();
        assert_eq!((dataset.len(), dataset.size(), dataset.channels()), (10 * per_class, Some([28, 28]), 1));
        assert_eq!((dataset.name(), stats.mean, stats.std), (&*format!("fashion/{split}"), vec![0.2860], vec![0.3530]));
        for class in 0..10 {
            assert_eq!(dataset.labels().iter().filter(|&&l| l == class).count(), per_class);
        }
        let sum: u64 = (0..dataset.len()).flat_map(|i| read(&*dataset, i).pixels).map(u64::from).sum();
        let mean = sum as f64 / (dataset.len() * 784 * 255) as f64;
        assert!((mean - 0.2860).abs() < 0.004, "{split} {mean}");
        assert!(readme.contains(&format!("{:016x}", sample_hash(&*dataset))));
        assert_eq!(fs::metadata(folder.join(format!("{split}.pack"))).unwrap().len(), bytes);
    }
}

#[test]
fn a_source_holds_validation_images_out_of_train() {
    let open = |split| {
        let spec = SourceSpec {
            set: "fashion".into(),
            folder: repository().join("data/fashion"),
            split,
            holdout: Holdout { per_class: 100, seed: 1 },
        };
        Source::open(&spec).unwrap().dataset
    };
    let (train, val, test) = (open(Split::Train), open(Split::Val), open(Split::Test));
    assert_eq!((train.len(), val.len(), test.len()), (9000, 1000, 2000));
    assert_eq!(val.name(), "fashion/val");
    assert_ne!(sample_hash(&*train), sample_hash(&*val));
    let places = |set: &dyn Dataset| (0..set.len()).map(|i| set.place(i)).collect::<std::collections::BTreeSet<_>>();
    assert!(places(&*train).is_disjoint(&places(&*val)));
}

#[test]
fn unknown_names_are_refused() {
    assert!(error(open("svhn", ".", Split::Train)).contains("expected fashion, cifar10"));
    assert!(error("dev".parse::<Split>()).contains("expected train, val or test"));
    assert_eq!("val".parse::<Split>().unwrap(), Split::Val);
    assert!(error(open("packed", "nowhere", Split::Train)).contains("nowhere/train.pack"));
}
