//! Event files, read back by an independent reader that checks every CRC.

use std::fs;
use std::path::Path;
use train::tensorboard::EventWriter;

/// CRC-32C bit by bit (Castagnoli polynomial, reflected), masked as TFRecord has it.
fn masked_crc(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &b in bytes {
        crc ^= u32::from(b);
        (0..8).for_each(|_| crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 });
    }
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let word = |b: &[u8], at: usize| u32::from_le_bytes(b[at..at + 4].try_into().unwrap());
    while !bytes.is_empty() {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert_eq!(word(bytes, 8), masked_crc(&bytes[..8]), "CRC of the length");
        let data = &bytes[12..12 + length];
        assert_eq!(word(bytes, 12 + length), masked_crc(data), "CRC of the data");
        out.push(data.to_vec());
        bytes = &bytes[16 + length..];
    }
    out
}

#[derive(Debug, PartialEq)]
enum Field {
    Int(u64),
    F64(f64),
    F32(f32),
    Bytes(Vec<u8>),
}

/// The fields of a protobuf message in order.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut x = 0;
        for shift in (0..).step_by(7) {
            let b = bytes[0];
            *bytes = &bytes[1..];
            x |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                break;
            }
        }
        x
    }
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let mut take = |n: usize| {
            let (head, tail) = bytes.split_at(n);
            bytes = tail;
            head.to_vec()
        };
        let field = match key & 7 {
            0 => Field::Int(varint(&mut bytes)),
            1 => Field::F64(f64::from_le_bytes(take(8).try_into().unwrap())),
            5 => Field::F32(f32::from_le_bytes(take(4).try_into().unwrap())),
            2 => {
                let n = varint(&mut bytes) as usize;
                let (head, tail) = bytes.split_at(n);
                bytes = tail;
                Field::Bytes(head.to_vec())
            }
            other => panic!("wire type {other}"),
        };
        out.push((key >> 3, field));
    }
    out
}

/// The parts of the message at `path` of field numbers.
fn at(bytes: &[u8], path: &[u64]) -> Vec<Field> {
    let found = fields(bytes).into_iter().filter(|(n, _)| *n == path[0]).map(|(_, f)| f);
    match path {
        [_] => found.collect(),
        [_, rest @ ..] => found.flat_map(|f| if let Field::Bytes(b) = f { at(&b, rest) } else { vec![] }).collect(),
        [] => vec![],
    }
}

fn events(dir: &Path) -> Vec<Vec<u8>> {
    let files: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap()).collect();
    assert_eq!(files.len(), 1);
    assert!(files[0].file_name().into_string().unwrap().starts_with("events.out.tfevents.1"));
    records(&fs::read(files[0].path()).unwrap())
}

fn text(s: &str) -> Field {
    Field::Bytes(s.as_bytes().to_vec())
}

#[test]
fn scalars_and_text_come_back() {
    assert_eq!(masked_crc(b"123456789"), 0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8));
    let dir = tempfile::tempdir().unwrap();
    let writer = EventWriter::create(&dir.path().join("tensorboard"), None);
    let recipe = "é".repeat(200);
    writer.scalars(300, &[("loss/ce", 0.1), ("lr", -2.5e-7)]);
    writer.scalars(u64::from(u32::MAX) + 5, &[("top1", f32::NAN)]);
    writer.text(1, "recipe", &recipe);
    drop(writer);
    let events = events(&dir.path().join("tensorboard"));
    assert_eq!(events.len(), 4);
    for event in &events {
        assert!(matches!(at(event, &[1])[..], [Field::F64(t)] if t > 1.7e9), "wall time");
    }
    assert_eq!(at(&events[0], &[3]), [text("brain.Event:2")]);
    assert_eq!(at(&events[1], &[2]), [Field::Int(300)]);
    assert_eq!(at(&events[1], &[5, 1, 1]), [text("loss/ce"), text("lr")]);
    assert_eq!(at(&events[1], &[5, 1, 2]), [Field::F32(0.1), Field::F32(-2.5e-7)]);
    assert_eq!(at(&events[2], &[2]), [Field::Int(u64::from(u32::MAX) + 5)]);
    assert!(matches!(at(&events[2], &[5, 1, 2])[..], [Field::F32(x)] if x.is_nan()));
    assert_eq!(at(&events[3], &[5, 1, 1]), [text("recipe")]);
    assert_eq!(at(&events[3], &[5, 1, 8, 1]), [Field::Int(7)], "DT_STRING");
    assert_eq!(at(&events[3], &[5, 1, 8, 2, 2, 1]), [Field::Int(1)], "shape [1]");
    assert_eq!(at(&events[3], &[5, 1, 8, 8]), [text(&recipe)]);
    assert_eq!(at(&events[3], &[5, 1, 9, 1, 1]), [text("text")], "plug-in");
}

#[test]
fn a_resumed_run_tells_readers_where_it_begins() {
    let dir = tempfile::tempdir().unwrap();
    drop(EventWriter::create(dir.path(), Some(901)));
    let events = events(dir.path());
    assert_eq!(events.len(), 2);
    assert_eq!(at(&events[1], &[2]), [Field::Int(901)]);
    assert_eq!(at(&events[1], &[7, 1]), [Field::Int(1)], "SessionLog START");
}

#[test]
fn no_folder_is_no_failure() {
    let writer = EventWriter::create(Path::new("/dev/null/tensorboard"), None);
    writer.scalars(1, &[("loss", 1.0)]);
    assert!(!writer.sink.sync());
    assert_eq!(writer.sink.dropped(), 2);
}
