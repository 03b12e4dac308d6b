//! A disk in memory for tests: it fails or crashes at any chosen call, and forgets what was not synced.
//!
//! Files are appended to only, so what a crash may lose of a file is its end. Names live in folders, which are synced on
//! their own: a synced file whose folder was not synced may be gone after a crash.

use crate::disk::{Disk, DiskFile, Entry};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Unit in which a disk writes all or nothing.
const SECTOR_BYTES: usize = 512;
const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const ENOTDIR: i32 = 20;
const ENOTEMPTY: i32 = 39;
/// Input/output error, for [`Fault::Once`] and [`Fault::From`].
pub const EIO: i32 = 5;
/// No space left on device, likewise.
pub const ENOSPC: i32 = 28;

/// What happens at a call. Calls count from 1, after the fault was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Calls up to this one are done, all later ones fail: the program is dead.
    CrashAfter(u64),
    /// This call alone fails with this error number; a write is half done.
    Once(u64, i32),
    /// This and all later calls that change the disk fail with this error number.
    From(u64, i32),
}

/// What a crash leaves of that which was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    Nothing,
    Everything,
    /// Each sector of 512 bytes and each change of a folder is lost or not, by chance, in no order.
    Torn {
        seed: u64,
    },
}

/// The simulated disk; a clone is another handle to the same one.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

#[derive(Clone)]
struct State {
    /// By number; 0 is the root folder. Nodes are never reused.
    nodes: Vec<Node>,
    calls: u64,
    fault: Fault,
    free: u64,
}

#[derive(Clone)]
enum Node {
    File { data: Vec<u8>, synced: usize, age: Duration },
    Dir { live: BTreeMap<String, usize>, durable: BTreeMap<String, usize>, pending: Vec<Change>, age: Duration },
}

/// An atomic change of a folder.
#[derive(Clone)]
enum Change {
    Set(String, usize),
    Remove(String),
    Rename(String, String, usize),
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Set(name, node) => drop(names.insert(name.clone(), *node)),
            Self::Remove(name) => drop(names.remove(name)),
            Self::Rename(from, to, node) => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
        }
    }
}

impl Default for SimDisk {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { nodes: vec![Node::dir()], calls: 0, fault: Fault::None, free: u64::MAX })))
    }
}

impl SimDisk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An independent copy.
    pub fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.lock().clone())))
    }

    /// Sets the fault and counts calls from zero.
    pub fn set_fault(&self, fault: Fault) {
        let mut state = self.lock();
        (state.fault, state.calls) = (fault, 0);
    }

    /// Calls since the fault was set.
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// What [`Disk::free_bytes`] shall say; it does not shrink.
    pub fn set_free(&self, bytes: u64) {
        self.lock().free = bytes;
    }

    /// The machine starts again after a crash: what was not synced is lost as told, and no fault is left.
    pub fn reboot(&self, loss: Loss) {
        let mut state = self.lock();
        let mut seed = if let Loss::Torn { seed } = loss { seed } else { 0 };
        let mut survives = || match loss {
            Loss::Nothing => true,
            Loss::Everything => false,
            Loss::Torn { .. } => splitmix(&mut seed).is_multiple_of(2),
        };
        for node in &mut state.nodes {
            match node {
                Node::File { data, synced, .. } => {
                    let mut end = *synced;
                    let whole = data.len();
                    for sector in data[*synced..].chunks_mut(SECTOR_BYTES) {
                        if survives() {
                            end += sector.len();
                        } else {
                            sector.fill(0);
                        }
                    }
                    // Lost sectors read as zeros, or the file is shorter.
                    data.truncate(if survives() { whole } else { end });
                    *synced = data.len();
                }
                Node::Dir { live, durable, pending, .. } => {
                    pending.drain(..).filter(|_| survives()).for_each(|change| change.apply(durable));
                    *live = durable.clone();
                }
            }
        }
        (state.fault, state.calls) = (Fault::None, 0);
    }

    /// Changes a file in place, as a fault of the hardware would.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut state = self.lock();
        let node = state.find(path)?;
        match &mut state.nodes[node] {
            Node::File { data, synced, .. } => {
                change(data);
                *synced = data.len();
                Ok(())
            }
            Node::Dir { .. } => Err(errno(ENOENT)),
        }
    }

    /// Sets the time since the last change of a file or folder.
    pub fn set_age(&self, path: &Path, to: Duration) -> io::Result<()> {
        let mut state = self.lock();
        let node = state.find(path)?;
        let (Node::File { age, .. } | Node::Dir { age, .. }) = &mut state.nodes[node];
        *age = to;
        Ok(())
    }
}

impl Node {
    fn dir() -> Self {
        Self::Dir { live: BTreeMap::new(), durable: BTreeMap::new(), pending: Vec::new(), age: Duration::ZERO }
    }
}

