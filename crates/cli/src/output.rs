//! Results on stdout, the rest on stderr.

use crate::error::CliError;
use crate::logging::Log;
use clap::ValueEnum;
use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource, Report};
use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};
use train::TrainError;
use train::recipe_parse::RecipeError;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    Auto,
    Always,
    Never,
}

/// Where a person may look on.
pub(crate) struct Terminal {
    pub log: Log,
    theme: GraphicalTheme,
}

impl Terminal {
    pub(crate) fn new(color: Color) -> Terminal {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let colored = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => io::stderr().is_terminal() && !plain,
        };
        let theme = if colored { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        Terminal { log: Log::start(), theme }
    }

    /// A result, with a line end.
    pub(crate) fn print(&self, text: impl Display) -> Result<(), CliError> {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}").and_then(|()| out.flush()).map_err(CliError::Stdout)
    }

    /// A remark. If nobody can read it, nothing is lost.
    pub(crate) fn note(&self, text: impl Display) {
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// An error: recipes as a picture of the place, others as a line.
    pub(crate) fn report(&self, error: &CliError) {
        match error {
            CliError::Ranks { said: true, .. } => {}
            CliError::Stdout(e) if e.kind() == ErrorKind::BrokenPipe => {}
            CliError::Train(e) => match e.as_ref() {
                TrainError::Recipe(error) => self.note(self.picture(error).trim_end()),
                other => self.note(format!("retort: {other}")),
            },
            other => self.note(format!("retort: {other}")),
        }
    }

    fn picture(&self, error: &RecipeError) -> String {
        let place = &error.place;
        if place.span == (0..0) {
            return format!("retort: {error}");
        }
        let label = (!error.help.is_empty()).then(|| error.help.clone());
        let label = LabeledSpan::new_with_span(label, place.span.clone());
        let report = Report::from(MietteDiagnostic::new(error.what.clone()).with_label(label))
            .with_source_code(NamedSource::new(&place.name, place.text.clone()));
        let handler = GraphicalReportHandler::new_themed(self.theme.clone()).with_width(120);
        let mut picture = String::new();
        match handler.render_report(&mut picture, report.as_ref()) {
            Ok(()) => picture,
            Err(_) => format!("retort: {error}"),
        }
    }
}

/// A share as a percentage.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}
