//! The table op × {f32, tf32, bf16} of kernels/README.md: a row per variant of `Op`, in its order, and every file of kernels/.

use crate::{read, root, sources};

/// Op, files, three kinds of arithmetic, run on hardware, measured.
const COLUMNS: usize = 7;

/// Names of the variants of `enum Op`: lines of its body that begin with a capital at the first indentation.
fn variants(source: &str) -> Vec<&str> {
    let (_, body) = source.split_once("\npub enum Op {\n").expect("graph/src/op.rs declares Op");
    let (body, _) = body.split_once("\n}\n").expect("the enum ends");
    let lines = body.lines().filter_map(|line| line.strip_prefix("    "));
    let named = lines.filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()));
    named.map(|line| line.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default()).collect()
}

/// Cells of the rows that begin with an op's name in backticks.
fn rows(readme: &str) -> Vec<Vec<&str>> {
    let of_op = |line: &&str| line.strip_prefix("| `").is_some_and(|l| l.starts_with(|c: char| c.is_ascii_uppercase()));
    readme.lines().filter(of_op).map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// Words in backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

pub(crate) fn faults() -> Vec<String> {
    let (op, readme) = (read(&root().join("crates/graph/src/op.rs")), read(&root().join("kernels/README.md")));
    let (variants, rows) = (variants(&op), rows(&readme));
    let stems: Vec<_> = sources().into_iter().map(|s| s.0).collect();
    compare(&variants, &rows, &stems.iter().map(String::as_str).collect::<Vec<_>>())
}

fn compare(variants: &[&str], rows: &[Vec<&str>], stems: &[&str]) -> Vec<String> {
    let mut faults = vec![];
    let ops: Vec<_> = rows.iter().map(|r| r[0].trim_matches('`')).collect();
    if ops != variants {
        let missing: Vec<_> = variants.iter().filter(|v| !ops.contains(v)).collect();
        let unknown: Vec<_> = ops.iter().filter(|o| !variants.contains(o)).collect();
        faults
            .push(format!("rows are not the variants of Op in their order; missing {missing:?}, unknown {unknown:?}"));
    }
    let whole = |r: &&Vec<&str>| r.len() != COLUMNS || r.iter().any(|cell| cell.is_empty());
    faults.extend(rows.iter().filter(whole).map(|r| format!("{}: expected {COLUMNS} cells, none empty", r[0])));
    // `conv_fprop_*` stands for all files whose names begin so.
    let is = |name: &str, stem: &str| name.strip_suffix('*').map_or(name == stem, |begin| stem.starts_with(begin));
    let names: Vec<_> = rows.iter().filter_map(|r| r.get(1)).flat_map(|cell| quoted(cell)).collect();
    let no_file = names.iter().filter(|n| !stems.iter().any(|s| is(n, s)));
    faults.extend(no_file.map(|n| format!("there is no kernels/{n}.cu")));
    let no_row = stems.iter().filter(|s| !names.iter().any(|n| is(n, s)));
    faults.extend(no_row.map(|s| format!("kernels/{s}.cu is of no op")));
    faults
}

#[test]
fn what_the_table_lacks_is_found() {
    let variants =
        variants("\npub enum Op {\n    /// x\n    Conv(ConvArgs),\n    Slice {\n        axis: Axis,\n    },\n}\n");
    assert_eq!(variants, ["Conv", "Slice"]);
    let text = "| op | files | f32 | tf32 | bf16 | run | measured |\n|---|---|---|---|---|---|---|\n\
                | `Conv` | `conv_*` | yes | yes | yes | no | no |\n| `Slice` | `rows` | yes | yes | yes | no | no |\n";
    let good = ["conv_bf16", "rows"];
    assert!(compare(&variants, &rows(text), &good).is_empty());
    let planted = [
        ("Slice` |", "Slide` |"),
        ("| yes | no | no |\n", "| yes | | no |\n"),
        ("`rows`", "`raws`, `rows`"),
        ("conv_*", "conv_bf16_*"),
    ];
    for (from, to) in planted {
        let faults = compare(&variants, &rows(&text.replace(from, to)), &good);
        assert!(!faults.is_empty(), "{from} → {to}");
    }
    assert_eq!(compare(&variants, &rows(text), &["conv_bf16", "pool", "rows"]), ["kernels/pool.cu is of no op"]);
}
