//! Every network against its published counts, names and shapes.

use crate::build::{Built, build, build_with, count, macs, params, train};
use crate::wave;
use nets::{NetError, NetworkSpec, WrnBn, state_dict};
use spec::{BnMode, Graph, Net, Op, StateKind};
use std::collections::BTreeMap;
use tensor::Shape;

const TRAIN: BnMode = BnMode::Train { groups: 1 };

/// Is this a scale or shift of a batch norm? The others are filters and the head's matrix and bias.
fn of_bn(graph: &Graph) -> impl Fn(&str) -> bool {
    let means: Vec<String> =
        graph.states.iter().filter_map(|s| s.name.strip_suffix("running_mean")).map(String::from).collect();
    move |name| means.iter().any(|bn| name.strip_prefix(bn).is_some_and(|field| !field.contains('.')))
}

/// Chapter 8.1: params, BN params, convs, BNs, keys, multiply-adds; 100 classes at 32, 200 at 64, 1000 at 224. (The keys of
/// densenet40_12 are counted here: its names are not published.)
const PUBLISHED: [(&str, [usize; 6]); 54] = [
    ("resnet8", [83_892, 672, 9, 9, 56, 12_507_392]),
    ("resnet14", [181_108, 1_120, 15, 15, 92, 26_663_168]),
    ("resnet20", [278_324, 1_568, 21, 21, 128, 40_818_944]),
    ("resnet32", [472_756, 2_464, 33, 33, 200, 69_130_496]),
    ("resnet44", [667_188, 3_360, 45, 45, 272, 97_442_048]),
    ("resnet56", [861_620, 4_256, 57, 57, 344, 125_753_600]),
    ("resnet110", [1_736_564, 8_288, 111, 111, 668, 253_155_584]),
    ("resnet8x4", [1_233_540, 2_752, 10, 10, 62, 177_071_104]),
    ("resnet32x4", [7_433_860, 9_920, 34, 34, 206, 1_083_040_768]),
    ("resnet38", [569_972, 2_912, 39, 39, 236, 83_286_272]),
    ("resnet116", [1_833_780, 8_736, 117, 117, 704, 267_311_360]),
    ("resnet14x2", [703_732, 2_272, 16, 16, 98, 101_118_464]),
    ("resnet38x2", [2_255_604, 5_856, 40, 40, 242, 327_610_880]),
    ("resnet110x2", [6_911_220, 16_608, 112, 112, 674, 1_007_088_128]),
    ("resnet14x4", [2_783_620, 4_544, 16, 16, 98, 403_563_520]),
    ("resnet38x4", [8_983_940, 11_712, 40, 40, 242, 1_309_533_184]),
    ("wrn_16_1", [180_916, 928, 15, 13, 82, 26_663_168]),
    ("wrn_16_2", [703_284, 1_824, 16, 13, 83, 101_118_464]),
    ("wrn_40_1", [569_780, 2_720, 39, 37, 226, 83_286_272]),
    ("wrn_40_2", [2_255_156, 5_408, 40, 37, 227, 327_610_880]),
    ("cifar_resnet18", [11_220_132, 9_600, 20, 20, 122, 555_468_800]),
    ("cifar_resnet50", [23_705_252, 53_120, 53, 53, 320, 1_298_014_208]),
    ("resnet18", [11_689_512, 9_600, 20, 20, 122, 1_814_073_344]),
    ("resnet34", [21_797_672, 17_024, 36, 36, 218, 3_663_761_408]),
    ("resnet50", [25_557_032, 53_120, 53, 53, 320, 4_089_184_256]),
    ("preact_resnet10", [4_946_724, 3_072, 12, 9, 59, 253_478_912]),
    ("preact_resnet18", [11_217_444, 6_912, 20, 17, 107, 555_468_800]),
    ("preact_resnet34", [21_325_604, 14_336, 36, 33, 203, 1_159_448_576]),
    ("skl_resnet50", [23_697_572, 45_440, 53, 49, 300, 1_298_014_208]),
    ("mixskd_resnet18", [11_220_132, 9_600, 20, 20, 122, 555_468_800]),
    ("mixskd_resnet50", [23_705_252, 53_120, 53, 53, 320, 1_298_014_208]),
    ("vgg8", [3_965_028, 2_944, 5, 5, 37, 96_192_512]),
    ("vgg11", [9_277_284, 5_504, 8, 8, 58, 209_438_720]),
    ("vgg13", [9_462_180, 5_888, 10, 10, 72, 284_936_192]),
    ("vgg16", [14_774_436, 8_448, 13, 13, 93, 398_182_400]),
    ("vgg19", [20_086_692, 11_008, 16, 16, 114, 511_428_608]),
    ("mobilenetv2", [812_836, 18_368, 53, 53, 320, 6_523_648]),
    ("mobilenetv2_1_0", [2_353_060, 34_176, 53, 53, 320, 22_381_056]),
    ("shufflev1", [949_258, 23_736, 49, 49, 296, 38_691_456]),
    ("shufflev2", [1_355_528, 16_180, 56, 56, 338, 44_504_448]),
    ("shufflev2_1_5", [2_580_548, 23_440, 56, 56, 338, 93_762_048]),
    ("cifar_densenet121", [7_048_548, 83_520, 120, 120, 722, 888_442_880]),
    ("densenet40_12", [1_060_132, 18_096, 39, 39, 236, 264_853_248]),
    ("resnet101", [44_549_160, 105_344, 104, 104, 626, 7_801_405_440]),
    ("wide_resnet50_2", [68_883_240, 68_224, 53, 53, 320, 11_398_021_120]),
    ("resnext50_32x4d", [25_028_904, 68_224, 53, 53, 320, 4_230_479_872]),
    ("resnet10x2_imagenet", [20_543_016, 11_648, 13, 13, 80, 2_996_330_496]),
    ("resnet18x2_imagenet", [45_618_216, 19_328, 21, 21, 128, 6_695_706_624]),
    ("resnet34x2_imagenet", [86_036_008, 34_176, 37, 37, 224, 14_094_458_880]),
    ("mobilenetv1", [4_231_976, 21_888, 27, 27, 164, 568_740_352]),
    ("mobilenet_v2", [3_504_872, 34_112, 52, 52, 314, 300_774_272]),
    ("shufflenet_v2_x1_0", [2_278_604, 16_180, 56, 56, 338, 144_907_992]),
    ("densenet121", [7_978_856, 83_648, 120, 121, 727, 2_834_161_664]),
    ("mobilenetv2_tinyimagenet", [2_497_480, 34_176, 54, 53, 373, 215_708_992]),
];

