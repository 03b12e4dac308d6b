//! The commands of the program, and what all of them take.

use crate::output::Color;
use crate::{cmd_averaging, cmd_bench, cmd_doctor, cmd_eval, cmd_export, cmd_features, cmd_import, cmd_pack};
use crate::{cmd_plan, cmd_predict, cmd_step, cmd_train};
use clap::{Parser, Subcommand};

/// Trains CNN image classifiers, alone or from teachers, data-parallel.
#[derive(Debug, Parser)]
#[command(name = "retort", version, max_term_width = 110, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// When to colour: auto is on a terminal unless NO_COLOR is set
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto)]
    pub color: Color,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Train(cmd_train::TrainArgs),
    Eval(cmd_eval::EvalArgs),
    Plan(cmd_plan::PlanArgs),
    Step(cmd_step::StepArgs),
    Bench(cmd_bench::BenchArgs),
    Doctor(cmd_doctor::DoctorArgs),
    Pack(cmd_pack::PackArgs),
    Import(cmd_import::ImportArgs),
    Export(cmd_export::ExportArgs),
    Predict(cmd_predict::PredictArgs),
    Features(cmd_features::FeaturesArgs),
    Averaging(cmd_averaging::AveragingArgs),
}

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 a comparison found a difference, 64 usage or recipe, 65 bad data, 69 a rank did not come, 70 a bug, 71 a GPU or NCCL failed,
74 a checkpoint could not be written or read, 75 stopped with a good checkpoint (run again to go on), 76 another rank was lost, 77 a rank hung,
78 a check before the start failed, 79 not finite, or ranks differ, 130 and 143 stopped by INT and TERM";
