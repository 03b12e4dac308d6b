//! Checkpoints on the simulated disk: a crash or an error at every call, damage at every place, retention, resume.

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tensor::{HostTensor, Shape};
use train::checkpoint::{CheckpointError, Checkpoints, Retention, Snapshot};
use train::disk::{Disk, OsDisk};
use train::disk_sim::{EIO, ENOSPC, Fault, Loss, SimDisk};
use train::manifest::{Manifest, RunState};

const RUN: &str = "/runs/kd";

fn snapshot(step: u64) -> Snapshot {
    let tensor = |seed: u64, n: usize| {
        let values: Vec<f32> = (0..n).map(|i| (seed * 1000 + i as u64) as f32 * 0.37).collect();
        HostTensor::new(Shape::new(&[n]), &values).unwrap()
    };
    let group = |names: &[(&str, usize)]| names.iter().map(|(k, n)| (k.to_string(), tensor(step, *n))).collect();
    let groups = BTreeMap::from([
        ("model".to_owned(), group(&[("conv1.weight", 300), ("fc.bias", 10), ("bn1.running_mean", 7)])),
        ("optim".to_owned(), group(&[("conv1.weight", 300)])),
    ]);
    let state = serde_json::json!({ "loss_sum": 0.1 + 0.2 * step as f64, "table": [[step, 0.5]] });
    let run = RunState {
        run_id: "kd-1".into(),
        step,
        epoch: step / 7,
        position: step % 7 * 64,
        global_batch: 64,
        world_size: 2,
        seed: u64::MAX,
        recipe: "[method]\nname = \"kd\"\n".into(),
        score: Some(step as f64),
        state,
        ..RunState::default()
    };
    Snapshot { run, groups }
}

fn checkpoints(disk: &SimDisk) -> Checkpoints {
    Checkpoints::new(Arc::new(disk.clone()), Path::new(RUN), Retention::default())
}

fn root() -> PathBuf {
    Path::new(RUN).join("checkpoints")
}

fn names(disk: &SimDisk) -> Vec<String> {
    disk.list(&root()).unwrap().into_iter().map(|e| e.name).collect()
}

/// A disk with checkpoints of these steps.
fn disk_with(steps: &[u64]) -> SimDisk {
    let disk = SimDisk::default();
    steps.iter().for_each(|&step| drop(checkpoints(&disk).save(&snapshot(step)).unwrap()));
    disk
}

#[test]
fn what_is_saved_is_loaded() {
    let disk = disk_with(&[5, 12]);
    let loaded = checkpoints(&disk).load_newest().unwrap();
    assert_eq!(loaded.snapshot.unwrap(), snapshot(12));
    assert_eq!(loaded.rejected, []);
    assert_eq!(checkpoints(&disk).load(&root().join("step-5")).unwrap(), snapshot(5));
    assert_eq!(disk.read(&root().join("latest")).unwrap(), b"step-12\n");
    assert_eq!(names(&disk), ["latest", "step-12", "step-5"]);
    let none = checkpoints(&SimDisk::default()).load_newest().unwrap();
    assert!(none.snapshot.is_none() && none.rejected.is_empty());
}

#[test]
fn the_disk_of_the_operating_system() {
    let dir = tempfile::tempdir().unwrap();
    let all = Checkpoints::new(Arc::new(OsDisk), &dir.path().join("runs/kd"), Retention::default());
    for step in [1, 2, 3] {
        let report = all.save(&snapshot(step)).unwrap();
        assert_eq!(report.warnings, [] as [&str; 0]);
        let on_disk = |name: &str| std::fs::metadata(report.folder.join(name)).unwrap().len();
        assert_eq!(report.bytes, on_disk("model.safetensors") + on_disk("optim.safetensors"));
    }
    assert_eq!(all.prepare().unwrap(), [] as [&str; 0]);
    assert_eq!(all.load_newest().unwrap().snapshot.unwrap(), snapshot(3));
    let mut left: Vec<_> = OsDisk.list(&dir.path().join("runs/kd/checkpoints")).unwrap();
    left.retain(|e| e.is_dir);
    assert_eq!(left.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["step-2", "step-3"]);
    assert!(all.check_space(u64::MAX / 4).unwrap_err().to_string().contains("two checkpoints need"));
    all.check_space(1).unwrap();
}

