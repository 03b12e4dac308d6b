//! Cuts a balanced subset out of Fashion-MNIST and packs it: `make_subset <folder of the IDX files> <output folder>`.
//!
//! The first 1,000 training and the first 200 test images of each class, in the order of the files. Called by
//! `tools/make_fashion_subset.sh`, which made `data/fashion`; the output is the same byte for byte at every run.

use std::error::Error;
use std::path::Path;

use data::{Dataset, Holdout, PackCodec, PackSettings, Source, SourceSpec, Split, Subset, pack, sample_hash};

fn main() -> Result<(), Box<dyn Error>> {
    let [from, to] =
        std::env::args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| "usage: make_subset FROM TO")?;
    for (split, per_class) in [(Split::Train, 1000), (Split::Test, 200)] {
        let spec = SourceSpec { set: "fashion".into(), folder: (&from).into(), split, holdout: Holdout::default() };
        let Source { dataset, stats } = Source::open(&spec)?;
        let index = first_of_each_class(&*dataset, per_class);
        let subset = Subset::new(dataset, format!("fashion/{split}"), index)?;
        let settings = PackSettings { codec: PackCodec::Deflate, short_side: None, stats };
        let report = pack(&subset, &settings, &Path::new(&to).join(format!("{split}.pack")), &mut |_, _| {})?;
        println!(
            "{split}: {} images, {} bytes, sample hash {:016x}",
            report.packed,
            report.bytes,
            sample_hash(&subset)
        );
    }
    Ok(())
}

/// Indices of the first `per_class` images of each class, ascending.
fn first_of_each_class(dataset: &dyn Dataset, per_class: usize) -> Vec<u32> {
    let mut taken = vec![0; dataset.classes().len()];
    let mut index = Vec::new();
    for (i, label) in dataset.labels().iter().enumerate() {
        if taken[*label as usize] < per_class {
            taken[*label as usize] += 1;
            index.push(i as u32);
        }
    }
    index
}
