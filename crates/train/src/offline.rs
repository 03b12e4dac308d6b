//! What is known of a recipe's images and classes without its data: enough to build the step.

use crate::error::TrainError;
use crate::feed::open_set;
use crate::inputs::train_augment;
use crate::recipe::Recipe;
use data::{BatchSpec, OnBad, Split};
use spec::Setting;

/// Classes and images of the recipe's set: by its name, by `data.classes`, else from the set itself.
pub(crate) fn setting(recipe: &Recipe) -> Result<Setting, TrainError> {
    let (d, epochs) = (&recipe.data, recipe.train.epochs);
    let known = match (d.set.as_str(), d.classes) {
        ("fashion", _) => Some((10, [28, 28, 1], 60_000)),
        ("cifar10", _) => Some((10, [32, 32, 3], 50_000)),
        ("cifar100", _) => Some((100, [32, 32, 3], 50_000)),
        ("features", Some(classes)) => Some((classes, [1, 1, d.size], 1)),
        (_, Some(classes)) => Some((classes, [d.size, d.size, 3], 1)),
        (_, None) => None,
    };
    if let Some((classes, image, samples)) = known {
        return Ok(Setting::new(classes, image, samples, epochs));
    }
    let plain =
        BatchSpec { augment: train_augment(recipe), views: vec![], draws: vec![], on_bad: OnBad::Fail, pad_units: 0 };
    let set = open_set(recipe, &d.folder, Split::Train, plain).map_err(|e| {
        TrainError::Setting(format!("{e}\nwithout the data, the recipe must say data.classes (and data.size) for this"))
    })?;
    Ok(Setting::new(set.lists.classes(), set.loader.image_shape(), set.lists.images(), epochs))
}
