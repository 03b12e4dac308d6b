//! Everything that ends a command.

use std::io;
use thiserror::Error;
use train::recipe_parse::RecipeError;
use train::{Exit, TrainError};

#[derive(Debug, Error)]
pub(crate) enum CliError {
    #[error(transparent)]
    Train(Box<TrainError>),
    #[error(transparent)]
    Data(#[from] data::DataError),
    #[error(transparent)]
    Averaging(#[from] averaging::AveragingError),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The ranks of a job do not start together. `said`: rank 0 says the same.
    #[error("{text}")]
    Ranks { exit: Exit, text: String, said: bool },
    #[error("cannot write to stdout: {0}")]
    Stdout(io::Error),
}

impl From<TrainError> for CliError {
    fn from(error: TrainError) -> CliError {
        CliError::Train(Box::new(error))
    }
}

impl From<RecipeError> for CliError {
    fn from(error: RecipeError) -> CliError {
        TrainError::Recipe(error).into()
    }
}
