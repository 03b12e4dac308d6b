//! Training methods, a file each: paper and formula, settings, what the method needs, its losses.
//!
//! Invariant: this crate knows only `graph`. A method never sees pixels, devices, epochs or files, and no other crate
//! asks which method it has.

mod ce;
mod check;
mod ips;
mod ips_settings;
mod kd;

pub use ce::{Ce, SmoothingOver};
use graph::{Method, Setting};
pub use ips_settings::{BnGroups, CeReduce, CellCount, Direction, Ips, Pair, Spread};
pub use kd::Kd;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// A recipe's `[method]`: `name`, which comes first, and the settings of that method.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum MethodSpec {
    Ce(Ce),
    Kd(Kd),
    Ips(Ips),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Name {
    Ce,
    Kd,
    Ips,
}

impl MethodSpec {
    /// Every name.
    pub fn names() -> [&'static str; 3] {
        ["ce", "kd", "ips"]
    }

    /// The same method with every setting that the run decides written out, as the stored recipe shows it.
    pub fn resolved(self, setting: &Setting) -> MethodSpec {
        match self {
            MethodSpec::Ips(ips) => MethodSpec::Ips(ips.resolved(setting)),
            MethodSpec::Ce(_) | MethodSpec::Kd(_) => self,
        }
    }

    /// The method. Whether its settings fit a run is for its `spec` to say.
    pub fn build(self) -> Box<dyn Method> {
        match self {
            MethodSpec::Ce(ce) => Box::new(ce),
            MethodSpec::Kd(kd) => Box::new(kd),
            MethodSpec::Ips(ips) => Box::new(ips),
        }
    }
}

impl<'de> Deserialize<'de> for MethodSpec {
    /// Hands the rest of the section to the method's own settings as it comes, so that an error there keeps its place in
    /// the file; a derived tag would read the section into a buffer first and lose it.
    fn deserialize<D: Deserializer<'de>>(section: D) -> Result<MethodSpec, D::Error> {
        section.deserialize_map(Section)
    }
}

struct Section;

impl<'de> Visitor<'de> for Section {
    type Value = MethodSpec;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a section with a method's `name` and settings")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut section: M) -> Result<MethodSpec, M::Error> {
        match section.next_key::<String>()?.as_deref() {
            Some("name") => {}
            None => return Err(M::Error::missing_field("name")),
            Some(first) => {
                let why = format!(
                    "`name` comes first in [method], since it decides which settings there are; `{first}` is before it"
                );
                return Err(M::Error::custom(why));
            }
        }
        let name = section.next_value()?;
        let settings = MapAccessDeserializer::new(section);
        match name {
            Name::Ce => Ce::deserialize(settings).map(MethodSpec::Ce),
            Name::Kd => Kd::deserialize(settings).map(MethodSpec::Kd),
            Name::Ips => Ips::deserialize(settings).map(MethodSpec::Ips),
        }
    }
}
