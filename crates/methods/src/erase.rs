//! Images with a part painted over, as baselines: cutout (DeVries, Taylor 2017, arXiv:1708.04552) and random erasing (Zhong, Zheng,
//! Kang, Li, Yang 2020, arXiv:1708.04896). Both after normalisation; loss = CE (methods/7-comparators 7.17).

use crate::check;
use serde::{Deserialize, Serialize};
use spec::{DrawKind, DrawSpec, Losses, Method, Setting, Spec, Step};

/// Settings of cutout: one square hole an image, about a uniform centre, clipped at the edges.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cutout {
    /// Pixels of the hole's side. Default 8.
    pub side: usize,
    /// What is painted, per channel, in units of normalised images. Default 0: the mean colour.
    pub fill: [f64; 3],
}

/// Settings of random erasing: with probability p a box of 2 to 40 % of the image, aspect ratio 0.3 to 1/0.3.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Erasing {
    /// Default 0.5.
    pub p: f64,
    /// Default (0.5071, 0.4867, 0.4408), in units of normalised images as the published bench has it.
    pub fill: [f64; 3],
}

impl Default for Cutout {
    fn default() -> Cutout {
        Cutout { side: 8, fill: [0.0; 3] }
    }
}

impl Default for Erasing {
    fn default() -> Erasing {
        Erasing { p: 0.5, fill: [0.5071, 0.4867, 0.4408] }
    }
}

impl Method for Cutout {
    fn spec(&self, setting: &Setting) -> Result<Spec, String> {
        let [h, w, _] = setting.image;
        if !(2..=h.min(w)).contains(&self.side) {
            return Err(format!(
                "method.side is the hole's side in pixels, expected 2 to {} for images of {h} x {w}, got {}; 8 is the default",
                h.min(w),
                self.side
            ));
        }
        boxes(self.fill, DrawKind::Cutout { side: self.side, size: [h, w] })
    }

    fn losses<'g>(&self, _phase: usize, step: &Step<'g>) -> Losses {
        cross_entropy(step, self.fill)
    }
}

impl Method for Erasing {
    fn spec(&self, setting: &Setting) -> Result<Spec, String> {
        check::probability("p", self.p)?;
        let [h, w, _] = setting.image;
        boxes(self.fill, DrawKind::Erase { p: self.p, size: [h, w] })
    }

    fn losses<'g>(&self, _phase: usize, step: &Step<'g>) -> Losses {
        cross_entropy(step, self.fill)
    }
}

fn boxes(fill: [f64; 3], kind: DrawKind) -> Result<Spec, String> {
    if fill.iter().any(|f| !f.is_finite()) {
        return Err(format!("method.fill is a colour of normalised images, expected finite numbers, got {fill:?}"));
    }
    Ok(Spec { draws: vec![DrawSpec { name: "box".into(), kind }], ..Spec::default() })
}

fn cross_entropy(step: &Step<'_>, fill: [f64; 3]) -> Losses {
    let image = step.image().erase_boxes(step.draw("box"), fill);
    let (logits, label) = (step.student(image).logits, step.label());
    Losses::new().term("ce", 1.0, logits.cross_entropy(label)).logits(logits, label)
}
