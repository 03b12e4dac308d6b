//! Text before and after each fusion.

use crate::support::{assert_text, body, fused, input, one_phase, options};
use plan::{Arena, Fusion, Options, StateTable, StepGraph, Storage, compile};
use spec::{
    BnMode, Builder, Expr, Graph, ImageArgs, Init, Losses, Net, Op, Place, Precision, Section, StateKind, ValueId,
};
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
    assert_text(
        &body(&fused(&bn_relu(), Fusion::Off)),
        "
        body 0
          %3: f32[2, 6, 6, 4] = conv_fprop(stride 1, pad 1)(batch.image, student.conv1.weight)  ; student/conv1
          %6: f32[1, 4], %7: f32[1, 4], %8: f32[1, 4] = bn_stats(%3)  ; student/bn1
          %9: f32[2, 6, 6, 4] = bn_apply(Batch)(%3, %6, %7, student.bn1.weight, student.bn1.bias)  ; student/bn1
          %10: f32[2, 6, 6, 4] = relu(%9)  ; student/bn1.relu
          %11: f32[2, 4] = global_avg_pool(%10)  ; student/bn1.global_avg_pool
          %14: f32[2, 5] = matmul(NT)(%11, student.fc.weight, student.fc.bias)  ; student/fc
          %15: f32[] = row_loss(cross_entropy(label))(%14, batch.label)  ; student/fc.row_loss
          %16: f32[2, 5] = row_loss_grad(cross_entropy(label), Student, weight 1)(%14, batch.label)  ; student/fc.row_loss
          %17: f32[2, 4] = matmul(NN)(%16, student.fc.weight)  ; student/fc
          %18: f32[5, 4] = matmul(TN)(%16, %11)  ; student/fc
          %19: f32[5] = column_sum(%16)  ; student/fc
          %20: f32[2, 6, 6, 4] = global_avg_pool_grad(%17)  ; student/bn1.global_avg_pool
          %21: f32[2, 6, 6, 4] = relu_grad(%20, %10)  ; student/bn1.relu
          %22: f32[4], %23: f32[4], %24: f32[1, 2, 4] = bn_grad_sums(%21, %3, %6, %7)  ; student/bn1
          %25: f32[2, 6, 6, 4] = bn_grad_apply(%21, %3, %6, %7, student.bn1.weight, %24)  ; student/bn1
          %26: f32[4, 3, 3, 3] = conv_wgrad(stride 1, pad 1)(batch.image, %25)  ; student/conv1
    ",
    );
}

