//! What brings a student's last feature map to a teacher's. Chen et al. 2022, arXiv:2203.14001;
//! shared by the methods that reuse a teacher's classifier.

use spec::{Expr, Step, Taps};

/// Last maps of student and teacher at the smaller of their two sizes: the larger one is pooled by its ratio.
pub(crate) fn aligned<'g>(student: Expr<'g>, teacher: Expr<'g>) -> (Expr<'g>, Expr<'g>) {
    let (s, t) = (student.shape().dims()[1], teacher.shape().dims()[1]);
    match s.cmp(&t) {
        std::cmp::Ordering::Greater => (student.avg_pool(s / t, s / t, 0), teacher),
        std::cmp::Ordering::Equal => (student, teacher),
        std::cmp::Ordering::Less => (student, teacher.avg_pool(t / s, t / s, 0)),
    }
}

/// The largest of a network's own maps that its last stage gives, [n,h,w,c].
pub(crate) fn last_map<'g>(taps: &Taps<'g>) -> Expr<'g> {
    *taps.stages.last().expect("`maps_fit` has found a stage")
}

/// Whether last maps can be brought to one size, and the projector's middle has channels.
pub(crate) fn maps_fit<'g>(step: &Step<'g>, i: usize, student: &Taps<'g>, factor: usize) -> Result<(), String> {
    let teacher = step.frozen_teacher(i, step.image());
    let (Some(s), Some(t)) = (student.stages.last(), teacher.stages.last()) else {
        return Err("the method compares feature maps, and a network of the recipe has none; name another".into());
    };
    let (s, t) = (s.shape(), t.shape());
    let whole = |a: usize, b: usize| a.max(b).is_multiple_of(a.min(b));
    let (sd, td) = (s.dims(), t.dims());
    let square = sd[1] * td[2] == sd[2] * td[1];
    if !whole(sd[1], td[1]) || !whole(sd[2], td[2]) || !square {
        return Err(format!(
            "last feature maps are {}x{} (student) and {}x{} (teacher); expected one to be a whole multiple of the other",
            sd[1], sd[2], td[1], td[2]
        ));
    }
    if teacher.pooled.shape().dims()[1] != td[3] || !step.has_linear_classifier(i) {
        return Err(format!(
            "the teacher's classifier reads {} features, its last map has {} channels; expected a teacher whose \
             linear classifier with bias reads its last stage, as those of residual and VGG networks do",
            teacher.pooled.shape().dims()[1],
            td[3]
        ));
    }
    if factor == 0 || td[3] < factor {
        return Err(format!(
            "method.projector_factor divides the teacher's {} channels, expected 1 to {}, got {factor}; 2 is the default",
            td[3], td[3]
        ));
    }
    Ok(())
}

/// 1×1, 3×3, 1×1 convolutions with batch norm and ReLU each, [n,h,w,c] → [n,h,w,out], the middle `out / factor` wide.
pub(crate) fn project<'g>(step: &Step<'g>, module: &str, x: Expr<'g>, out: usize, factor: usize) -> Expr<'g> {
    let (net, middle) = (step.module(module), out / factor);
    let x = net.bn("bn1", net.conv("conv1", x, middle, 1, 1)).relu();
    let x = net.bn("bn2", net.conv("conv2", x, middle, 3, 1)).relu();
    net.bn("bn3", net.conv("conv3", x, out, 1, 1)).relu()
}
