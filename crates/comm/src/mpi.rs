//! Ranks as processes that speak MPI, through the plugin of `crates/mpi`, opened at run time.
//!
//! A program linked to MPI does not start where there is none, so this one is not: [`Mpi::open`] loads a plugin from beside
//! the executable, one per MPI family, and says what it tried where that fails. Before any data moves, ranks compare what
//! they called. Sums are taken in rank order by ourselves, never by `MPI_Reduce`: bit-equal to [`Threads`](crate::Threads).

use crate::{Call, CommError, Communicator, Op};
use bytemuck::Pod;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::cell::{Cell, RefCell};
use std::error::Error;
use std::ffi::c_int;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::AddAssign;
use std::path::{Path, PathBuf};

/// Version of the plugin's interface that this program speaks.
const ABI: u32 = 1;
/// Most bytes that one call of MPI moves on one rank: MPI counts in i32, and the copies of a sum should stay small.
const PIECE_BYTES: usize = 64 << 20;
/// Most bytes of [`Mpi::carry`].
const CARRY_BYTES: usize = 1 << 20;

/// Why there is no MPI.
#[derive(Debug, thiserror::Error)]
pub enum MpiError {
    /// No plugin of this program's interface could be loaded.
    #[error(
        "no MPI: {tried}; build the plugins with tools/build-mpi.sh into the folder of the program, \
         or name one by RETORT_MPI_PLUGIN",
        tried = Tried(.0)
    )]
    NoPlugin(Vec<(PathBuf, String)>),
    /// MPI was loaded and did not start. Another family is not tried in the same process: their symbols would mix.
    #[error("{}: MPI does not start: {reason}", plugin.display())]
    Start { plugin: PathBuf, reason: String },
}

struct Tried<'a>(&'a [(PathBuf, String)]);

