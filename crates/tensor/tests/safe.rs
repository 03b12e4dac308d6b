//! Safetensors files: round trip, determinism, hostile and foreign bytes.

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use tensor::safe::{self, Metadata, SafeFile, Tensors};
use tensor::{Dtype, HostTensor, Shape, TensorError, bf16};

fn sample() -> (Tensors, Metadata) {
    let t = |dims: &[usize], v: &[f32]| HostTensor::new(Shape::new(dims), v).unwrap();
    let tensors = BTreeMap::from([
        ("conv1.weight".to_owned(), t(&[1, 2, 1, 2], &[1.0, -2.5, f32::NAN, 1e-40])),
        ("α \"quoted\" \\ ../../etc".to_owned(), HostTensor::new(Shape::new(&[3]), &[7u8, 0, 255]).unwrap()),
        ("scalar".to_owned(), HostTensor::new(Shape::new(&[]), &[-5i64]).unwrap()),
        ("empty".to_owned(), HostTensor::zeros(Dtype::F64, Shape::new(&[0, 4]))),
        ("half".to_owned(), HostTensor::new(Shape::new(&[1]), &[bf16::from_f32(0.1)]).unwrap()),
        ("counts".to_owned(), HostTensor::new(Shape::new(&[2]), &[i32::MIN, 3]).unwrap()),
    ]);
    let metadata = ["net", "classes", "mean"].map(|k| (k.to_owned(), format!("{k} \"x\""))).into();
    (tensors, metadata)
}

/// A file with this header and so many data bytes.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.resize(bytes.len() + data, 1);
    bytes
}

fn open(bytes: Vec<u8>) -> Result<SafeFile, TensorError> {
    SafeFile::from_bytes(bytes, "x.safetensors")
}

#[test]
fn round_trip_is_exact_and_deterministic() {
    let (tensors, metadata) = sample();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    safe::write(&path, &tensors, &metadata).unwrap();
    assert_eq!(safe::read(&path).unwrap(), (tensors.clone(), metadata.clone()));
    assert_eq!(std::fs::read(&path).unwrap(), safe::to_bytes(&tensors, &metadata).unwrap());
    safe::write(&path, &Tensors::new(), &metadata).unwrap();
    assert_eq!(safe::read(&path).unwrap(), (Tensors::new(), metadata));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary is left");
}

#[test]
fn layout_places_are_where_the_bytes_are() {
    let (tensors, metadata) = sample();
    let layout = safe::Layout::new(&tensors, &metadata, "x").unwrap();
    let bytes = safe::to_bytes(&tensors, &metadata).unwrap();
    assert_eq!(layout.file_bytes, bytes.len());
    assert_eq!(layout.places.len(), tensors.len());
    for (name, at) in &layout.places {
        let t = &tensors[name];
        assert_eq!(&bytes[*at..at + t.byte_len()], t.bytes(), "{name}");
        assert_eq!(at % t.dtype().size(), 0, "{name} is aligned in the file");
    }
}

