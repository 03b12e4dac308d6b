//! What runs on a stream.

/// A device address.
pub type Address = u64;

/// What runs on a stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Kernel(Kernel),
    /// Sets bytes to zero.
    Zero {
        to: Address,
        bytes: usize,
    },
    Copy {
        to: Address,
        from: Address,
        bytes: usize,
    },
    /// Gives every rank the bytes of all.
    Gather(Vec<Gathered>),
}

/// `bytes` bytes of every rank, from `from` on each, in rank order at `to`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gathered {
    pub to: Address,
    pub from: Address,
    pub bytes: usize,
}

/// One kernel launch.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// Name of the `extern "C"` function; the file that holds it is the longest file stem that the name begins with.
    pub name: &'static str,
    pub grid: [u32; 3],
    pub block: u32,
    /// Dynamic shared memory.
    pub shared_bytes: u32,
    /// The argument struct.
    pub args: Vec<u8>,
}
