//! The first values of states: a pure function of the seed and the state's name, equal on every rank.

use crate::error::TrainError;
use crate::executor::Executor;
use cpu::Real;
use data::{EpochKey, Purpose};
use plan::StateTable;
use spec::Init;
use tensor::{HostTensor, KCRS_TO_KRSC, KRSC_TO_KCRS, Shape};

/// Fills every state of the table that is not a copy of another.
pub(crate) fn initialise<E: Executor>(executor: &mut E, table: &StateTable, seed: u64) -> Result<(), TrainError> {
    table.entries.iter().try_for_each(|entry| {
        let values = values(&entry.init, &entry.name, entry.shape, seed);
        executor.set_state(entry.offset, &values.into_iter().map(E::Real::of).collect::<Vec<_>>())
    })
}

/// Copies what is defined as a copy (weight anchors, moving averages), after weights were loaded.
pub(crate) fn copy_states<E: Executor>(executor: &mut E, table: &StateTable) -> Result<(), TrainError> {
    for entry in &table.entries {
        let Some(source) = entry.copy_of.as_deref().and_then(|name| table.find(name)) else { continue };
        let values = executor.state(source.offset, source.shape.elements())?;
        executor.set_state(entry.offset, &values)?;
    }
    Ok(())
}

/// Values in the executor's layout. Filters are drawn in the published order (KCRS), so that the layout does not matter.
fn values(init: &Init, name: &str, shape: Shape, seed: u64) -> Vec<f64> {
    let elements = shape.elements();
    let slot = name.bytes().fold(0x811c_9dc5u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    let mut stream = EpochKey { seed, stage: 0, epoch: 0 }.stream(Purpose::named("init"), slot, 0);
    let drawn: Vec<f64> = match *init {
        Init::Const(c) => return vec![c; elements],
        Init::CopyOf(_) => return vec![0.0; elements],
        Init::Uniform(bound) => (0..elements).map(|_| bound * (2.0 * stream.f64() - 1.0)).collect(),
        Init::Normal(std) => (0..elements).map(|_| std * stream.normal()).collect(),
    };
    if shape.rank() != 4 {
        return drawn;
    }
    let published = HostTensor::new(Shape::new(&KRSC_TO_KCRS.map(|axis| shape[axis])), &drawn);
    let filters = published.and_then(|t| t.permute4(KCRS_TO_KRSC)).expect("as many values as the shape has");
    filters.view().expect("f64 as it was made").to_vec()
}
