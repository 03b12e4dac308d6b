//! From a file and `--set` to a recipe: one document is edited, printed and parsed once, so that every error has a place.

#[path = "recipe_check.rs"]
mod recipe_check;
#[path = "recipe_error.rs"]
mod recipe_error;

use crate::recipe::Recipe;
use recipe_error::{Part, Source, nearest, path_at, place_of_set};
pub use recipe_error::{Place, RecipeError};
use std::path::{Path, PathBuf};
use toml_edit::{Document, DocumentMut, Item, Key, TableLike, Value};

/// A recipe that passed every check that needs no data.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Existing relative paths are absolute here.
    pub recipe: Recipe,
    /// The recipe with every key written out, itself a valid recipe.
    pub text: String,
    /// Keys (`optimizer.momentum`) that neither the file nor `--set` gave.
    pub unset: Vec<String>,
    /// The file.
    pub path: PathBuf,
    source: Source,
}

impl Recipe {
    /// Reads a recipe, with edits `section.key=value` in the order of the command line.
    ///
    /// A value is TOML; what is not TOML and does not begin like it is a string. Since `optimizer.lr` and `lr_per_256` are
    /// one setting with two names, an edit of one removes the other.
    pub fn load(path: &Path, sets: &[String]) -> Result<Loaded, RecipeError> {
        let name = path.display().to_string();
        let fail = |what: String, text: &str, at: usize| {
            let place = Place { name: name.clone(), text: text.to_string(), span: at..at };
            Err(RecipeError { what, help: String::new(), place })
        };
        match std::fs::read(path).map(String::from_utf8) {
            Ok(Ok(text)) => Recipe::parse(text, path, sets),
            Ok(Err(bad)) => {
                let at = bad.utf8_error().valid_up_to();
                let what = format!("not UTF-8: byte {at} is 0x{:02x}; save the file as UTF-8", bad.as_bytes()[at]);
                fail(what, &String::from_utf8_lossy(bad.as_bytes()), at)
            }
            Err(error) => fail(format!("cannot read the recipe: {error}"), "", 0),
        }
    }

    /// As `load`, from text; `path` names it and is where relative paths begin.
    pub fn parse(text: String, path: &Path, sets: &[String]) -> Result<Loaded, RecipeError> {
        let mut source = Source { name: path.display().to_string(), text, sets: vec![] };
        let document = Document::parse(source.text.as_str()).map_err(|e| RecipeError {
            what: e.message().trim_end().replace('\n', ", "),
            help: String::new(),
            place: source.span(e.span()),
        })?;
        let mut document = document.into_mut();
        for set in sets {
            let fail =
                |what| RecipeError { what, help: "give section.key=value".into(), place: place_of_set(set, Part::Key) };
            source.sets.push((edit(&mut document, set).map_err(fail)?, set.clone()));
        }
        let edited = document.to_string();
        let recipe: Recipe = toml::from_str(&edited).map_err(|e| unreadable(&source, &edited, &e))?;
        let mut loaded = Loaded { recipe, text: String::new(), unset: vec![], path: path.to_path_buf(), source };
        loaded.check(&document)?;
        loaded.find_files();
        loaded.text = toml::to_string(&loaded.recipe).map_err(|e| loaded.fault("", &e.to_string(), ""))?;
        let resolved: DocumentMut =
            loaded.text.parse().map_err(|e: toml_edit::TomlError| loaded.fault("", e.message(), ""))?;
        loaded.unset = unset(resolved.as_table(), Some(document.as_item()), "");
        Ok(loaded)
    }
}

impl Loaded {
    /// An error of the recipe with the place of `key` (`section.key`; for example a range that a method checks).
    pub fn fault(&self, key: &str, what: &str, help: &str) -> RecipeError {
        let path: Vec<String> = key.split('.').filter(|k| !k.is_empty()).map(str::to_string).collect();
        RecipeError { what: what.to_string(), help: help.to_string(), place: self.source.place(&path, Part::Value) }
    }

    /// The resolved recipe, with `# default` behind each key that nobody set.
    pub fn annotated(&self) -> String {
        let mut section = "";
        let mut out = String::new();
        for line in self.text.lines() {
            section = line.strip_prefix('[').map_or(section, |name| name.trim_matches(['[', ']']));
            let key = line.split(" = ").next().unwrap_or_default();
            let hidden =
                self.unset.iter().any(|k| k.strip_prefix(section).and_then(|k| k.strip_prefix('.')) == Some(key));
            out.push_str(line);
            out.push_str(if hidden { "  # default\n" } else { "\n" });
        }
        out
    }

    /// Whether every file and folder that the recipe names exists.
    pub fn check_files(&self) -> Result<(), RecipeError> {
        for (key, path) in files(&mut self.recipe.clone()) {
            // `@name` is what a stage of the run leaves.
            let stage = path.to_str().and_then(|p| p.strip_prefix('@'));
            let of_stage = stage.is_some_and(|name| self.recipe.stage.iter().any(|s| s.name == name));
            if !of_stage && !path.exists() {
                let tried: Vec<_> = candidates(path, &self.path).iter().map(|p| p.display().to_string()).collect();
                let what = format!("{key}: there is nothing at {}", tried.join(" or "));
                return Err(self.fault(&key, &what, "relative paths begin at the recipe, here, or at $RETORT_DATA"));
            }
        }
        Ok(())
    }

