//! Memory is predicted; too little is an error, and nothing was allocated.

use crate::machine::{elementwise_plan, gpu};
use cuda::Mode;
use plan::{StateTable, Storage};
use spec::Precision;

#[test]
fn what_does_not_fit_is_refused_with_both_figures() {
    let Some(mut executor) = gpu(Mode::Captured) else { return };
    let (plan, states) = elementwise_plan(8, Precision::F32, Storage::Device);
    let total = executor.facts().memory_bytes;
    let huge = table(2 * total);
    let error = executor.reserve(&[&plan], &huge, 1).unwrap_err().to_string();
    assert!(error.contains("the run needs") && error.contains("are free") && error.contains("not even"), "{error}");
    // Most of the memory for states leaves room for some rows, not for these.
    let (large, _) = elementwise_plan(1 << 16, Precision::F32, Storage::Device);
    let variable = 3 * large.placement.batch_bytes + large.placement.work_bytes;
    let tight = table(executor.free_bytes().unwrap() - variable / 2);
    let error = executor.reserve(&[&large], &tight, 1).unwrap_err().to_string();
    assert!(error.contains("a batch of about") && error.contains("the largest plan has 65536"), "{error}");
    executor.reserve(&[&plan], &states, 1).unwrap();
    let arenas = 3 * plan.placement.batch_bytes + plan.placement.work_bytes;
    assert!((arenas..arenas + (1 << 16)).contains(&executor.reserved_bytes()), "{}", executor.reserved_bytes());
}

/// States that take so many bytes.
fn table(bytes: usize) -> StateTable {
    let mut table = StateTable::default();
    table.bytes = bytes;
    table
}
