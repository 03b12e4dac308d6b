//! Text before and after each fusion.

use crate::support::{assert_text, body, fused, input, one_phase};
use graph::{BnMode, Builder, Graph, ImageArgs, Losses, Net, Op, Place, Precision, Section, ValueId};
use plan::{Fusion, StepGraph};
use tensor::Dtype;

/// A graph with images [n,6,6,3] and their labels.
fn start(units: usize, rows: u32) -> (Graph, ValueId, ValueId) {
    let mut graph = Graph::new(Precision::F32, [units, 0]);
    let image = input(&mut graph, "image", rows, &[6, 6, 3], Dtype::F32);
    let label = input(&mut graph, "label", rows, &[], Dtype::I32);
    (graph, image, label)
}

fn student(builder: &Builder) -> Net<'_> {
    Net::new(builder, "student", BnMode::Train { groups: 1 })
}

/// conv, batch norm, ReLU.
fn bn_relu() -> StepGraph {
    let (graph, image, label) = start(2, 1);
    let b = Builder::new(graph);
    let losses = {
        let net = student(&b);
        let x = net.bn("bn1", net.conv("conv1", b.expr(image), 4, 3, 1)).relu();
        Losses::new().term("ce", 1.0, net.linear("fc", x.mean_hw(), 5).cross_entropy(b.expr(label)))
    };
    one_phase(b, losses)
}

#[test]
fn batch_norm_and_relu_before() {
    assert_text(&body(&fused(&bn_relu(), Fusion::Off)), "@bn_relu_before");
}

#[test]
fn batch_norm_and_relu_become_one() {
    assert_text(&body(&fused(&bn_relu(), Fusion::Full)), "@bn_relu_after");
}

/// A residual block whose input is a convolution's output: the fork is in front of the first convolution.
fn residual() -> StepGraph {
    let (graph, image, label) = start(2, 1);
    let b = Builder::new(graph);
    let losses = {
        let net = student(&b);
        let x = net.conv("conv0", b.expr(image), 4, 1, 1);
        let y = (net.bn("bn1", net.conv("conv1", x, 4, 3, 1)) + x).relu();
        Losses::new().term("ce", 1.0, net.linear("fc", y.mean_hw(), 5).cross_entropy(b.expr(label)))
    };
    one_phase(b, losses)
}

#[test]
fn residual_block_before() {
    assert_text(&body(&fused(&residual(), Fusion::Off)), "@residual_before");
}

/// BN, add and ReLU are one launch with a mask; `bn_grad_apply` makes the shortcut's gradient too, and the data gradient of
/// the convolution adds it.
#[test]
fn residual_block_becomes_one_and_its_fork_is_added_in_the_data_gradient() {
    assert_text(&body(&fused(&residual(), Fusion::Full)), "@residual_after");
}

/// A frozen block with a projection, and a trained classifier.
fn frozen() -> StepGraph {
    let (graph, image, label) = start(2, 1);
    let b = Builder::new(graph);
    let losses = {
        let net = Net::new(&b, "teacher", BnMode::Eval);
        let x = net.bn("bn1", net.conv("conv1", b.expr(image), 4, 3, 1)).relu();
        let y = net.bn("bn2", net.conv("conv2", x, 4, 3, 1));
        let z = (y + net.bn("bn3", net.conv("project", x, 4, 1, 1))).relu();
        let logits = student(&b).linear("fc", z.detach().mean_hw(), 5);
        Losses::new().term("ce", 1.0, logits.cross_entropy(b.expr(label)))
    };
    one_phase(b, losses)
}

#[test]
fn frozen_block_before() {
    assert_text(&body(&fused(&frozen(), Fusion::Off)), "@frozen_before");
}

/// Each convolution takes its batch norm, the second of the two at the add takes add and ReLU; weights are folded once.
#[test]
fn frozen_block_is_folded() {
    assert_text(&body(&fused(&frozen(), Fusion::Full)), "@frozen_after");
}

/// A batch norm on running statistics that is trained must not be folded.
#[test]
fn what_is_trained_is_not_folded() {
    let mut step = frozen();
    step.phases[0].trains = vec![graph::TrainRange::new("")];
    let text = body(&fused(&step, Fusion::Full));
    assert!(!text.contains("fold_bn") && !text.contains("conv_act"), "{text}");
}

/// Two views of pairs of 8-bit images, patches exchanged; one classifier; the losses of IPS.
fn ips() -> StepGraph {
    let mut graph = Graph::new(Precision::F32, [2, 0]);
    let pixels = input(&mut graph, "pixels", 2, &[6, 6, 3], Dtype::U8);
    let flip = input(&mut graph, "flip", 2, &[], Dtype::I32);
    let mask = input(&mut graph, "mask", 1, &[4], Dtype::U8);
    let label = input(&mut graph, "label", 2, &[], Dtype::I32);
    let image = ImageArgs { size: [6, 6], pad: 0, mean: [0.5; 3], std: [0.25; 3], crop: false, flip: true };
    let place = Place { phase: 0, section: Section::Body };
    let image = graph.push(Op::ImageInput(image), &[pixels, flip], "input/image", place)[0];
    let b = Builder::new(graph);
    let losses = {
        let swapped = b.expr(image).patch_swap(b.expr(mask), 3);
        let logits = student(&b).linear("fc", swapped.mean_hw(), 5);
        let (first, second) = logits.halves();
        let kd = 0.5 * (first.kl(second.detach(), 4.0) + second.kl(first.detach(), 4.0));
        Losses::new().term("ce", 1.0, logits.cross_entropy(b.expr(label))).term("kd", 16.0, kd)
    };
    one_phase(b, losses)
}

#[test]
fn ips_before() {
    assert_text(&body(&fused(&ips(), Fusion::Off)), "@ips_before");
}

/// Input and patch swap are one launch, the three losses another: halves are views, the gradient is made once.
#[test]
fn ips_becomes_one_input_and_one_loss() {
    assert_text(&body(&fused(&ips(), Fusion::Full)), "@ips_after");
}

/// A value between the ops that a method taps stays: the pair is not fused.
#[test]
fn a_tap_between_batch_norm_and_relu_stays() {
    let (graph, image, label) = start(2, 1);
    let b = Builder::new(graph);
    let losses = {
        let net = student(&b);
        let x = net.bn("bn1", net.conv("conv1", b.expr(image), 4, 3, 1));
        let logits = net.linear("fc", x.relu().mean_hw(), 5);
        Losses::new().term("ce", 1.0, logits.cross_entropy(b.expr(label))).term("tap", 0.5, x.mse(x.detach().relu()))
    };
    let text = body(&fused(&one_phase(b, losses), Fusion::Full));
    assert!(text.contains("bn_apply(Batch)") && text.contains(" relu(") && !text.contains("bn_act"), "{text}");
}