/// Saves step 3 on a disk that holds `before`, crashing after every call, with every kind of loss.
fn crash_everywhere(before: &SimDisk, allowed: &[Option<Snapshot>], new: &Snapshot) {
    let trial = before.fork();
    trial.set_fault(Fault::None);
    checkpoints(&trial).save(new).unwrap();
    let calls = trial.calls();
    assert!(calls > 15, "only {calls} calls");
    let torn = (0..20).map(|seed| Loss::Torn { seed });
    for loss in [Loss::Nothing, Loss::Everything].into_iter().chain(torn) {
        for k in 0..=calls {
            let disk = before.fork();
            disk.set_fault(Fault::CrashAfter(k));
            let saved = checkpoints(&disk).save(new).is_ok();
            disk.reboot(loss);
            let all = checkpoints(&disk);
            all.prepare().unwrap();
            let found = all.load_newest().unwrap().snapshot;
            let what = format!("crash after call {k} of {calls}, {loss:?}: {:?}", names(&disk));
            assert!(found.as_ref() == Some(new) || !saved && allowed.contains(&found), "{what}");
            // The run goes on from there, `latest` says so, and the next save works.
            if let Some(step) = found.map(|found| found.run.step) {
                all.mend_latest(step).unwrap();
                let (latest, name) = (disk.read(&root().join("latest")), format!("step-{step}"));
                let is_named = latest.is_ok_and(|latest| latest == format!("{name}\n").as_bytes());
                assert!(is_named || !names(&disk).contains(&name), "{what}");
            }
            all.save(&snapshot(4)).unwrap();
            assert_eq!(all.load_newest().unwrap().snapshot, Some(snapshot(4)), "{what}");
        }
    }
}

#[test]
fn a_crash_at_any_call_leaves_the_old_or_the_new() {
    crash_everywhere(&disk_with(&[1, 2]), &[Some(snapshot(2))], &snapshot(3));
    crash_everywhere(&disk_with(&[1]), &[Some(snapshot(1))], &snapshot(3));
    crash_everywhere(&SimDisk::default(), &[None], &snapshot(3));
}

#[test]
fn a_crash_while_replacing_the_same_step_leaves_the_old_or_the_new() {
    let mut other = snapshot(3);
    other.groups.insert("ema".into(), other.groups["optim"].clone());
    crash_everywhere(&disk_with(&[3]), &[Some(snapshot(3))], &other);
    // Over a damaged one of the same step.
    let disk = disk_with(&[2, 3]);
    disk.damage(&root().join("step-3/model.safetensors"), |b| b[900] ^= 1).unwrap();
    crash_everywhere(&disk, &[Some(snapshot(2))], &snapshot(3));
}

