//! The `[method]` section: defaults, spans of errors, ranges, and the resolved form.

use crate::evaluate::setting;
use methods::*;
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    method: MethodSpec,
}

fn parse(section: &str) -> Result<MethodSpec, toml::de::Error> {
    toml::from_str::<Recipe>(&format!("[method]\n{section}")).map(|r| r.method)
}

/// The part of the recipe that the error points at, and its message.
fn refused(section: &str) -> (String, String) {
    let error = parse(section).unwrap_err();
    let text = format!("[method]\n{section}");
    (text[error.span().expect("a place in the file")].to_string(), error.message().to_string())
}

#[test]
fn every_setting_may_be_omitted() {
    assert_eq!(parse("name = \"ce\"").unwrap(), MethodSpec::Ce(Ce::default()));
    assert_eq!(parse("name = \"kd\"").unwrap(), MethodSpec::Kd(Kd::default()));
    assert_eq!(parse("name = \"ips\"").unwrap(), MethodSpec::Ips(Ips::default()));
    for name in MethodSpec::names() {
        let spec = parse(&format!("name = \"{name}\"")).unwrap();
        assert!(toml::to_string(&spec).unwrap().starts_with(&format!("name = \"{name}\"\n")));
        spec.build().spec(&setting(10, [32, 32, 3])).unwrap();
    }
}

#[test]
fn every_setting_may_be_given() {
    let text = "name = \"ips\"\npair = \"partition\"\ngate = 1\ncell_count = \"uniform\"\nm = 4\nfeed_originals = true\nbn_groups = \"split\"\n\
                ce_reduce = \"sum\"\nce_on = \"anchor\"\nkl = \"by_confidence\"\ntemperature = 2.5\nalpha = 0.5\nalpha_rampup_epochs = 20\n";
    let expected = Ips {
        pair: Pair::Partition,
        gate: 1.0,
        cell_prob: None,
        cell_count: Some(CellCount::Spread(Spread::Uniform)),
        m: Some(4),
        feed_originals: true,
        bn_groups: BnGroups::Split,
        ce_reduce: CeReduce::Sum,
        ce_on: CeOn::Anchor,
        kl: Direction::ByConfidence,
        temperature: 2.5,
        alpha: 0.5,
        alpha_rampup_epochs: 20.0,
    };
    assert_eq!(parse(text).unwrap(), MethodSpec::Ips(expected));
    let MethodSpec::Ips(three) = parse("name = \"ips\"\ncell_count = 3").unwrap() else { panic!("ips") };
    assert_eq!(three.cell_count, Some(CellCount::Exactly(3)));
    let smoothed = parse("name = \"ce\"\nlabel_smoothing = 0.1\nsmoothing_over = \"all\"").unwrap();
    assert_eq!(smoothed, MethodSpec::Ce(Ce { label_smoothing: 0.1, smoothing_over: SmoothingOver::All }));
}

#[test]
fn errors_point_at_their_place() {
    let (at, why) = refused("name = \"kd\"\ntemprature = 4.0");
    assert_eq!(at, "temprature");
    assert!(why.contains("unknown field `temprature`, expected one of `temperature`"), "{why}");
    let (at, why) = refused("name = \"ips\"\ngate = 0.5\nkl = \"both\"");
    assert_eq!(at, "\"both\"");
    assert!(why.contains("unknown variant `both`, expected one of `two_way_sg`"), "{why}");
    assert_eq!(refused("name = \"ips\"\nalpha = \"big\"").0, "\"big\"");
    let (at, why) = refused("name = \"ips\"\ncell_count = -1");
    assert_eq!((at.as_str(), why.contains("a number of cells or \"uniform\"")), ("-1", true), "{why}");
    let (at, why) = refused("name = \"ipss\"");
    assert_eq!(at, "\"ipss\"");
    assert!(why.contains("expected one of `ce`, `kd`, `ips`"), "{why}");
    assert!(refused("temperature = 4.0\nname = \"kd\"").1.contains("`name` comes first"));
    assert!(refused("").1.contains("missing field `name`"));
    assert!(refused("name = \"kd\"\nname = \"ce\"").1.contains("duplicate key"));
}

