//! F14: the link between two ranks goes down. Each rank is in a network namespace of its own, joined by a pair of virtual links.

use crate::job::set_up;
use crate::launching::{Process, World};
use crate::table::{Tally, dice, runs, turn};
use std::path::Path;
use std::process::{Command, Stdio, id};
use std::time::Instant;

/// Two namespaces and the links between them; both go when it is dropped.
struct Net([String; 2]);

fn ip(words: &str) -> bool {
    let done = Command::new("ip").args(words.split(' ')).stdout(Stdio::null()).stderr(Stdio::null()).status();
    done.is_ok_and(|status| status.success())
}

impl Net {
    /// `None`, aloud, where this user or system cannot have namespaces.
    fn new() -> Option<Net> {
        let net = Net([0, 1].map(|side| format!("rt{}{side}", id())));
        let [a, b] = &net.0;
        let mut words = vec![
            format!("netns add {a}"),
            format!("netns add {b}"),
            format!("link add {a} netns {a} type veth peer name {b} netns {b}"),
        ];
        for (side, name) in net.0.iter().enumerate() {
            words.push(format!("-n {name} addr add 10.77.0.{}/24 dev {name}", side + 1));
            words.push(format!("-n {name} link set {name} up"));
            words.push(format!("-n {name} link set lo up"));
        }
        if words.iter().all(|words| ip(words)) {
            return Some(net);
        }
        eprintln!("SKIPPED: no network namespaces here (they need root, and `ip` of iproute2)");
        None
    }

    fn start(&self, folder: &Path, run: &str) -> World {
        let start = |rank: usize| {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &self.0[rank], env!("CARGO_BIN_EXE_retort"), "train", "recipe.toml"]);
            command.args(["--run", run, "--threads", "1", "--device", "cpu", "--epochs", "2000"]);
            for (name, value) in [("RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_RANK", rank)] {
                command.env(format!("RETORT_{name}"), value.to_string());
            }
            command.current_dir(folder).stdin(Stdio::null()).env_remove("LD_LIBRARY_PATH");
            Process::spawn(&mut command)
        };
        World { processes: [0, 1].map(start).into(), run: folder.join(run) }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in &self.0 {
            ip(&format!("netns del {name}"));
        }
    }
}

#[test]
fn f14_a_link_that_goes_down_is_noticed_on_both_sides() {
    let _turn = turn();
    let (mut dice, tally) = (dice(), Tally::new("F14", "the link between 2 ranks goes down"));
    for _ in 0..runs(1, 10) {
        let Some(net) = Net::new() else { return };
        let folder = set_up();
        let mut world = net.start(folder.path(), "run");
        world.at_step(2 + dice.below(20));
        let begin = Instant::now();
        let [a, _] = &net.0;
        assert!(ip(&format!("-n {a} link set {a} down")));
        for (rank, other) in [(0, "retort: rank 1 ("), (1, "retort: rank 0 (")] {
            let (at, line) = world.processes[rank].says("retort: rank ");
            tally.detected(begin, at);
            tally.named(line.starts_with(other));
        }
        let (codes, last) = world.ends();
        assert_eq!(codes, [76, 76], "{}", world.words());
        tally.gone(begin, last);
        tally.ended(&codes);
    }
    tally.end(15.0, 20.0);
}
