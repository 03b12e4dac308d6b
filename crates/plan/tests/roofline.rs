//! The plan of ResNet-50 and its kin against the independent count of bytes and FLOPs in PERFORMANCE section 2, and the
//! time to plan.

use graph::{Method, Precision, Setting};
use methods::Ce;
use nets::NetworkSpec;
use plan::{Fusion, OptimizerArgs, Options, Plan, StateTable, StepSource, Storage, compile};
use std::time::Instant;

/// A training step of cross-entropy in bf16 at batch 256, as a GPU would run it.
fn planned(name: &str, fusion: Fusion) -> Plan {
    let network = NetworkSpec::new(name);
    let side = network.facts().unwrap().side;
    let classes = if side == 224 { 1000 } else { 100 };
    let setting = Setting { classes, image: [side, side, 3], samples: 50_000, epochs: 1 };
    let (method, student) = (Ce::default(), network.build(classes).unwrap());
    let spec = method.spec(&setting).unwrap();
    let source = StepSource {
        method: &method,
        spec: &spec,
        setting: &setting,
        student: student.as_ref(),
        teachers: &[],
        input: None,
        precision: Precision::Bf16,
        units: [256, 0],
        rolling_units: 256,
    };
    let (optimizer, storage) = (OptimizerArgs::default(), Storage::Device);
    let options = Options { fusion, optimizer, storage, bucket_bytes: 25 << 20, keep_outputs: false };
    compile(source.training(), &options, &mut StateTable::default(), None).unwrap()
}

#[test]
fn count() {
    for name in ["resnet50", "resnet18", "resnet34", "cifar_resnet18", "wrn_40_2"] {
        for fusion in [Fusion::Off, Fusion::Full] {
            let plan = planned(name, fusion);
            let (b, f) = plan.per_image();
            println!("{name} {fusion:?} {:.2} MB {:.3} GF {}", b / 1e6, f / 1e9, plan.launches.len());
        }
    }
}

#[test]
fn time() {
    let mut ms: Vec<f64> = (0..5)
        .map(|_| {
            let begin = Instant::now();
            planned("resnet50", Fusion::Full);
            begin.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    ms.sort_by(f64::total_cmp);
    println!("{ms:?}");
}