#[test]
fn an_error_at_any_call_leaves_the_old_intact() {
    let before = disk_with(&[1, 2]);
    let trial = before.fork();
    trial.set_fault(Fault::None);
    checkpoints(&trial).save(&snapshot(3)).unwrap();
    let calls = trial.calls();
    let (mut failed, mut degraded) = (0, 0);
    for k in 1..=calls {
        for error in [ENOSPC, EIO, 30, 116] {
            for fault in [Fault::Once(k, error), Fault::From(k, error)] {
                let disk = before.fork();
                disk.set_fault(fault);
                let result = checkpoints(&disk).save(&snapshot(3));
                disk.set_fault(Fault::None);
                let found = checkpoints(&disk).load_newest().unwrap();
                assert_eq!(found.rejected, [], "{fault:?}");
                match result {
                    Ok(report) => {
                        degraded += usize::from(!report.warnings.is_empty());
                        assert_eq!(found.snapshot, Some(snapshot(3)), "{fault:?}");
                    }
                    Err(e) => {
                        failed += 1;
                        assert!(matches!(e, CheckpointError::Io { .. }), "{e}");
                        let newest = found.snapshot.unwrap();
                        assert!(newest == snapshot(2) || newest == snapshot(3), "{fault:?}");
                        assert_eq!(checkpoints(&disk).load(&root().join("step-2")).unwrap(), snapshot(2), "{fault:?}");
                    }
                }
                // When the disk is well again, so is the next save, and no half-written folder stays.
                checkpoints(&disk).save(&snapshot(5)).unwrap();
                assert_eq!(checkpoints(&disk).load_newest().unwrap().snapshot, Some(snapshot(5)));
                disk.list(&root()).unwrap().iter().filter(|e| e.is_dir && e.name.starts_with("tmp-")).for_each(|e| {
                    disk.set_age(&root().join(&e.name), Duration::from_secs(86_401)).unwrap();
                });
                checkpoints(&disk).prepare().unwrap();
                let stale =
                    |n: &String| n.starts_with("trash-") || n.starts_with("tmp-") && !n.starts_with("tmp-latest");
                assert!(!names(&disk).iter().any(stale), "{fault:?}: {:?}", names(&disk));
            }
        }
    }
    assert!(failed > 50 && degraded > 10, "{failed} failed, {degraded} degraded");
}

#[test]
fn every_flipped_bit_and_every_truncation_is_found() {
    let good = disk_with(&[1, 2]);
    for file in ["model.safetensors", "optim.safetensors", "manifest.json"] {
        let path = root().join("step-2").join(file);
        let len = good.read(&path).unwrap().len();
        let check = |change: &dyn Fn(&mut Vec<u8>), what: String| {
            let disk = good.fork();
            disk.damage(&path, |bytes| change(bytes)).unwrap();
            let loaded = checkpoints(&disk).load_newest().unwrap();
            assert_eq!(loaded.snapshot, Some(snapshot(1)), "{what}");
            assert_eq!(loaded.rejected.len(), 1, "{what}");
            assert_eq!(loaded.rejected[0].folder, "step-2");
            assert!(loaded.rejected[0].reason.starts_with(file), "{}", loaded.rejected[0].reason);
            assert!(names(&disk).contains(&"step-2".into()), "never deleted");
        };
        for at in 0..len {
            check(&|b| b[at] ^= 1 << (at % 8), format!("{file}: bit of byte {at}"));
        }
        for to in (0..len).step_by(3) {
            check(&|b| b.truncate(to), format!("{file}: cut to {to}"));
        }
        check(&|b| b.push(b' '), format!("{file}: one byte more"));
        check(&|b| b.clear(), format!("{file}: empty"));
    }
}

fn reason(disk: &SimDisk) -> String {
    let loaded = checkpoints(disk).load_newest().unwrap();
    assert_eq!(loaded.snapshot, Some(snapshot(1)));
    loaded.rejected[0].reason.clone()
}

