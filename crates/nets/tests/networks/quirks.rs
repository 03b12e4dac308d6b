//! The quirks of the published networks, a test each, as chapter 8.8 numbers them.

use crate::build::{Built, build, count, params, reader, shape, source_of, train};
use nets::{Entry, EntryValue, NetworkSpec, WrnBn, state_dict};
use spec::{Axis, BnMode, Graph, Init, Op, PoolArgs, Unary};
use tensor::Shape;

fn is_relu(op: &Op) -> bool {
    *op == Op::Unary(Unary::Relu)
}

fn is_conv(op: &Op) -> bool {
    matches!(op, Op::Conv(_))
}

fn has(graph: &Graph, part: &str) -> bool {
    graph.states.iter().any(|s| s.name.contains(part))
}

#[test]
fn quirk_01_no_relu_behind_the_stem_of_mixskd() {
    for (name, twin) in [("mixskd_resnet18", "cifar_resnet18"), ("mixskd_resnet50", "cifar_resnet50")] {
        let Built { graph, tap_ops, .. } = train(name, 100, 32);
        assert!(matches!(tap_ops[0], Op::BnApply { .. }) && tap_ops[1..].iter().all(is_relu), "{tap_ops:?}");
        assert_eq!(count(&graph, is_relu) + 1, count(&train(twin, 100, 32).graph, is_relu), "{name}");
        let first = source_of(&graph, reader(&graph, "layer1.0.conv1.weight"), 0);
        assert!(matches!(first.op, Op::BnApply { .. }), "signs reach the first block");
        assert!(["backbone", "shortcut", "linear"].iter().all(|part| !has(&graph, part)));
    }
}

#[test]
fn quirk_02_preactivation_shortcuts_are_activated_and_the_end_is_raw() {
    let Built { graph, tap_ops, .. } = train("preact_resnet18", 100, 32);
    assert!(is_relu(&tap_ops[0]) && tap_ops[1..].iter().all(|op| matches!(op, Op::Binary(_))), "{tap_ops:?}");
    let sums: Vec<_> = graph.nodes.iter().filter(|n| matches!(n.op, Op::Binary(_))).collect();
    let (identity, projected): (Vec<_>, Vec<_>) = sums.iter().partition(|sum| is_relu(&source_of(&graph, sum, 1).op));
    assert_eq!([identity.len(), projected.len()], [5, 3]);
    for sum in identity {
        let active = source_of(&graph, sum, 1);
        assert!(matches!(source_of(&graph, active, 0).op, Op::BnApply { .. }), "of the block's own first batch norm");
    }
    for sum in projected {
        let conv = source_of(&graph, sum, 1);
        assert!(is_conv(&conv.op) && conv.path.ends_with("shortcut/0"), "{}", conv.path);
        assert!(is_relu(&source_of(&graph, conv, 0).op), "fed by the activated input");
    }
    let pool = graph.nodes.iter().find(|n| n.op == Op::GlobalAvgPool).unwrap();
    assert!(matches!(source_of(&graph, pool, 0).op, Op::Binary(_)), "no batch norm and no ReLU at the end");
    assert!(has(&graph, "shortcut.0.weight") && !has(&graph, "shortcut.1"));
}

#[test]
fn quirk_03_projections_of_skl_resnet50_have_no_batch_norm() {
    let graph = train("skl_resnet50", 100, 32).graph;
    assert!(has(&graph, "layer1.0.downsample.0.weight") && !has(&graph, "downsample.1"));
    assert_eq!(graph.bn_uses.len(), 49);
    assert_eq!(count(&graph, is_relu), 49, "post-activation, and a stem with ReLU");
}

