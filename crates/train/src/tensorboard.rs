//! Event files for TensorBoard: scalars and text.
//!
//! A file is a list of TFRecords, each `u64 length, u32 masked CRC-32C of it, bytes, u32 masked CRC-32C of them`, little-endian;
//! the bytes are a protobuf `Event` (tensorflow/core/util/event.proto, framework/summary.proto), written by hand here.

use crate::metrics::Sink;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::UNIX_EPOCH;

/// `DataType.DT_STRING`.
const DT_STRING: u64 = 7;
/// `SessionLog.SessionStatus.START`: readers forget what earlier files have from this step on.
const SESSION_START: u64 = 1;

/// Writer of one event file; as its [`Sink`], it never blocks and never fails.
pub struct EventWriter {
    pub sink: Sink,
}

impl EventWriter {
    /// A new file `events.out.tfevents.<seconds>.<host>.<pid>.<n>` in `dir`. A run that goes on gives the first step that
    /// it will write.
    pub fn create(dir: &Path, resumed_at: Option<u64>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).collect();
        let (seconds, pid) = (UNIX_EPOCH.elapsed().unwrap_or_default().as_secs(), std::process::id());
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let writer =
            Self { sink: Sink::append_to(&dir.join(format!("events.out.tfevents.{seconds}.{host}.{pid}.{n}"))) };
        writer.event(0, |event| event.bytes(3, b"brain.Event:2"));
        if let Some(step) = resumed_at {
            writer.event(step, |event| event.message(7, |log| log.varint(1, SESSION_START)));
        }
        writer
    }

    /// Values of a step by tag, such as `loss/ce`.
    pub fn scalars(&self, step: u64, values: &[(&str, f32)]) {
        self.event(step, |event| {
            event.message(5, |summary| {
                for (tag, x) in values {
                    summary.message(1, |value| {
                        value.bytes(1, tag.as_bytes());
                        value.float(2, *x);
                    });
                }
            });
        });
    }

    /// A text, shown as Markdown: the resolved recipe.
    pub fn text(&self, step: u64, tag: &str, text: &str) {
        self.event(step, |event| {
            event.message(5, |summary| {
                summary.message(1, |value| {
                    value.bytes(1, tag.as_bytes());
                    value.message(8, |tensor| {
                        tensor.varint(1, DT_STRING);
                        tensor.message(2, |shape| shape.message(2, |dim| dim.varint(1, 1)));
                        tensor.bytes(8, text.as_bytes());
                    });
                    value.message(9, |metadata| metadata.message(1, |plugin| plugin.bytes(1, b"text")));
                });
            });
        });
    }

    fn event(&self, step: u64, what: impl FnOnce(&mut Message)) {
        let mut event = Message::default();
        event.double(1, UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64());
        event.varint(2, step);
        what(&mut event);
        self.sink.send(record(&event.0));
    }
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length, &masked_crc(&length).to_le_bytes()[..], data, &masked_crc(data).to_le_bytes()].concat()
}

/// CRC-32C, masked so that a CRC of data that holds CRCs stays a good check.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A protobuf message under construction. Wire types: 0 varint, 1 fixed 64, 2 length-delimited, 5 fixed 32.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn raw_varint(&mut self, mut x: u64) {
        while x >= 0x80 {
            self.0.push(x as u8 | 0x80);
            x >>= 7;
        }
        self.0.push(x as u8);
    }

    fn varint(&mut self, field: u64, x: u64) {
        self.raw_varint(field << 3);
        self.raw_varint(x);
    }

    fn double(&mut self, field: u64, x: f64) {
        self.raw_varint(field << 3 | 1);
        self.0.extend(x.to_le_bytes());
    }

    fn float(&mut self, field: u64, x: f32) {
        self.raw_varint(field << 3 | 5);
        self.0.extend(x.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, x: &[u8]) {
        self.raw_varint(field << 3 | 2);
        self.raw_varint(x.len() as u64);
        self.0.extend(x);
    }

    fn message(&mut self, field: u64, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(field, &inner.0);
    }
}
