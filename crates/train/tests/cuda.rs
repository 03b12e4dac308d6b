//! Every shipped recipe on a GPU, as far as that can be known without one: its plans compile, and every launch binds.

use std::path::{Path, PathBuf};
use train::footprint;
use train::recipe::Recipe;

/// All recipes below a folder.
fn recipes(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> =
        entries.flat_map(|path| if path.is_dir() { recipes(&path) } else { vec![path] }).collect();
    found.retain(|path| path.extension().is_some_and(|e| e == "toml"));
    found.sort();
    found
}

#[test]
fn every_recipe_binds_in_every_precision() {
    let configs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let all = recipes(&configs);
    assert!(all.len() >= 86, "{} recipes", all.len());
    for path in all {
        let name = path.strip_prefix(&configs).unwrap().display().to_string();
        let bytes = ["f32", "bf16", "tf32"].map(|precision| {
            let loaded = Recipe::load(&path, &[format!("train.precision=\"{precision}\"")]);
            let found = footprint(&loaded.unwrap_or_else(|e| panic!("{name}: {e}")));
            let found = found.unwrap_or_else(|e| panic!("{name} in {precision}: {e}"));
            assert!(found.commands > 10, "{name} in {precision}: {found:?}");
            // What an H100 has.
            assert!(found.bytes < 78 << 30, "{name} in {precision}: {:.1} GB", found.bytes as f64 / 1e9);
            found.bytes
        });
        println!("{name}: {:.2} GB in f32, {:.2} GB in bf16", bytes[0] as f64 / 1e9, bytes[1] as f64 / 1e9);
        assert!(bytes[1] <= bytes[0], "{name}: bf16 needs more than f32");
    }
}
