//! What a run came to, and what can be done with it.

use crate::output::percent;
use serde_json::json;
use std::path::Path;
use train::recipe::Recipe;
use train::{Exit, Outcome, Score};

/// How it ended, a table of the last and the best evaluation, and the run folder.
pub(crate) fn in_words(outcome: &Outcome, recipe: &Recipe) -> String {
    let mut text = format!("{}: {} steps in {:.1} s\n", ending(outcome, recipe), outcome.steps, outcome.seconds);
    let split = &recipe.eval.split;
    let row = |name: &str, score: Score| {
        // A stage may have other epochs than the recipe.
        let of = if recipe.stage.is_empty() { format!("/{}", recipe.train.epochs) } else { String::new() };
        let epoch = format!("{}{of}", score.epoch + 1);
        let [top1, top5] = [score.top1, score.top5].map(percent);
        format!("  {name:<6}{epoch:>9}{top1:>12}{top5:>12}{:>9.4}\n", score.loss)
    };
    match (outcome.last, outcome.best) {
        (Some(last), Some(best)) => {
            text += &format!("  {split:<6}{:>9}{:>12}{:>12}{:>9}\n", "epoch", "top1", "top5", "loss");
            text += &row("last", last);
            text += &row("best", best);
            if split == "test" && best.top1 > last.top1 {
                text += "  The best epoch was picked on the test set: quote the last.\n";
            }
        }
        _ => text += "  not evaluated yet; that is done at the end of an epoch\n",
    }
    text + &format!("run folder: {}", outcome.run_dir.display())
}

fn ending(outcome: &Outcome, recipe: &Recipe) -> &'static str {
    let limited = recipe.train.max_steps == Some(outcome.steps);
    match outcome.exit {
        Exit::Done if outcome.degraded => "done, but something could not be written (see stderr)",
        Exit::Done if limited => "done, by train.max_steps; with more the run goes on",
        Exit::Done => "done",
        Exit::Preempted => "stopped by USR1 or USR2, saved; the same command goes on",
        Exit::Interrupted => "stopped by INT, saved; the same command goes on",
        Exit::Terminated => "stopped by TERM; the same command goes on",
        _ => "ended early",
    }
}

/// Commands for the user to go on with. `header` is the recipe as written: what else its first lines name is shown too.
pub(crate) fn next(outcome: &Outcome, recipe_file: &Path, header: &str) -> String {
    let run = outcome.run_dir.display();
    let name = outcome.run_dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut text = format!(
        "next:\n  retort eval {run} --per-class\n  retort predict --run {run} --topk 3 IMAGE.png\n  \
         retort export {run} --to {name}.safetensors"
    );
    for command in commands(header, recipe_file) {
        text += &format!("\n  {command}");
    }
    text
}

/// `retort …` to the end of the line in the comments that open a recipe, except the training of that recipe itself.
fn commands(header: &str, recipe_file: &Path) -> Vec<String> {
    let comments = header.lines().map_while(|line| line.strip_prefix('#'));
    let found = comments.filter_map(|line| Some(line[line.find("retort ")?..].trim().to_string()));
    let own = |command: &String| {
        let words: Vec<&str> = command.split(' ').collect();
        matches!(words[..], [_, "train", file] if Path::new(file).file_name() == recipe_file.file_name())
    };
    found.filter(|command| !own(command)).collect()
}

pub(crate) fn as_json(outcome: &Outcome) -> String {
    let score = |s: Option<Score>| s.map(|s| json!({"epoch": s.epoch, "top1": s.top1, "top5": s.top5, "loss": s.loss}));
    json!({
        "exit": outcome.exit.code(),
        "steps": outcome.steps,
        "last": score(outcome.last),
        "best": score(outcome.best),
        "seconds": outcome.seconds,
        "degraded": outcome.degraded,
        "run": outcome.run_dir,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_names_other_commands() {
        let header =
            "# IPS: retort train configs/a.toml\n# Compare:  retort train b.toml --epochs 3 \n#\n\n# retort no\n";
        assert_eq!(commands(header, Path::new("x/a.toml")), ["retort train b.toml --epochs 3"]);
        assert_eq!(commands(header, Path::new("c.toml")).len(), 2);
        assert!(commands("[data]", Path::new("c.toml")).is_empty());
    }
}
