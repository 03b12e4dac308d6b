//! What each method asks the program for, and what it evaluates.

use crate::evaluate::{Small, setting};
use methods::*;
use spec::*;

fn spec_of(section: &str) -> Spec {
    toml::from_str::<MethodSpec>(section).unwrap().build().spec(&setting(10, [32, 32, 3])).unwrap()
}

/// Chapter 7.0 and 1.1: images of a unit, teachers, draws, states, slots and phases by name. An ATSC of `setting`'s one teacher.
#[test]
fn methods_ask_for_what_the_chapters_list() {
    type Row = (&'static str, usize, usize, &'static [&'static str], &'static [&'static str]);
    let rows: [Row; 22] = [
        ("ce", 1, 0, &[], &[]),
        ("kd", 1, 1, &[], &[]),
        ("ips", 2, 0, &["swap_mask"], &[]),
        ("mixskd", 1, 0, &["permutation", "lambda"], &[]),
        ("atsc", 1, 1, &[], &[]),
        ("crld", 2, 1, &[], &["warmup"]),
        ("pll", 1, 1, &[], &[]),
        ("dkd", 1, 1, &[], &["warmup"]),
        ("cs_kd", 2, 0, &[], &[]),
        ("ps_kd", 1, 0, &[], &["alpha", "one_minus_alpha"]),
        ("dlb", 1, 0, &[], &[]),
        ("simkd", 1, 1, &[], &[]),
        ("tf_kd_self", 1, 1, &[], &[]),
        ("tf_kd_reg", 1, 0, &[], &[]),
        ("bake", 4, 0, &[], &[]),
        ("normkd", 1, 1, &[], &["warmup"]),
        ("dist", 1, 1, &[], &[]),
        ("byot", 1, 0, &[], &[]),
        ("mixup", 1, 0, &["permutation", "lambda"], &[]),
        ("cutmix", 1, 0, &["permutation", "box", "lambda"], &[]),
        ("cutout", 1, 0, &["box"], &[]),
        ("erasing", 1, 0, &["box"], &[]),
    ];
    assert_eq!(rows.map(|r| r.0), MethodSpec::names());
    for (name, images, teachers, draws, slots) in rows {
        let spec = spec_of(&format!("name = \"{name}\""));
        assert_eq!((spec.rows_per_unit(), spec.teachers), (images, teachers), "{name}");
        assert_eq!(spec.draws.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), draws, "{name}");
        assert_eq!(spec.slots.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), slots, "{name}");
        assert_eq!(spec.previous, name == "dlb", "{name}");
        let phases: Vec<_> = spec.phases.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(phases, if name == "atsc" { vec!["main", "bias"] } else { vec!["train"] }, "{name}");
        let states: Vec<_> = spec.states.iter().map(|s| (s.name.as_str(), s.usage, s.row.clone())).collect();
        let expected = match name {
            "ps_kd" => vec![("memory", StateUse::PerSample, vec![10])],
            "dlb" => vec![("previous.logits", StateUse::Rolling, vec![10])],
            _ => vec![],
        };
        assert_eq!(states, expected, "{name}");
    }
}

#[test]
fn partners_follow_their_sources() {
    let pairs = |section: &str| match spec_of(section).sampler {
        Sampler::Pairs { rule, partners } => (rule, partners),
        Sampler::Shuffle => panic!("{section}: pairs"),
    };
    assert_eq!(pairs("name = \"cs_kd\""), (PairRule::WithSelf, 1), "0.6: the anchor itself may be drawn");
    assert_eq!(pairs("name = \"bake\""), (PairRule::WithoutSelf, 3), "0.6: excluding the anchor");
    assert_eq!(pairs("name = \"bake\"\nextra_images = 1"), (PairRule::WithoutSelf, 1));
    let views: Vec<_> = spec_of("name = \"crld\"").views.iter().map(|v| (v.name.clone(), v.augment)).collect();
    assert_eq!(views, [("weak".into(), Augment::Recipe), ("strong".into(), Augment::Strong)], "1.1: weak first");
}

/// 7.17, and 3.2 for MixSKD.
#[test]
fn draws_have_the_constants_of_their_sources() {
    let kinds = |section: &str| spec_of(section).draws.iter().map(|d| d.kind).collect::<Vec<_>>();
    let size = [32, 32];
    assert_eq!(kinds("name = \"mixup\""), [DrawKind::Permutation, DrawKind::Lambda { alpha: 0.4 }]);
    assert_eq!(kinds("name = \"mixskd\""), [DrawKind::Permutation, DrawKind::Lambda { alpha: 0.4 }]);
    let cutmix =
        [DrawKind::Permutation, DrawKind::CutBox { alpha: 1.0, size }, DrawKind::CutShare { alpha: 1.0, size }];
    assert_eq!(kinds("name = \"cutmix\""), cutmix, "box and share of one λ");
    assert_eq!(kinds("name = \"cutout\""), [DrawKind::Cutout { side: 8, size }]);
    assert_eq!(kinds("name = \"erasing\""), [DrawKind::Erase { p: 0.5, size }]);
}

/// 7.3, 7.10: weights by epoch, counted from 0.
#[test]
fn ramps_follow_their_sources() {
    let at = |section: &str, slot: &str, epoch: usize| {
        let spec = spec_of(section);
        spec.slots.iter().find(|s| s.name == slot).unwrap().ramp.at(epoch)
    };
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-15, "{a} and {b}");
    for (epoch, expected) in [(0, 0.05), (9, 0.5), (19, 1.0), (200, 1.0)] {
        close(at("name = \"dkd\"", "warmup", epoch), expected);
    }
    for section in ["name = \"crld\"", "name = \"normkd\"", "name = \"dkd\"\nwarmup_epochs = 0"] {
        close(at(section, "warmup", 0), 1.0);
    }
    // Of 10 epochs: nothing to trust in the first, then 0.8 (epoch + 1)/10.
    for (epoch, alpha) in [(0, 0.0), (1, 0.16), (4, 0.4), (9, 0.8)] {
        close(at("name = \"ps_kd\"", "alpha", epoch), alpha);
        close(at("name = \"ps_kd\"", "one_minus_alpha", epoch), 1.0 - alpha);
    }
}

