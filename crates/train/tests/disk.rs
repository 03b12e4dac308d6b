//! The simulated disk forgets as a real one may, and both disks agree on what calls mean.

use std::path::{Path, PathBuf};
use std::time::Duration;
use train::disk::{Disk, OsDisk};
use train::disk_sim::{EIO, ENOSPC, Fault, Loss, SimDisk};

fn write(disk: &dyn Disk, path: &Path, bytes: &[u8]) {
    disk.create(path).unwrap().write_all(bytes).unwrap();
}

fn names(disk: &dyn Disk, path: &Path) -> Vec<String> {
    disk.list(path).unwrap().into_iter().map(|e| e.name).collect()
}

/// The same story on both disks.
fn story(disk: &dyn Disk, root: &Path) {
    let dir = root.join("a/b");
    disk.create_dir_all(&dir).unwrap();
    disk.create_dir_all(&dir).unwrap();
    let mut file = disk.create(&dir.join("x")).unwrap();
    file.write_all(b"one ").unwrap();
    file.write_all(b"two").unwrap();
    file.sync().unwrap();
    drop(file);
    assert_eq!(disk.read(&dir.join("x")).unwrap(), b"one two");
    assert!(disk.create(&dir.join("x")).is_err(), "it exists");
    assert!(disk.create(&root.join("no/x")).is_err(), "no such folder");
    write(disk, &dir.join("y"), b"3");
    disk.rename(&dir.join("y"), &dir.join("x")).unwrap();
    assert_eq!(disk.read(&dir.join("x")).unwrap(), b"3");
    assert_eq!(names(disk, &dir), ["x"]);
    assert!(disk.remove_dir(&dir).is_err(), "not empty");
    assert!(disk.read(&dir).is_err(), "a folder");
    disk.create_dir_all(&root.join("a/c")).unwrap();
    assert!(disk.rename(&root.join("a/c"), &dir).is_err(), "not empty");
    disk.sync_dir(&dir).unwrap();
    disk.remove_file(&dir.join("x")).unwrap();
    assert!(disk.remove_file(&dir.join("x")).is_err());
    disk.rename(&root.join("a/c"), &dir).unwrap();
    assert_eq!(names(disk, &root.join("a")), ["b"]);
    disk.remove_dir(&dir).unwrap();
    assert!(disk.list(&dir).is_err() && disk.sync_dir(&dir).is_err());
    let entries = disk.list(root).unwrap();
    assert!(entries.len() == 1 && entries[0].is_dir && entries[0].age < Duration::from_secs(3600));
    assert!(disk.free_bytes(root).unwrap() > 0);
}

#[test]
fn both_disks_tell_the_same_story() {
    story(&SimDisk::default(), Path::new("/"));
    story(&OsDisk, tempfile::tempdir().unwrap().path());
}

/// A file of 2,000 bytes of which 700 are synced, and its name, perhaps.
fn half_written(sync_name: bool) -> (SimDisk, PathBuf) {
    let (disk, path) = (SimDisk::default(), PathBuf::from("/x"));
    let mut file = disk.create(&path).unwrap();
    file.write_all(&[1; 700]).unwrap();
    file.sync().unwrap();
    file.write_all(&[2; 1300]).unwrap();
    if sync_name {
        disk.sync_dir(Path::new("/")).unwrap();
    }
    (disk, path)
}

#[test]
fn what_is_not_synced_may_be_lost() {
    let (disk, path) = half_written(true);
    disk.fork().reboot(Loss::Everything);
    assert_eq!(disk.read(&path).unwrap().len(), 2000, "a fork is another disk");
    disk.reboot(Loss::Everything);
    assert_eq!(disk.read(&path).unwrap(), [1; 700]);

    let (disk, path) = half_written(false);
    disk.fork().reboot(Loss::Nothing);
    assert_eq!(disk.read(&path).unwrap().len(), 2000);
    disk.reboot(Loss::Everything);
    assert!(disk.read(&path).is_err(), "the name was not synced");
}

#[test]
fn torn_writes_are_sectors_in_any_combination() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let (disk, path) = half_written(true);
        disk.reboot(Loss::Torn { seed });
        let data = disk.read(&path).unwrap();
        assert_eq!(data[..700], [1; 700]);
        let sectors: Vec<_> = data[700..].chunks(512).collect();
        assert!(sectors.iter().all(|s| s.iter().all(|&b| b == s[0])), "sectors are whole");
        seen.insert(sectors.iter().map(|s| (s[0], s.len())).collect::<Vec<_>>());
    }
    assert!(seen.len() > 8, "{seen:?}");
}

#[test]
fn faults_strike_at_their_call() {
    let disk = SimDisk::default();
    let path = Path::new("/x");
    disk.set_fault(Fault::Once(2, ENOSPC));
    let mut file = disk.create(path).unwrap();
    assert_eq!(file.write_all(b"abcdef").unwrap_err().raw_os_error(), Some(ENOSPC));
    file.write_all(b"X").unwrap();
    assert_eq!((disk.read(path).unwrap(), disk.calls()), (b"abcX".to_vec(), 4), "half of the write was done");

    disk.set_fault(Fault::From(1, EIO));
    assert_eq!(file.write_all(b"Y").unwrap_err().raw_os_error(), Some(EIO));
    assert!(file.sync().is_err() && disk.remove_file(path).is_err());
    assert!(disk.read(path).is_ok(), "reading still works");

    disk.set_fault(Fault::CrashAfter(1));
    file.sync().unwrap();
    assert!(disk.read(path).is_err() && file.write_all(b"Z").is_err() && disk.list(Path::new("/")).is_err());
    assert_eq!(disk.calls(), 1);
}
