//! What one rank does in each case. It speaks to the test that started it by lines that begin with '@'.

use crate::gpu::{Buffer, Gpu, Stream};
use crate::world::LIMIT;
use comm::{Element, Library, Nccl, NcclError, NcclSettings};
use std::env;
use std::io::BufRead;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) struct Rank {
    nccl: Nccl,
    gpu: Gpu,
    stream: Stream,
}

fn number(name: &str) -> usize {
    env::var(name).unwrap().parse().unwrap()
}

fn say(word: &str) {
    println!("@{word}");
}

fn settings() -> NcclSettings {
    NcclSettings { limit: LIMIT / 2, max_ctas: Some(4) }
}

/// Plays a case on the rank that the environment says.
pub(crate) fn play(case: &str) {
    // A case that hangs ends by itself, with a code of its own.
    thread::spawn(|| {
        thread::sleep(LIMIT);
        std::process::exit(99);
    });
    match case {
        "open" => say(&Library::open().err().unwrap().to_string()),
        "threads" => threads(number("CASE_WORLD")),
        "alone" | "duplicate" | "no_gpu" => fails_to_join(case),
        _ => {
            let rank = Rank::from_environment().unwrap();
            match case {
                "collectives" => rank.collectives(),
                "graph" => rank.graph(),
                "streams" => rank.streams(),
                "ahead" => rank.ahead(),
                "group" => rank.group(),
                "refused" => rank.refused(),
                "watched" => rank.watched(),
                "mismatch" => rank.mismatch(),
                "wrong_bits" => rank.wrong_bits(),
                "delay" => rank.delay(),
                _ => panic!("no case {case}"),
            }
        }
    }
}

fn join(rank: usize, limit: Duration) -> Result<Nccl, NcclError> {
    let hex = env::var("CASE_ID").unwrap();
    let id = std::array::from_fn(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap());
    Nccl::join(Library::open()?, id, rank, number("CASE_WORLD"), &NcclSettings { limit, ..settings() })
}

/// Ranks as threads of one process, with a device each; the id goes from rank 0 to the others.
fn threads(world: usize) {
    let library = Library::open().unwrap();
    let id = Nccl::unique_id(&library).unwrap();
    let run = |rank: usize, library: Arc<Library>| {
        let gpu = Gpu::new(rank as i32);
        let nccl = Nccl::join(library, id, rank, world, &settings()).unwrap();
        let rank = Rank { nccl, stream: gpu.stream(), gpu };
        rank.collectives();
        rank.graph();
        rank.streams();
    };
    thread::scope(|scope| {
        for rank in 0..world {
            let library = Arc::clone(&library);
            scope.spawn(move || run(rank, library));
        }
    });
}

fn fails_to_join(case: &str) {
    if case != "no_gpu" {
        Gpu::new(0);
    }
    let limit = if case == "alone" { Duration::from_millis(100) } else { LIMIT };
    say(&join(number("CASE_RANK"), limit).err().unwrap().to_string());
}

/// A small integer for each element and rank, so that no sum of four is rounded in bf16.
fn value(index: usize, rank: usize) -> u8 {
    ((index * 7 + rank * 13) % 31) as u8
}

/// An integer up to 256 in bf16.
fn bf16(value: u8) -> u16 {
    (f32::from(value).to_bits() >> 16) as u16
}

impl Rank {
    fn from_environment() -> Result<Self, NcclError> {
        let gpu = Gpu::new(number("CASE_DEVICE") as i32);
        let nccl = join(number("CASE_RANK"), LIMIT / 2)?;
        assert_eq!((nccl.rank(), nccl.world()), (number("CASE_RANK"), number("CASE_WORLD")));
        Ok(Self { nccl, stream: gpu.stream(), gpu })
    }

    fn world(&self) -> usize {
        self.nccl.world()
    }

    fn sum(&self, buffer: &Buffer, element: Element, stream: &Stream) -> Result<(), NcclError> {
        // SAFETY: the buffer is never freed.
        unsafe { self.nccl.all_reduce_sum(buffer.address, buffer.len, element, stream.raw()) }
    }

    /// The value of each element summed over the ranks.
    fn sums(&self, n: usize) -> Vec<u8> {
        (0..n).map(|i| (0..self.world()).map(|rank| value(i, rank)).sum()).collect()
    }

    fn collectives(&self) {
        for n in [0, 1, 1000, 1 << 20] {
            let own: Vec<u8> = (0..n).map(|i| value(i, self.nccl.rank())).collect();
            let sums = self.sums(n);
            let bytes = self.gpu.buffer(&own);
            let halves = self.gpu.buffer(&own.iter().map(|&v| bf16(v)).collect::<Vec<_>>());
            let floats = self.gpu.buffer(&own.iter().map(|&v| f32::from(v)).collect::<Vec<_>>());
            self.sum(&bytes, Element::U8, &self.stream).unwrap();
            self.sum(&halves, Element::Bf16, &self.stream).unwrap();
            self.sum(&floats, Element::F32, &self.stream).unwrap();
            self.stream.wait();
            assert!(bytes.read::<u8>() == sums, "u8, {n} elements");
            assert!(halves.read::<u16>() == sums.iter().map(|&v| bf16(v)).collect::<Vec<_>>(), "bf16, {n} elements");
            assert!(floats.read::<f32>() == sums.iter().map(|&v| f32::from(v)).collect::<Vec<_>>(), "f32, {n}");
            self.copies(&own);
        }
        self.nccl.async_error().unwrap();
    }

