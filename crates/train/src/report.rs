//! `report.html`: one page of a run, self-contained: result, curves, recipe. Made from `metrics.jsonl` when the run ends.

use serde_json::Value;
use std::fmt::Write;
use std::path::Path;

/// A named series of (step, value).
type Series = (String, Vec<(f64, f64)>);

/// Writes the page into the run folder.
pub(crate) fn write(run: &Path, recipe: &str) -> std::io::Result<()> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl"))?;
    let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let mut page = String::from(
        "<!doctype html><meta charset=\"utf-8\"><title>Retort run</title>\n\
         <style>body{font:15px sans-serif;max-width:60em;margin:2em auto}svg{background:#f6f6f6}pre{background:#f6f6f6;padding:1em}</style>\n",
    );
    let _ = writeln!(page, "<h1>{}</h1>", escape(&run.display().to_string()));
    let top1 = series(&lines, "eval", "top1");
    let best = top1.1.iter().copied().fold(None, |best: Option<(f64, f64)>, p| best.filter(|b| b.1 >= p.1).or(Some(p)));
    for (name, point) in [("last", top1.1.last().copied()), ("best", best)] {
        if let Some((step, value)) = point {
            let _ = writeln!(page, "<p>{name} top1 <b>{:.2} %</b> at step {step}</p>", 100.0 * value);
        }
    }
    page += &chart("top1, evaluation", &[top1]);
    page += &chart("loss, training", &[series(&lines, "step", "loss")]);
    page += &chart("learning rate", &[series(&lines, "step", "lr")]);
    let _ = writeln!(page, "<h2>Recipe</h2><pre>{}</pre>", escape(recipe));
    std::fs::write(run.join("report.html"), page)
}

fn series(lines: &[Value], kind: &str, key: &str) -> Series {
    let of_kind = lines.iter().filter(|l| l["kind"] == kind);
    let points = of_kind.filter_map(|l| Some((l["step"].as_f64()?, l[key].as_f64()?)));
    (key.to_string(), points.collect())
}

/// A line chart of 640 × 200 with its extremes written beside it.
fn chart(title: &str, all: &[Series]) -> String {
    let points = || all.iter().flat_map(|s| s.1.iter().copied());
    if points().count() < 2 {
        return String::new();
    }
    let bounds = |pick: fn((f64, f64)) -> f64| {
        points().map(pick).fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)))
    };
    let ((x0, x1), (y0, y1)) = (bounds(|p| p.0), bounds(|p| p.1));
    let scale = |v: f64, lo: f64, hi: f64| if hi > lo { (v - lo) / (hi - lo) } else { 0.5 };
    let mut out = format!("<h2>{}</h2><svg width=\"720\" height=\"220\">", escape(title));
    for (_, values) in all {
        let at = |&(x, y): &(f64, f64)| {
            format!("{:.1},{:.1}", 70.0 + 640.0 * scale(x, x0, x1), 210.0 - 200.0 * scale(y, y0, y1))
        };
        let path: Vec<String> = values.iter().map(at).collect();
        let _ = write!(out, "<polyline fill=\"none\" stroke=\"#246\" points=\"{}\"/>", path.join(" "));
    }
    let _ = writeln!(out, "<text x=\"2\" y=\"18\">{y1:.4}</text><text x=\"2\" y=\"212\">{y0:.4}</text></svg>");
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_page_shows_the_result_the_curves_and_the_recipe() {
        let run = tempfile::tempdir().unwrap();
        let line = |step: u64, kind: &str, rest: &str| {
            format!("{{\"v\":1,\"t\":0,\"step\":{step},\"kind\":\"{kind}\",{rest}}}\n")
        };
        let log = line(1, "step", "\"loss\":2.0,\"lr\":0.1")
            + &line(2, "step", "\"loss\":1.0,\"lr\":0.1")
            + &line(2, "eval", "\"top1\":0.5")
            + &line(4, "eval", "\"top1\":0.25");
        std::fs::write(run.path().join("metrics.jsonl"), log).unwrap();
        super::write(run.path(), "name = \"<ce>\"").unwrap();
        let page = std::fs::read_to_string(run.path().join("report.html")).unwrap();
        for part in ["last top1 <b>25.00 %", "best top1 <b>50.00 %", "70.0,10.0 710.0,210.0", "name = \"&lt;ce&gt;\""] {
            assert!(page.contains(part), "no {part} in {page}");
        }
    }
}
