//! F17: one bit of one rank's weights flips in its memory.

use crate::job::set_up;
use crate::launching::{Launch, World, signal, steps, stop};
use crate::table::{Tally, dice, runs, turn};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

/// Bytes of the tensor that is looked for.
const NEEDLE: usize = 256;

/// The first bytes of a filter over one channel, the newest checkpoint's: such a tensor is the same in every layout.
fn needle(run: &Path) -> Vec<u8> {
    let newest = std::fs::read_to_string(run.join("checkpoints/latest")).unwrap();
    let bytes = std::fs::read(run.join("checkpoints").join(newest.trim()).join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let filter = |tensor: &&Value| tensor["shape"].as_array().is_some_and(|shape| shape.len() == 4 && shape[1] == 1);
    let tensor = tensors.as_object().unwrap().values().find(filter).expect("a filter over one channel");
    let [begin, end] = [0, 1].map(|i| tensor["data_offsets"][i].as_u64().unwrap() as usize);
    assert!(end - begin >= NEEDLE);
    bytes[8 + header + begin..][..NEEDLE].to_vec()
}

/// Flips the lowest bit of the first weight wherever these bytes are in the memory of a stopped process; how often.
fn flip(pid: u32, needle: &[u8]) -> std::io::Result<usize> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory: File = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
    let mut flipped = 0;
    for line in maps.lines().filter(|line| line.contains(" rw-p ")) {
        let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-')).expect("a range");
        let [begin, end] = [range.0, range.1].map(|hex| u64::from_str_radix(hex, 16).expect("an address"));
        let mut bytes = vec![0; (end - begin) as usize];
        if memory.read_at(&mut bytes, begin).is_err() {
            continue;
        }
        // Tensors are aligned to their values at least.
        for at in (0..bytes.len().saturating_sub(needle.len())).step_by(4).filter(|&at| bytes[at..].starts_with(needle))
        {
            memory.write_all_at(&[needle[0] ^ 1], begin + at as u64)?;
            flipped += 1;
        }
    }
    Ok(flipped)
}

/// Three ranks whose weights stay what they are, since the learning rate is next to nothing; compared at every fifth step.
fn three(folder: &Path) -> World {
    let still = ["--lr", "1e-30", "--epochs", "2000", "--global-batch", "24", "--set", "output.checkpoint_steps=4"];
    let args = [&still[..], &["--set", "ranks.check_every=5"]].concat();
    Launch { folder, run: "run", size: 3, args: &args }.start()
}

#[test]
fn f17_a_flipped_bit_is_caught_at_the_next_comparison() {
    let _turn = turn();
    let mut dice = dice();
    let tally =
        Tally::new("F17", "a bit of a weight flips in the memory of a random rank of 3, compared every 5 steps");
    for _ in 0..runs(1, 50) {
        let folder = set_up();
        let mut world = three(folder.path());
        world.at_step(8 + dice.below(10)); // the first checkpoint is there
        let victim = dice.below(3) as usize;
        let pid = world.processes[victim].id();
        stop(pid);
        let flipped = flip(pid, &needle(&world.run));
        let begin = Instant::now();
        let at_step = steps(&world.run);
        signal(pid, "CONT");
        match flipped {
            Err(why) => {
                eprintln!("SKIPPED: the memory of another process cannot be written here: {why}");
                return;
            }
            Ok(copies) => assert!(copies > 0, "the weights are not found in the memory of rank {victim}"),
        }
        let (at, _) = world.processes[0].says("retort: ");
        tally.detected(begin, at);
        let (codes, last) = world.ends();
        tally.gone(begin, last);
        tally.ended(&codes);
        assert_eq!(codes, [79; 3], "{}", world.words());
        let done = steps(&world.run);
        assert!(done <= at_step + 6, "caught at the next comparison: flipped after {at_step}, ended after {done}");
        tally.named(world.processes[0].err.contains(&format!("rank {victim}")));
    }
    tally.end(0.0, 5.0);
}