#[test]
fn the_resolved_form_shows_all_and_reads_back() {
    let run = setting(10, [28, 28, 1]);
    let resolved = parse("name = \"ips\"").unwrap().resolved(&run);
    let text = toml::to_string(&Recipe { method: resolved.clone() }).unwrap();
    let keys: Vec<_> = text.lines().filter_map(|l| l.split_once(" = ")).map(|(key, _)| key).collect();
    let all = [
        "name",
        "pair",
        "gate",
        "cell_prob",
        "m",
        "feed_originals",
        "bn_groups",
        "ce_reduce",
        "ce_on",
        "kl",
        "temperature",
        "alpha",
        "alpha_rampup_epochs",
    ];
    assert_eq!(keys, all);
    assert!(text.contains("m = 7\n") && text.contains("cell_prob = 0.5\n"), "{text}");
    assert_eq!(toml::from_str::<Recipe>(&text).unwrap().method, resolved);
    // The same through a table that keeps no places.
    assert_eq!(toml::Table::try_from(&resolved).unwrap().try_into::<MethodSpec>().unwrap(), resolved);
    let counted = parse("name = \"ips\"\ncell_count = 2").unwrap().resolved(&run);
    let MethodSpec::Ips(ips) = &counted else { panic!("ips") };
    assert_eq!((ips.cell_prob, ips.cell_count), (None, Some(CellCount::Exactly(2))));
    for name in MethodSpec::names().into_iter().filter(|name| *name != "ips") {
        let spec = parse(&format!("name = \"{name}\"")).unwrap();
        assert_eq!(spec.clone().resolved(&run), spec);
        let text = toml::to_string(&Recipe { method: spec.clone() }).unwrap();
        assert_eq!(toml::from_str::<Recipe>(&text).unwrap().method, spec, "{text}");
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    let why = |section: &str| parse(section).unwrap().build().spec(&setting(10, [32, 32, 3])).unwrap_err();
    for (section, parts) in [
        ("name = \"ips\"\ngate = 1.5", ["method.gate", "0 to 1", "got 1.5"]),
        ("name = \"ips\"\ngate = nan", ["method.gate", "0 to 1", "got NaN"]),
        ("name = \"ips\"\ncell_prob = -0.1", ["method.cell_prob", "0 to 1", "got -0.1"]),
        ("name = \"ips\"\ncell_prob = 0.5\ncell_count = 2", ["method.cell_prob", "exclude each other", "remove one"]),
        ("name = \"ips\"\ncell_count = 17", ["method.cell_count", "at most the 16 cells", "got 17"]),
        ("name = \"ips\"\ncell_count = \"uniform\"\nm = 32", ["needs 2 cells", "one cell of 32", "smaller m"]),
        ("name = \"ips\"\nm = 33", ["method.m", "expected 1 to 32", "got 33"]),
        ("name = \"ips\"\nm = 0", ["method.m", "expected 1 to 32", "got 0"]),
        ("name = \"ips\"\ntemperature = 0", ["method.temperature", "above 0", "got 0"]),
        ("name = \"ips\"\nalpha = -1", ["method.alpha", "at least 0", "got -1"]),
        ("name = \"ips\"\nalpha_rampup_epochs = inf", ["method.alpha_rampup_epochs", "finite", "got inf"]),
        ("name = \"kd\"\ntemperature = -4", ["method.temperature", "above 0", "got -4"]),
        ("name = \"kd\"\nce_weight = nan", ["method.ce_weight", "at least 0", "got NaN"]),
        ("name = \"kd\"\nkd_weight = -0.9", ["method.kd_weight", "at least 0", "got -0.9"]),
        ("name = \"ce\"\nlabel_smoothing = 1", ["method.label_smoothing", "less than 1", "got 1"]),
        ("name = \"mixskd\"\ntemperature = 0", ["method.temperature", "above 0", "got 0"]),
        ("name = \"mixskd\"\nfea_weight = -1", ["method.fea_weight", "at least 0", "got -1"]),
        ("name = \"mixskd\"\nmix_alpha = nan", ["method.mix_alpha", "at least 0", "got NaN"]),
        ("name = \"atsc\"\ntemperature = 0", ["method.temperature", "above 0", "got 0"]),
        ("name = \"atsc\"\nmse_weight = -1", ["method.mse_weight", "at least 0", "got -1"]),
        ("name = \"crld\"\ntemperature = 0", ["method.temperature", "above 0", "got 0"]),
        ("name = \"crld\"\ntau_weak = -0.1", ["method.tau_weak", "at least 0", "got -0.1"]),
        ("name = \"crld\"\nnorm = 0", ["method.norm", "above 0", "got 0"]),
        ("name = \"crld\"\nwarmup_epochs = -1", ["method.warmup_epochs", "at least 0", "got -1"]),
        ("name = \"pll\"\ncandidates = 10", ["method.candidates", "1 to 9 for 10 classes", "got 10"]),
        ("name = \"pll\"\ncandidates = 11", ["method.candidates", "1 to 9 for 10 classes", "got 11"]),
        ("name = \"pll\"\ncandidates = 0", ["method.candidates", "1 to 9 for 10 classes", "got 0"]),
        ("name = \"pll\"\nq = 0", ["method.q", "more than 0", "got 0"]),
        ("name = \"pll\"\nq = 1.1", ["method.q", "0 to 1", "got 1.1"]),
        ("name = \"dkd\"\ntemperature = 0", ["method.temperature", "above 0", "got 0"]),
        ("name = \"dkd\"\nbeta = inf", ["method.beta", "finite", "got inf"]),
        ("name = \"dkd\"\nwarmup_epochs = -1", ["method.warmup_epochs", "at least 0", "got -1"]),
        ("name = \"normkd\"\nnorm = 0", ["method.norm", "above 0", "got 0"]),
        ("name = \"dist\"\ngamma = -1", ["method.gamma", "at least 0", "got -1"]),
        ("name = \"cs_kd\"\ntemperature = 0", ["method.temperature", "above 0", "got 0"]),
        ("name = \"ps_kd\"\nalpha = 1.1", ["method.alpha", "0 to 1", "got 1.1"]),
        ("name = \"dlb\"\ntemperature = 0", ["method.temperature", "above 0", "got 0"]),
        ("name = \"dlb\"\nalpha = -1", ["method.alpha", "at least 0", "got -1"]),
        ("name = \"simkd\"\nmse_weight = -1", ["method.mse_weight", "at least 0", "got -1"]),
        ("name = \"tf_kd_self\"\nalpha = 2", ["method.alpha", "0 to 1", "got 2"]),
        ("name = \"tf_kd_self\"\ntemperature = 0", ["method.temperature", "above 0", "got 0"]),
        ("name = \"tf_kd_reg\"\ntemperature = 0", ["method.temperature", "above 0", "got 0"]),
        ("name = \"tf_kd_reg\"\ncorrect = 1.5", ["method.correct", "0 to 1", "got 1.5"]),
        ("name = \"bake\"\ntemperature = 0", ["method.temperature", "above 0", "got 0"]),
        ("name = \"bake\"\nomega = 1", ["method.omega", "less than 1", "got 1"]),
        ("name = \"bake\"\nextra_images = 0", ["method.extra_images", "1 to 254", "got 0"]),
        ("name = \"byot\"\ntemperature = 0", ["method.temperature", "above 0", "got 0"]),
        ("name = \"byot\"\nblocks = 0", ["method.blocks", "at least 1", "got 0"]),
        ("name = \"mixup\"\nalpha = -1", ["method.alpha", "at least 0", "got -1"]),
        ("name = \"cutmix\"\nalpha = nan", ["method.alpha", "at least 0", "got NaN"]),
        ("name = \"cutout\"\nside = 33", ["method.side", "2 to 32", "got 33"]),
        ("name = \"cutout\"\nside = 1", ["method.side", "2 to 32", "got 1"]),
        ("name = \"cutout\"\nfill = [0.0, nan, 0.0]", ["method.fill", "finite", "NaN"]),
        ("name = \"erasing\"\np = 1.5", ["method.p", "0 to 1", "got 1.5"]),
    ] {
        let message = why(section);
        assert!(parts.iter().all(|part| message.contains(part)), "{section}: {message}");
    }
}

#[test]
fn what_one_class_cannot_have_is_refused() {
    for section in ["name = \"ce\"\nlabel_smoothing = 0.1", "name = \"normkd\"", "name = \"tf_kd_reg\""] {
        let why = parse(section).unwrap().build().spec(&setting(1, [32, 32, 3])).unwrap_err();
        assert!(why.contains("2 classes, got 1"), "{section}: {why}");
    }
}

/// Chapter 4.7: the anchor alone moves a weight by 2 lr w of its distance each step, stable below 2 (1 + momentum).
#[test]
fn an_anchor_that_diverges_is_refused() {
    let run = setting(10, [32, 32, 3]); // lr 0.05, momentum 0.9
    let spec = |anchor_weight: f64| spec::Method::spec(&Atsc { anchor_weight, ..Atsc::default() }, &run);
    assert!(spec(37.9).is_ok() && spec(10.0).is_ok());
    let why = spec(38.0).unwrap_err();
    for part in ["method.anchor_weight 38", "lr 0.05", "= 3.8", "got 3.8", "use at most 37.62"] {
        assert!(why.contains(part), "no {part:?} in {why}");
    }
}

/// Names as recipes write them, in the order of the list.
#[test]
fn names_are_those_that_the_list_has() {
    let why = refused("name = \"none\"").1;
    for name in MethodSpec::names() {
        assert!(why.contains(&format!("`{name}`")), "{name} in {why}");
    }
    let count = MethodSpec::names().into_iter().collect::<std::collections::BTreeSet<_>>().len();
    assert_eq!((count, why.matches('`').count()), (22, 2 * 22 + 2));
}
