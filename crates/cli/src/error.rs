//! Everything that ends a command.

use std::io;
use thiserror::Error;
use train::TrainError;
use train::recipe_parse::RecipeError;

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
