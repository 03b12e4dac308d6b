//! The oracle of patch swap that compares with another method (methods, chapter 2.6); `goldens/oracles_ips.rs` has the others.

use crate::replayed::{Replayed, same};
use tensor::{HostTensor, Shape};

/// 2.6, oracle 7.
#[test]
fn oracle_7_closed_gates_and_one_way_are_cs_kd() {
    let mut ips = Replayed::golden("ips_anchor").with(&["method.gate=0.0"]).steps(3);
    let mask = ips.batch["draw.swap_mask"].shape();
    ips.batch.insert("draw.swap_mask".into(), HostTensor::new(mask, &vec![0u8; mask.elements()]).unwrap());
    let mut cs_kd = ips.clone();
    let (head, tail) = ips.recipe.split_once("[method]").unwrap();
    let (_, tail) = tail.split_once("[train]").unwrap();
    cs_kd.recipe = format!("{head}[method]\nname = \"cs_kd\"\n[train]{tail}");
    cs_kd.edits.clear();
    cs_kd.batch.remove("draw.swap_mask");
    let (ips, cs_kd) = (ips.run("f64"), cs_kd.run("f64"));
    for prefix in ["step0.loss", "step1.loss", "step2.loss", "logits", "grad.", "after."] {
        same(&ips, &cs_kd, prefix, 1e-11);
    }
    let swapped = Replayed::golden("ips_anchor").run("f64");
    assert_ne!(swapped["logits"], ips["logits"], "an open gate shows");
    assert_eq!(Shape::new(&[6, 5]), ips["logits"].shape());
}