    fn find_files(&mut self) {
        for (_, path) in files(&mut self.recipe) {
            let found = candidates(path, &self.path).into_iter().find(|p| p.exists());
            *path = found.and_then(|p| std::path::absolute(p).ok()).unwrap_or(path.clone());
        }
    }
}

/// Keys and values that name files to read.
fn files(recipe: &mut Recipe) -> Vec<(String, &mut PathBuf)> {
    let mut files = vec![("data.folder".to_string(), &mut recipe.data.folder)];
    let teachers = recipe.teacher.iter_mut().enumerate();
    files.extend(teachers.map(|(i, t)| (format!("teacher.{i}.weights"), &mut t.weights)));
    files.extend(recipe.train.init_weights.iter_mut().map(|w| ("train.init_weights".to_string(), w)));
    files
}

/// Where a path of a recipe may lie, in order.
fn candidates(path: &Path, recipe: &Path) -> Vec<PathBuf> {
    if path.is_absolute() {
        return vec![path.to_path_buf()];
    }
    let roots = [
        recipe.parent().map(Path::to_path_buf),
        Some(PathBuf::new()),
        std::env::var_os("RETORT_DATA").map(PathBuf::from),
    ];
    let mut all: Vec<PathBuf> = roots.into_iter().flatten().map(|root| root.join(path)).collect();
    all.dedup();
    all
}

/// Applies `section.key=value`; returns the path of the key.
fn edit(document: &mut DocumentMut, set: &str) -> Result<Vec<String>, String> {
    let (key, text) = set.split_once('=').ok_or_else(|| format!("there is no `=` in {set:?}"))?;
    let keys = Key::parse(key.trim()).map_err(|e| format!("{key:?} is not a key: {}", e.message().trim_end()))?;
    let path: Vec<String> = keys.iter().map(|k| k.get().to_string()).collect();
    let [section, inner @ .., last] = &path[..] else {
        return Err(format!("`{key}` is a section or no key at all"));
    };
    let mut item = document.entry(section).or_insert_with(toml_edit::table);
    for part in inner {
        let next = match part.parse::<usize>() {
            Ok(index) => item.get_mut(index),
            Err(_) => item.get_mut(part.as_str()),
        };
        item = next.ok_or_else(|| format!("there is no `{part}` in `{section}` to set a key of"))?;
    }
    let table: &mut dyn TableLike = match item.as_table_like_mut() {
        Some(table) => table,
        None => {
            return Err(format!(
                "`{key}`: what comes before `.{last}` is not a section; of several teachers, teacher.0 is the first"
            ));
        }
    };
    for (one, other) in [("lr", "lr_per_256"), ("lr_per_256", "lr")] {
        if section == "optimizer" && last == one {
            table.remove(other);
        }
    }
    table.insert(last, Item::Value(value(text.trim())?));
    Ok(path)
}

/// TOML, or a string as it stands.
fn value(text: &str) -> Result<Value, String> {
    match text.parse::<Value>() {
        Err(e) if text.starts_with(['"', '\'', '[', '{']) => {
            Err(format!("{text} is not TOML: {}", e.message().trim_end()))
        }
        Err(_) => Ok(Value::from(text)),
        Ok(value) => Ok(value),
    }
}

/// The error of a document that is TOML but not a recipe.
fn unreadable(source: &Source, edited: &str, error: &toml::de::Error) -> RecipeError {
    let mut what = error.message().to_string();
    for (rust, words) in
        [("usize", "a whole number"), ("u64", "a whole number"), ("f64", "a number"), ("boolean", "true or false")]
    {
        what = what.replace(&format!("expected {rust}"), &format!("expected {words}"));
    }
    let document = Document::parse(edited).ok();
    let (path, part) =
        error.span().zip(document).and_then(|(s, d)| path_at(d.as_item(), s.start)).unwrap_or((vec![], Part::Key));
    if what.starts_with("missing field") && !path.is_empty() {
        what.push_str(&format!(" in [{}]", path.join(".")));
    }
    let names: Vec<&str> = what.split('`').skip(1).step_by(2).collect();
    let meant = match names.split_first() {
        Some((word, known)) if what.starts_with("unknown") => nearest(word, known.iter().copied()),
        _ => None,
    };
    let help = meant.map_or(String::new(), |name| format!("did you mean `{name}`?"));
    let place = if source.sets.is_empty() { source.span(error.span()) } else { source.place(&path, part) };
    RecipeError { what, help, place }
}

/// Keys of the resolved recipe that the given document does not have.
fn unset(resolved: &dyn TableLike, given: Option<&Item>, prefix: &str) -> Vec<String> {
    let keys = resolved.iter().map(|(key, value)| {
        let (path, given) = (format!("{prefix}{key}"), given.and_then(|g| g.get(key)));
        match (value.as_table_like(), given) {
            (Some(table), given) => unset(table, given, &format!("{path}.")),
            (None, None) => vec![path],
            (None, Some(_)) => vec![],
        }
    });
    keys.flatten().collect()
}
