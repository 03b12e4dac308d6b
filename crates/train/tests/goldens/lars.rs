//! LARS through graph, plan and executor: three steps of resnet8 against the formula of the paper as plain loops over the gradients
//! that the engine reports.

use crate::engine::{Case, gradients, images, states, step};
use crate::wave;
use methods::Ce;
use nets::NetworkSpec;
use plan::{Lars, OptimizerArgs};
use std::collections::BTreeMap;

const CLASSES: usize = 10;
const BATCH: usize = 4;
const TRUST: f64 = 0.01;
const EPSILON: f64 = 1e-3;
const DECAY: f64 = 5e-3;
const MOMENTUM: f64 = 0.9;

/// Whether biases and what belongs to batch norms are adapted and decayed: both or neither.
fn check(bn_bias: bool) {
    let student = NetworkSpec::new("resnet8").build(CLASSES).unwrap();
    let case = Case::new(Box::new(Ce::default()), student, CLASSES, [16, 16, 3]);
    let optimizer = OptimizerArgs {
        momentum: MOMENTUM,
        weight_decay: DECAY,
        decay_bn_bias: bn_bias,
        lars: Some(Lars { trust: TRUST, epsilon: EPSILON, adapt_bn_bias: bn_bias }),
        ..OptimizerArgs::default()
    };
    let mut engine = Case { optimizer, ..case }.engine::<f64>(BATCH);
    let mut momenta: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let (mut adapted, mut left) = (0, 0);
    // A rate that changes: it must act on new gradients alone.
    for (i, lr) in [3.0, 6.0, 0.5].into_iter().enumerate() {
        let dims = [BATCH, 16, 16, 3];
        let pixels: Vec<f64> = wave::wave(&format!("image.{i}"), dims.iter().product());
        let labels: Vec<i32> = (0..BATCH).map(|n| ((3 * n + i) % CLASSES) as i32).collect();
        let before = states(&engine);
        let values = step(&mut engine, images(&dims, &pixels, &labels), lr);
        assert_eq!(values.nonfinite, None);
        let (after, grads) = (states(&engine), gradients(&engine));
        for (name, g) in &grads {
            let matrix = engine.states.find(&format!("student.{name}")).unwrap().shape.rank() > 1;
            let w = &before[name];
            let decay = if matrix || bn_bias { DECAY } else { 0.0 };
            let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
            let ratio = match (norm(w), norm(g)) {
                (wn, gn) if (matrix || bn_bias) && wn > 0.0 && gn > 0.0 => {
                    adapted += 1;
                    TRUST * wn / (gn + decay * wn + EPSILON)
                }
                _ => {
                    left += 1;
                    1.0
                }
            };
            let v = momenta.entry(name.clone()).or_insert_with(|| vec![0.0; w.len()]);
            for (j, (v, (w, g))) in v.iter_mut().zip(w.iter().zip(g)).enumerate() {
                *v = MOMENTUM * *v + ratio * lr * (g + decay * w);
                let (got, expected) = (after[name][j], w - *v);
                assert!(
                    (got - expected).abs() <= 1e-12 * (1.0 + expected.abs()),
                    "step {i}, {name}[{j}]: {got} {expected}"
                );
            }
        }
    }
    assert!(adapted > 0 && (bn_bias || left > 0), "{adapted} tensors adapted, {left} not");
}

#[test]
fn three_steps_are_those_of_the_paper() {
    check(false);
    check(true);
}
