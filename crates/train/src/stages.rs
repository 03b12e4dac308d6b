//! Runs of several stages: each is the recipe with some sections replaced, and starts from what the ones before left.
//!
//! ```toml
//! [[stage]]
//! name = "teacher"
//! set = { network = { name = "resnet20" }, method = { name = "ce" } }
//! [[stage]]
//! name = "student"
//! set = { method = { name = "kd" }, teacher = [{ name = "resnet20", weights = "@teacher" }] }
//! ```
//!
//! `@name`, where a file of weights is expected, is what that stage ended with. A stage runs in a folder of its own below the
//! run's; stages that are complete are not run again.

use crate::deploy::export;
use crate::error::TrainError;
use crate::exit::Exit;
use crate::recipe::Recipe;
use crate::session::{Outcome, RunOptions, Session};
use crate::signals::Signals;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// The weights that a stage leaves for later ones.
const WEIGHTS: &str = "final.safetensors";

/// Names of the stages, a line each, in the folder of a run of several.
const LIST: &str = "stages.txt";

/// The folder that holds what a run came to: its own, or its last stage's.
pub fn final_folder(run: &Path) -> PathBuf {
    let names = std::fs::read_to_string(run.join(LIST)).unwrap_or_default();
    names.lines().last().map_or_else(|| run.to_path_buf(), |last| run.join(last))
}

/// Runs the stages in order; the outcome is that of the last, or of the first that was stopped.
pub(crate) fn run(session: &Session, signals: &Signals) -> Result<Outcome, TrainError> {
    let Session { recipe, run_dir, options, text, .. } = session;
    let base = text.parse::<Table>().map_err(|e| TrainError::Setting(format!("the stored recipe: {e}")))?;
    let names: Vec<&str> = recipe.stage.iter().map(|s| s.name.as_str()).collect();
    if session.leads() {
        let listed =
            std::fs::create_dir_all(run_dir).and_then(|()| std::fs::write(run_dir.join(LIST), names.join("\n") + "\n"));
        listed.map_err(|source| session.io("cannot write into", source))?;
    }
    let mut last = None;
    for (number, stage) in recipe.stage.iter().enumerate() {
        let folder = run_dir.join(&stage.name);
        let mut table = base.clone();
        table.remove("stage");
        replace(&mut table, &stage.set);
        let earlier: Vec<&str> = recipe.stage[..number].iter().map(|s| s.name.as_str()).collect();
        resolve(&mut table, run_dir, &earlier)?;
        let loaded = Recipe::parse(table.to_string(), &folder.join("recipe.toml"), &[])?;
        let options = RunOptions { run_dir: Some(folder.clone()), stage: number as u8, ..options.clone() };
        let outcome = Session::open(loaded, options)?.train_under(signals)?;
        if outcome.exit != Exit::Done {
            return Ok(outcome);
        }
        if session.leads() {
            export(&folder, false, &folder.join(WEIGHTS))?;
        }
        session.meet()?;
        last = Some(outcome);
    }
    last.ok_or_else(|| TrainError::Setting("[[stage]]: there is none".to_string()))
}

/// Sections of `changes` over those of the recipe: `network`, `method` and lists as a whole, others key by key.
fn replace(recipe: &mut Table, changes: &Table) {
    for (section, value) in changes {
        match (recipe.get_mut(section), value) {
            (Some(Value::Table(old)), Value::Table(new)) if section != "network" && section != "method" => {
                old.extend(new.clone());
            }
            _ => drop(recipe.insert(section.clone(), value.clone())),
        }
    }
}

/// Turns `@name` into the file of that stage, in `train.init_weights` and the teachers' `weights`.
fn resolve(recipe: &mut Table, run_dir: &Path, earlier: &[&str]) -> Result<(), TrainError> {
    let teachers = recipe.get_mut("teacher").and_then(Value::as_array_mut).into_iter().flatten();
    for value in teachers.filter_map(|t| t.get_mut("weights")) {
        resolve_one(value, run_dir, earlier)?;
    }
    if let Some(init) = recipe.get_mut("train").and_then(|t| t.get_mut("init_weights")) {
        resolve_one(init, run_dir, earlier)?;
    }
    Ok(())
}

fn resolve_one(value: &mut Value, run_dir: &Path, earlier: &[&str]) -> Result<(), TrainError> {
    let Some(name) = value.as_str().and_then(|s| s.strip_prefix('@')) else { return Ok(()) };
    if !earlier.contains(&name) {
        return Err(TrainError::Setting(format!(
            "[[stage]]: weights \"@{name}\" name no earlier stage; expected one of {}",
            earlier.join(", ")
        )));
    }
    let path = run_dir.join(name).join(WEIGHTS);
    let path = std::path::absolute(&path).unwrap_or(path);
    *value = Value::String(path.to_string_lossy().into_owned());
    Ok(())
}