impl fmt::Display for Tried<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no plugin was named");
        }
        for (i, (path, reason)) in self.0.iter().enumerate() {
            // Loaders put the path in front of what they say.
            let path = path.display().to_string();
            let reason = reason.strip_prefix(&path).map_or(reason.as_str(), |r| r.trim_start_matches([':', ' ']));
            write!(f, "{}{path}: {reason}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// Where a process stands: in the world, and among the ranks of its host.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub rank: u32,
    pub size: u32,
    pub local_rank: u32,
    pub local_size: u32,
}

/// The plugins to try, in order: `RETORT_MPI_PLUGIN` alone if it is set (`none` is no file, so it means to go without MPI), else those
/// beside the executable, first that of the MPI whose launcher set the environment. Files that do not exist are among
/// them, for [`Mpi::open`] to name.
pub fn find(env: &dyn Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let set = |names: &[&str]| names.iter().any(|name| env(name).is_some());
    let open_mpi = set(&["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"]);
    let mpich = set(&["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"]);
    let mut families = ["openmpi", "mpich"];
    if mpich && !open_mpi {
        families.reverse();
    }
    if let Some(named) = env("RETORT_MPI_PLUGIN").filter(|path| !path.is_empty()) {
        return vec![PathBuf::from(named)];
    }
    let beside = std::env::current_exe().ok();
    beside.iter().flat_map(|exe| families.map(|f| exe.with_file_name(format!("libretort_mpi_{f}.so")))).collect()
}

/// The plugin's functions; each is documented there.
struct Plugin {
    init: unsafe extern "C" fn(*mut Place) -> c_int,
    broadcast: unsafe extern "C" fn(*mut u8, usize, u32) -> c_int,
    all_gather: Exchange,
    all_to_all: Exchange,
    finalize: extern "C" fn() -> c_int,
    error: unsafe extern "C" fn(c_int, *mut u8, usize) -> usize,
    /// Stays loaded to the end of the process: MPI leaves threads and exit handlers behind.
    _library: ManuallyDrop<Library>,
}

/// Sends so many bytes from the first pointer, for each rank or for all, and receives as many of each rank.
type Exchange = unsafe extern "C" fn(*const u8, usize, *mut u8) -> c_int;

impl Plugin {
    /// Loads a file of this interface; says why not.
    fn load(path: &Path) -> Result<Self, String> {
        // SAFETY: a plugin, and MPI with it, does nothing when it is loaded but to set itself up. GLOBAL because the
        // modules that Open MPI loads later look for its symbols there.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.map_err(reason)?;
        // SAFETY: this one has its type in every version, and `ABI` says that the others have theirs.
        unsafe {
            let abi = function::<extern "C" fn() -> u32>(&library, "abi")?();
            if abi != ABI {
                return Err(format!("speaks interface {abi}, this program {ABI}; build it anew"));
            }
            Ok(Self {
                init: function(&library, "init")?,
                broadcast: function(&library, "broadcast")?,
                all_gather: function(&library, "all_gather")?,
                all_to_all: function(&library, "all_to_all")?,
                finalize: function(&library, "finalize")?,
                error: function(&library, "error")?,
                _library: ManuallyDrop::new(library),
            })
        }
    }

    /// What a code that is not 0 means.
    fn describe(&self, code: c_int) -> String {
        match code {
            -1 => "it was started before, and starts once per process".to_owned(),
            -2 => "it allows calls from its main thread only (thread level below MPI_THREAD_SERIALIZED)".to_owned(),
            -3 => "more bytes than one call takes".to_owned(),
            code => {
                let mut text = [0; 1024];
                // SAFETY: MPI has started where it gives codes; the length is the buffer's.
                let length = unsafe { (self.error)(code, text.as_mut_ptr(), text.len()) };
                format!("{} (code {code})", String::from_utf8_lossy(&text[..length.min(text.len())]))
            }
        }
    }
}

/// What the loader says, which `libloading` keeps behind its own words.
fn reason(error: libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// The plugin's function `retort_mpi_<name>`.
///
/// # Safety
/// `F` is its type, and it is not called after `library` is closed.
unsafe fn function<F: Copy>(library: &Library, name: &str) -> Result<F, String> {
    let name = format!("retort_mpi_{name}");
    // SAFETY: the caller's promise.
    let found = unsafe { library.get::<F>(name.as_bytes()) };
    found.map(|f| *f).map_err(|_| format!("is no MPI plugin of this program: it has no {name}"))
}

/// One rank of an MPI world. May move to another thread, but not be shared: a rank is in one collective at a time.
///
/// A rank that dies does not make the others' calls return: MPI waits, or its launcher ends all of them. Naming it, and
/// ending the others, is the watchdog's work. After a collective failed here, later ones fail without calling MPI.
pub struct Mpi {
    plugin: Plugin,
    place: Place,
    piece_bytes: usize,
    /// Number of collectives before.
    sequence: Cell<u64>,
    /// Who ended the world, and why.
    lost: RefCell<Option<(usize, String)>>,
}

impl Mpi {
    /// Loads the first of `plugins` that can be loaded (see [`find`]) and starts MPI: a collective of all processes that
    /// the launcher started, once per process. A process that no launcher of this MPI started is a world of one, which
    /// whoever knows of more has to notice. Errors: none loads, or MPI does not start; where MPI itself finds that it
    /// cannot start it may end the process.
    pub fn open(plugins: &[PathBuf]) -> Result<Self, MpiError> {
        let mut tried = Vec::new();
        for path in plugins {
            match Plugin::load(path) {
                Ok(plugin) => return Self::start(plugin, path),
                Err(reason) => tried.push((path.clone(), reason)),
            }
        }
        Err(MpiError::NoPlugin(tried))
    }

    fn start(plugin: Plugin, path: &Path) -> Result<Self, MpiError> {
        let mut place = Place::default();
        // SAFETY: `place` is a place, laid out as the plugin's.
        let code = unsafe { (plugin.init)(&mut place) };
        if code != 0 {
            return Err(MpiError::Start { plugin: path.to_path_buf(), reason: plugin.describe(code) });
        }
        let (sequence, lost) = (Cell::new(0), RefCell::new(None));
        Ok(Self { plugin, place, piece_bytes: PIECE_BYTES, sequence, lost })
    }

    /// The same world with another limit on the bytes that one call of MPI moves, 64 MiB unless said. Equal on all ranks.
    pub fn in_pieces(mut self, bytes: usize) -> Self {
        self.piece_bytes = bytes.clamp(1, c_int::MAX as usize);
        self
    }

    pub fn place(&self) -> Place {
        self.place
    }

    /// The bytes that rank 0 gives, on all ranks; what the others give is not looked at. At most 1 MiB. For what ranks
    /// need before they can meet in another way. Errors, on all ranks: rank 0 gave none or too many, or the world is over.
    pub fn carry(&self, bytes: Option<Vec<u8>>) -> Result<Vec<u8>, String> {
        let mut bytes = bytes.filter(|_| self.place.rank == 0).unwrap_or_default();
        let mut length = (bytes.len() as u64).to_le_bytes();
        self.broadcast(&mut length, 0).map_err(|e| e.to_string())?;
        match usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX) {
            0 => Err("rank 0 has nothing to carry to the other ranks".to_owned()),
            length if length > CARRY_BYTES => {
                Err(format!("rank 0 carries {length} bytes, at most {CARRY_BYTES} are allowed"))
            }
            length => {
                bytes.resize(length, 0);
                self.broadcast(&mut bytes, 0).map_err(|e| e.to_string())?;
                Ok(bytes)
            }
        }
    }

    /// Opens a collective: ends with an error on all ranks unless all of them have called the same.
    fn enter(&self, call: Call) -> Result<(), CommError> {
        self.alive(call.op)?;
        let sequence = self.sequence.get();
        let mine = header(sequence, call);
        let mut all = vec![0; HEADER * self.size()];
        self.gather(&mine, &mut all, call.op)?;
        let others = all.as_chunks::<HEADER>().0;
        if let Some(rank) = others.iter().position(|other| *other != others[0]) {
            self.end(rank, "called another collective");
            let ((first, expected), (number, got)) = (call_of(&others[0]), call_of(&others[rank]));
            return Err(if number == first {
                CommError::Mismatch { rank, sequence, expected, got }
            } else {
                let reason = format!("is at collective #{number} where rank 0 is at #{first}");
                CommError::PeerLost { rank, reason, op: call.op, sequence }
            });
        }
        self.sequence.set(sequence + 1);
        Ok(())
    }

    fn size(&self) -> usize {
        self.place.size as usize
    }

    fn alive(&self, op: Op) -> Result<(), CommError> {
        match self.lost.borrow().clone() {
            Some((rank, reason)) => Err(CommError::PeerLost { rank, reason, op, sequence: self.sequence.get() }),
            None => Ok(()),
        }
    }

    /// Ends the world unless it has ended before.
    fn end(&self, rank: usize, reason: &str) {
        self.lost.borrow_mut().get_or_insert_with(|| (rank, reason.to_owned()));
    }

    /// Turns a code of MPI into an error. MPI does not say which rank it is about, so it names the one that saw it.
    fn check(&self, code: c_int, op: Op) -> Result<(), CommError> {
        if code != 0 {
            self.end(self.rank(), &format!("MPI fails: {}", self.plugin.describe(code)));
        }
        self.alive(op)
    }

    /// Replaces `data` by that of `root`, piece by piece.
    fn spread(&self, data: &mut [u8], root: usize, op: Op) -> Result<(), CommError> {
        data.chunks_mut(self.piece_bytes).try_for_each(|piece| {
            // SAFETY: the pointer and the length are those of a slice; MPI has started and not ended.
            let code = unsafe { (self.plugin.broadcast)(piece.as_mut_ptr(), piece.len(), root as u32) };
            self.check(code, op)
        })
    }

    /// Writes the `data` of all ranks into `all`, in rank order, piece by piece.
    fn gather(&self, data: &[u8], all: &mut [u8], op: Op) -> Result<(), CommError> {
        assert_eq!(all.len(), data.len() * self.size());
        if data.is_empty() {
            return Ok(()); // NOTE: the address of an empty slice, 1, is Open MPI's MPI_IN_PLACE
        }
        let most = (self.piece_bytes / self.size()).max(1);
        if data.len() <= most {
            // SAFETY: `all` has a place as long as `data` for each rank; both are slices, and MPI has started and not ended.
            let code = unsafe { (self.plugin.all_gather)(data.as_ptr(), data.len(), all.as_mut_ptr()) };
            return self.check(code, op);
        }
        let mut gathered = vec![0; most * self.size()];
        for (i, piece) in data.chunks(most).enumerate() {
            let gathered = &mut gathered[..piece.len() * self.size()];
            self.gather(piece, gathered, op)?;
            for (rank, from) in gathered.chunks_exact(piece.len()).enumerate() {
                all[rank * data.len() + i * most..][..piece.len()].copy_from_slice(from);
            }
        }
        Ok(())
    }

    /// Each rank sums one share of the elements over all ranks, in rank order, then the shares are gathered.
    fn sum<T: Pod + AddAssign>(&self, data: &mut [T]) -> Result<(), CommError> {
        let (size, op) = (self.size(), Op::AllReduce);
        self.enter(Call { op, bytes: size_of_val(data) })?;
        let most = (self.piece_bytes / size_of::<T>() / size).max(1) * size;
        for piece in data.chunks_mut(most) {
            let share = piece.len().div_ceil(size);
            let mut sent = piece.to_vec();
            sent.resize(share * size, T::zeroed());
            let mut shares = vec![T::zeroed(); share * size];
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut shares);
            // SAFETY: both are slices of a share per rank; MPI has started and not ended.
            let code = unsafe {
                let sent: &[u8] = bytemuck::cast_slice(&sent);
                (self.plugin.all_to_all)(sent.as_ptr(), share * size_of::<T>(), bytes.as_mut_ptr())
            };
            self.check(code, op)?;
            let (total, others) = shares.split_at_mut(share);
            for other in others.chunks_exact(share) {
                total.iter_mut().zip(other).for_each(|(t, x)| *t += *x);
            }
            self.gather(bytemuck::cast_slice(total), bytemuck::cast_slice_mut(&mut sent), op)?;
            piece.copy_from_slice(&sent[..piece.len()]);
        }
        Ok(())
    }
}

