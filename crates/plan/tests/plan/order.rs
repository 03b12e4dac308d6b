//! order: the plan takes the order of a frozen network that needs least memory.

use methods::Kd;
use nets::NetworkSpec;
use plan::{Fusion, OptimizerArgs, Options, StateTable, StepGraph, StepSource, Storage};
use spec::{Node, Precision, Setting};

/// resnet20 that learns from a network four times as wide, fused.
fn kd() -> (StepGraph, Options) {
    let setting = Setting::new(100, [32, 32, 3], 50_000, 1);
    let net = |name: &str| NetworkSpec::new(name).build(100).unwrap();
    let (method, student, teachers) = (Kd::default(), net("resnet20"), [net("resnet32x4")]);
    let spec = spec::Method::spec(&method, &setting).unwrap();
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
    let optimizer = OptimizerArgs::default();
    let storage = Storage::Device;
    let options = Options { fusion: Fusion::Full, optimizer, storage, bucket_bytes: 25 << 20, keep_outputs: false };
    let step = plan::optimize(&plan::differentiate(&source.training()), &options.optimizer, false);
    (plan::fuse(&step, Fusion::Full), options)
}

fn work_bytes(step: &StepGraph, options: &Options) -> usize {
    let reduce = plan::bucket(step, options);
    plan::place(step, &reduce, options.storage, &mut StateTable::default(), None).work_bytes
}

/// The same step with the teacher's nodes before or behind all others of the body that do not need them.
fn moved(step: &StepGraph, behind: fn(&Node) -> bool) -> StepGraph {
    let mut nodes = step.graph.nodes.clone();
    nodes.sort_by_key(|n| (n.place, behind(n)));
    StepGraph { graph: step.graph.with_nodes(nodes), phases: step.phases.clone() }
}

fn of_teacher(node: &Node) -> bool {
    node.path.starts_with("teacher/")
}

#[test]
fn the_teacher_runs_where_it_costs_least() {
    let (step, options) = kd();
    let first = moved(&step, |n| !of_teacher(n));
    let last = moved(&step, of_teacher);
    let [first_bytes, last_bytes] = [&first, &last].map(|s| work_bytes(s, &options));
    println!("work bytes of a teacher first {first_bytes}, last {last_bytes}");
    assert!(first_bytes < last_bytes, "a teacher behind the student must cost more: {first_bytes} and {last_bytes}");
    for given in [&step, &first, &last] {
        let ordered = plan::order(given, options.storage);
        let bytes = work_bytes(&ordered, &options);
        assert!(bytes <= first_bytes.min(last_bytes), "{bytes} of {first_bytes} and {last_bytes}");
    }
    let ordered = plan::order(&last, options.storage);
    let paths: Vec<&str> = ordered.graph.nodes.iter().map(|n| n.path.as_str()).collect();
    let student = paths.iter().position(|p| p.starts_with("student/")).unwrap();
    let teacher = paths.iter().rposition(|p| p.starts_with("teacher/")).unwrap();
    assert!(teacher < student, "{paths:?}");
}