    /// Broadcast from each rank, and gather, of this rank's bytes.
    fn copies(&self, own: &[u8]) {
        let n = own.len();
        let of_rank = |rank: usize| (0..n).map(|i| value(i, rank)).collect::<Vec<u8>>();
        for root in 0..self.world() {
            let data = self.gpu.buffer(own);
            // SAFETY: the buffer is never freed.
            unsafe { self.nccl.broadcast(data.address, n, root, self.stream.raw()) }.unwrap();
            self.stream.wait();
            assert!(data.read::<u8>() == of_rank(root), "broadcast of {n} from {root}");
        }
        let all = self.gpu.buffer(&vec![0_u8; n * self.world()]);
        let own = self.gpu.buffer(own);
        // SAFETY: the buffers are never freed.
        unsafe { self.nccl.all_gather(own.address, all.address, n, self.stream.raw()) }.unwrap();
        self.stream.wait();
        assert!(all.read::<u8>() == (0..self.world()).flat_map(of_rank).collect::<Vec<_>>(), "all_gather of {n}");
    }

    /// A graph with collectives on two streams, replayed, between collectives outside of it.
    fn graph(&self) {
        let (data, copy) = (self.gpu.buffer(&[0_f32; 1000]), self.gpu.buffer(&[0_f32; 1000]));
        let (side, forked, joined) = (self.gpu.stream(), self.gpu.event(), self.gpu.event());
        self.sum(&data, Element::F32, &self.stream).unwrap();
        let graph = self.stream.capture(|| {
            self.sum(&data, Element::F32, &self.stream).unwrap();
            self.stream.record(&forked);
            side.follow(&forked);
            side.copy(&copy, &data);
            self.sum(&copy, Element::F32, &side).unwrap();
            side.record(&joined);
            self.stream.follow(&joined);
        });
        self.stream.fill(&data, (self.nccl.rank() + 1) as f32);
        for _ in 0..3 {
            self.stream.launch(&graph);
        }
        self.sum(&data, Element::F32, &self.stream).unwrap();
        self.stream.wait();
        let world = self.world() as f32;
        let first = world * (world + 1.0) / 2.0;
        assert_eq!(copy.read::<f32>(), [first * world.powi(3); 1000]);
        assert_eq!(data.read::<f32>(), [first * world.powi(3); 1000]);
    }

    /// Fill on one stream, sum on another, use on the first again; then sums on both without events between.
    fn streams(&self) {
        let (other, filled, summed) = (self.gpu.stream(), self.gpu.event(), self.gpu.event());
        let (data, copy) = (self.gpu.buffer(&[0_f32; 300]), self.gpu.buffer(&[0_f32; 300]));
        for turn in 0..20 {
            self.stream.fill(&data, (turn + self.nccl.rank()) as f32);
            self.stream.record(&filled);
            other.follow(&filled);
            self.sum(&data, Element::F32, &other).unwrap();
            other.record(&summed);
            self.stream.follow(&summed);
            self.stream.copy(&copy, &data);
            self.stream.wait();
            let expected: usize = (0..self.world()).map(|rank| turn + rank).sum();
            assert_eq!(copy.read::<f32>(), [expected as f32; 300]);
        }
        let (a, b) = (self.gpu.buffer(&[1_f32; 10]), self.gpu.buffer(&[2_f32; 20]));
        self.sum(&a, Element::F32, &self.stream).unwrap();
        self.sum(&b, Element::F32, &other).unwrap();
        other.wait();
        assert_eq!(a.read::<f32>(), [self.world() as f32; 10]);
        assert_eq!(b.read::<f32>(), [2.0 * self.world() as f32; 20]);
    }

    /// Submits a sum, and waits for its stream only when it is told to.
    fn ahead(&self) {
        let data = self.gpu.buffer(&[0_f32; 10]);
        self.stream.fill(&data, 1.0);
        self.sum(&data, Element::F32, &self.stream).unwrap();
        say("submitted");
        std::io::stdin().lock().read_line(&mut String::new()).unwrap();
        self.stream.wait();
        assert_eq!(data.read::<f32>(), [self.world() as f32; 10]);
        say("summed");
    }

    fn group(&self) {
        let buffers: Vec<Buffer> = (1..4).map(|n| self.gpu.buffer(&vec![n as f32; 100 * n])).collect();
        let sum_all = || {
            buffers.iter().try_for_each(|buffer| self.sum(buffer, Element::F32, &self.stream))?;
            self.nccl.async_error()
        };
        // A group inside of a group is one with it.
        self.nccl.group(|| self.nccl.group(sum_all)).unwrap();
        self.stream.wait();
        for (i, buffer) in buffers.iter().enumerate() {
            assert_eq!(buffer.read::<f32>(), vec![((i + 1) * self.world()) as f32; 100 * (i + 1)]);
        }
        let wrong = NcclError::Aborted { call: "of the test", rank: 0 };
        assert_eq!(self.nccl.group(|| Err::<(), _>(wrong.clone())), Err(wrong));
        self.sum(&buffers[0], Element::F32, &self.stream).unwrap();
        self.stream.wait();
    }

