//! Every network against its published counts, names, shapes and quirks. No executor: numbers are tests of the CPU.

#[path = "support/wave.rs"]
mod wave;

use graph::{
    BatchInput, BnMode, Builder, Graph, Init, Net, Op, PoolArgs, Precision, Rows, Source, StateKind, Unary, Value,
};
use nets::{EntryValue, NetError, NetworkSpec, WrnBn, state_dict};
use tensor::{Dtype, Shape};

/// What a built network looks like.
struct Built {
    graph: Graph,
    /// Shapes of stages and pooled.
    taps: Vec<Shape>,
    /// Op behind each stage tap.
    tap_ops: Vec<Op>,
}

/// One image, or one in each group of the batch norms.
fn build(spec: &NetworkSpec, classes: usize, image: [usize; 3], bn: BnMode) -> Built {
    let n = if let BnMode::Train { groups } = bn { groups } else { 1 };
    let mut graph = Graph::new(Precision::F32, [n, 0]);
    let [h, w, c] = image;
    let (shape, source) = (Shape::new(&[n, h, w, c]), Source::Batch(0));
    let value = graph.add_value(Value { shape, dtype: Dtype::F32, rows: Rows([1, 0]), source });
    graph.batch.push(BatchInput { name: "image".into(), value });
    let builder = Builder::new(graph);
    let network = spec.build(classes).unwrap();
    let taps = network.build(&Net::new(&builder, "student", bn), builder.expr(value));
    assert_eq!(taps.logits.shape(), Shape::new(&[n, classes]));
    let tap_ops = taps.stages.iter().map(|t| builder.graph().producer(t.id()).unwrap().op.clone()).collect();
    let taps = taps.stages.iter().chain([&taps.pooled]).map(|t| t.shape()).collect();
    let graph = builder.finish();
    graph::verify(&graph, "build").unwrap();
    Built { graph, taps, tap_ops }
}

fn train(name: &str, classes: usize, side: usize) -> Built {
    build(&NetworkSpec::new(name), classes, [side, side, 3], BnMode::Train { groups: 1 })
}

/// Multiply-adds of convolutions and linear layers for the one image of the graph.
fn macs(graph: &Graph) -> usize {
    let cost = |node: &graph::Node| match node.op {
        Op::Conv(_) => graph.shape(node.inputs[1]).dims()[1..].iter().product(),
        Op::Matmul(_) => graph.shape(node.inputs[1])[1],
        _ => 0,
    };
    graph.nodes.iter().map(|node| cost(node) * graph.shape(node.outputs[0]).elements()).sum()
}

fn params(graph: &Graph, only: impl Fn(&str) -> bool) -> usize {
    let params = graph.states.iter().filter(|s| s.kind == StateKind::Param && only(&s.name));
    params.map(|s| s.shape.elements()).sum()
}

/// Is this a scale or shift of a batch norm? The others are filters and the head's matrix and bias.
fn of_bn(graph: &Graph) -> impl Fn(&str) -> bool {
    let means: Vec<String> =
        graph.states.iter().filter_map(|s| s.name.strip_suffix("running_mean")).map(String::from).collect();
    move |name| means.iter().any(|bn| name.strip_prefix(bn).is_some_and(|field| !field.contains('.')))
}

fn count(graph: &Graph, op: impl Fn(&Op) -> bool) -> usize {
    graph.nodes.iter().filter(|n| op(&n.op)).count()
}

/// Chapter 8.1: params, BN params, convs, BNs, keys, multiply-adds; 100 classes at 32, 1000 at 224.
const PUBLISHED: [(&str, [usize; 6]); 25] = [
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
];

