//! That the table is whole: every variant of `Op`, read from its source, is run by some test of this folder.

use std::fs;
use std::path::Path;

/// Names of the variants of `enum Op`: lines of its body that begin with a capital at the first indentation.
fn variants(source: &str) -> Vec<&str> {
    let (_, body) = source.split_once("\npub enum Op {\n").expect("graph/src/op.rs declares Op");
    let (body, _) = body.split_once("\n}\n").expect("the enum ends");
    body.lines()
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))
        .map(|line| line.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default())
        .collect()
}

/// Does the code, comments left out, name `Op::variant`?
fn names(code: &str, variant: &str) -> bool {
    code.match_indices(&format!("Op::{variant}")).any(|(at, found)| {
        let after = code[at + found.len()..].chars().next();
        !after.is_some_and(|c| c.is_ascii_alphanumeric())
    })
}

fn without_comment(line: &str) -> String {
    format!("{}\n", line.split("//").next().unwrap_or_default())
}

#[test]
fn every_op_has_a_case() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("crates");
    let read = |path: &str| fs::read_to_string(crates.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    let op = read("graph/src/op.rs");
    let variants = variants(&op);
    assert!(variants.len() > 50 && variants[0] == "ImageInput", "read {variants:?}");

    // The families that are compiled in, without this file and the harness, which test no op.
    let main = read("cuda/tests/ops/main.rs");
    let modules = main.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
    let families = modules.filter(|name| !["coverage", "harness"].contains(name));
    let code: String = families
        .flat_map(|name| read(&format!("cuda/tests/ops/{name}.rs")).lines().map(without_comment).collect::<Vec<_>>())
        .collect();
    assert!(!names("Op::ConvAct(args)", "Conv") && names("Op::Conv(args)", "Conv"), "whole names count");

    let missing: Vec<_> = variants.into_iter().filter(|v| !names(&code, v)).collect();
    assert!(missing.is_empty(), "ops without a case in crates/cuda/tests/ops: {missing:?}");
}