    /// Calls with wrong arguments are errors with all that NCCL says, and leave the communicator as it was.
    fn refused(&self) {
        let data = self.gpu.buffer(&[1_f32; 10]);
        let host = [0_f32; 10];
        // SAFETY: it is refused: this is no device memory.
        let error =
            unsafe { self.nccl.all_reduce_sum(host.as_ptr() as u64, 10, Element::F32, self.stream.raw()).unwrap_err() };
        let rank = self.nccl.rank();
        let text = format!("ncclAllReduce on rank {rank}: ncclInvalidArgument (4): ");
        assert!(error.to_string().starts_with(&text), "{error}");
        assert!(error.to_string().contains("is not a device pointer"), "{error}");
        // SAFETY: they are refused: the memory is too short, there is no such rank.
        let (long, root) = unsafe {
            (
                self.nccl.group(|| self.nccl.all_reduce_sum(data.address, 11, Element::F32, self.stream.raw())),
                self.nccl.broadcast(data.address, 8, self.world(), self.stream.raw()),
            )
        };
        assert!(long.unwrap_err().to_string().contains("has 40 bytes left, not 44"));
        assert!(root.unwrap_err().to_string().contains("root"));
        self.sum(&data, Element::F32, &self.stream).unwrap();
        self.stream.wait();
        assert_eq!(data.read::<f32>(), [self.world() as f32; 10]);
    }

    /// Sums with a watch thread, which tells of errors and aborts when it is told to.
    fn watched(self) {
        let data = self.gpu.buffer(&[1_f32; 10]);
        self.sum(&data, Element::F32, &self.stream).unwrap();
        self.stream.wait();
        let (poller, aborter) = (self.nccl.aborter(), self.nccl.aborter());
        thread::spawn(move || {
            loop {
                match poller.poll() {
                    Ok(()) => thread::sleep(Duration::from_millis(1)),
                    Err(NcclError::Aborted { .. }) => return,
                    Err(e) => return say(&e.to_string()),
                }
            }
        });
        let (send, aborted) = channel();
        thread::spawn(move || {
            let mut line = String::new();
            if std::io::stdin().lock().read_line(&mut line).is_ok_and(|n| n > 0) {
                aborter.abort().unwrap();
                aborter.abort().unwrap();
                say("aborted");
                send.send(()).unwrap();
            }
        });
        say("waits");
        let expected = Err(NcclError::Aborted { call: "ncclAllReduce", rank: self.nccl.rank() });
        let summed = self.sum(&data, Element::F32, &self.stream);
        assert!(summed.is_ok() || summed == expected, "{summed:?}"); // the abort may come first
        self.stream.wait();
        aborted.recv().unwrap();
        assert_eq!(self.sum(&data, Element::F32, &self.stream), expected);
        drop(self);
        say("ends");
    }

    fn mismatch(self) {
        let data = self.gpu.buffer(&[1_f32; 10]);
        let called = if self.nccl.rank() == 1 {
            // SAFETY: the buffer is never freed.
            unsafe { self.nccl.broadcast(data.address, 40, 0, self.stream.raw()) }
        } else {
            self.sum(&data, Element::F32, &self.stream)
        };
        let begin = Instant::now();
        let mut met = called.and_then(|()| self.nccl.async_error());
        while met.is_ok() {
            assert!(begin.elapsed() < LIMIT / 2);
            thread::sleep(Duration::from_millis(1));
            met = self.nccl.async_error();
        }
        let error = met.unwrap_err().to_string();
        assert!(error.contains("ncclInvalidArgument (4)"), "{error}");
        assert!(error.contains("rank 1 called broadcast of 40"), "{error}");
        self.nccl.aborter().abort().unwrap();
        self.stream.wait();
    }

    /// The second sum of rank 1 has one bit wrong.
    fn wrong_bits(&self) {
        for turn in 0..3 {
            let data = self.gpu.buffer(&[1_f32; 10]);
            self.sum(&data, Element::F32, &self.stream).unwrap();
            self.stream.wait();
            let wrong: u32 = data.read::<f32>().iter().map(|v| (v.to_bits() ^ 2_f32.to_bits()).count_ones()).sum();
            assert_eq!(wrong, u32::from(turn == 1 && self.nccl.rank() == 1), "sum {turn}");
        }
    }

    /// Rank 1 is late at the second sum, so all are.
    fn delay(&self) {
        let data = self.gpu.buffer(&[1_f32; 10]);
        self.sum(&data, Element::F32, &self.stream).unwrap();
        self.stream.wait();
        let begin = Instant::now();
        self.sum(&data, Element::F32, &self.stream).unwrap();
        self.stream.wait();
        assert!(begin.elapsed() >= Duration::from_millis(200));
    }
}