#[test]
fn reasons_name_what_is_wrong() {
    let good = disk_with(&[1, 2]);
    let step = |n: u64, file: &str| root().join(format!("step-{n}")).join(file);

    let disk = good.fork();
    let model = disk.read(&step(2, "model.safetensors")).unwrap();
    disk.damage(&step(2, "model.safetensors"), |b| b[model.len() - 1] ^= 1).unwrap();
    assert_eq!(reason(&disk), "model.safetensors: BLAKE3 differs: tensor `fc.bias` is damaged");
    disk.damage(&step(2, "model.safetensors"), |b| b.truncate(10)).unwrap();
    assert_eq!(reason(&disk), format!("model.safetensors: has 10 bytes, the manifest says {}", model.len()));

    let disk = good.fork();
    disk.damage(&step(2, "model.safetensors"), |b| b[20] ^= 1).unwrap();
    assert_eq!(reason(&disk), "model.safetensors: BLAKE3 differs: header is damaged");

    let disk = good.fork();
    disk.remove_file(&step(2, "optim.safetensors")).unwrap();
    assert!(reason(&disk).starts_with("optim.safetensors: "), "{}", reason(&disk));

    // A shard of another step is a good file, but not this one.
    let disk = good.fork();
    let other = disk.read(&step(1, "model.safetensors")).unwrap();
    disk.damage(&step(2, "model.safetensors"), |b| *b = other).unwrap();
    assert!(reason(&disk).starts_with("model.safetensors: BLAKE3 differs: tensor"), "{}", reason(&disk));

    // A whole folder under a wrong number.
    let disk = disk_with(&[1]);
    disk.rename(&root().join("step-1"), &root().join("step-9")).unwrap();
    let loaded = checkpoints(&disk).load_newest().unwrap();
    assert_eq!(loaded.rejected[0].reason, "the folder is of step 9, its manifest of step 1");
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let disk = disk_with(&[1, 2]);
    let path = root().join("step-2/manifest.json");
    let mut manifest = Manifest::from_bytes(&disk.read(&path).unwrap()).unwrap();
    manifest.format_version = 7;
    disk.damage(&path, |b| *b = manifest.to_bytes().unwrap()).unwrap();
    assert_eq!(reason(&disk), "manifest.json: has format version 7, this program reads up to 1");
}

#[test]
fn a_manifest_cannot_name_files_elsewhere() {
    for name in ["../../../etc/passwd", "/etc/passwd", "..safetensors", "a/b.safetensors", ".safetensors"] {
        let disk = disk_with(&[1, 2]);
        let path = root().join("step-2/manifest.json");
        let mut manifest = Manifest::from_bytes(&disk.read(&path).unwrap()).unwrap();
        manifest.files[0].name = name.into();
        disk.damage(&path, |b| *b = manifest.to_bytes().unwrap()).unwrap();
        assert_eq!(reason(&disk), format!("manifest.json: `{name}` is no file of ours"));
    }
    let bad = Snapshot { groups: [("../x".to_owned(), BTreeMap::new())].into(), ..snapshot(1) };
    assert!(matches!(checkpoints(&SimDisk::default()).save(&bad), Err(CheckpointError::Group(_))));
}

#[test]
fn retention_keeps_the_last_the_best_and_every_nth() {
    let disk = SimDisk::default();
    let retention = Retention { keep_last: 2, keep_best: 2, every: Some(10) };
    let all = Checkpoints::new(Arc::new(disk.clone()), Path::new(RUN), retention);
    // Scores: the best are steps 3 and 6; step 6 and 8 tie, the earlier stays.
    let scores = [1.0, 2.0, 9.0, 3.0, 4.0, 7.0, 5.0, 7.0, 6.0, 0.0, 0.5, 0.25, 0.125];
    for (step, score) in (1..).zip(scores) {
        let mut snapshot = snapshot(step);
        snapshot.run.score = (step != 11).then_some(score);
        assert!(all.save(&snapshot).unwrap().warnings.is_empty());
    }
    assert_eq!(names(&disk), ["latest", "step-10", "step-12", "step-13", "step-3", "step-6"]);
    // Even a retention of nothing keeps the newest.
    let none = Retention { keep_last: 0, keep_best: 0, every: Some(0) };
    Checkpoints::new(Arc::new(disk.clone()), Path::new(RUN), none).save(&snapshot(14)).unwrap();
    assert_eq!(names(&disk), ["latest", "step-14"]);
}

