//! An analysis as one SVG picture: accuracies by probe, damping by eigenvalue, and the class map ordered by cluster.

use crate::Analysis;
use crate::measure::Parts;
use std::fmt::Write;

/// Side of a panel's plot area, and its left and top margins, in pixels.
const SIDE: f64 = 260.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 40.0;
const PANEL: f64 = SIDE + LEFT + 40.0;
const COLORS: [&str; 4] = ["#1b6ca8", "#2a9d3f", "#d1495b", "#8d6a9f"];

/// The picture, a whole SVG document.
pub fn svg(analysis: &Analysis) -> String {
    let (width, height) = (3.0 * PANEL, SIDE + TOP + 110.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    accuracies(&mut out, analysis);
    dampings(&mut out, analysis);
    class_map(&mut out, analysis);
    out.push_str("</svg>\n");
    out
}

/// A line of a panel: name and values of y from 0 to 1, one a place of x; none leaves a gap.
type Line = (String, Vec<Option<f64>>);

fn accuracies(out: &mut String, analysis: &Analysis) {
    let probes = &analysis.probes;
    let line = |name: &str, value: &dyn Fn(&crate::Measured) -> Option<f64>| -> Line {
        (name.to_string(), probes.iter().map(value).collect())
    };
    let top2 = |m: &crate::Measured| m.teacher.as_ref().map(|t| t.truth_in_top2);
    let noisy = |parts: Option<Parts>| parts.and_then(|p| p.noisy);
    let lines = [
        line("test", &|m| Some(m.test_accuracy)),
        line("train, right given label", &|m| m.train.accuracy.clean),
        line("train, wrong given label", &|m| m.train.accuracy.noisy),
        line("truth in teacher's two, wrong label", &|m| noisy(top2(m))),
    ];
    let names: Vec<String> = probes.iter().map(|p| p.name.clone()).collect();
    panel(out, 0.0, &format!("accuracy, {:.1} % wrong labels", 100.0 * analysis.noise), &names, &lines);
}

fn dampings(out: &mut String, analysis: &Analysis) {
    let lines = [1_u32, 2, 5, 20].map(|t| {
        let left = analysis.damping.iter().map(|d| Some(d.powi(t as i32))).collect();
        (format!("after {t} round{}", if t == 1 { "" } else { "s" }), left)
    });
    panel(out, PANEL, "share left, by eigenvalue (largest first)", &[], &lines);
}

fn panel(out: &mut String, x0: f64, title: &str, names: &[String], lines: &[Line]) {
    let (left, bottom) = (x0 + LEFT, TOP + SIDE);
    text(out, left, TOP - 14.0, "start", title);
    for tick in 0..=4 {
        let share = f64::from(tick) / 4.0;
        let y = bottom - share * SIDE;
        let _ = writeln!(out, "<path d=\"M{left} {y}h{SIDE}\" stroke=\"#dddddd\"/>");
        text(out, left - 6.0, y + 4.0, "end", &format!("{share}"));
    }
    let places = lines.iter().map(|l| l.1.len()).max().unwrap_or_default();
    let x = |i: usize| left + SIDE * i as f64 / (places.max(2) - 1) as f64;
    for (i, name) in names.iter().enumerate() {
        text(out, x(i), bottom + 16.0, "middle", name);
    }
    for (i, (name, values)) in lines.iter().enumerate() {
        let color = COLORS[i % COLORS.len()];
        let mut path = String::new();
        let mut gap = true;
        for (i, value) in values.iter().enumerate() {
            if let Some(value) = value {
                let y = bottom - value.clamp(0.0, 1.0) * SIDE;
                let _ = write!(path, "{}{:.1} {y:.1}", if gap { 'M' } else { 'L' }, x(i));
                if !names.is_empty() {
                    let _ = writeln!(out, "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>", x(i));
                }
            }
            gap = value.is_none();
        }
        let _ = writeln!(out, "<path d=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\"/>");
        let y = bottom + 36.0 + 15.0 * i as f64;
        let _ = writeln!(out, "<path d=\"M{left} {}h18\" stroke=\"{color}\" stroke-width=\"2\"/>", y - 4.0);
        text(out, left + 24.0, y, "start", name);
    }
}

fn class_map(out: &mut String, analysis: &Analysis) {
    let (left, side) = (2.0 * PANEL + LEFT, SIDE / analysis.classes.max(1) as f64);
    text(out, left, TOP - 14.0, "start", "class map, ordered by cluster (blue −1, white 0, red 1)");
    let mut order: Vec<usize> = (0..analysis.classes).collect();
    order.sort_by_key(|&k| (analysis.clusters[k], k));
    for (i, &class) in order.iter().enumerate() {
        for (j, &other) in order.iter().enumerate() {
            let value = analysis.class_map[class][other].clamp(-1.0, 1.0);
            let pale = (255.0 * (1.0 - value.abs())) as u8;
            let (red, blue) = if value > 0.0 { (255, pale) } else { (pale, 255) };
            let (x, y) = (left + side * j as f64, TOP + side * i as f64);
            let _ = writeln!(
                out,
                "<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{side:.2}\" height=\"{side:.2}\" fill=\"rgb({red},{pale},{blue})\"/>"
            );
        }
        if analysis.classes <= 30 {
            text(out, left - 6.0, TOP + side * (i as f64 + 0.6), "end", &class.to_string());
        }
    }
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>");
}