#[test]
fn batch_norm_and_relu_become_one() {
    assert_text(&body(&fused(&bn_relu(), Fusion::Full)), "
        body 0
          %3: f32[2, 6, 6, 4], %6: f32[1, 4], %7: f32[1, 4], %8: f32[1, 4] = conv_stats(stride 1, pad 1)(batch.image, student.conv1.weight)  ; student/conv1
          %10: f32[2, 6, 6, 4], %37: u8[36] = bn_act(Batch, relu)(%3, %6, %7, student.bn1.weight, student.bn1.bias)  ; student/bn1
          %11: f32[2, 4] = global_avg_pool(%10)  ; student/bn1.global_avg_pool
          %14: f32[2, 5] = matmul(NT)(%11, student.fc.weight, student.fc.bias)  ; student/fc
          %15: f32[], %16: f32[2, 5] = row_losses(cross_entropy(label), rows #0+0 #1+0, student grad 1)(%14, batch.label)  ; losses
          %17: f32[2, 4] = matmul(NN)(%16, student.fc.weight)  ; student/fc
          %18: f32[5, 4] = matmul(TN)(%16, %11)  ; student/fc
          %19: f32[5] = column_sum(%16)  ; student/fc
          %20: f32[2, 6, 6, 4] = global_avg_pool_grad(%17)  ; student/bn1.global_avg_pool
          %22: f32[4], %23: f32[4], %24: f32[1, 2, 4] = bn_grad_sums(%20, %3, %6, %7, %37)  ; student/bn1
          %25: f32[2, 6, 6, 4] = bn_grad_apply(%20, %3, %6, %7, student.bn1.weight, %24, %37)  ; student/bn1
          %26: f32[4, 3, 3, 3] = conv_wgrad(stride 1, pad 1)(batch.image, %25)  ; student/conv1
    ");
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
    assert_text(
        &body(&fused(&residual(), Fusion::Off)),
        "
        body 0
          %3: f32[2, 6, 6, 4] = conv_fprop(stride 1, pad 0)(batch.image, student.conv0.weight)  ; student/conv0
          %5: f32[2, 6, 6, 4] = conv_fprop(stride 1, pad 1)(%3, student.conv1.weight)  ; student/conv1
          %8: f32[1, 4], %9: f32[1, 4], %10: f32[1, 4] = bn_stats(%5)  ; student/bn1
          %11: f32[2, 6, 6, 4] = bn_apply(Batch)(%5, %8, %9, student.bn1.weight, student.bn1.bias)  ; student/bn1
          %12: f32[2, 6, 6, 4] = add(%11, %3)  ; student/bn1.add
          %13: f32[2, 6, 6, 4] = relu(%12)  ; student/bn1.relu
          %14: f32[2, 4] = global_avg_pool(%13)  ; student/bn1.global_avg_pool
          %17: f32[2, 5] = matmul(NT)(%14, student.fc.weight, student.fc.bias)  ; student/fc
          %18: f32[] = row_loss(cross_entropy(label))(%17, batch.label)  ; student/fc.row_loss
          %19: f32[2, 5] = row_loss_grad(cross_entropy(label), Student, weight 1)(%17, batch.label)  ; student/fc.row_loss
          %20: f32[2, 4] = matmul(NN)(%19, student.fc.weight)  ; student/fc
          %21: f32[5, 4] = matmul(TN)(%19, %14)  ; student/fc
          %22: f32[5] = column_sum(%19)  ; student/fc
          %23: f32[2, 6, 6, 4] = global_avg_pool_grad(%20)  ; student/bn1.global_avg_pool
          %24: f32[2, 6, 6, 4] = relu_grad(%23, %13)  ; student/bn1.relu
          %25: f32[4], %26: f32[4], %27: f32[1, 2, 4] = bn_grad_sums(%24, %5, %8, %9)  ; student/bn1
          %28: f32[2, 6, 6, 4] = bn_grad_apply(%24, %5, %8, %9, student.bn1.weight, %27)  ; student/bn1
          %29: f32[4, 3, 3, 4] = conv_wgrad(stride 1, pad 1)(%3, %28)  ; student/conv1
          %30: f32[2, 6, 6, 4] = conv_dgrad(stride 1, pad 1)(%28, student.conv1.weight)  ; student/conv1
          %31: f32[2, 6, 6, 4] = add(%24, %30)  ; student/conv0
          %32: f32[4, 1, 1, 3] = conv_wgrad(stride 1, pad 0)(batch.image, %31)  ; student/conv0
    ",
    );
}

/// BN, add and ReLU are one launch with a mask; `bn_grad_apply` makes the shortcut's gradient too, and the data gradient of
/// the convolution adds it.
#[test]
fn residual_block_becomes_one_and_its_fork_is_added_in_the_data_gradient() {
    assert_text(&body(&fused(&residual(), Fusion::Full)), "
        body 0
          %3: f32[2, 6, 6, 4] = conv_fprop(stride 1, pad 0)(batch.image, student.conv0.weight)  ; student/conv0
          %5: f32[2, 6, 6, 4], %8: f32[1, 4], %9: f32[1, 4], %10: f32[1, 4] = conv_stats(stride 1, pad 1)(%3, student.conv1.weight)  ; student/conv1
          %13: f32[2, 6, 6, 4], %44: u8[36] = bn_act(Batch, relu)(%5, %8, %9, student.bn1.weight, student.bn1.bias, %3)  ; student/bn1
          %14: f32[2, 4] = global_avg_pool(%13)  ; student/bn1.global_avg_pool
          %17: f32[2, 5] = matmul(NT)(%14, student.fc.weight, student.fc.bias)  ; student/fc
          %18: f32[], %19: f32[2, 5] = row_losses(cross_entropy(label), rows #0+0 #1+0, student grad 1)(%17, batch.label)  ; losses
          %20: f32[2, 4] = matmul(NN)(%19, student.fc.weight)  ; student/fc
          %21: f32[5, 4] = matmul(TN)(%19, %14)  ; student/fc
          %22: f32[5] = column_sum(%19)  ; student/fc
          %23: f32[2, 6, 6, 4] = global_avg_pool_grad(%20)  ; student/bn1.global_avg_pool
          %25: f32[4], %26: f32[4], %27: f32[1, 2, 4] = bn_grad_sums(%23, %5, %8, %9, %44)  ; student/bn1
          %28: f32[2, 6, 6, 4], %24: f32[2, 6, 6, 4] = bn_grad_apply(%23, %5, %8, %9, student.bn1.weight, %27, %44)  ; student/bn1
          %29: f32[4, 3, 3, 4] = conv_wgrad(stride 1, pad 1)(%3, %28)  ; student/conv1
          %31: f32[2, 6, 6, 4] = conv_dgrad(stride 1, pad 1)(%28, student.conv1.weight, %24)  ; student/conv1
          %32: f32[4, 1, 1, 3] = conv_wgrad(stride 1, pad 0)(batch.image, %31)  ; student/conv0
    ");
}

/// A pre-activation block: its sum is the input of the next batch norm.
fn pre_activation() -> StepGraph {
    let (graph, image, label) = start(2, 1);
    let b = Builder::new(graph);
    let losses = {
        let net = student(&b);
        let x = net.conv("conv0", b.expr(image), 4, 1, 1);
        let sum = x + net.conv("conv1", net.bn("bn1", x).relu(), 4, 3, 1);
        let y = net.bn("bn2", sum).relu();
        Losses::new().term("ce", 1.0, net.linear("fc", y.mean_hw(), 5).cross_entropy(b.expr(label)))
    };
    one_phase(b, losses)
}

/// The convolution that ends the block adds the shortcut and makes the statistics of the sum.
#[test]
fn pre_activation_block_ends_in_its_convolution() {
    assert_text(&body(&fused(&pre_activation(), Fusion::Full)), "
        body 0
          %3: f32[2, 6, 6, 4], %6: f32[1, 4], %7: f32[1, 4], %8: f32[1, 4] = conv_stats(stride 1, pad 0)(batch.image, student.conv0.weight)  ; student/conv0
          %10: f32[2, 6, 6, 4], %60: u8[36] = bn_act(Batch, relu)(%3, %6, %7, student.bn1.weight, student.bn1.bias)  ; student/bn1
          %13: f32[2, 6, 6, 4], %16: f32[1, 4], %17: f32[1, 4], %18: f32[1, 4] = conv_stats(stride 1, pad 1)(%10, student.conv1.weight, %3)  ; student/conv1
          %20: f32[2, 6, 6, 4], %61: u8[36] = bn_act(Batch, relu)(%13, %16, %17, student.bn2.weight, student.bn2.bias)  ; student/bn2
          %21: f32[2, 4] = global_avg_pool(%20)  ; student/bn2.global_avg_pool
          %24: f32[2, 5] = matmul(NT)(%21, student.fc.weight, student.fc.bias)  ; student/fc
          %25: f32[], %26: f32[2, 5] = row_losses(cross_entropy(label), rows #0+0 #1+0, student grad 1)(%24, batch.label)  ; losses
          %27: f32[2, 4] = matmul(NN)(%26, student.fc.weight)  ; student/fc
          %28: f32[5, 4] = matmul(TN)(%26, %21)  ; student/fc
          %29: f32[5] = column_sum(%26)  ; student/fc
          %30: f32[2, 6, 6, 4] = global_avg_pool_grad(%27)  ; student/bn2.global_avg_pool
          %32: f32[4], %33: f32[4], %34: f32[1, 2, 4] = bn_grad_sums(%30, %13, %16, %17, %61)  ; student/bn2
          %35: f32[2, 6, 6, 4] = bn_grad_apply(%30, %13, %16, %17, student.bn2.weight, %34, %61)  ; student/bn2
          %36: f32[4, 3, 3, 4] = conv_wgrad(stride 1, pad 1)(%10, %35)  ; student/conv1
          %37: f32[2, 6, 6, 4] = conv_dgrad(stride 1, pad 1)(%35, student.conv1.weight)  ; student/conv1
          %39: f32[4], %40: f32[4], %41: f32[1, 2, 4] = bn_grad_sums(%37, %3, %6, %7, %60)  ; student/bn1
          %42: f32[2, 6, 6, 4] = bn_grad_apply(%37, %3, %6, %7, student.bn1.weight, %41, %60)  ; student/bn1
          %43: f32[2, 6, 6, 4] = add(%35, %42)  ; student/conv0
          %44: f32[4, 1, 1, 3] = conv_wgrad(stride 1, pad 0)(batch.image, %43)  ; student/conv0
    ");
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
        let logits = student(&b).linear("fc", z.mean_hw(), 5);
        Losses::new().term("ce", 1.0, logits.cross_entropy(b.expr(label)))
    };
    one_phase(b, losses)
}

#[test]
fn frozen_block_before() {
    assert_text(&body(&fused(&frozen(), Fusion::Off)), "
        body 0
          %3: f32[2, 6, 6, 4] = conv_fprop(stride 1, pad 1)(batch.image, teacher.conv1.weight)  ; teacher/conv1
          %8: f32[2, 6, 6, 4] = bn_apply(Running)(%3, teacher.bn1.running_mean, teacher.bn1.running_var, teacher.bn1.weight, teacher.bn1.bias)  ; teacher/bn1
          %9: f32[2, 6, 6, 4] = relu(%8)  ; teacher/bn1.relu
          %11: f32[2, 6, 6, 4] = conv_fprop(stride 1, pad 1)(%9, teacher.conv2.weight)  ; teacher/conv2
          %16: f32[2, 6, 6, 4] = bn_apply(Running)(%11, teacher.bn2.running_mean, teacher.bn2.running_var, teacher.bn2.weight, teacher.bn2.bias)  ; teacher/bn2
          %18: f32[2, 6, 6, 4] = conv_fprop(stride 1, pad 0)(%9, teacher.project.weight)  ; teacher/project
          %23: f32[2, 6, 6, 4] = bn_apply(Running)(%18, teacher.bn3.running_mean, teacher.bn3.running_var, teacher.bn3.weight, teacher.bn3.bias)  ; teacher/bn3
          %24: f32[2, 6, 6, 4] = add(%16, %23)  ; teacher/bn2.add
          %25: f32[2, 6, 6, 4] = relu(%24)  ; teacher/bn2.relu
          %26: f32[2, 4] = global_avg_pool(%25)  ; teacher/bn2.global_avg_pool
          %29: f32[2, 5] = matmul(NT)(%26, student.fc.weight, student.fc.bias)  ; student/fc
          %30: f32[] = row_loss(cross_entropy(label))(%29, batch.label)  ; student/fc.row_loss
          %31: f32[2, 5] = row_loss_grad(cross_entropy(label), Student, weight 1)(%29, batch.label)  ; student/fc.row_loss
          %32: f32[5, 4] = matmul(TN)(%31, %26)  ; student/fc
          %33: f32[5] = column_sum(%31)  ; student/fc
    ");
}

/// Each convolution takes its batch norm, the second of the two at the add takes add and ReLU; weights are folded once.
#[test]
fn frozen_block_is_folded() {
    assert_text(&body(&fused(&frozen(), Fusion::Full)), "
        prepare 0
          %39: f32[4, 3, 3, 3], %40: f32[4] = fold_bn(teacher.conv1.weight, teacher.bn1.running_mean, teacher.bn1.running_var, teacher.bn1.weight, teacher.bn1.bias)  ; teacher/bn1
          %41: f32[4, 3, 3, 4], %42: f32[4] = fold_bn(teacher.conv2.weight, teacher.bn2.running_mean, teacher.bn2.running_var, teacher.bn2.weight, teacher.bn2.bias)  ; teacher/bn2
          %43: f32[4, 1, 1, 4], %44: f32[4] = fold_bn(teacher.project.weight, teacher.bn3.running_mean, teacher.bn3.running_var, teacher.bn3.weight, teacher.bn3.bias)  ; teacher/bn3
        body 0
          %9: f32[2, 6, 6, 4] = conv_act(stride 1, pad 1, relu)(batch.image, %39, %40)  ; teacher/conv1
          %16: f32[2, 6, 6, 4] = conv_act(stride 1, pad 1)(%9, %41, %42)  ; teacher/conv2
          %25: f32[2, 6, 6, 4] = conv_act(stride 1, pad 0, relu)(%9, %43, %44, %16)  ; teacher/project
          %26: f32[2, 4] = global_avg_pool(%25)  ; teacher/bn2.global_avg_pool
          %29: f32[2, 5] = matmul(NT)(%26, student.fc.weight, student.fc.bias)  ; student/fc
          %30: f32[], %31: f32[2, 5] = row_losses(cross_entropy(label), rows #0+0 #1+0, student grad 1)(%29, batch.label)  ; losses
          %32: f32[5, 4] = matmul(TN)(%31, %26)  ; student/fc
          %33: f32[5] = column_sum(%31)  ; student/fc
    ");
}

/// A batch norm on running statistics that is trained must not be folded.
#[test]
fn what_is_trained_is_not_folded() {
    let mut step = frozen();
    step.phases[0].trains = vec![spec::TrainRange::new("")];
    let text = body(&fused(&step, Fusion::Full));
    assert!(!text.contains("fold_bn") && !text.contains("conv_act"), "{text}");
}

/// Two views of pairs of 8-bit images, patches exchanged; one classifier; the losses of IPS.
fn ips() -> StepGraph {
    ips_of(|_, image| image)
}

/// As above, of what `stem` makes of the images.
fn ips_of(stem: impl for<'g> Fn(&Net<'g>, Expr<'g>) -> Expr<'g>) -> StepGraph {
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
        let net = student(&b);
        let logits = net.linear("fc", stem(&net, swapped).mean_hw(), 5);
        let (first, second) = logits.halves();
        let kd = 0.5 * (first.kl(second.detach(), 4.0) + second.kl(first.detach(), 4.0));
        Losses::new().term("ce", 1.0, logits.cross_entropy(b.expr(label))).term("kd", 16.0, kd)
    };
    one_phase(b, losses)
}

#[test]
fn ips_before() {
    assert_text(
        &body(&fused(&ips(), Fusion::Off)),
        "
        body 0
          %4: f32[4, 6, 6, 3] = image_input(size 6x6, pad 0, flip)(batch.pixels, batch.flip)  ; input/image
          %5: f32[4, 6, 6, 3] = patch_swap(cell 3)(%4, batch.mask)  ; input/image.patch_swap
          %6: f32[4, 3] = global_avg_pool(%5)  ; input/image.global_avg_pool
          %9: f32[4, 5] = matmul(NT)(%6, student.fc.weight, student.fc.bias)  ; student/fc
          %10: f32[2, 5] = slice(Batch, 0..2)(%9)  ; student/fc.slice
          %11: f32[2, 5] = slice(Batch, 2..4)(%9)  ; student/fc.slice
          %13: f32[] = row_loss(kl(logits, T 4))(%10, %11)  ; student/fc.row_loss
          %15: f32[] = row_loss(kl(logits, T 4))(%11, %10)  ; student/fc.row_loss
          %16: f32[] = row_loss(cross_entropy(label))(%9, batch.label)  ; student/fc.row_loss
          %17: f32[4, 5] = row_loss_grad(cross_entropy(label), Student, weight 1)(%9, batch.label)  ; student/fc.row_loss
          %18: f32[2, 5] = row_loss_grad(kl(logits, T 4), Student, weight 8)(%11, %10)  ; student/fc.row_loss
          %19: f32[2, 5] = row_loss_grad(kl(logits, T 4), Student, weight 8)(%10, %11)  ; student/fc.row_loss
          %20: f32[4, 5] = unslice(Batch, from 2 of 4)(%18)  ; student/fc.slice
          %21: f32[4, 5] = add(%17, %20)  ; student/fc
          %22: f32[4, 5] = unslice(Batch, from 0 of 4)(%19)  ; student/fc.slice
          %23: f32[4, 5] = add(%21, %22)  ; student/fc
          %24: f32[5, 3] = matmul(TN)(%23, %6)  ; student/fc
          %25: f32[5] = column_sum(%23)  ; student/fc
    ",
    );
}

/// Input and patch swap are one launch, the three losses another: halves are views, the gradient is made once.
#[test]
fn ips_becomes_one_input_and_one_loss() {
    assert_text(&body(&fused(&ips(), Fusion::Full)), "
        body 0
          %5: f32[4, 6, 6, 3] = image_swap(size 6x6, pad 0, flip, cell 3)(batch.pixels, batch.flip, batch.mask)  ; input/image.patch_swap
          %6: f32[4, 3] = global_avg_pool(%5)  ; input/image.global_avg_pool
          %9: f32[4, 5] = matmul(NT)(%6, student.fc.weight, student.fc.bias)  ; student/fc
          %13: f32[], %15: f32[], %16: f32[], %23: f32[4, 5] = row_losses(kl(logits, T 4), rows #0+0 #0+2, student grad 8; kl(logits, T 4), rows #0+2 #0+0, student grad 8; cross_entropy(label), rows #0+0 #1+0, student grad 1)(%9, batch.label)  ; losses
          %24: f32[5, 3] = matmul(TN)(%23, %6)  ; student/fc
          %25: f32[5] = column_sum(%23)  ; student/fc
    ");
}

/// On a device images that convolutions and image ops alone read lie in pixels of four channels, all of a step or none.
#[test]
fn images_of_convolutions_have_a_fourth_channel_in_memory() {
    let images = |step: StepGraph, storage: Storage| -> Vec<usize> {
        let options = Options { storage, ..options(Fusion::Off) };
        let plan = compile(step, &options, &mut StateTable::default(), None).unwrap();
        let made = plan.launches.iter().filter(|l| matches!(l.op, Op::ImageInput(_) | Op::PatchSwap { .. }));
        let stored: Vec<_> = made.map(|l| l.outputs[0]).collect();
        assert!(stored.iter().all(|a| a.shape[3] == 3 && a.stored.dims()[..3] == a.shape.dims()[..3]));
        stored.iter().map(|a| a.stored[3]).collect()
    };
    let conv = || ips_of(|net, image| net.conv("conv1", image, 4, 3, 1));
    assert_eq!(images(conv(), Storage::Device), [4, 4]);
    assert_eq!(images(conv(), Storage::CpuF32), [3, 3]);
    assert_eq!(images(ips_of(|net, image| net.conv("conv1", image.relu(), 4, 3, 1)), Storage::Device), [3, 3]);
    assert_eq!(images(ips(), Storage::Device), [3, 3]);
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

/// What the data side delivers is copied before it is carried, detached or not: its buffer is used again.
#[test]
fn a_commit_of_an_input_copies_it() {
    let (graph, image, label) = start(2, 1);
    let b = Builder::new(graph);
    let losses = {
        let net = student(&b);
        let logits = net.linear("fc", b.expr(image).mean_hw(), 5);
        let state = net.state("memory", &[4, 6, 6, 3], StateKind::Memory, Init::Const(0.0));
        let losses = Losses::new().term("ce", 1.0, logits.cross_entropy(b.expr(label)));
        losses.assign(state, b.expr(image).detach())
    };
    let step = one_phase(b, losses);
    let text = body(&fused(&step, Fusion::Full));
    assert!(text.contains("= slice(Batch, 0..2)(batch.image)"), "{text}");
    let options = Options { storage: Storage::CpuF32, ..options(Fusion::Full) };
    let plan = compile(step, &options, &mut StateTable::default(), None).unwrap();
    assert_eq!(plan.loc(image).arena, Arena::Batch);
}