/// Bytes of a header: sequence, op with its root, length; u64 each.
const HEADER: usize = 24;

fn header(sequence: u64, call: Call) -> [u8; HEADER] {
    let op = match call.op {
        Op::Barrier => 0,
        Op::AllReduce => 1,
        Op::AllGather => 2,
        Op::Broadcast { root } => 3 + root as u64,
    };
    let mut bytes = [0; HEADER];
    let words = bytes.as_chunks_mut::<8>().0;
    for (to, word) in words.iter_mut().zip([sequence, op, call.bytes as u64]) {
        *to = word.to_le_bytes();
    }
    bytes
}

fn call_of(header: &[u8; HEADER]) -> (u64, Call) {
    let word = |i: usize| u64::from_le_bytes(header.as_chunks::<8>().0[i]);
    let op = match word(1) {
        0 => Op::Barrier,
        1 => Op::AllReduce,
        2 => Op::AllGather,
        n => Op::Broadcast { root: n as usize - 3 },
    };
    (word(0), Call { op, bytes: word(2) as usize })
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.place.rank as usize
    }

    fn world_size(&self) -> usize {
        self.size()
    }

    fn barrier(&self) -> Result<(), CommError> {
        // Nobody has all headers before all have arrived.
        self.enter(Call { op: Op::Barrier, bytes: 0 })
    }

    fn broadcast(&self, data: &mut [u8], root: usize) -> Result<(), CommError> {
        assert!(root < self.size(), "broadcast from rank {root} in a world of {}", self.size());
        let op = Op::Broadcast { root };
        self.enter(Call { op, bytes: data.len() })?;
        self.spread(data, root, op)
    }

    fn all_reduce_sum(&self, data: &mut [f32]) -> Result<(), CommError> {
        self.sum(data)
    }

    fn all_reduce_sum_f64(&self, data: &mut [f64]) -> Result<(), CommError> {
        self.sum(data)
    }

    fn all_gather(&self, data: &[u8]) -> Result<Vec<u8>, CommError> {
        self.enter(Call { op: Op::AllGather, bytes: data.len() })?;
        let mut all = vec![0; data.len() * self.size()];
        self.gather(data, &mut all, Op::AllGather)?;
        Ok(all)
    }

    /// By a broadcast of each rank, so that a long one does not pad the others.
    fn all_gather_varied(&self, data: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        let lengths = self.all_gather(&(data.len() as u64).to_le_bytes())?;
        let lengths = lengths.as_chunks().0.iter().map(|&n| u64::from_le_bytes(n) as usize);
        let part = |(rank, length)| {
            let mut part = if rank == self.rank() { data.to_vec() } else { vec![0; length] };
            self.spread(&mut part, rank, Op::AllGather).map(|()| part)
        };
        lengths.enumerate().map(part).collect()
    }

    /// Of this rank alone: MPI cannot tell the others, who may wait in a call. The watchdog tells and ends them.
    fn abort(&self, reason: &str) {
        self.end(self.rank(), reason);
    }
}

impl Drop for Mpi {
    /// Ends MPI, which waits for all ranks, where the world is well. Otherwise that would hang: the process is to end.
    fn drop(&mut self) {
        if self.lost.borrow().is_none() && !std::thread::panicking() {
            (self.plugin.finalize)();
        }
    }
}
