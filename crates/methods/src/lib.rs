//! Training methods, a file each: paper and formula, settings, what the method needs, its losses.
//!
//! Invariant: this crate knows only `spec`. A method never sees pixels, devices, epochs or files, and no other crate
//! asks which method it has.

mod atsc;
mod atsc_settings;
mod bake;
mod branches;
mod byot;
mod ce;
mod check;
mod crld;
mod cs_kd;
mod cutmix;
mod dist;
mod dkd;
mod dlb;
mod erase;
mod ips;
mod ips_settings;
mod kd;
mod logit_loss;
mod mixskd;
mod mixskd_settings;
mod mixup;
mod normkd;
mod pll;
mod projector;
mod ps_kd;
mod simkd;
mod tf_kd_reg;
mod tf_kd_self;

pub use atsc_settings::{Atsc, TeacherMode};
pub use bake::Bake;
pub use byot::Byot;
pub use ce::{Ce, SmoothingOver};
pub use crld::{Crld, CrldMask};
pub use cs_kd::CsKd;
pub use cutmix::Cutmix;
pub use dist::Dist;
pub use dkd::Dkd;
pub use dlb::Dlb;
pub use erase::{Cutout, Erasing};
pub use ips_settings::{BnGroups, CeOn, CeReduce, CellCount, Direction, Ips, Pair, Spread};
pub use kd::Kd;
pub use logit_loss::Base;
pub use mixskd_settings::{Discriminators, MixSkd, MixSkdLoss};
pub use mixup::Mixup;
pub use normkd::{NormBase, NormKd};
pub use pll::{Pll, Targets};
pub use ps_kd::PsKd;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
pub use simkd::SimKd;
use spec::{Method, Setting};
use std::fmt;
pub use tf_kd_reg::{TfKdReg, TfKdVariant};
pub use tf_kd_self::TfKdSelf;

/// A recipe's `[method]`: `name`, which comes first, and the settings of that method.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "name")]
pub enum MethodSpec {
    #[serde(rename = "ce")]
    Ce(Ce),
    #[serde(rename = "kd")]
    Kd(Kd),
    #[serde(rename = "ips")]
    Ips(Ips),
    #[serde(rename = "mixskd")]
    MixSkd(MixSkd),
    #[serde(rename = "atsc")]
    Atsc(Atsc),
    #[serde(rename = "crld")]
    Crld(Crld),
    #[serde(rename = "pll")]
    Pll(Pll),
    #[serde(rename = "dkd")]
    Dkd(Dkd),
    #[serde(rename = "cs_kd")]
    CsKd(CsKd),
    #[serde(rename = "ps_kd")]
    PsKd(PsKd),
    #[serde(rename = "dlb")]
    Dlb(Dlb),
    #[serde(rename = "simkd")]
    SimKd(SimKd),
    #[serde(rename = "tf_kd_self")]
    TfKdSelf(TfKdSelf),
    #[serde(rename = "tf_kd_reg")]
    TfKdReg(TfKdReg),
    #[serde(rename = "bake")]
    Bake(Bake),
    #[serde(rename = "normkd")]
    NormKd(NormKd),
    #[serde(rename = "dist")]
    Dist(Dist),
    #[serde(rename = "byot")]
    Byot(Byot),
    #[serde(rename = "mixup")]
    Mixup(Mixup),
    #[serde(rename = "cutmix")]
    Cutmix(Cutmix),
    #[serde(rename = "cutout")]
    Cutout(Cutout),
    #[serde(rename = "erasing")]
    Erasing(Erasing),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
enum Name {
    #[serde(rename = "ce")]
    Ce,
    #[serde(rename = "kd")]
    Kd,
    #[serde(rename = "ips")]
    Ips,
    #[serde(rename = "mixskd")]
    MixSkd,
    #[serde(rename = "atsc")]
    Atsc,
    #[serde(rename = "crld")]
    Crld,
    #[serde(rename = "pll")]
    Pll,
    #[serde(rename = "dkd")]
    Dkd,
    #[serde(rename = "cs_kd")]
    CsKd,
    #[serde(rename = "ps_kd")]
    PsKd,
    #[serde(rename = "dlb")]
    Dlb,
    #[serde(rename = "simkd")]
    SimKd,
    #[serde(rename = "tf_kd_self")]
    TfKdSelf,
    #[serde(rename = "tf_kd_reg")]
    TfKdReg,
    #[serde(rename = "bake")]
    Bake,
    #[serde(rename = "normkd")]
    NormKd,
    #[serde(rename = "dist")]
    Dist,
    #[serde(rename = "byot")]
    Byot,
    #[serde(rename = "mixup")]
    Mixup,
    #[serde(rename = "cutmix")]
    Cutmix,
    #[serde(rename = "cutout")]
    Cutout,
    #[serde(rename = "erasing")]
    Erasing,
}

impl MethodSpec {
    /// Every name.
    pub fn names() -> [&'static str; 22] {
        [
            "ce",
            "kd",
            "ips",
            "mixskd",
            "atsc",
            "crld",
            "pll",
            "dkd",
            "cs_kd",
            "ps_kd",
            "dlb",
            "simkd",
            "tf_kd_self",
            "tf_kd_reg",
            "bake",
            "normkd",
            "dist",
            "byot",
            "mixup",
            "cutmix",
            "cutout",
            "erasing",
        ]
    }