#[test]
fn retention_leaves_damaged_and_later_ones_alone() {
    let disk = disk_with(&[1, 2]);
    disk.damage(&root().join("step-2/manifest.json"), |b| b[100] ^= 1).unwrap();
    for step in [3, 4, 5] {
        checkpoints(&disk).save(&snapshot(step)).unwrap();
    }
    assert_eq!(names(&disk), ["latest", "step-2", "step-4", "step-5"]);
    // A run that goes on from step 4 does not load step 5 again.
    assert_eq!(checkpoints(&disk).set_aside_after(4).unwrap(), ["step-5"]);
    assert_eq!(checkpoints(&disk).load_newest().unwrap().snapshot, Some(snapshot(4)));
    // A damaged checkpoint that the run comes by again is set aside, not deleted.
    disk.damage(&root().join("step-4/model.safetensors"), |b| b[999] ^= 1).unwrap();
    checkpoints(&disk).save(&snapshot(4)).unwrap();
    assert_eq!(checkpoints(&disk).load_newest().unwrap().snapshot, Some(snapshot(4)));
    let kept: Vec<_> = names(&disk).iter().map(|n| n.split('-').take(2).collect::<Vec<_>>().join("-")).collect();
    assert_eq!(kept, ["aside-5", "damaged-4", "latest", "step-2", "step-4"]);
}

#[test]
fn saving_the_same_again_writes_nothing_new() {
    let disk = disk_with(&[1, 2]);
    let before = disk.read(&root().join("step-2/manifest.json")).unwrap();
    let report = checkpoints(&disk).save(&snapshot(2)).unwrap();
    assert!(report.warnings.is_empty());
    assert_eq!(disk.read(&root().join("step-2/manifest.json")).unwrap(), before);
    assert_eq!(names(&disk), ["latest", "step-1", "step-2"]);
}

#[test]
fn old_half_written_folders_go_at_the_start() {
    let disk = disk_with(&[1]);
    for (name, hours) in [("tmp-7-a", 25), ("tmp-8-b", 23), ("trash-0-c", 0), ("other", 999)] {
        disk.create_dir_all(&root().join(name)).unwrap();
        disk.create(&root().join(name).join("model.safetensors")).unwrap();
        disk.set_age(&root().join(name), Duration::from_secs(hours * 3600)).unwrap();
    }
    assert_eq!(checkpoints(&disk).prepare().unwrap(), [] as [&str; 0]);
    assert_eq!(names(&disk), ["latest", "other", "step-1", "tmp-8-b"]);
    assert_eq!(checkpoints(&disk).load_newest().unwrap().rejected, []);
}

#[test]
fn without_room_for_two_nothing_is_begun() {
    let disk = disk_with(&[1]);
    disk.set_free(3000);
    let e = checkpoints(&disk).save(&snapshot(2)).unwrap_err();
    assert!(matches!(e, CheckpointError::NoSpace { free: 3000, .. }), "{e}");
    assert!(e.to_string().starts_with("/runs/kd/checkpoints: 3000 bytes free, two checkpoints need "), "{e}");
    assert_eq!(names(&disk), ["latest", "step-1"]);
}

#[test]
fn a_folder_that_cannot_be_listed_is_an_error() {
    let disk = disk_with(&[1]);
    disk.set_fault(Fault::Once(1, EIO));
    let e = checkpoints(&disk).load_newest().unwrap_err();
    assert!(matches!(&e, CheckpointError::Io { source, .. } if source.raw_os_error() == Some(EIO)), "{e}");
    assert!(matches!(SimDisk::default().read(Path::new("/x")).map_err(|e| e.kind()), Err(io::ErrorKind::NotFound)));
}

proptest! {
    /// Metric sums must come back bit for bit, or a resumed run is another run.
    #[test]
    fn numbers_of_the_state_are_exact(bits in any::<u64>(), step in any::<u64>(), seed in any::<u64>()) {
        let x = f64::from_bits(bits);
        prop_assume!(x.is_finite());
        let state = serde_json::json!([x, step]);
        let run = RunState { step, seed, score: Some(x), state, ..RunState::default() };
        let back = Manifest::from_bytes(&Manifest::new(run.clone()).to_bytes().unwrap()).unwrap();
        prop_assert_eq!(back.run.state[0].as_f64().unwrap().to_bits(), bits);
        prop_assert_eq!(back.run, run);
    }

    #[test]
    fn any_bytes_are_a_manifest_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Manifest::from_bytes(&bytes).is_err());
        let behind = [br#"{"blake3":""#.to_vec(), bytes].concat();
        prop_assert!(Manifest::from_bytes(&behind).is_err());
    }
}