#[test]
fn counts_are_the_published_ones() {
    for (name, published) in PUBLISHED {
        let side = NetworkSpec::new(name).facts().unwrap().side;
        let classes = BTreeMap::from([(32, 100), (64, 200), (224, 1000)])[&side];
        let Built { graph, .. } = train(name, classes, side);
        let counted = [
            params(&graph, |_| true),
            params(&graph, of_bn(&graph)),
            count(&graph, |op| matches!(op, Op::Conv(_))),
            count(&graph, |op| matches!(op, Op::BnApply { .. })),
            state_dict(&graph, "student").len(),
            macs(&graph),
        ];
        assert_eq!(counted, published, "{name}: params, BN params, convs, BNs, keys, multiply-adds");
    }
    // Other sizes and class counts, as published for fine-grained sets and Tiny-ImageNet.
    for (name, side, counts) in [
        ("resnet18", 224, [11_279_112, 1_813_663_744]),
        ("densenet121", 224, [7_158_856, 2_833_342_464]),
        ("resnet8x4", 64, [1_259_240, 708_233_216]),
        ("resnet32x4", 64, [7_459_560, 4_332_111_872]),
        ("cifar_resnet18", 64, [11_271_432, 2_221_772_800]),
        ("cifar_resnet18", 384, [11_271_432, 79_980_236_800]),
    ] {
        let graph = train(name, 200, side).graph;
        assert_eq!([params(&graph, |_| true), macs(&graph)], counts, "{name} at {side}");
    }
}

#[test]
fn counts_that_are_not_published_follow_from_others() {
    let total = |name: &str, classes, side| params(&train(name, classes, side).graph, |_| true);
    // ResNet-34 with the CIFAR stem: that of ImageNet's without 7×7 - 3×3 and 900 classes.
    assert_eq!(total("cifar_resnet34", 100, 32), 21_797_672 - 3 * 64 * (49 - 9) - 900 * 513);
    let wide = |n: usize, w: usize| {
        let block =
            |cin: usize, c: usize| 2 * cin + 9 * cin * c + 2 * c + 9 * c * c + if cin == c { 0 } else { cin * c };
        let stage = |cin: usize, c: usize| block(cin, c) + (n - 1) * block(c, c);
        9 * 3 * 16 + stage(16, 16 * w) + stage(16 * w, 32 * w) + stage(32 * w, 64 * w) + 128 * w + 100 * (64 * w + 1)
    };
    assert_eq!([wide(2, 1), wide(6, 2)], [180_916, 2_255_156], "the formula, on published counts");
    assert_eq!(total("wrn_28_10", 100, 32), wide(4, 10));
    // A probe of 768 features: the matrix alone.
    let Built { graph, taps, .. } = build(&NetworkSpec::new("linear"), 10, [1, 1, 768], TRAIN);
    assert_eq!((params(&graph, |_| true), macs(&graph), &taps[..]), (7_680, 7_680, &[Shape::new(&[1, 768])][..]));
}

