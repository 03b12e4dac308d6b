//! Multiply-adds of every method's step against chapter 1.2, from the published counts of the networks.

use methods::MethodSpec;
use nets::NetworkSpec;
use plan::{Fusion, OptimizerArgs, Options, Plan, StateTable, Storage, cost};
use serde_json::Value;
use spec::{Precision, Setting};
use std::path::PathBuf;
use train::recipe::BnPolicy;
use train::step::{Compile, Model};

const CLASSES: usize = 100;
const SIDE: usize = 32;

/// The step of `units` units of CIFAR-100 images.
pub(crate) fn plan(method: MethodSpec, [student, teacher]: [&str; 2], units: usize) -> Plan {
    let net = |name: &str| NetworkSpec::new(name).build(CLASSES).unwrap();
    let (teacher, facts) = (net(teacher), Setting::new(CLASSES, [SIDE, SIDE, 3], 1000, 240));
    let setting = Setting { lr: 0.05, momentum: 0.9, teachers: vec![teacher.classifier()], ..facts };
    let method = method.build();
    let spec = method.spec(&setting).unwrap();
    let previous = if spec.previous { units } else { 0 };
    let model =
        Model { method, spec, setting, student: net(student), teachers: vec![teacher], precision: Precision::F32 };
    let options = Options {
        fusion: Fusion::Full,
        optimizer: OptimizerArgs::default(),
        storage: Storage::CpuF32,
        bucket_bytes: 1 << 20,
        keep_outputs: false,
    };
    let compile =
        Compile { options, global_batch: units, train_input: None, eval_input: None, bn: BnPolicy::Local, world: 1 };
    compile.training(&model, [units, previous], &mut StateTable::default(), None).unwrap()
}

/// Multiply-adds of a unit.
fn counted(text: &str, nets: [&str; 2]) -> f64 {
    let units = 4;
    let plan = plan(toml::from_str(text).unwrap(), nets, units);
    let flops: u64 = plan.graph.nodes.iter().map(|node| cost(&plan.graph, node, &plan.placement.stored).flops).sum();
    flops as f64 / 2.0 / units as f64
}

/// Forward multiply-adds of one image, from the published table; and those of the first convolution.
fn published(name: &str) -> (f64, f64) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/nets/table.json");
    let table: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let net = &table[name];
    assert_eq!((net["classes"].as_u64(), net["side"].as_u64()), (Some(CLASSES as u64), Some(SIDE as u64)), "{name}");
    let width = net["state_dict"][0][1][0].as_f64().unwrap();
    (net["macs"].as_f64().unwrap(), width * 27.0 * (SIDE * SIDE) as f64)
}

/// k × k convolution to `side` × `side` pixels.
fn conv(kernel: usize, input: usize, output: usize, side: usize) -> f64 {
    (kernel * kernel * input * output * side * side) as f64
}

/// A basic block with projection.
fn block(input: usize, output: usize, side: usize) -> f64 {
    conv(3, input, output, side) + conv(3, output, output, side) + conv(1, input, output, side)
}

/// The student is resnet8, the teacher resnet20 unless a row says otherwise. `f` forward, `s` a training step: forward, and gradients
/// of weights and of inputs but the image.
#[test]
fn every_step_costs_what_the_chapter_counts() {
    let (f, c1) = published("resnet8");
    let (t, t1) = published("resnet20");
    let (m, m1) = published("mixskd_resnet18");
    let (s, trained_teacher) = (3.0 * f - c1, 3.0 * t - t1);
    // Both end in 8 × 8 maps of 64 channels: 64 → 32 → 32 → 64.
    let projector = conv(1, 64, 32, 8) + conv(3, 32, 32, 8) + conv(1, 32, 64, 8);
    let branches = block(32, 64, 8) + block(16, 32, 16) + block(32, 64, 8);
    // Chapter 1.2: trunk and branches have 1,360.9 M where the trunk has 555.5 M.
    let mixskd = 2.0 * (3.0 * m * 1360.9 / 555.5 - m1);
    let rows: [(&str, f64); 24] = [
        ("ce", s),
        ("kd", s + t),
        ("dkd", s + t),
        ("tf_kd_self", s + t),
        ("normkd", s + t),
        ("dist", s + t),
        ("pll", s + t),
        ("tf_kd_reg", s),
        ("ps_kd", s),
        ("mixup", s),
        ("cutmix", s),
        ("cutout", s),
        ("erasing", s),
        ("ips", 2.0 * s),
        ("ips\"\nfeed_originals = true\nkl = \"by_confidence", 4.0 * s),
        ("cs_kd", s + f),
        ("dlb", 2.0 * s),
        ("bake", 4.0 * s),
        ("crld", 2.0 * s + 2.0 * t),
        ("simkd", s + 3.0 * projector + t),
        ("atsc", s + 3.0 * projector + trained_teacher + t),
        ("atsc\"\nteacher = \"frozen", s + 3.0 * projector + t),
        ("byot", s + 3.0 * branches),
        ("mixskd", mixskd),
    ];
    let mut wrong = Vec::new();
    for (name, expected) in rows {
        let nets = if name == "mixskd" { ["mixskd_resnet18", "resnet20"] } else { ["resnet8", "resnet20"] };
        let found = counted(&format!("name = \"{name}\""), nets);
        let off = found / expected - 1.0;
        let ce = if name == "mixskd" { 3.0 * m - m1 } else { s };
        let line = format!(
            "{}: {:.2} M multiply-adds a unit, expected {:.2} M ({:+.2} %), {:.3} of cross-entropy",
            name.replace(['"', '\n'], " "),
            found / 1e6,
            expected / 1e6,
            100.0 * off,
            found / ce
        );
        println!("{line}");
        if off.abs() > 0.03 {
            wrong.push(line);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let missing: Vec<_> = MethodSpec::names().into_iter().filter(|n| rows.iter().all(|r| r.0 != *n)).collect();
    assert!(missing.is_empty(), "no count for {missing:?}");
}
