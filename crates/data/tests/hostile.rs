//! Damaged and forged bytes: an error or a value, never a panic, a hang or memory beyond the file's means.

mod common;

use std::fs;
use std::path::Path;

use common::{Memory, key, labels, open};
use data::{
    Dataset, PackCodec, PackSettings, Packed, Purpose, RawImage, Source, Split, Stats, Stream, decode_image, pack,
};

/// Calls `check` with `count` seeded mutations of `bytes`: flipped bits, overwritten words, cuts, insertions, repeats.
fn mutations(name: &str, bytes: &[u8], count: u32, mut check: impl FnMut(&[u8])) {
    for number in 0..count {
        let mut stream = key(0).stream(Purpose::named(name), number, 0);
        let mut mutated = bytes.to_vec();
        for _ in 0..=stream.below(3) {
            mutate(&mut stream, &mut mutated);
        }
        check(&mutated);
    }
}

fn mutate(stream: &mut Stream, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    // Half of the changes go to the first 64 bytes, where headers are.
    let range = if stream.bernoulli(0.5) { bytes.len().min(64) } else { bytes.len() };
    let at = stream.below(range as u32) as usize;
    match stream.below(6) {
        0 => bytes[at] ^= 1 << stream.below(8),
        1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][stream.below(5) as usize],
        2 => {
            let word = stream.u32().to_le_bytes();
            bytes.iter_mut().skip(at).zip(word).for_each(|(byte, new)| *byte = new);
        }
        3 => bytes.truncate(at),
        4 => bytes.insert(at, stream.u32() as u8),
        _ => {
            let end = bytes.len().min(at + 1 + stream.below(32) as usize);
            let part = bytes[at..end].to_vec();
            bytes.splice(at..at, part);
        }
    }
}

/// Reads all of a set; the number of images that could be read.
fn read_all(set: &dyn Dataset) -> usize {
    let mut image = RawImage::default();
    let good = |index: &usize| {
        set.label(*index);
        set.read(*index, &mut image).is_ok() && image.pixels.len() == image.height * image.width * image.channels
    };
    (0..set.len()).filter(good).count()
}

/// A folder for thousands of small files: in memory where the machine has such a place.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn packed_bytes(codec: PackCodec, channels: usize, grows: usize) -> Vec<u8> {
    let folder = scratch();
    let path = folder.path().join("x.pack");
    let source = Memory::growing(&labels()[..9], channels, [6, 5], grows);
    let stats = Stats { mean: vec![0.5; channels], std: vec![0.5; channels] };
    pack(&source, &PackSettings { codec, short_side: None, stats }, &path, &mut |_, _| {}).unwrap();
    fs::read(path).unwrap()
}

/// Makes the CRCs of header and index right again, so that mutations reach the parsers behind them. Offsets as in the format.
fn repair(bytes: &mut [u8]) {
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    if bytes.len() < 48 {
        return;
    }
    let (header, index) = (word(bytes, 16), word(bytes, 24));
    if header <= index && index <= bytes.len() {
        let crcs = [crc32fast::hash(&bytes[header..index]), crc32fast::hash(&bytes[index..])];
        bytes[40..44].copy_from_slice(&crcs[0].to_le_bytes());
        bytes[44..48].copy_from_slice(&crcs[1].to_le_bytes());
    }
}

#[test]
fn mutated_packed_files() {
    let folder = scratch();
    let path = folder.path().join("m.pack");
    let (mut opened, mut read) = (0, 0);
    for (codec, channels, grows) in [(PackCodec::Raw, 3, 0), (PackCodec::Deflate, 1, 0), (PackCodec::Deflate, 3, 2)] {
        let bytes = packed_bytes(codec, channels, grows);
        mutations("packed", &bytes, 3000, |mutated| {
            let mut mutated = mutated.to_vec();
            if mutated.len() % 2 == 0 {
                repair(&mut mutated);
            }
            fs::write(&path, &mutated).unwrap();
            if let Ok(packed) = Packed::open(&path) {
                opened += 1;
                read += read_all(&packed);
            }
        });
    }
    // Some files survive (a change in a record), and of those most records do: the test reaches the readers.
    assert!(opened > 300 && read > 7 * opened, "{opened} {read}");
}