#[test]
fn hostile_headers_are_errors() {
    let entry = |name: &str, shape: &str, begin: usize, end: usize| {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    };
    let two = |a: String, b: String| format!("{{{a},{b}}}");
    let a = entry("a", "[2]", 0, 8);
    assert!(open(file(&two(a.clone(), entry("b", "[1]", 8, 12)), 12)).is_ok());
    let cases = [
        ("overlap", file(&two(a.clone(), entry("b", "[2]", 4, 12)), 12)),
        ("gap", file(&two(a.clone(), entry("b", "[1]", 12, 16)), 16)),
        ("end before begin", file(&two(a.clone(), entry("b", "[1]", 8, 4)), 12)),
        ("beyond the end", file(&two(a.clone(), entry("b", "[1]", 8, 12)), 8)),
        ("bytes nobody owns", file(&format!("{{{a}}}"), 9)),
        ("shape against bytes", file(&format!("{{{}}}", entry("a", "[3]", 0, 8)), 8)),
        ("product overflows", file(&format!("{{{}}}", entry("a", "[4294967296,4294967296,4]", 0, 0)), 0)),
        ("name twice", file(&two(a.clone(), entry("a", "[1]", 8, 12)), 12)),
        ("unknown type", file(r#"{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}"#, 4)),
        ("negative", file(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4)),
        ("not UTF-8", [&[2, 0, 0, 0, 0, 0, 0, 0][..], b"{\xff"].concat()),
        ("deep nesting", file(&format!("{{\"a\":{}", "[".repeat(1 << 20)), 0)),
        ("header longer than the file", [&100u64.to_le_bytes()[..], b"{}"].concat()),
        ("header over 100 MB", [&u64::MAX.to_le_bytes()[..], b"{}"].concat()),
        ("no header", vec![1, 2, 3]),
        ("nothing", vec![]),
    ];
    for (what, bytes) in cases {
        assert!(matches!(open(bytes), Err(TensorError::Format { .. })), "{what}");
    }
}

#[test]
fn tensors_that_are_not_supported_are_named() {
    let six = r#"{"a":{"dtype":"F32","shape":[1,1,1,1,1,1],"data_offsets":[0,4]}}"#;
    let e = open(file(six, 4)).unwrap().tensor("a").unwrap_err().to_string();
    assert!(e.contains("tensor `a`") && e.contains("at most 5 dimensions"), "{e}");
    let c64 = r#"{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}"#;
    let e = open(file(c64, 8)).unwrap().tensor("a").unwrap_err().to_string();
    assert!(e.contains("element type C64 is not supported"), "{e}");
    let e = open(file("{}", 0)).unwrap().tensor("fc.bias").err().unwrap().to_string();
    assert_eq!(e, "x.safetensors: has no tensor `fc.bias`");
    assert!(
        safe::to_bytes(
            &[("__metadata__".to_owned(), HostTensor::zeros(Dtype::U8, Shape::new(&[1])))].into(),
            &Metadata::new()
        )
        .is_err()
    );
}

#[test]
fn f16_is_widened() {
    let mut bytes = file(r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}"#, 0);
    bytes.extend([0x00, 0x3c, 0x01, 0x00]); // 1 and the smallest subnormal, 2^-24
    let t = open(bytes).unwrap().tensor("a").unwrap();
    assert_eq!(t.view::<f32>().unwrap(), [1.0, 2f32.powi(-24)]);
}

#[test]
fn pickles_are_never_opened() {
    let refused = |e: TensorError| e.to_string().ends_with("pickle is never opened; see `retort import --help`");
    for bytes in [&b"PK\x03\x04\x00\x00\x08\x08archive/data.pkl"[..], b"\x80\x02\x8a\x0al\xfc\x9cF\xf9", b"\x80\x04"] {
        assert!(refused(open(bytes.to_vec()).err().unwrap()));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resnet18.pth");
    std::fs::write(&path, b"(dp0\n.").unwrap();
    assert!(refused(SafeFile::open(&path).err().unwrap()));
    // The suffix alone condemns nothing: a good file is read under any name.
    let (tensors, metadata) = sample();
    std::fs::write(&path, safe::to_bytes(&tensors, &metadata).unwrap()).unwrap();
    assert_eq!(safe::read(&path).unwrap().0, tensors);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let e = SafeFile::open(Path::new("/nowhere/w.safetensors")).err().unwrap().to_string();
    assert!(e.starts_with("/nowhere/w.safetensors: "), "{e}");
    assert!(SafeFile::open(Path::new("/dev/zero")).err().unwrap().to_string().contains("not a regular file"));
    let e = safe::write(Path::new("/nowhere/w.safetensors"), &Tensors::new(), &Metadata::new()).unwrap_err();
    assert!(matches!(e, TensorError::Io { .. }));
}

proptest! {
    #[test]
    fn any_bytes_are_a_file_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(f) = open(bytes) {
            let _ = f.tensors();
        }
    }

    #[test]
    fn any_damage_to_a_header_is_a_file_or_an_error(at in 0usize..700, with in any::<u8>(), cut in 0usize..900) {
        let (tensors, metadata) = sample();
        let mut bytes = safe::to_bytes(&tensors, &metadata).unwrap();
        let at = at % bytes.len();
        bytes[at] = with;
        if let Ok(f) = open(bytes.clone()) {
            let _ = f.tensors();
        }
        bytes.truncate(cut.min(bytes.len() - 1));
        prop_assert!(open(bytes).is_err());
    }
}