#[test]
fn every_name_has_a_test_and_builds_in_both_modes() {
    for name in NetworkSpec::names() {
        let derived = ["cifar_resnet34", "wrn_28_10", "linear"].contains(&name);
        assert!(derived || PUBLISHED.iter().any(|(n, _)| *n == name), "{name} has no published row");
        let spec = NetworkSpec::new(name);
        let (trained, frozen) = (train(name, 10, 32), build(&spec, 10, [32, 32, 3], BnMode::Eval));
        let names = |b: &Built| state_dict(&b.graph, "student").into_iter().map(|e| e.name).collect::<Vec<_>>();
        assert_eq!(names(&trained), names(&frozen), "{name}: both modes list the same entries");
        assert!(frozen.graph.bn_uses.is_empty());
        assert_eq!(trained.graph.bn_uses.len(), count(&frozen.graph, |op| matches!(op, Op::BnApply { .. })));
        let facts = spec.facts().unwrap();
        assert!(names(&frozen).contains(&format!("{}.weight", facts.head)), "{name}: head {}", facts.head);
        assert_eq!(facts.deviation.is_some(), name == "mobilenet_v2", "{name}");
    }
}

#[test]
fn names_and_shapes_are_those_of_the_reference() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/goldens/nets/table.json");
    let Ok(text) = std::fs::read_to_string(path) else {
        eprintln!("SKIPPED names_and_shapes_are_those_of_the_reference: no {path}");
        return;
    };
    let table: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut checked = 0;
    for (name, row) in table.as_object().unwrap() {
        let ours = name.strip_prefix("imagenet_").unwrap_or(name);
        let (Some(rows), true) = (row.get("state_dict"), NetworkSpec::names().any(|n| n == ours)) else { continue };
        let number = |key: &str| row[key].as_u64().unwrap() as usize;
        let graph = train(ours, number("classes"), number("side")).graph;
        assert_eq!([params(&graph, |_| true), macs(&graph)], [number("params"), number("macs")], "{name}");
        let entries = state_dict(&graph, "student");
        let rows = rows.as_array().unwrap();
        assert_eq!(entries.len(), rows.len(), "{name}: entries");
        for (entry, row) in entries.iter().zip(rows) {
            let shape: Vec<usize> = row[1].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
            assert_eq!((entry.name.as_str(), entry.shape.dims()), (row[0].as_str().unwrap(), &shape[..]), "{name}");
        }
        checked += 1;
    }
    assert!(checked >= 30, "only {checked} networks of {path} were known");
}

/// Branches as `Network::stage` builds them: the tap that each hangs on, and stages with their blocks.
type Branches = Vec<(usize, Vec<(usize, Option<usize>)>)>;

/// The trunk with branches, each with a pool and a linear layer.
fn branched(name: &str, classes: usize, side: usize, branches: &Branches) -> Graph {
    let spec = NetworkSpec::new(name);
    let more = |network: &dyn spec::Network, builder: &spec::Builder, taps: &spec::Taps<'_>| {
        for (i, (tap, stages)) in branches.iter().enumerate() {
            let net = Net::new(builder, "method.branches", TRAIN).scope(&i.to_string());
            let mut x = builder.expr(taps.stages[*tap].id());
            for &(stage, blocks) in stages {
                x = network.stage(&net.scope(&format!("stage{stage}")), stage, blocks, x).unwrap();
            }
            net.linear("fc", x.mean_hw(), classes);
        }
    };
    build_with(&spec, classes, [side, side, 3], (TRAIN, more)).graph
}

