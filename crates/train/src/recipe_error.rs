//! What is wrong with a recipe, and the place that says so.

use std::fmt;
use std::ops::Range;
use toml_edit::{Document, Item};

/// A recipe that cannot be used: what, expected, got, remedy, and where.
#[derive(Debug, thiserror::Error)]
pub struct RecipeError {
    pub what: String,
    /// What to write instead; may be empty.
    pub help: String,
    pub place: Place,
}

/// A stretch of the recipe file or of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file as it was named, or `command line`.
    pub name: String,
    /// All of the file, or `--set key=value`.
    pub text: String,
    /// Bytes of `text`; 0..0 if it is the file as a whole.
    pub span: Range<usize>,
}

impl Place {
    /// Line and column of the first byte, from 1; columns are characters.
    pub fn line_column(&self) -> (usize, usize) {
        let before = &self.text[..self.span.start];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

impl fmt::Display for RecipeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { name, text, span } = &self.place;
        let remedy = if self.help.is_empty() { String::new() } else { format!("; {}", self.help) };
        if *span == (0..0) {
            return write!(f, "{name}: {}{remedy}", self.what);
        }
        let (line, column) = self.place.line_column();
        let shown = text.lines().nth(line - 1).unwrap_or_default();
        let carets = text[span.clone()].lines().next().map_or(1, |s| s.chars().count().max(1));
        let (gutter, before) = (" ".repeat(line.to_string().len()), " ".repeat(column - 1));
        writeln!(f, "{name}:{line}:{column}: {}{remedy}", self.what)?;
        write!(f, "{line} | {shown}\n{gutter} | {before}{}", "^".repeat(carets))
    }
}

/// Which part of `key = value` is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Key,
    Value,
}

/// Where the parsed document came from: a file, and edits of the command line.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub name: String,
    pub text: String,
    /// Key paths and `key=value` as it was given.
    pub sets: Vec<(Vec<String>, String)>,
}

impl Source {
    /// The place of a key path; of what holds it where the key itself is not written.
    pub(crate) fn place(&self, path: &[String], part: Part) -> Place {
        let given = |set: &&(Vec<String>, String)| !path.is_empty() && path.starts_with(&set.0);
        if let Some((_, set)) = self.sets.iter().rev().find(given) {
            return place_of_set(set, part);
        }
        let span = Document::parse(self.text.as_str()).ok().and_then(|doc| span_of(doc.as_item(), path, part));
        let within = |set: &&(Vec<String>, String)| !path.is_empty() && set.0.starts_with(path);
        match (span, self.sets.iter().rev().find(within)) {
            (None, Some((_, set))) => place_of_set(set, Part::Key),
            (span, _) => self.span(span),
        }
    }

    /// A stretch of the file.
    pub(crate) fn span(&self, span: Option<Range<usize>>) -> Place {
        let span = span.filter(|s| self.text.get(s.clone()).is_some()).unwrap_or(0..0);
        Place { name: self.name.clone(), text: self.text.clone(), span }
    }
}

/// The place of an edit of the command line.
pub(crate) fn place_of_set(set: &str, part: Part) -> Place {
    let (flag, key) = ("--set ", set.find('=').unwrap_or(set.len()));
    let text = format!("{flag}{set}");
    let span = match part {
        Part::Value if key + 1 < set.len() => flag.len() + key + 1..text.len(),
        Part::Key | Part::Value => flag.len()..flag.len() + key,
    };
    Place { name: "command line".to_string(), text, span }
}

/// The bytes of a key or its value in a parsed document; of the nearest thing around it that is written.
fn span_of(root: &Item, path: &[String], part: Part) -> Option<Range<usize>> {
    let (mut item, mut found) = (root, None);
    for (depth, key) in path.iter().enumerate() {
        let table = item.as_table_like();
        let entry = table.and_then(|t| t.get_key_value(key)).map(|(k, v)| (k.span(), v));
        let Some((key, next)) = entry.or_else(|| item.get(key.parse::<usize>().ok()?).map(|v| (v.span(), v))) else {
            return found;
        };
        let value = (part == Part::Value && depth + 1 == path.len()).then(|| next.span()).flatten();
        (found, item) = (value.or(key).or(next.span()).or(found), next);
    }
    found
}

/// The path of the innermost key whose name or value has the byte `at`.
pub(crate) fn path_at(item: &Item, at: usize) -> Option<(Vec<String>, Part)> {
    let covers = |span: Option<Range<usize>>| span.is_some_and(|s| s.contains(&at));
    let children: Vec<(String, Option<Range<usize>>, &Item)> = match item.as_table_like() {
        Some(table) => table.iter().map(|(k, v)| (k.to_string(), table.key(k).and_then(|k| k.span()), v)).collect(),
        None => (0..).map_while(|i| Some((i.to_string(), None, item.get(i)?))).collect(),
    };
    for (name, key, child) in children {
        let inner = path_at(child, at);
        let here = || (covers(key).then_some(Part::Key)).or(covers(child.span()).then_some(Part::Value));
        if let Some((mut path, part)) = inner.or_else(|| here().map(|part| (vec![], part))) {
            path.insert(0, name);
            return Some((path, part));
        }
    }
    None
}

/// The candidate nearest to a word, if it is near enough to be what was meant.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let (edits, best) = candidates.into_iter().map(|c| (edits(word, c), c)).min()?;
    (edits <= (word.chars().count() / 3).max(2)).then_some(best)
}

/// Letters to insert, delete or replace to get from one word to the other (Levenshtein).
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}