#[test]
fn counts_are_the_published_ones() {
    for (name, published) in PUBLISHED {
        let side = NetworkSpec::new(name).facts().unwrap().side;
        let Built { graph, .. } = train(name, if side == 224 { 1000 } else { 100 }, side);
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
    // ResNet-34 with the CIFAR stem has no published count: that of ImageNet's without 7×7 - 3×3 and 900 classes.
    let graph = train("cifar_resnet34", 100, 32).graph;
    assert_eq!(params(&graph, |_| true), 21_797_672 - 3 * 64 * (49 - 9) - 900 * 513);
    // Another size and class count, as published for Tiny-ImageNet.
    for (name, counts) in [
        ("resnet8x4", [1_259_240, 708_233_216]),
        ("resnet32x4", [7_459_560, 4_332_111_872]),
        ("cifar_resnet18", [11_271_432, 2_221_772_800]),
    ] {
        let graph = train(name, 200, 64).graph;
        assert_eq!([params(&graph, |_| true), macs(&graph)], counts, "{name} at 64");
    }
}

#[test]
fn every_name_has_a_test_and_builds_in_both_modes() {
    for name in NetworkSpec::names() {
        assert!(name == "cifar_resnet34" || PUBLISHED.iter().any(|(n, _)| *n == name), "{name} has no published row");
        let spec = NetworkSpec::new(name);
        let (trained, frozen) = (train(name, 10, 32), build(&spec, 10, [32, 32, 3], BnMode::Eval));
        let names = |b: &Built| state_dict(&b.graph, "student").into_iter().map(|e| e.name).collect::<Vec<_>>();
        assert_eq!(names(&trained), names(&frozen), "{name}: both modes list the same entries");
        assert!(frozen.graph.bn_uses.is_empty());
        assert_eq!(trained.graph.bn_uses.len(), count(&frozen.graph, |op| matches!(op, Op::BnApply { .. })));
        let head = spec.facts().unwrap().head;
        assert!(names(&frozen).contains(&format!("{head}.weight")), "{name}: head {head}");
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
    assert!(checked >= 10, "only {checked} networks of {path} were known");
}

#[test]
fn wrn_moves_three_batch_norms_twice() {
    // Quirk 4: the three that the published forward calls twice; with `once` and elsewhere a forward moves each once.
    let moves = |spec: &NetworkSpec, bn| {
        let graph = build(spec, 10, [32, 32, 3], bn).graph;
        let counter = |e: nets::Entry| match e.value {
            EntryValue::Counter { moves } => Some((e.name, moves)),
            EntryValue::State(_) => None,
        };
        state_dict(&graph, "student").into_iter().filter_map(counter).collect::<Vec<_>>()
    };
    let mut spec = NetworkSpec::new("wrn_16_2");
    let twice = ["block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"].map(|bn| format!("{bn}.num_batches_tracked"));
    for (name, moves) in moves(&spec, BnMode::Train { groups: 1 }) {
        assert_eq!(moves, if twice.contains(&name) { 2 } else { 1 }, "{name}");
    }
    assert!(moves(&spec, BnMode::Eval).iter().all(|(_, moves)| *moves == 0));
    let split = moves(&spec, BnMode::Train { groups: 2 });
    assert!(
        split.iter().all(|(name, moves)| *moves == if twice.contains(name) { 4 } else { 2 }),
        "each group moves them"
    );
    spec.wrn_bn = Some(WrnBn::Once);
    assert_eq!(moves(&spec, BnMode::Train { groups: 1 }).len(), 13);
    assert!(moves(&spec, BnMode::Train { groups: 1 }).iter().all(|(_, moves)| *moves == 1));
}

#[test]
fn wrn_taps_are_raw_and_projections_bare() {
    // Quirk 5.
    let Built { graph, tap_ops, taps } = train("wrn_40_2", 100, 32);
    assert!(matches!(tap_ops[0], Op::Conv(_)), "the stem tap is the raw convolution");
    assert!(tap_ops[1..].iter().all(|op| matches!(op, Op::Binary(_))), "stage taps are sums: {tap_ops:?}");
    assert_eq!(taps.last(), Some(&Shape::new(&[1, 128])));
    assert!(!graph.states.iter().any(|s| s.name.contains("convShortcut.1") || s.name.contains("shortcut.bn")));
    let projection = graph.nodes.iter().find(|n| n.path == "student/block2.layer.0/convShortcut");
    let input = graph.producer(projection.expect("a projection").inputs[0]).unwrap();
    assert!(matches!(input.op, Op::Unary(_)), "fed by the activated input, not by {}", input.op);
    // Width 1: no projection in block1, which keeps its 16 channels.
    let narrow = train("wrn_16_1", 100, 32).graph;
    let has = |block: &str| narrow.find_state(&format!("student.{block}.layer.0.convShortcut.weight")).is_some();
    assert_eq!(["block1", "block2", "block3"].map(has), [false, true, true]);
}

#[test]
fn wide_stems_and_their_projection() {
    // Quirk 6. And 16: resnet38x2, called WRN-40-2 in one paper's tables, is another network with 448 parameters more.
    for (name, stem, projected) in [("resnet20", 16, false), ("resnet14x2", 16, true), ("resnet8x4", 32, true)] {
        let graph = train(name, 100, 32).graph;
        let conv1 = graph.state(graph.find_state("student.conv1.weight").unwrap());
        assert_eq!(conv1.shape, Shape::new(&[stem, 3, 3, 3]), "{name}");
        assert_eq!(graph.find_state("student.layer1.0.downsample.0.weight").is_some(), projected, "{name}");
    }
    let total = |name: &str| params(&train(name, 100, 32).graph, |_| true);
    assert_eq!(total("resnet38x2") - total("wrn_40_2"), 448);
}

#[test]
fn any_image_size_and_channel_count() {
    // Quirk 13: published nets pool over a fixed window and break at other sizes.
    for name in NetworkSpec::names() {
        let spec = NetworkSpec::new(name);
        for image in [[28, 28, 1], [64, 64, 3], [33, 47, 3], [8, 8, 3]] {
            let Built { graph, taps, .. } = build(&spec, 10, image, BnMode::Train { groups: 1 });
            let conv1 = graph.state(graph.find_state("student.conv1.weight").unwrap());
            assert_eq!(conv1.shape[3], image[2], "{name}");
            assert_eq!(taps.last().unwrap().rank(), 2, "{name}");
        }
    }
}

#[test]
fn taps_have_the_published_shapes() {
    // Quirk 14: the stem's tap is before the max pool.
    for (name, side, expected) in [
        ("resnet18", 224, vec![[112, 64], [56, 64], [28, 128], [14, 256], [7, 512]]),
        ("resnet50", 224, vec![[112, 64], [56, 256], [28, 512], [14, 1024], [7, 2048]]),
        ("cifar_resnet50", 32, vec![[32, 64], [32, 256], [16, 512], [8, 1024], [4, 2048]]),
        ("resnet8x4", 32, vec![[32, 32], [32, 64], [16, 128], [8, 256]]),
        ("wrn_16_2", 32, vec![[32, 16], [32, 32], [16, 64], [8, 128]]),
    ] {
        let Built { taps, tap_ops, .. } = train(name, 10, side);
        let mut shapes: Vec<_> = expected.iter().map(|&[s, c]| Shape::new(&[1, s, s, c])).collect();
        shapes.push(Shape::new(&[1, expected.last().unwrap()[1]]));
        assert_eq!(taps, shapes, "{name}");
        assert!(
            name.starts_with("wrn") || tap_ops.iter().all(|op| matches!(op, Op::Unary(_))),
            "{name}: after the ReLU"
        );
    }
}

#[test]
fn activations_and_pools() {
    for name in NetworkSpec::names() {
        let graph = train(name, 10, 64).graph;
        // Each batch norm has its ReLU, at once or behind the sum, but for those of projections.
        let projections = graph.states.iter().filter(|s| s.name.ends_with(".1.running_mean")).count();
        let relus = count(&graph, |op| *op == Op::Unary(Unary::Relu));
        assert_eq!(relus, graph.bn_uses.len() - projections, "{name}");
        let pool = PoolArgs { kernel: 3, stride: 2, pad: 1 };
        let imagenet = NetworkSpec::new(name).facts().unwrap().side == 224;
        assert_eq!(count(&graph, |op| *op == Op::MaxPool(pool)), usize::from(imagenet), "{name}");
        assert_eq!(count(&graph, |op| *op == Op::GlobalAvgPool), 1, "{name}");
    }
}

#[test]
fn parameters_start_as_published() {
    // Quirk 17: F for residual nets, F0 for wide ones.
    let init = |name: &str, state: &str| {
        let graph = train(name, 100, 32).graph;
        graph.state(graph.find_state(&format!("student.{state}")).unwrap()).init.clone()
    };
    let fan_out = |elements: f64| Init::Normal((2.0 / elements).sqrt());
    for name in ["resnet8", "wrn_16_1"] {
        assert_eq!(init(name, "conv1.weight"), fan_out(9.0 * 16.0), "{name}");
        assert_eq!(init(name, "fc.weight"), Init::Uniform(1.0 / 8.0), "{name}");
        assert_eq!(init(name, "bn1.weight"), Init::Const(1.0), "{name}");
    }
    assert_eq!(init("resnet8", "layer2.0.downsample.0.weight"), fan_out(32.0));
    assert_eq!(init("resnet8", "fc.bias"), Init::Uniform(1.0 / 8.0));
    assert_eq!(init("wrn_16_1", "fc.bias"), Init::Const(0.0));
    assert_eq!(init("cifar_resnet18", "linear.bias"), Init::Uniform(1.0 / 512f64.sqrt()));
    // No source starts the last scale of a block at zero.
    assert_eq!(init("resnet50", "layer1.0.bn3.weight"), Init::Const(1.0));
    assert_eq!(init("resnet50", "conv1.weight"), fan_out(49.0 * 64.0));
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
