//! The plans of shipped recipes are golden text: a change of a pass is a readable difference.

use methods::Kd;
use nets::NetworkSpec;
use plan::{Fusion, OptimizerArgs, Options, StateTable, StepSource, Storage};
use spec::{Method, Precision, Setting};
use std::path::PathBuf;
use train::recipe::Recipe;
use train::{PlanOptions, plan_of};

const REFRESH: &str = "RETORT_UPDATE_GOLDENS=1 cargo test --release -p train --test plans";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Compares with the golden, or writes it where the environment asks for that.
fn compare(name: &str, found: &str) {
    let path = root().join(format!("tests/goldens/plans/{name}.txt"));
    if std::env::var_os("RETORT_UPDATE_GOLDENS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, found).unwrap();
        return;
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}.txt: {e}; make it with: {REFRESH}"));
    let (golden, found): (Vec<&str>, Vec<&str>) = (golden.lines().collect(), found.lines().collect());
    let differs = (0..golden.len().max(found.len())).find(|&i| golden.get(i) != found.get(i));
    if let Some(i) = differs {
        let line = |of: &[&str]| of.get(i).copied().unwrap_or("(the end)").to_string();
        panic!(
            "{name}.txt line {}:\n golden {}\n found  {}\nif that is meant, refresh with: {REFRESH}",
            i + 1,
            line(&golden),
            line(&found)
        );
    }
}

fn recipe(name: &str) {
    let loaded = Recipe::load(&root().join(format!("configs/{name}.toml")), &[]).unwrap();
    let plan = plan_of(loaded, PlanOptions { fusion: Fusion::Full, image: None, bucket_bytes: None }).unwrap();
    compare(name, &plan.to_string());
}

#[test]
fn quickstart() {
    recipe("quickstart");
}

/// resnet8 taught by a frozen resnet14 on 32 x 32 images in bf16 as a GPU runs it: folded weights, teacher first.
#[test]
fn kd_resnet8_resnet14() {
    let setting = Setting::new(100, [32, 32, 3], 50_000, 240);
    let net = |name: &str| NetworkSpec::new(name).build(100).unwrap();
    let (method, student, teachers) = (Kd::default(), net("resnet8"), [net("resnet14")]);
    let spec = method.spec(&setting).unwrap();
    let source = StepSource {
        method: &method,
        spec: &spec,
        setting: &setting,
        student: student.as_ref(),
        teachers: &teachers,
        input: None,
        precision: Precision::Bf16,
        units: [64, 0],
        rolling_units: 64,
    };
    let (optimizer, storage) = (OptimizerArgs::default(), Storage::Device);
    let options = Options { fusion: Fusion::Full, optimizer, storage, bucket_bytes: 25 << 20, keep_outputs: false };
    let plan = plan::compile(source.training(), &options, &mut StateTable::default(), None).unwrap();
    compare("kd_resnet8_resnet14", &plan.to_string());
}
