//! How alike classes are in feature space, and which belong together (chapter 6.3).

/// M, [classes, classes]: mean cosine of pairs of samples of two classes, the training mean subtracted; a pair of a sample with itself
/// does not count. A class without samples, or the diagonal of one with a single sample, is 0.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassMap {
    classes: usize,
    /// Row by row.
    entries: Vec<f64>,
}

impl ClassMap {
    /// The map of feature vectors `row(i)`, one a label, all of one length. By class sums: M[i,j] = s_i·s_j / (n_i n_j) and
    /// M[i,i] = (|s_i|² − n_i) / (n_i (n_i − 1)), so that nothing of size samples² is made.
    #[track_caller]
    pub fn new<'a>(row: impl Fn(usize) -> &'a [f32], labels: &[u32], classes: usize) -> ClassMap {
        let size = if labels.is_empty() { 0 } else { row(0).len() };
        let mut mean = vec![0.0_f64; size];
        for i in 0..labels.len() {
            mean.iter_mut().zip(row(i)).for_each(|(m, &x)| *m += f64::from(x) / labels.len() as f64);
        }
        let mut sums = vec![vec![0.0_f64; size]; classes];
        let (mut counts, mut squares) = (vec![0.0_f64; classes], vec![0.0_f64; classes]);
        for (i, &label) in labels.iter().enumerate() {
            let centred: Vec<f64> = row(i).iter().zip(&mean).map(|(&x, m)| f64::from(x) - m).collect();
            let norm = centred.iter().map(|x| x * x).sum::<f64>().sqrt();
            let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
            counts[label as usize] += 1.0;
            // 1, or 0 for a sample that is the mean itself.
            squares[label as usize] += scale * norm;
            sums[label as usize].iter_mut().zip(centred).for_each(|(s, x)| *s += scale * x);
        }
        let entry = |i: usize, j: usize| {
            let dot: f64 = sums[i].iter().zip(&sums[j]).map(|(a, b)| a * b).sum();
            let own = if i == j { 1.0 } else { 0.0 };
            let pairs = counts[i] * (counts[j] - own);
            if pairs > 0.0 { (dot - own * squares[i]) / pairs } else { 0.0 }
        };
        let entries = (0..classes * classes).map(|at| entry(at / classes, at % classes)).collect();
        ClassMap { classes, entries }
    }

    pub fn classes(&self) -> usize {
        self.classes
    }

    /// M[i,j].
    #[track_caller]
    pub fn get(&self, i: usize, j: usize) -> f64 {
        self.entries[i * self.classes + j]
    }

    fn row(&self, i: usize) -> &[f64] {
        &self.entries[i * self.classes..][..self.classes]
    }
}

/// The cluster of each class, numbered by their first class: complete linkage on Euclidean distances of the map's rows, all merges up to
/// `cut` times the largest.
///
/// The distance is that of rows, as the published code hands the map to its clustering routine as observations.
pub fn clusters(map: &ClassMap, cut: f64) -> Vec<usize> {
    let classes = map.classes();
    let distance =
        |i: usize, j: usize| map.row(i).iter().zip(map.row(j)).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    let mut between: Vec<Vec<f64>> = (0..classes).map(|i| (0..classes).map(|j| distance(i, j)).collect()).collect();
    let mut alive: Vec<usize> = (0..classes).collect();
    let mut merges: Vec<(usize, usize, f64)> = Vec::new();
    while alive.len() > 1 {
        let mut nearest = (alive[0], alive[1]);
        for (at, &i) in alive.iter().enumerate() {
            for &j in &alive[at + 1..] {
                if between[i][j] < between[nearest.0][nearest.1] {
                    nearest = (i, j);
                }
            }
        }
        let (kept, gone) = nearest;
        merges.push((kept, gone, between[kept][gone]));
        alive.retain(|&k| k != gone);
        for &k in &alive {
            let far = between[kept][k].max(between[gone][k]);
            (between[kept][k], between[k][kept]) = (far, far);
        }
    }
    let highest = merges.iter().map(|m| m.2).fold(0.0, f64::max);
    let mut root: Vec<usize> = (0..classes).collect();
    for (kept, gone, height) in merges {
        if height <= cut * highest {
            let (into, from) = (root[kept], root[gone]);
            root.iter_mut().filter(|r| **r == from).for_each(|r| *r = into);
        }
    }
    // Roots are the clusters' first classes: a merge keeps the lower one.
    let firsts: Vec<usize> = (0..classes).filter(|&k| root[k] == k).collect();
    root.iter().map(|r| firsts.partition_point(|first| first < r)).collect()
}
