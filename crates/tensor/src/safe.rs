//! Safetensors files in and out.
//!
//! Reading trusts nothing: header at most 100 MB, offsets in range without gap or overlap, names never used as paths.
//! Writing is deterministic: the same tensors and metadata give the same bytes (wider element types first, then by name).

use crate::{Dtype, HostTensor, Shape, TensorError};
use safetensors::tensor::{Dtype as FileDtype, SafeTensors, TensorInfo};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

/// Tensors by name.
pub type Tensors = BTreeMap<String, HostTensor>;
/// Free-form text beside the tensors (`__metadata__`).
pub type Metadata = BTreeMap<String, String>;

/// Longest header that is accepted or written.
const MAX_HEADER_BYTES: usize = 100_000_000;
/// Bytes of the length field in front of the header.
const LENGTH_BYTES: usize = 8;

/// A safetensors file in memory, its header verified. Tensors are copied out one by one.
pub struct SafeFile {
    file: String,
    bytes: Vec<u8>,
    data_start: usize,
    tensors: BTreeMap<String, TensorInfo>,
    metadata: Metadata,
}

impl SafeFile {
    /// Reads the file. Errors: not a readable regular file, pickle, damaged or hostile header.
    pub fn open(path: &Path) -> Result<Self, TensorError> {
        let file = path.display().to_string();
        let bytes = read_regular(path).map_err(|source| TensorError::Io { path: path.into(), source })?;
        let pickle_suffix =
            path.extension().is_some_and(|e| ["pt", "pth", "bin", "pkl", "ckpt"].iter().any(|p| e == *p));
        Self::from_bytes(bytes, &file).map_err(|error| match error {
            TensorError::Format { .. } if pickle_suffix => TensorError::Pickle { file },
            other => other,
        })
    }

    /// Verifies bytes that are already in memory; `file` is the name for errors.
    pub fn from_bytes(bytes: Vec<u8>, file: &str) -> Result<Self, TensorError> {
        if is_pickle(&bytes) {
            return Err(TensorError::Pickle { file: file.into() });
        }
        let (header_bytes, header) =
            SafeTensors::read_metadata(&bytes).map_err(|e| format_error(file, e.to_string()))?;
        let tensors = header.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self { file: file.into(), bytes, data_start: LENGTH_BYTES + header_bytes, tensors, metadata })
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Free-form text beside the tensors.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// A copy of the tensor. f16 becomes f32, which is exact. Errors: no such tensor, an element type or shape that is
    /// not supported.
    pub fn tensor(&self, name: &str) -> Result<HostTensor, TensorError> {
        let missing = || TensorError::Missing { file: self.file.clone(), name: name.into() };
        let info = self.tensors.get(name).ok_or_else(missing)?;
        let shape =
            Shape::try_new(&info.shape).map_err(|e| format_error(&self.file, format!("tensor `{name}`: {e}")))?;
        let bytes = &self.bytes[self.data_start..][info.data_offsets.0..info.data_offsets.1];
        let dtype = match info.dtype {
            FileDtype::F64 => Dtype::F64,
            FileDtype::F32 => Dtype::F32,
            FileDtype::BF16 => Dtype::Bf16,
            FileDtype::U8 => Dtype::U8,
            FileDtype::I32 => Dtype::I32,
            FileDtype::I64 => Dtype::I64,
            FileDtype::F16 => {
                let halves = bytes.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32());
                return HostTensor::new(shape, &halves.collect::<Vec<f32>>());
            }
            other => {
                return Err(format_error(
                    &self.file,
                    format!("tensor `{name}`: element type {other} is not supported"),
                ));
            }
        };
        HostTensor::from_bytes(dtype, shape, bytes)
    }

    /// Copies of all tensors.
    pub fn tensors(&self) -> Result<Tensors, TensorError> {
        self.names().map(|name| Ok((name.to_owned(), self.tensor(name)?))).collect()
    }
}

/// All tensors and the metadata of a file; errors as [`SafeFile::open`] and [`SafeFile::tensor`].
pub fn read(path: &Path) -> Result<(Tensors, Metadata), TensorError> {
    let file = SafeFile::open(path)?;
    Ok((file.tensors()?, file.metadata))
}