#[test]
fn branches_of_stages_have_the_published_counts() {
    let mixskd = || (1..=3).map(|tap| (tap, (tap + 1..=4).map(|s| (s, None)).collect())).collect::<Branches>();
    let heads = |deep: usize| vec![(2, vec![(3, Some(1)), (4, Some(deep))]), (3, vec![(4, Some(deep))])];
    // The published totals of MixSKD include the head of the self-teacher: a 1×1 convolution to c channels, and a linear layer.
    let teacher = |c: usize, classes: usize| 4 * c * c + (c + 1) * classes;
    for (name, (classes, side), branches, [published, published_macs]) in [
        ("mixskd_resnet18", (100, 32), mixskd(), [42_380_084 - teacher(512, 100), 1_360_928_768]),
        ("mixskd_resnet50", (100, 32), mixskd(), [101_612_596 - teacher(2048, 100), 3_383_197_696]),
        ("resnet50", (1000, 224), mixskd(), [110_840_776 - teacher(2048, 1000), 10_479_321_088]),
        ("preact_resnet18", (100, 32), heads(2), [29_022_700, 882_726_912]),
        ("preact_resnet18", (100, 32), heads(1), [19_581_420, 731_731_968]),
        ("skl_resnet50", (100, 32), heads(2), [46_613_868, 1_805_934_592]),
        ("skl_resnet50", (100, 32), heads(1), [37_688_684, 1_663_328_256]),
        ("resnet18", (200, 224), heads(2), [29_190_808, 2_815_782_912]),
        ("resnet18", (200, 224), heads(1), [19_749_528, 2_353_360_896]),
    ] {
        let graph = branched(name, classes, side, &branches);
        assert_eq!([params(&graph, |_| true), macs(&graph)], [published, published_macs], "{name} with {branches:?}");
    }
}

#[test]
fn a_stage_is_a_copy_with_names_and_starts_of_its_own() {
    for name in NetworkSpec::names() {
        let more = |network: &dyn spec::Network, builder: &spec::Builder, taps: &spec::Taps<'_>| {
            let has = |name: &str| builder.graph().find_state(&format!("student.{name}")).is_some();
            let stages =
                (1..=4).filter(|s| has(&format!("layer{s}.0.bn2.weight")) && !name.starts_with("shuffle")).count();
            assert_eq!(stages > 0, name.contains("resn"), "{name}");
            let net = Net::new(builder, "copy", TRAIN);
            for s in [0, stages + 1] {
                let x = builder.expr(taps.pooled.id());
                assert!(network.stage(&net, s, None, x).is_none(), "{name} has no stage {s}");
            }
            for s in 1..=stages {
                let net = Net::new(builder, &format!("copy{s}"), TRAIN);
                let out = network.stage(&net, s, None, builder.expr(taps.stages[s - 1].id())).unwrap();
                assert_eq!(out.shape().dims()[3], taps.stages[s].shape().dims()[3], "{name} stage {s}");
                let of = |prefix: String| {
                    let graph = builder.graph();
                    let own = graph.states.iter().filter_map(|state| {
                        let name = state.name.strip_prefix(&prefix)?;
                        Some((name.to_string(), state.shape, state.kind == StateKind::Param, state.init.clone()))
                    });
                    own.collect::<Vec<_>>()
                };
                assert_eq!(of(format!("copy{s}.")), of(format!("student.layer{s}.")), "{name}");
                // Of two blocks there are two, whatever the stage has.
                let net = Net::new(builder, &format!("two{s}"), TRAIN);
                network.stage(&net, s, Some(2), builder.expr(taps.stages[s - 1].id())).unwrap();
                let blocks = (0..4).filter(|b| !of(format!("two{s}.{b}.")).is_empty()).count();
                assert_eq!(blocks, 2, "{name}");
            }
        };
        build_with(&NetworkSpec::new(name), 10, [32, 32, 3], (TRAIN, more));
    }
}

