//! Mean correlations inside classes, inside clusters and outside, with their spread: what the block model replaces by three numbers.

use data::ClassMap;
use serde::Serialize;

/// Mean and population standard deviation over `count` entries of a class map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    pub mean: f64,
    pub std: f64,
    pub count: usize,
}

/// The block model's three correlations as the class map has them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Correlations {
    /// c: over classes.
    pub within: Spread,
    /// d: over pairs of classes of one cluster; none if every class is alone.
    pub in_cluster: Option<Spread>,
    /// e: over pairs of classes of different clusters; none if there is one cluster.
    pub across: Option<Spread>,
}

/// Correlations of a class map under a clustering (`clusters`: the cluster of each class).
pub fn correlations(map: &ClassMap, clusters: &[usize]) -> Correlations {
    let classes = map.classes();
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for (i, j) in (0..classes).flat_map(|i| (0..i).map(move |j| (i, j))) {
        if clusters[i] == clusters[j] { inside.push(map.get(i, j)) } else { outside.push(map.get(i, j)) }
    }
    let own: Vec<f64> = (0..classes).map(|k| map.get(k, k)).collect();
    let some = |values: Vec<f64>| (!values.is_empty()).then(|| spread(&values));
    Correlations { within: spread(&own), in_cluster: some(inside), across: some(outside) }
}

fn spread(values: &[f64]) -> Spread {
    let count = values.len();
    let mean = values.iter().sum::<f64>() / count.max(1) as f64;
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count.max(1) as f64;
    Spread { mean, std: variance.sqrt(), count }
}