#[test]
fn quirk_04_wide_networks_move_three_batch_norms_twice() {
    let moves = |spec: &NetworkSpec, bn| {
        let graph = build(spec, 10, [32, 32, 3], bn).graph;
        let counter = |e: Entry| match e.value {
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
    let doubled = |(name, moves): &(String, usize)| *moves == if twice.contains(name) { 4 } else { 2 };
    assert!(split.iter().all(doubled), "each group moves them");
    spec.wrn_bn = Some(WrnBn::Once);
    assert_eq!(moves(&spec, BnMode::Train { groups: 1 }).len(), 13);
    assert!(moves(&spec, BnMode::Train { groups: 1 }).iter().all(|(_, moves)| *moves == 1));
}

#[test]
fn quirk_05_wide_taps_are_raw_and_projections_bare() {
    let Built { graph, tap_ops, taps } = train("wrn_40_2", 100, 32);
    assert!(is_conv(&tap_ops[0]), "the stem tap is the raw convolution");
    assert!(tap_ops[1..].iter().all(|op| matches!(op, Op::Binary(_))), "stage taps are sums: {tap_ops:?}");
    assert_eq!(taps.last(), Some(&Shape::new(&[1, 128])));
    assert!(!has(&graph, "convShortcut.1") && !has(&graph, "shortcut.bn"));
    let projection = reader(&graph, "block2.layer.0.convShortcut.weight");
    let input = source_of(&graph, projection, 0);
    assert!(is_relu(&input.op), "fed by the activated input, not by {}", input.op);
    // Width 1: no projection in block1, which keeps its 16 channels.
    let narrow = train("wrn_16_1", 100, 32).graph;
    let projected = |block: &str| shape(&narrow, &format!("{block}.layer.0.convShortcut.weight")).is_some();
    assert_eq!(["block1", "block2", "block3"].map(projected), [false, true, true]);
}

#[test]
fn quirk_06_wide_stems_and_their_projection() {
    for (name, stem, projected) in [("resnet20", 16, false), ("resnet14x2", 16, true), ("resnet8x4", 32, true)] {
        let graph = train(name, 100, 32).graph;
        assert_eq!(shape(&graph, "conv1.weight"), Some(vec![stem, 3, 3, 3]), "{name}");
        assert_eq!(shape(&graph, "layer1.0.downsample.0.weight").is_some(), projected, "{name}");
    }
    let wide = train("resnet10x2_imagenet", 100, 64).graph;
    assert_eq!(shape(&wide, "layer1.0.downsample.0.weight"), Some(vec![128, 1, 1, 64]));
}

#[test]
fn quirk_07_mobilenetv2_of_the_benches() {
    let Built { graph, taps, tap_ops } = train("mobilenetv2", 100, 32);
    assert_eq!(shape(&graph, "blocks.0.0.conv.0.weight"), Some(vec![16, 1, 1, 16]), "t = 1 keeps its expansion");
    assert_eq!(taps[1], Shape::new(&[1, 16, 16, 12]), "blocks.1 keeps the size");
    assert_eq!([count(&graph, is_relu), count(&graph, |op| *op == Op::Unary(Unary::Relu6))], [36, 0]);
    assert_eq!(shape(&graph, "conv2.0.weight"), Some(vec![1280, 1, 1, 160]), "the head is not halved");
    assert_eq!(shape(&graph, "classifier.0.weight"), Some(vec![100, 1280]));
    assert!(is_relu(&tap_ops[0]) && tap_ops[1..].iter().all(|op| !is_relu(op)), "blocks end without activation");
    // torchvision's has neither that expansion nor plain ReLU.
    let tv = train("mobilenet_v2", 100, 64).graph;
    assert_eq!(shape(&tv, "features.1.conv.0.0.weight"), Some(vec![32, 3, 3, 1]));
    assert_eq!([count(&tv, is_relu), count(&tv, |op| *op == Op::Unary(Unary::Relu6))], [0, 35]);
}

#[test]
fn quirk_08_shuffle_stems_activations_and_the_pool() {
    for name in ["shufflev1", "shufflev2", "shufflev2_1_5"] {
        let Built { graph, taps, .. } = train(name, 100, 32);
        assert_eq!(shape(&graph, "conv1.weight"), Some(vec![24, 1, 1, 3]), "{name}");
        assert_eq!(taps[0], Shape::new(&[1, 32, 32, 24]), "{name}: no stride");
        assert_eq!(count(&graph, |op| matches!(op, Op::MaxPool(_))), 0, "{name}");
    }
    let (v1, v2) = (train("shufflev1", 100, 32).graph, train("shufflev2", 100, 32).graph);
    // The depthwise convolution's batch norm has its ReLU in the first and not in the second.
    let behind = |graph: &Graph, conv: &str| is_relu(&source_of(graph, reader(graph, conv), 0).op);
    assert!(behind(&v1, "layer1.1.conv3.weight") && !behind(&v2, "layer1.1.conv3.weight"));
    // Padding zeros count in the mean: `AvgPool` divides by the whole window.
    assert_eq!(count(&v1, |op| *op == Op::AvgPool(PoolArgs { kernel: 3, stride: 2, pad: 1 })), 3);
    // The first unit has one group and no shuffle.
    assert_eq!(shape(&v1, "layer1.0.conv1.weight"), Some(vec![54, 1, 1, 24]));
    assert_eq!(shape(&v1, "layer1.0.conv3.weight"), Some(vec![216, 1, 1, 18]));
    assert_eq!(count(&v1, |op| *op == Op::ChannelShuffle { groups: 3 }), 15);
}

#[test]
fn quirk_09_shufflev2_taps_are_shuffled() {
    // Published codes also list maps before the last ReLU, without the shuffle; there are none here.
    let Built { graph, tap_ops, .. } = train("shufflev2", 100, 32);
    assert!(tap_ops[1..].iter().all(|op| *op == Op::ChannelShuffle { groups: 2 }), "{tap_ops:?}");
    let shuffles: Vec<_> = graph.nodes.iter().filter(|n| matches!(n.op, Op::ChannelShuffle { .. })).collect();
    assert_eq!(shuffles.len(), 16);
    for shuffle in shuffles {
        let concat = source_of(&graph, shuffle, 0);
        let passed = &source_of(&graph, concat, 0).op;
        let down = is_relu(passed) && concat.path.contains(".0/");
        assert!(down || matches!(passed, Op::Slice { axis: Axis::Channel, start: 0, .. }), "{}", concat.path);
    }
}

#[test]
fn quirk_10_vgg_has_biases_an_extra_pool_at_64_and_one_linear_layer() {
    let pools = |height: usize, width: usize| {
        let graph = build(&NetworkSpec::new("vgg8"), 10, [height, width, 3], BnMode::Eval).graph;
        count(&graph, |op| *op == Op::MaxPool(PoolArgs { kernel: 2, stride: 2, pad: 0 }))
    };
    assert_eq!([pools(32, 32), pools(64, 64), pools(64, 32), pools(32, 64), pools(96, 96)], [3, 4, 4, 3, 3]);
    let graph = train("vgg16", 100, 32).graph;
    assert_eq!([count(&graph, is_conv), count(&graph, |op| *op == Op::AddBias)], [13, 13]);
    assert_eq!(count(&graph, |op| matches!(op, Op::Matmul(_))), 1);
    assert_eq!(shape(&graph, "block4.6.bias"), Some(vec![512]));
    assert_eq!(shape(&graph, "block4.7.running_mean"), Some(vec![512]));
}

#[test]
fn quirk_11_cifar_densenet_puts_new_channels_first() {
    for (name, layers, new) in [("cifar_densenet121", 58, 0), ("densenet40_12", 36, 1), ("densenet121", 58, 1)] {
        let graph = train(name, 100, 64).graph;
        let concats: Vec<_> = graph.nodes.iter().filter(|n| matches!(n.op, Op::Concat { .. })).collect();
        assert_eq!(concats.len(), layers, "{name}");
        let growth = |n: &spec::Node| (source_of(&graph, n, new).op.clone(), graph.shape(n.inputs[new])[3]);
        let expected = if name == "densenet40_12" { 12 } else { 32 };
        assert!(concats.iter().all(|n| is_conv(&growth(n).0) && growth(n).1 == expected), "{name}");
    }
}

#[test]
fn quirk_12_mobilenetv2_of_tiny_imagenet_pads_its_stem() {
    let Built { graph, taps, .. } = train("mobilenetv2_tinyimagenet", 200, 64);
    assert_eq!(taps[0], Shape::new(&[1, 66, 66, 32]));
    assert_eq!(count(&graph, |op| *op == Op::AddBias), count(&graph, is_conv), "biases everywhere");
    assert_eq!(shape(&graph, "conv2.weight"), Some(vec![200, 1, 1, 1280]), "the classifier is a convolution");
    assert_eq!(shape(&graph, "stage1.residual.0.weight"), Some(vec![32, 1, 1, 32]));
    assert_eq!([count(&graph, is_relu), count(&graph, |op| *op == Op::Unary(Unary::Relu6))], [0, 36]);
    assert_eq!(count(&graph, |op| *op == Op::AvgPool(PoolArgs { kernel: 9, stride: 1, pad: 0 })), 1);
}

#[test]
fn quirk_13_any_image_size_and_channel_count() {
    // Published nets pool over a fixed window and break at other sizes.
    for name in NetworkSpec::names() {
        let spec = NetworkSpec::new(name);
        for image in [[28, 28, 1], [64, 64, 3], [33, 47, 3], [8, 8, 3], [1, 1, 5]] {
            let Built { graph, taps, .. } = build(&spec, 10, image, BnMode::Train { groups: 1 });
            let axis = if name == "linear" { 1 } else { 3 };
            assert_eq!(graph.states[0].shape[axis], image[2], "{name}");
            assert_eq!(taps.last().unwrap().rank(), 2, "{name}");
        }
    }
}

#[test]
fn quirk_14_the_stem_is_tapped_before_the_max_pool() {
    let pool = PoolArgs { kernel: 3, stride: 2, pad: 1 };
    for name in NetworkSpec::names() {
        let (facts, Built { graph, taps, .. }) = (NetworkSpec::new(name).facts().unwrap(), train(name, 10, 64));
        let pooled = facts.side == 224 && !name.starts_with("mobilenet");
        assert_eq!(count(&graph, |op| *op == Op::MaxPool(pool)), usize::from(pooled), "{name}");
        assert!(!pooled || taps[0].dims()[1] == 32, "{name}: stem of {}", taps[0]);
    }
}

#[test]
fn quirk_15_what_does_not_run_as_stored_runs() {
    // The benches' ShuffleV2 at 64, whose fixed 4×4 pool leaves 2×2; and the ImageNet form, whose last convolution they lost.
    let Built { graph, taps, .. } = train("shufflev2", 200, 64);
    assert_eq!((taps[3], taps[4]), (Shape::new(&[1, 8, 8, 464]), Shape::new(&[1, 1024])));
    assert_eq!(shape(&graph, "linear.weight"), Some(vec![200, 1024]));
    assert!(has(&train("shufflenet_v2_x1_0", 10, 64).graph, "conv5.0.weight"));
}

#[test]
fn quirk_16_names_that_mislead() {
    // resnet38x2, called WRN-40-2 in one paper's tables, is another network with 448 parameters more.
    let total = |name: &str, classes| params(&train(name, classes, 32).graph, |_| true);
    assert_eq!(total("resnet38x2", 100) - total("wrn_40_2", 100), 448);
    // What one paper calls MobileNetV2 on ImageNet is MobileNetV1.
    assert_eq!([total("mobilenetv1", 1000), total("mobilenet_v2", 1000)], [4_231_976, 3_504_872]);
}

#[test]
fn quirk_17_parameters_start_as_published() {
    let init = |name: &str, state: &str| {
        let graph = train(name, 100, 32).graph;
        graph.state(graph.find_state(&format!("student.{state}")).expect(state)).init.clone()
    };
    let normal = |elements: f64| Init::Normal((2.0 / elements).sqrt());
    let uniform = |fan_in: f64| Init::Uniform(1.0 / fan_in.sqrt());
    for (name, state, expected) in [
        // F, and F0 of wide nets.
        ("resnet8", "conv1.weight", normal(9.0 * 16.0)),
        ("resnet8", "fc.weight", uniform(64.0)),
        ("resnet8", "fc.bias", uniform(64.0)),
        ("resnet8", "bn1.weight", Init::Const(1.0)),
        ("resnet8", "layer2.0.downsample.0.weight", normal(32.0)),
        ("wrn_16_1", "conv1.weight", normal(9.0 * 16.0)),
        ("wrn_16_1", "fc.bias", Init::Const(0.0)),
        ("cifar_resnet18", "linear.bias", uniform(512.0)),
        ("resnet50", "conv1.weight", normal(49.0 * 64.0)),
        ("resnet50", "layer1.0.bn3.weight", Init::Const(1.0)), // no source starts the last scale at zero
        ("resnext50_32x4d", "layer1.0.conv2.weight", normal(9.0 * 128.0)), // all of the output channels
        // D: default uniform.
        ("preact_resnet18", "conv1.weight", uniform(27.0)),
        ("skl_resnet50", "layer1.0.downsample.0.weight", uniform(64.0)),
        ("mixskd_resnet18", "layer1.0.conv1.weight", uniform(9.0 * 64.0)),
        ("cifar_densenet121", "dense1.0.conv2.weight", uniform(9.0 * 128.0)),
        ("shufflev1", "layer1.1.conv1.weight", uniform(80.0)), // 240 channels in three groups
        ("shufflev2", "layer1.1.conv2.weight", uniform(9.0)),
        ("shufflenet_v2_x1_0", "conv5.0.weight", uniform(464.0)),
        ("mobilenetv1", "model.1.0.weight", uniform(9.0)),
        ("mobilenetv2_tinyimagenet", "stage2.0.residual.3.bias", uniform(9.0)),
        ("linear", "fc.weight", uniform(3.0)),
        // FN. A depthwise filter counts all channels: std sqrt(2/(9·16)).
        ("vgg8", "block1.0.weight", normal(9.0 * 128.0)),
        ("vgg8", "block1.0.bias", Init::Const(0.0)),
        ("vgg8", "classifier.weight", Init::Normal(0.01)),
        ("vgg8", "classifier.bias", Init::Const(0.0)),
        ("mobilenetv2", "blocks.0.0.conv.3.weight", normal(9.0 * 16.0)),
        ("mobilenet_v2", "classifier.1.weight", Init::Normal(0.01)),
        // I0.
        ("densenet121", "features.conv0.weight", normal(49.0 * 3.0)),
        ("densenet121", "classifier.weight", uniform(1024.0)),
        ("densenet121", "classifier.bias", Init::Const(0.0)),
    ] {
        assert_eq!(init(name, state), expected, "{name} {state}");
    }
}

#[test]
fn residual_activations() {
    for name in NetworkSpec::names().filter(|name| name.contains("resn") || name.starts_with("wrn_")) {
        let graph = train(name, 10, 64).graph;
        // Each batch norm has its ReLU, at once or behind the sum, but for those of projections and one stem.
        let projections = graph.states.iter().filter(|s| s.name.ends_with(".1.running_mean")).count();
        let bare = projections + usize::from(name.starts_with("mixskd"));
        assert_eq!(count(&graph, is_relu), graph.bn_uses.len() - bare, "{name}");
        assert_eq!(count(&graph, |op| *op == Op::GlobalAvgPool), 1, "{name}");
    }
}
