//! The progress line on stderr: redrawn in place on a terminal, else one line per interval.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Shortest time between two drawings on a terminal, and between two lines elsewhere.
const REDRAW: Duration = Duration::from_millis(100);
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// What the line shows.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// From 1, and how many.
    pub epoch: u64,
    pub epochs: u64,
    /// Steps done of this epoch, and how many it has.
    pub step: u64,
    pub steps: u64,
    pub loss: f32,
    /// Named loss terms, weighted, in the order of the method.
    pub terms: Vec<(String, f32)>,
    pub lr: f32,
    /// Last evaluation, in percent.
    pub top1: Option<f64>,
    /// Over all ranks.
    pub images_per_s: f64,
    pub world_size: usize,
    /// Share of the time spent waiting for data, 0 to 1.
    pub data_wait: f64,
    /// Until the end of the run.
    pub eta: Option<Duration>,
}

/// `ep 12/100 it 620/1251 loss 2.913 (ce 2.41 kd 0.503) lr 0.385 top1 58.10 51,240 img/s (6,405/rank) data 0.4% eta 1:04:00`
pub fn format(s: &Status) -> String {
    let mut line = format!("ep {}/{} it {}/{} loss {}", s.epoch, s.epochs, s.step, s.steps, short(s.loss));
    if !s.terms.is_empty() {
        let terms: Vec<_> = s.terms.iter().map(|(name, x)| format!("{name} {}", short(*x))).collect();
        line += &format!(" ({})", terms.join(" "));
    }
    line += &format!(" lr {}", short(s.lr));
    if let Some(top1) = s.top1 {
        line += &format!(" top1 {top1:.2}");
    }
    line += &format!(" {} img/s", thousands(s.images_per_s));
    if s.world_size > 1 {
        line += &format!(" ({}/rank)", thousands(s.images_per_s / s.world_size as f64));
    }
    line += &format!(" data {:.1}%", 100.0 * s.data_wait);
    if let Some(eta) = s.eta {
        line += &format!(" eta {}", clock(eta));
    }
    line
}

/// Four significant digits for values a person reads, exponent form beyond.
fn short(x: f32) -> String {
    match x.abs() {
        0.0 => "0".into(),
        a if !(1e-3..1e5).contains(&a) => format!("{x:.2e}"),
        a if a < 1.0 => format!("{x:.4}").trim_end_matches('0').into(),
        a if a < 1000.0 => format!("{x:.3}"),
        _ => format!("{x:.0}"),
    }
}

fn thousands(x: f64) -> String {
    let digits = format!("{x:.0}");
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) && c.is_ascii_digit() {
            out.push(',');
        }
        out.push(c);
    }
    out
}

fn clock(d: Duration) -> String {
    let s = d.as_secs();
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, m, s) => format!("{m}:{s:02}"),
        (h, m, s) => format!("{h}:{m:02}:{s:02}"),
    }
}

/// Where the line goes. Errors of the output are ignored: a closed terminal stops nothing.
pub struct Progress<W = io::Stderr> {
    out: W,
    style: Style,
    last: Option<Instant>,
    drawn: bool,
}

/// How the line is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Redrawn in place.
    Live,
    /// A line per interval.
    Lines,
}

impl Progress {
    /// On stderr: live if that is a terminal.
    pub fn stderr() -> Self {
        let style = if io::stderr().is_terminal() { Style::Live } else { Style::Lines };
        Self::new(io::stderr(), style)
    }
}

impl<W: Write> Progress<W> {
    pub fn new(out: W, style: Style) -> Self {
        Self { out, style, last: None, drawn: false }
    }

    /// Shows the status if it is time to.
    pub fn update(&mut self, status: &Status, now: Instant) {
        let interval = if self.style == Style::Live { REDRAW } else { LINE_INTERVAL };
        if self.last.is_some_and(|last| now.duration_since(last) < interval) {
            return;
        }
        self.last = Some(now);
        let line = format(status);
        let _ = match self.style {
            // Line wrap is off meanwhile: a line wider than the terminal is cut, not doubled.
            Style::Live => write!(self.out, "\r\x1b[?7l{line}\x1b[K\x1b[?7h"),
            Style::Lines => writeln!(self.out, "{line}"),
        };
        self.drawn = self.style == Style::Live;
        let _ = self.out.flush();
    }

    /// Prints a line above the live one, and after the last.
    pub fn message(&mut self, text: &str) {
        let erase = if std::mem::take(&mut self.drawn) { "\r\x1b[K" } else { "" };
        let _ = writeln!(self.out, "{erase}{text}");
        // The next update draws again at once.
        self.last = self.last.filter(|_| self.style == Style::Lines);
    }

    /// Leaves the last line standing.
    pub fn finish(&mut self) {
        if std::mem::take(&mut self.drawn) {
            let _ = writeln!(self.out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        Status {
            epoch: 12,
            epochs: 100,
            step: 620,
            steps: 1251,
            loss: 2.9126,
            terms: vec![("ce".into(), 2.41), ("kd".into(), 0.5026)],
            lr: 0.385,
            top1: Some(58.1),
            images_per_s: 51_240.4,
            world_size: 8,
            data_wait: 0.0042,
            eta: Some(Duration::from_secs(3840)),
        }
    }

    #[test]
    fn the_line() {
        let line = "ep 12/100 it 620/1251 loss 2.913 (ce 2.410 kd 0.5026) lr 0.385 top1 58.10 51,240 img/s (6,405/rank) data 0.4% eta 1:04:00";
        assert_eq!(format(&status()), line);
        let early =
            Status { top1: None, eta: None, terms: vec![], world_size: 1, loss: f32::NAN, lr: 1e-5, ..status() };
        assert_eq!(format(&early), "ep 12/100 it 620/1251 loss NaN lr 1.00e-5 51,240 img/s data 0.4%");
    }

    #[test]
    fn numbers() {
        assert_eq!(
            [0.0, 0.5, 0.1234, 12.3456, 1234.5, 2e6, -3.0].map(short),
            ["0", "0.5", "0.1234", "12.346", "1234", "2.00e6", "-3.000"]
        );
        assert_eq!([0.0, 999.0, 1000.0, 1_234_567.0].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [5, 65, 3600, 360_061].map(|s| clock(Duration::from_secs(s))),
            ["0:05", "1:05", "1:00:00", "100:01:01"]
        );
    }

    /// What is shown by updates at these milliseconds.
    fn shown(style: Style, at_ms: &[u64]) -> String {
        let mut progress = Progress::new(Vec::new(), style);
        let start = Instant::now();
        at_ms.iter().for_each(|&ms| progress.update(&status(), start + Duration::from_millis(ms)));
        progress.message("saved");
        progress.finish();
        String::from_utf8(progress.out).unwrap()
    }

    #[test]
    fn a_terminal_is_redrawn_and_a_file_gets_lines() {
        let live = shown(Style::Live, &[0, 50, 99, 100, 150]);
        assert_eq!((live.matches('\r').count(), live.matches('\n').count()), (3, 1), "{live:?}");
        assert!(live.ends_with("\r\x1b[Ksaved\n"));
        let lines = shown(Style::Lines, &[0, 100, 9_999, 10_000, 15_000]);
        assert_eq!((lines.matches('\r').count(), lines.lines().count()), (0, 3), "{lines:?}");
    }

    #[test]
    fn a_closed_output_is_no_error() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let mut progress = Progress::new(Closed, Style::Lines);
        progress.update(&status(), Instant::now());
        progress.message("x");
        progress.finish();
    }
}
