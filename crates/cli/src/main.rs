//! The command line: words to settings, errors to exit codes. Results go to stdout, everything else to stderr.
//!
//! Invariant: nothing here computes; every command is a few calls of `train`, `data`, `averaging` or `plan`.

mod args;
mod cmd_averaging;
mod cmd_bench;
mod cmd_doctor;
mod cmd_eval;
mod cmd_export;
mod cmd_features;
mod cmd_import;
mod cmd_pack;
mod cmd_plan;
mod cmd_predict;
mod cmd_step;
mod cmd_train;
mod edits;
mod error;
mod exit_code;
mod launch;
mod logging;
mod output;
mod summary;

use args::{Cli, Command};
use clap::Parser;
use error::CliError;
use output::Terminal;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use train::Exit;

fn main() -> ExitCode {
    // The message of a panic is on stderr by then; the code says that it was a bug.
    catch_unwind(AssertUnwindSafe(start)).unwrap_or(Exit::Internal).into()
}

fn start() -> Exit {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are results; a closed pipe is no error there either.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done };
        }
    };
    let terminal = Terminal::new(cli.color);
    match run(&cli.command, &terminal) {
        Ok(exit) => exit,
        Err(error) => {
            terminal.report(&error);
            exit_code::of(&error)
        }
    }
}

fn run(command: &Command, terminal: &Terminal) -> Result<Exit, CliError> {
    match command {
        Command::Train(args) => cmd_train::run(args, terminal),
        Command::Eval(args) => cmd_eval::run(args, terminal),
        Command::Plan(args) => cmd_plan::run(args, terminal),
        Command::Step(args) => cmd_step::run(args, terminal),
        Command::Bench(args) => cmd_bench::run(args, terminal),
        Command::Doctor(args) => cmd_doctor::run(args, terminal),
        Command::Pack(args) => cmd_pack::run(args, terminal),
        Command::Import(args) => cmd_import::run(args, terminal),
        Command::Export(args) => cmd_export::run(args, terminal),
        Command::Predict(args) => cmd_predict::run(args, terminal),
        Command::Features(args) => cmd_features::run(args, terminal),
        Command::Averaging(args) => cmd_averaging::run(args, terminal),
    }
}