#[test]
fn a_flipped_bit_of_a_record_is_found() {
    let folder = scratch();
    let path = folder.path().join("m.pack");
    let bytes = packed_bytes(PackCodec::Raw, 3, 0);
    for at in 48..48 + 9 * 90 {
        let mut mutated = bytes.clone();
        mutated[at] ^= 4;
        fs::write(&path, &mutated).unwrap();
        let packed = Packed::open(&path).unwrap();
        assert_eq!(read_all(&packed), 8);
        let error = packed.read((at - 48) / 90, &mut RawImage::default()).unwrap_err().to_string();
        assert!(error.contains("CRC differs"), "{error}");
    }
    for at in (0..48).chain(48 + 9 * 90..bytes.len()) {
        let mut mutated = bytes.clone();
        mutated[at] ^= 4;
        fs::write(&path, &mutated).unwrap();
        assert!(Packed::open(&path).is_err(), "byte {at}");
    }
    for length in 0..bytes.len() {
        fs::write(&path, &bytes[..length]).unwrap();
        assert!(Packed::open(&path).is_err(), "{length} bytes");
    }
}

#[test]
fn forged_records_with_right_crcs() {
    // Record CRCs are made right too: the codecs see the mutations.
    let folder = scratch();
    let path = folder.path().join("m.pack");
    for (codec, channels) in [(PackCodec::Raw, 1), (PackCodec::Deflate, 1), (PackCodec::Deflate, 3)] {
        let bytes = packed_bytes(codec, channels, 2);
        let index = u64::from_le_bytes(bytes[24..32].try_into().unwrap()) as usize;
        let length = u32::from_le_bytes(bytes[index..index + 4].try_into().unwrap()) as usize;
        mutations("record", &bytes[48..48 + length], 3000, |mutated| {
            let mut file = bytes.clone();
            let kept = mutated.len().min(length);
            file[48..48 + kept].copy_from_slice(&mutated[..kept]);
            let crc = crc32fast::hash(&file[48..48 + length]);
            file[index + 4..index + 8].copy_from_slice(&crc.to_le_bytes());
            // Also other sizes and codecs for the same bytes.
            file[index + 12] ^= mutated.len() as u8 & 3;
            file[index + 11] = mutated.first().map_or(0, |b| b % 4);
            repair(&mut file);
            fs::write(&path, &file).unwrap();
            if let Ok(packed) = Packed::open(&path) {
                assert!(read_all(&packed) >= 8);
            }
        });
    }
}

#[test]
fn mutated_idx_files() {
    let folder = scratch();
    let at = |name: &str| folder.path().join(name);
    let images = [&[0, 0, 8, 3, 0, 0, 0, 5, 0, 0, 0, 3, 0, 0, 0, 4][..], &[7; 60]].concat();
    let labels = [0, 0, 8, 1, 0, 0, 0, 5, 9, 0, 5, 1, 1];
    let zip = |bytes: &[u8]| {
        let mut coder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut coder, bytes).unwrap();
        coder.finish().unwrap()
    };
    let check = || {
        if let Ok(Source { dataset, .. }) = open("fashion", folder.path(), Split::Train) {
            assert_eq!(read_all(&*dataset), dataset.len());
        }
    };
    fs::write(at("train-labels-idx1-ubyte"), labels).unwrap();
    mutations("idx", &images, 2000, |mutated| {
        fs::write(at("train-images-idx3-ubyte"), mutated).unwrap();
        check();
    });
    fs::write(at("train-images-idx3-ubyte"), &images).unwrap();
    mutations("idx", &labels, 2000, |mutated| {
        fs::write(at("train-labels-idx1-ubyte"), mutated).unwrap();
        check();
    });
    fs::remove_file(at("train-labels-idx1-ubyte")).unwrap();
    fs::remove_file(at("train-images-idx3-ubyte")).unwrap();
    fs::write(at("train-labels-idx1-ubyte.gz"), zip(&labels)).unwrap();
    mutations("idx", &zip(&images), 2000, |mutated| {
        fs::write(at("train-images-idx3-ubyte.gz"), mutated).unwrap();
        check();
    });
}