    /// The same method with every setting that the run decides written out, as the stored recipe shows it.
    pub fn resolved(self, setting: &Setting) -> MethodSpec {
        match self {
            MethodSpec::Ips(ips) => MethodSpec::Ips(ips.resolved(setting)),
            other => other,
        }
    }

    /// The method. Whether its settings fit a run is for its `spec` to say.
    pub fn build(self) -> Box<dyn Method> {
        match self {
            MethodSpec::Ce(m) => Box::new(m),
            MethodSpec::Kd(m) => Box::new(m),
            MethodSpec::Ips(m) => Box::new(m),
            MethodSpec::MixSkd(m) => Box::new(m),
            MethodSpec::Atsc(m) => Box::new(m),
            MethodSpec::Crld(m) => Box::new(m),
            MethodSpec::Pll(m) => Box::new(m),
            MethodSpec::Dkd(m) => Box::new(m),
            MethodSpec::CsKd(m) => Box::new(m),
            MethodSpec::PsKd(m) => Box::new(m),
            MethodSpec::Dlb(m) => Box::new(m),
            MethodSpec::SimKd(m) => Box::new(m),
            MethodSpec::TfKdSelf(m) => Box::new(m),
            MethodSpec::TfKdReg(m) => Box::new(m),
            MethodSpec::Bake(m) => Box::new(m),
            MethodSpec::NormKd(m) => Box::new(m),
            MethodSpec::Dist(m) => Box::new(m),
            MethodSpec::Byot(m) => Box::new(m),
            MethodSpec::Mixup(m) => Box::new(m),
            MethodSpec::Cutmix(m) => Box::new(m),
            MethodSpec::Cutout(m) => Box::new(m),
            MethodSpec::Erasing(m) => Box::new(m),
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
            Name::MixSkd => MixSkd::deserialize(settings).map(MethodSpec::MixSkd),
            Name::Atsc => Atsc::deserialize(settings).map(MethodSpec::Atsc),
            Name::Crld => Crld::deserialize(settings).map(MethodSpec::Crld),
            Name::Pll => Pll::deserialize(settings).map(MethodSpec::Pll),
            Name::Dkd => Dkd::deserialize(settings).map(MethodSpec::Dkd),
            Name::CsKd => CsKd::deserialize(settings).map(MethodSpec::CsKd),
            Name::PsKd => PsKd::deserialize(settings).map(MethodSpec::PsKd),
            Name::Dlb => Dlb::deserialize(settings).map(MethodSpec::Dlb),
            Name::SimKd => SimKd::deserialize(settings).map(MethodSpec::SimKd),
            Name::TfKdSelf => TfKdSelf::deserialize(settings).map(MethodSpec::TfKdSelf),
            Name::TfKdReg => TfKdReg::deserialize(settings).map(MethodSpec::TfKdReg),
            Name::Bake => Bake::deserialize(settings).map(MethodSpec::Bake),
            Name::NormKd => NormKd::deserialize(settings).map(MethodSpec::NormKd),
            Name::Dist => Dist::deserialize(settings).map(MethodSpec::Dist),
            Name::Byot => Byot::deserialize(settings).map(MethodSpec::Byot),
            Name::Mixup => Mixup::deserialize(settings).map(MethodSpec::Mixup),
            Name::Cutmix => Cutmix::deserialize(settings).map(MethodSpec::Cutmix),
            Name::Cutout => Cutout::deserialize(settings).map(MethodSpec::Cutout),
            Name::Erasing => Erasing::deserialize(settings).map(MethodSpec::Erasing),
        }
    }
}