/// What a method evaluates: the network alone, but for those that read a teacher's classifier.
#[test]
fn evaluation_uses_the_student_alone() {
    for name in MethodSpec::names() {
        let method = toml::from_str::<MethodSpec>(&format!("name = \"{name}\"")).unwrap().build();
        let setting = setting(10, [8, 8, 3]);
        let spec = method.spec(&setting).unwrap();
        let builder = Builder::new(Graph::new(Precision::F32, [2, 0]));
        let (student, teachers): (_, [Box<dyn Network>; 1]) =
            (Small { classes: 10 }, [Box::new(Small { classes: 10 })]);
        let step = Step {
            builder: &builder,
            // An evaluation has plain images.
            spec: &Spec::default(),
            setting: &setting,
            student: &student,
            teachers: &teachers[..spec.teachers],
            input: None,
            bn: BnMode::Eval,
        };
        assert_eq!(method.head(&step).shape().dims(), [2, 10], "{name}");
        let graph = builder.finish();
        let plain = [Op::PatchSwap { cell: 2 }, Op::MixRows, Op::PasteBox].map(|op| std::mem::discriminant(&op));
        for node in &graph.nodes {
            let op = std::mem::discriminant(&node.op);
            assert!(!plain.contains(&op) && !matches!(node.op, Op::RowLoss(_) | Op::BnStats { .. }), "{name}");
        }
        let others = graph.states.iter().any(|s| !s.name.starts_with("student."));
        assert_eq!(others, ["atsc", "simkd"].contains(&name), "{name}: parameters beside the student's");
    }
}
