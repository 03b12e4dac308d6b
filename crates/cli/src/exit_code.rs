//! From an error to the documented exit code.

use crate::error::CliError;
use std::io::ErrorKind;
use train::checkpoint::CheckpointError;
use train::{Exit, TrainError};

/// The code of an error. A reader that closed its end has what it wanted.
pub(crate) fn of(error: &CliError) -> Exit {
    match error {
        CliError::Usage(_) => Exit::Usage,
        CliError::Ranks { exit, .. } => *exit,
        CliError::Stdout(e) if e.kind() == ErrorKind::BrokenPipe => Exit::Done,
        CliError::Stdout(_) => Exit::CheckpointIo,
        CliError::Data(e) => of_data(e),
        CliError::Averaging(averaging::AveragingError::NotPositive { .. }) => Exit::Usage,
        CliError::Averaging(_) => Exit::BadData,
        CliError::Train(e) => match e.as_ref() {
            TrainError::Recipe(_) | TrainError::Setting(_) => Exit::Usage,
            TrainError::Data(e) => of_data(e),
            TrainError::TooManyBad { .. } | TrainError::Weights { .. } | TrainError::Tensor(_) => Exit::BadData,
            TrainError::Checkpoint(CheckpointError::NoSpace { .. }) => Exit::Preflight,
            TrainError::Checkpoint(_) | TrainError::FinalSave(..) | TrainError::Io { .. } => Exit::CheckpointIo,
            TrainError::Comm(_) => Exit::PeerLost,
            TrainError::Device(_) | TrainError::NoProgress { .. } => Exit::Preflight,
            TrainError::Cuda(e) if e.is_peer() => Exit::PeerLost,
            TrainError::Cuda(e) if e.is_absence() => Exit::Preflight,
            TrainError::Cpu(_) | TrainError::Cuda(_) => Exit::Device,
            TrainError::Plan(_) | TrainError::Panic { .. } => Exit::Internal,
            TrainError::NonFinite { .. } | TrainError::Diverged { .. } => Exit::Divergence,
        },
    }
}

fn of_data(error: &data::DataError) -> Exit {
    match error {
        data::DataError::Setting(_) => Exit::Usage,
        data::DataError::Worker(_) => Exit::Internal,
        data::DataError::Io { .. } | data::DataError::Format { .. } | data::DataError::Sample { .. } => Exit::BadData,
    }
}