#[test]
fn mutated_cifar_files() {
    let folder = scratch();
    let names: String = (0..100).map(|i| format!("fine{i}\n")).collect();
    let record: Vec<u8> = (0..3074).map(|i| i as u8 % 100).collect();
    fs::write(folder.path().join("fine_label_names.txt"), &names).unwrap();
    let check = || {
        if let Ok(Source { dataset, .. }) = open("cifar100", folder.path(), Split::Test) {
            assert_eq!(read_all(&*dataset), dataset.len());
        }
    };
    mutations("cifar", &record, 2000, |mutated| {
        fs::write(folder.path().join("test.bin"), mutated).unwrap();
        check();
    });
    fs::write(folder.path().join("test.bin"), &record).unwrap();
    mutations("cifar", names.as_bytes(), 500, |mutated| {
        fs::write(folder.path().join("fine_label_names.txt"), mutated).unwrap();
        check();
    });
}

#[test]
fn mutated_images() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for name in ["rgb.jpg", "progressive.jpg", "grey.jpg", "cmyk.jpg"] {
        let bytes = fs::read(fixtures.join(name)).unwrap();
        let mut image = RawImage::default();
        mutations(name, &bytes, 5000, |mutated| {
            if decode_image(mutated, &mut image).is_ok() {
                assert_eq!(image.pixels.len(), image.height * image.width * 3);
            }
        });
    }
    for colour in 0..4 {
        let picture = image::DynamicImage::ImageRgb8(image::RgbImage::from_fn(17, 9, |x, y| {
            image::Rgb([x as u8 * 9, y as u8, 3])
        }));
        let picture = match colour {
            0 => picture,
            1 => picture.to_luma8().into(),
            2 => picture.to_rgba16().into(),
            _ => picture.to_luma_alpha8().into(),
        };
        let mut png = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
        let mut image = RawImage::default();
        mutations("png", &png.into_inner(), 3000, |mutated| {
            if decode_image(mutated, &mut image).is_ok() {
                assert_eq!(image.pixels.len(), image.height * image.width * 3);
            }
        });
    }
}

#[test]
fn truncated_images_are_errors() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for name in ["rgb.jpg", "progressive.jpg", "grey.jpg", "cmyk.jpg"] {
        let bytes = fs::read(fixtures.join(name)).unwrap();
        let mut image = RawImage::default();
        decode_image(&bytes, &mut image).unwrap();
        for length in 0..bytes.len() {
            assert!(decode_image(&bytes[..length], &mut image).is_err(), "{name}: {length} of {} bytes", bytes.len());
        }
        // Bytes behind the end marker are no fault.
        decode_image(&[&bytes[..], &[0, 1, 2]].concat(), &mut image).unwrap();
    }
}

#[test]
fn forged_sizes_reserve_nothing() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut jpeg = fs::read(fixtures.join("rgb.jpg")).unwrap();
    let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    for (side, message) in [([0x1f, 0xff], "cannot hold"), ([0xff, 0xff], "JPEG header")] {
        jpeg[frame + 5..frame + 7].copy_from_slice(&side);
        jpeg[frame + 7..frame + 9].copy_from_slice(&side);
        let mut image = RawImage::default();
        let error = decode_image(&jpeg, &mut image).unwrap_err();
        assert!(error.contains(message) && image.pixels.is_empty(), "{error}");
    }
    let picture = image::DynamicImage::new_rgb8(4, 4);
    let mut png = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
    let mut png = png.into_inner();
    for (side, message) in [(8000_u32, "cannot hold"), (20_000, "20000×20000 pixels; expected 1 to 16384")] {
        png[16..20].copy_from_slice(&side.to_be_bytes());
        png[20..24].copy_from_slice(&side.to_be_bytes());
        let crc = crc32fast::hash(&png[12..29]);
        png[29..33].copy_from_slice(&crc.to_be_bytes());
        let mut image = RawImage::default();
        let error = decode_image(&png, &mut image).unwrap_err();
        assert!(error.contains(message) && image.pixels.is_empty(), "{error}");
    }
}