/// Writes the file through a temporary beside it (`<path>.<pid>.tmp`), fsync and rename: at `path` is the old file or the
/// whole new one.
pub fn write(path: &Path, tensors: &Tensors, metadata: &Metadata) -> Result<(), TensorError> {
    let layout = Layout::new(tensors, metadata, &path.display().to_string())?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = Path::new(&temporary);
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let replace = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(temporary)?;
        layout.write_to(&mut file, tensors)?;
        file.sync_all()?;
        fs::rename(temporary, path)?;
        File::open(parent)?.sync_all()
    };
    replace().map_err(|source| {
        // Best effort: the error that matters is already there.
        let _ = fs::remove_file(temporary);
        TensorError::Io { path: path.into(), source }
    })
}

/// The bytes that [`write()`] would put in the file.
pub fn to_bytes(tensors: &Tensors, metadata: &Metadata) -> Result<Vec<u8>, TensorError> {
    let layout = Layout::new(tensors, metadata, "memory")?;
    let mut bytes = Vec::with_capacity(layout.file_bytes);
    layout.write_to(&mut bytes, tensors).expect("a vector takes all bytes");
    Ok(bytes)
}

/// Where each tensor of a file to be written lies.
pub struct Layout {
    /// Length field and header, padded so that data start at a multiple of eight.
    header: Vec<u8>,
    /// Name and first byte in the file, in file order.
    pub places: Vec<(String, usize)>,
    /// Size of the whole file.
    pub file_bytes: usize,
}

impl Layout {
    /// Errors if the header would be larger than readers accept or a tensor is named `__metadata__`; `file` is for errors.
    pub fn new(tensors: &Tensors, metadata: &Metadata, file: &str) -> Result<Self, TensorError> {
        if tensors.contains_key("__metadata__") {
            return Err(format_error(file, "a tensor must not be named `__metadata__`".into()));
        }
        let mut order: Vec<_> = tensors.iter().collect();
        order.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype().size()));
        let json = |e: serde_json::Error| format_error(file, e.to_string());
        let mut text = format!(r#"{{"__metadata__":{}"#, serde_json::to_string(metadata).map_err(json)?);
        let mut places = Vec::with_capacity(order.len());
        let mut end = 0;
        for (name, tensor) in order {
            let begin = end;
            end += tensor.byte_len();
            let info = TensorInfo {
                dtype: file_dtype(tensor.dtype()),
                shape: tensor.shape().dims().to_vec(),
                data_offsets: (begin, end),
            };
            let (name_json, info_json) = (serde_json::to_string(name), serde_json::to_string(&info));
            text += &format!(",{}:{}", name_json.map_err(json)?, info_json.map_err(json)?);
            places.push((name.clone(), begin));
        }
        text += "}";
        let header_bytes = text.len().next_multiple_of(LENGTH_BYTES);
        if header_bytes > MAX_HEADER_BYTES {
            return Err(format_error(file, format!("header of {header_bytes} bytes; at most {MAX_HEADER_BYTES}")));
        }
        let mut header = (header_bytes as u64).to_le_bytes().to_vec();
        header.extend(text.bytes());
        header.resize(LENGTH_BYTES + header_bytes, b' ');
        places.iter_mut().for_each(|place| place.1 += header.len());
        let file_bytes = header.len() + end;
        Ok(Self { header, places, file_bytes })
    }

    /// Writes header and data; `tensors` are those that the layout was made of.
    pub fn write_to(&self, out: &mut dyn Write, tensors: &Tensors) -> io::Result<()> {
        out.write_all(&self.header)?;
        self.places.iter().try_for_each(|(name, _)| out.write_all(tensors[name].bytes()))
    }
}

fn file_dtype(dtype: Dtype) -> FileDtype {
    match dtype {
        Dtype::F64 => FileDtype::F64,
        Dtype::F32 => FileDtype::F32,
        Dtype::Bf16 => FileDtype::BF16,
        Dtype::U8 => FileDtype::U8,
        Dtype::I32 => FileDtype::I32,
        Dtype::I64 => FileDtype::I64,
    }
}

/// Refuses devices and pipes, which have no end.
fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// PyTorch's formats begin with a zip member or with a pickle of protocol 2 to 5. A header length has zeros in its upper half.
fn is_pickle(bytes: &[u8]) -> bool {
    let pickle = matches!(bytes, [0x80, 2..=5, ..]) && bytes.get(4..8).is_none_or(|upper| upper != [0; 4]);
    bytes.starts_with(b"PK\x03\x04") || pickle
}

fn format_error(file: &str, detail: String) -> TensorError {
    TensorError::Format { file: file.into(), detail }
}