impl State {
    /// Counts a call and says whether it may go on.
    fn call(&mut self, changes: bool) -> io::Result<()> {
        if matches!(self.fault, Fault::CrashAfter(last) if self.calls >= last) {
            return Err(io::Error::other("the simulated machine is down"));
        }
        self.calls += 1;
        match self.fault {
            Fault::Once(at, error) if at == self.calls => Err(errno(error)),
            Fault::From(at, error) if changes && at <= self.calls => Err(errno(error)),
            _ => Ok(()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        let mut node = 0;
        for part in path.components() {
            let Component::Normal(part) = part else { continue };
            let Node::Dir { live, .. } = &self.nodes[node] else { return Err(errno(ENOTDIR)) };
            node = *live.get(&*part.to_string_lossy()).ok_or_else(|| errno(ENOENT))?;
        }
        Ok(node)
    }

    /// Applies the change that `make` returns for the last part of `path` to its folder.
    fn change(&mut self, path: &Path, make: impl FnOnce(String) -> Change) -> io::Result<()> {
        let parent = self.find(path.parent().ok_or_else(|| errno(EEXIST))?)?;
        let name = path.file_name().ok_or_else(|| errno(EEXIST))?.to_string_lossy().into_owned();
        let Node::Dir { live, pending, .. } = &mut self.nodes[parent] else { return Err(errno(ENOTDIR)) };
        let change = make(name);
        change.apply(live);
        pending.push(change);
        Ok(())
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<usize> {
        let number = self.nodes.len();
        self.change(path, |name| Change::Set(name, number))?;
        self.nodes.push(node);
        Ok(number)
    }
}

impl Disk for SimDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.call(true)?;
        let parts: Vec<_> = path.ancestors().filter(|p| p.file_name().is_some()).collect();
        for part in parts.into_iter().rev() {
            match state.find(part) {
                Ok(node) if matches!(state.nodes[node], Node::Dir { .. }) => {}
                Ok(_) => return Err(errno(EEXIST)),
                Err(_) => drop(state.add(part, Node::dir())?),
            }
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.lock();
        state.call(true)?;
        if state.find(path).is_ok() {
            return Err(errno(EEXIST));
        }
        let node = state.add(path, Node::File { data: Vec::new(), synced: 0, age: Duration::ZERO })?;
        Ok(Box::new(SimFile { disk: self.clone(), node }))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.call(true)?;
        let node = state.find(path)?;
        let Node::Dir { live, durable, pending, .. } = &mut state.nodes[node] else { return Err(errno(ENOTDIR)) };
        durable.clone_from(live);
        pending.clear();
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.call(true)?;
        assert_eq!(from.parent(), to.parent(), "the simulated disk renames inside a folder only");
        let node = state.find(from)?;
        if let Ok(target) = state.find(to)
            && matches!(&state.nodes[target], Node::Dir { live, .. } if !live.is_empty())
        {
            return Err(errno(ENOTEMPTY));
        }
        let old = from.file_name().ok_or_else(|| errno(ENOENT))?.to_string_lossy().into_owned();
        state.change(to, |new| Change::Rename(old, new, node))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.call(true)?;
        state.find(path)?;
        state.change(path, Change::Remove)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.call(true)?;
        let node = state.find(path)?;
        match &state.nodes[node] {
            Node::Dir { live, .. } if live.is_empty() => state.change(path, Change::Remove),
            Node::Dir { .. } => Err(errno(ENOTEMPTY)),
            Node::File { .. } => Err(errno(ENOTDIR)),
        }
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut state = self.lock();
        state.call(false)?;
        match &state.nodes[state.find(path)?] {
            Node::File { data, .. } => Ok(data.clone()),
            Node::Dir { .. } => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let mut state = self.lock();
        state.call(false)?;
        let Node::Dir { live, .. } = &state.nodes[state.find(path)?] else { return Err(errno(ENOTDIR)) };
        let entry = |(name, &node): (&String, &usize)| {
            let (is_dir, age) = match &state.nodes[node] {
                Node::File { age, .. } => (false, *age),
                Node::Dir { age, .. } => (true, *age),
            };
            Entry { name: name.clone(), is_dir, age }
        };
        Ok(live.iter().map(entry).collect())
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        let mut state = self.lock();
        state.call(false)?;
        Ok(state.free)
    }
}

/// An open file of the simulated disk.
struct SimFile {
    disk: SimDisk,
    node: usize,
}

impl Write for SimFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.disk.lock();
        let allowed = state.call(true);
        let Node::File { data, .. } = &mut state.nodes[self.node] else { return Err(errno(ENOENT)) };
        match allowed {
            Ok(()) => data.extend(bytes),
            Err(ref e) if e.raw_os_error().is_some() => data.extend(&bytes[..bytes.len() / 2]),
            Err(_) => {}
        }
        allowed.map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.call(true)?;
        let Node::File { data, synced, .. } = &mut state.nodes[self.node] else { return Err(errno(ENOENT)) };
        *synced = data.len();
        Ok(())
    }
}

fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// SplitMix64 (Steele, Lea, Flood 2014).
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