#[test]
fn taps_have_the_published_shapes() {
    for (name, side, expected) in [
        ("resnet18", 224, vec![[112, 64], [56, 64], [28, 128], [14, 256], [7, 512]]),
        ("resnet50", 224, vec![[112, 64], [56, 256], [28, 512], [14, 1024], [7, 2048]]),
        ("resnet18x2_imagenet", 224, vec![[112, 64], [56, 128], [28, 256], [14, 512], [7, 1024]]),
        ("resnext50_32x4d", 224, vec![[112, 64], [56, 256], [28, 512], [14, 1024], [7, 2048]]),
        ("cifar_resnet50", 32, vec![[32, 64], [32, 256], [16, 512], [8, 1024], [4, 2048]]),
        ("preact_resnet18", 32, vec![[32, 64], [32, 64], [16, 128], [8, 256], [4, 512]]),
        ("mixskd_resnet18", 32, vec![[32, 64], [32, 64], [16, 128], [8, 256], [4, 512]]),
        ("resnet8x4", 32, vec![[32, 32], [32, 64], [16, 128], [8, 256]]),
        ("wrn_16_2", 32, vec![[32, 16], [32, 32], [16, 64], [8, 128]]),
        ("vgg13", 32, vec![[32, 64], [16, 128], [8, 256], [4, 512], [4, 512]]),
        ("vgg13", 64, vec![[64, 64], [32, 128], [16, 256], [8, 512], [4, 512]]),
        ("mobilenetv2", 32, vec![[16, 16], [16, 12], [8, 16], [4, 48], [2, 160], [0, 1280]]),
        ("mobilenetv2_1_0", 32, vec![[16, 32], [16, 24], [8, 32], [4, 96], [2, 320], [0, 1280]]),
        ("mobilenet_v2", 224, vec![[112, 32], [56, 24], [28, 32], [14, 96], [7, 320], [0, 1280]]),
        ("mobilenetv2_tinyimagenet", 64, vec![[66, 32], [33, 24], [17, 32], [9, 64], [9, 1280]]),
        ("mobilenetv1", 224, vec![[56, 128], [28, 256], [14, 512], [7, 1024]]),
        ("shufflev1", 32, vec![[32, 24], [16, 240], [8, 480], [4, 960]]),
        ("shufflev2", 32, vec![[32, 24], [16, 116], [8, 232], [4, 464], [0, 1024]]),
        ("shufflev2_1_5", 32, vec![[32, 24], [16, 176], [8, 352], [4, 704], [0, 1024]]),
        ("shufflenet_v2_x1_0", 224, vec![[112, 24], [28, 116], [14, 232], [7, 464], [0, 1024]]),
        ("cifar_densenet121", 32, vec![[32, 64], [32, 256], [16, 512], [8, 1024], [4, 1024]]),
        ("densenet40_12", 32, vec![[32, 16], [32, 160], [16, 304], [8, 448]]),
        ("densenet121", 224, vec![[112, 64], [56, 256], [28, 512], [14, 1024], [7, 1024]]),
    ] {
        // A last row without a size: the pooled vector is wider than the last map.
        let maps = expected.iter().filter(|row| row[0] > 0).map(|&[s, c]| Shape::new(&[1, s, s, c]));
        let pooled = Shape::new(&[1, expected.last().unwrap()[1]]);
        assert_eq!(train(name, 10, side).taps, maps.chain([pooled]).collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn sections_that_cannot_be_built_say_why() {
    let parse = |text: &str| toml::from_str::<NetworkSpec>(text);
    let spec = parse("name = \"wrn_16_2\"").unwrap().resolved().unwrap();
    assert_eq!(toml::to_string(&spec).unwrap(), "name = \"wrn_16_2\"\nwrn_bn = \"twice\"\n");
    assert_eq!(parse(&toml::to_string(&spec).unwrap()).unwrap(), spec);
    assert!(parse("name = \"resnet8\"\ndepth = 8").unwrap_err().to_string().contains("unknown field `depth`"));
    assert!(parse("wrn_bn = \"once\"").unwrap_err().to_string().contains("missing field `name`"));
    let nearest = |name: &str| match NetworkSpec::new(name).build(10) {
        Err(NetError::Name { nearest, .. }) => nearest,
        other => panic!("{name} gave {other:?}"),
    };
    for (name, expected) in
        [("resnet9", "resnet8"), ("ResNet50", "resnet50"), ("wrn-40-2", "wrn_40_2"), ("resnet8_x4", "resnet8x4")]
    {
        assert_eq!(nearest(name), expected);
    }
    let misplaced = NetworkSpec { wrn_bn: Some(WrnBn::Once), ..NetworkSpec::new("resnet8") };
    assert_eq!(misplaced.build(10).unwrap_err(), NetError::WrnBn { name: "resnet8".into() });
}

#[test]
fn golden_weights_follow_the_formula() {
    assert_eq!(["", "a", "foobar"].map(wave::fnv1a), [0x811C_9DC5, 0xE40C_292C, 0xBF9C_F968]);
    let u = wave::wave("teacher.fc.bias", 3);
    assert_eq!(u[2], (0.37 * 2.0 + f64::from(wave::fnv1a("teacher.fc.bias") % 1000)).sin());
    assert_eq!(wave::weight("teacher.", "fc.bias", &[3]), u.iter().map(|u| 0.1 * u).collect::<Vec<_>>());
    let filter = wave::weight("", "conv1.weight", &[16, 3, 3, 3]);
    assert_eq!(filter[5], (2.0 / 27f64).sqrt() * wave::wave("conv1.weight", 6)[5]);
    assert!(wave::weight("", "bn1.running_var", &[4]).iter().all(|v| (1.0..=1.5).contains(v)));
    assert_eq!(wave::weight("", "bn1.num_batches_tracked", &[]), [0.0]);
}
