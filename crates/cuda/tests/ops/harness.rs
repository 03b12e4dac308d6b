//! Runs one op twice, on the CPU and by the kernels of its binding on the stand-in GPU, and compares the outputs and states.

use cpu::io::{Input, Io, Output, Real};
use cuda::bind::{Addresses, Bound, Command, Kernel, Math, bind};
use graph::{Graph, NodeId, Op, Place, Precision, Rows, Section, Source, StateKind, Value, ValueId};
use plan::{Arena, Arg, Cost, Launch, Loc, Scalars};
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;
use tensor::{Dtype, HostTensor, Shape, bf16};

type Launcher = unsafe extern "C" fn(
    *const c_char,
    *const c_uint,
    c_uint,
    c_uint,
    *const c_void,
    usize,
    c_int,
    c_int,
    u64,
    *mut c_char,
    usize,
) -> c_int;

type Poison = unsafe extern "C" fn(*const c_void, usize);

/// The stand-in's functions for tests.
struct StandIn {
    launch: Launcher,
    /// Marks memory that no kernel may touch, in the flavour that sees it (ASan).
    poison: Poison,
    _library: libloading::Library,
}

/// The stand-in, if `SIMGPU` says where it lies.
fn stand_in() -> Option<&'static StandIn> {
    static LIBRARY: OnceLock<Option<StandIn>> = OnceLock::new();
    let found = LIBRARY.get_or_init(|| {
        let folder = std::env::var_os("SIMGPU")?;
        // SAFETY: the stand-in's initialisers only fill its table of kernels; the symbols have these types.
        unsafe {
            let path = std::path::Path::new(&folder).join("libcuda.so.1");
            let library = libloading::Library::new(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let launch = *library.get::<Launcher>(b"simgpu_launch\0").expect("the stand-in exports simgpu_launch");
            let poison = *library.get::<Poison>(b"simgpu_poison\0").expect("the stand-in exports simgpu_poison");
            Some(StandIn { launch, poison, _library: library })
        }
    });
    found.as_ref()
}

fn launcher() -> Option<&'static Launcher> {
    stand_in().map(|s| &s.launch)
}

/// An order of threads (0 forward, 1 reverse, 2 random) and a landing of copies (0 late, 1 early, 2 mixed).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule(pub c_int, pub c_int, pub u64);

/// The schedules that every case runs in.
pub(crate) const SCHEDULES: [Schedule; 4] =
    [Schedule(0, 0, 1), Schedule(1, 1, 1), Schedule(2, 2, 7), Schedule(2, 0, 3)];

/// Memory `shift` bytes past 16-byte alignment, with a margin on both sides that no kernel may touch.
struct Memory {
    words: Vec<u128>,
    bytes: usize,
    shift: usize,
}

const MARGIN: usize = 4;
const GUARD: u128 = 0xdead_beef_dead_beef_dead_beef_dead_beef;

impl Memory {
    /// `None` leaves it as a device leaves it: NaN.
    fn new(bytes: usize, data: Option<&[u8]>) -> Memory {
        Memory::shifted(0, bytes, data)
    }

    fn shifted(shift: usize, bytes: usize, data: Option<&[u8]>) -> Memory {
        let mut words = vec![u128::MAX; (shift + bytes).div_ceil(16) + 2 * MARGIN];
        let end = words.len() - MARGIN;
        words[..MARGIN].fill(GUARD);
        words[end..].fill(GUARD);
        let mut memory = Memory { words, bytes, shift };
        if let Some(data) = data {
            memory.bytes_mut()[..data.len()].copy_from_slice(data);
        }
        memory.poison_margins();
        memory
    }

    /// Not even a read of a margin goes unseen in the sanitizer's flavour.
    fn poison_margins(&self) {
        let Some(stand_in) = stand_in() else { return };
        let (start, address) = (self.words.as_ptr() as usize, self.address() as usize);
        let end = start + size_of_val(&self.words[..]);
        for (from, to) in [(start, address), (address + self.bytes, end)] {
            // SAFETY: marks bytes of this allocation, which only `check` reads, and that code is not instrumented.
            unsafe { (stand_in.poison)(from as *const c_void, to - from) };
        }
    }

    fn address(&self) -> u64 {
        self.words[MARGIN..].as_ptr() as u64 + self.shift as u64
    }

    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words[MARGIN..])[self.shift..][..self.bytes]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words[MARGIN..])[self.shift..][..self.bytes]
    }

    fn check(&self, what: &str) {
        let end = self.words.len() - MARGIN;
        let whole = self.words[..MARGIN].iter().chain(&self.words[end..]).all(|&w| w == GUARD);
        assert!(whole, "{what}: written outside its {} bytes", self.bytes);
        let all = bytemuck::cast_slice::<u128, u8>(&self.words[MARGIN..end]);
        let mut rest = all[..self.shift].iter().chain(&all[self.shift + self.bytes..]);
        assert!(rest.all(|&b| b == 0xff), "{what}: written outside its {} bytes", self.bytes);
    }
}

/// One op on given inputs. Inputs of dtype bf16 hold bf16 numbers.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub name: String,
    pub op: Op,
    pub inputs: Vec<HostTensor>,
    pub states: Vec<HostTensor>,
    pub scalars: Scalars,
    /// Outputs' dtypes follow it where they do not follow an input.
    pub precision: Precision,
    pub math: Math,
    /// Carried inputs of an update hold so many micro-batches one after another; 0 where nothing is carried. The shape of such an
    /// input is that of one micro-batch, its data that of all: see `Case::carried`.
    pub slots: usize,
    /// Multiprocessors that the binding believes in: few of them force loops, many force splits.
    pub sms: u32,
    /// Whole data of carried inputs, by input.
    pub carried: Vec<(usize, Vec<u8>)>,
    /// Bytes past 16-byte alignment at which inputs and outputs lie, as the rows of a batch slice may.
    pub shift: usize,
}

impl Case {
    pub(crate) fn new(name: &str, op: Op, inputs: Vec<HostTensor>) -> Case {
        let bf16 = inputs.iter().any(|x| x.dtype() == Dtype::Bf16);
        let scalars = Scalars { slots: vec![0.1, 8.0, 8.0, 0.9], micro_units: vec![[8, 8]], micro: 0 };
        Case {
            name: name.to_string(),
            op,
            inputs,
            states: vec![],
            scalars,
            precision: if bf16 { Precision::Bf16 } else { Precision::F32 },
            math: Math::F32,
            slots: 0,
            sms: 2,
            carried: vec![],
            shift: 0,
        }
    }

    /// Compares CPU and kernels in all schedules: normalised error of each float output at most `tolerance`, integers equal.
    #[track_caller]
    pub(crate) fn check(&self, tolerance: f64) {
        let Some(launch) = launcher() else {
            println!("{}: skipped, SIMGPU is not set", self.name);
            return;
        };
        let shapes = self.outputs();
        let expected = self.on_cpu(&shapes);
        let mut first: Option<Vec<Vec<u8>>> = None;
        for schedule in SCHEDULES {
            let got = self.on_kernels(launch, &shapes, schedule);
            if let Some(first) = &first {
                assert!(first == &got, "{}: {schedule:?} gives other bits", self.name);
                continue;
            }
            for (i, ((got, expected), &(shape, dtype))) in
                got.iter().zip(&expected).zip(&self.written(&shapes)).enumerate()
            {
                compare(&format!("{} output {i} {dtype}{shape}", self.name), dtype, got, expected, tolerance);
            }
            first = Some(got);
        }
    }

    /// Shapes and dtypes of the outputs.
    fn outputs(&self) -> Vec<(Shape, Dtype)> {
        let mut graph = Graph::new(self.precision, [1, 1]);
        let ids: Vec<ValueId> = self
            .inputs
            .iter()
            .map(|x| {
                graph.add_value(Value {
                    shape: x.shape(),
                    dtype: x.dtype(),
                    rows: Rows::default(),
                    source: Source::Batch(0),
                })
            })
            .collect();
        for (i, s) in self.states.iter().enumerate() {
            graph.add_state(graph::State {
                name: format!("s{i}"),
                shape: s.shape(),
                dtype: s.dtype(),
                kind: StateKind::Param,
                init: graph::Init::Const(0.0),
            });
        }
        let place = Place { phase: 0, section: Section::Body };
        let out = graph.push(self.op.clone(), &ids, &self.name, place);
        out.iter().map(|&v| (graph.shape(v), graph.value(v).dtype)).collect()
    }

    /// What the op writes: outputs, then states.
    fn written(&self, outputs: &[(Shape, Dtype)]) -> Vec<(Shape, Dtype)> {
        outputs.iter().copied().chain(self.states.iter().map(|s| (s.shape(), s.dtype()))).collect()
    }

    fn data(&self, i: usize) -> &[u8] {
        self.carried.iter().find(|c| c.0 == i).map_or(self.inputs[i].bytes(), |c| &c.1)
    }

    /// Bytes between micro-batches in the carry arena of the device; on the CPU, which stores every float as f32, twice that of bf16.
    fn slot_bytes(&self) -> usize {
        self.carried.iter().map(|c| c.1.len() / self.slots.max(1)).max().unwrap_or(0)
    }

    fn on_cpu(&self, shapes: &[(Shape, Dtype)]) -> Vec<Vec<f64>> {
        let widen = |dtype: Dtype, bytes: &[u8]| -> Vec<u128> {
            let bytes: Vec<u8> = match dtype {
                Dtype::Bf16 => {
                    words::<u16>(bytes).iter().flat_map(|&b| bf16::from_bits(b).to_f32().to_le_bytes()).collect()
                }
                _ => bytes.to_vec(),
            };
            let mut words = vec![0u128; bytes.len().div_ceil(16).max(1)];
            bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(&bytes);
            words
        };
        let in_place = self.op == Op::Accumulate;
        let inputs: Vec<_> = (0..self.inputs.len()).map(|i| widen(self.inputs[i].dtype(), self.data(i))).collect();
        let mut outputs: Vec<_> =
            shapes.iter().map(|&(shape, _)| vec![0u128; shape.elements().div_ceil(4).max(1)]).collect();
        if in_place {
            let words = inputs[0].len();
            outputs[0][..words].copy_from_slice(&inputs[0]);
        }
        let mut states: Vec<_> = self.states.iter().map(|s| widen(s.dtype(), s.bytes())).collect();
        let input = |(i, x): (usize, &HostTensor)| {
            let bytes: &[u8] = if in_place && i == 0 { &[] } else { bytemuck::cast_slice(&inputs[i]) };
            let widening = if x.dtype() == Dtype::Bf16 { 2 } else { 1 };
            Input { shape: x.shape(), dtype: x.dtype(), bytes, slot_bytes: widening * self.slot_bytes() }
        };
        let mut io = Io {
            inputs: self.inputs.iter().enumerate().map(input).collect(),
            outputs: outputs
                .iter_mut()
                .zip(shapes)
                .map(|(o, &(shape, dtype))| Output { shape, dtype, bytes: bytemuck::cast_slice_mut(o) })
                .collect(),
            states: states
                .iter_mut()
                .zip(&self.states)
                .map(|(o, s)| Output { shape: s.shape(), dtype: s.dtype(), bytes: bytemuck::cast_slice_mut(o) })
                .collect(),
            scalars: &self.scalars,
        };
        f32::run(&self.op, &mut io);
        let mut written: Vec<Output<'_>> = io.outputs;
        written.extend(io.states);
        written
            .iter_mut()
            .map(|o| match o.dtype {
                Dtype::I32 => o.i32().iter().map(|&x| f64::from(x)).collect(),
                Dtype::U8 => o.u8().iter().map(|&x| f64::from(x)).collect(),
                _ => o.real::<f32>().iter().map(|&x| f64::from(x)).collect(),
            })
            .collect()
    }

    fn on_kernels(&self, launch: &Launcher, shapes: &[(Shape, Dtype)], schedule: Schedule) -> Vec<Vec<u8>> {
        let size = |&(shape, dtype): &(Shape, Dtype)| shape.elements() * dtype.size();
        let inputs: Vec<_> = (0..self.inputs.len())
            .map(|i| Memory::shifted(self.shift, self.data(i).len(), Some(self.data(i))))
            .collect();
        let half = |x: &HostTensor| {
            let halves: Vec<u8> = match x.dtype() {
                Dtype::F32 => x
                    .view::<f32>()
                    .expect("f32")
                    .iter()
                    .flat_map(|&v| bf16::from_f32(v).to_bits().to_le_bytes())
                    .collect(),
                _ => vec![],
            };
            Memory::new(halves.len(), Some(&halves))
        };
        let halves: Vec<_> = self.inputs.iter().map(half).collect();
        let outputs: Vec<_> = shapes.iter().map(|s| Memory::shifted(self.shift, size(s), None)).collect();
        let states: Vec<_> = self.states.iter().map(|s| Memory::new(s.byte_len(), Some(s.bytes()))).collect();
        let in_place = self.op == Op::Accumulate;
        let outputs =
            if in_place { vec![Memory::shifted(self.shift, size(&shapes[0]), Some(self.data(0)))] } else { outputs };
        let scalars = cuda::bind::encode_scalars(&self.scalars);
        let scalars = Memory::new(scalars.len(), Some(&scalars));
        let arg = |shape, dtype| Arg { value: ValueId(0), loc: Loc { arena: Arena::Work, offset: 0 }, shape, dtype };
        let node = Launch {
            node: NodeId(0),
            op: self.op.clone(),
            path: self.name.clone(),
            inputs: self.inputs.iter().map(|x| arg(x.shape(), x.dtype())).collect(),
            outputs: shapes.iter().map(|&(s, d)| arg(s, d)).collect(),
            states: self.states.iter().map(|x| arg(x.shape(), x.dtype())).collect(),
            cost: Cost::default(),
        };
        let mut addresses = Addresses {
            inputs: inputs.iter().map(Memory::address).collect(),
            outputs: outputs.iter().map(Memory::address).collect(),
            states: states.iter().map(Memory::address).collect(),
            half: halves.iter().map(Memory::address).collect(),
            slot_bytes: self.slot_bytes(),
            scalars: scalars.address(),
            scratch: 0,
            constants: 0,
        };
        if in_place {
            addresses.inputs[0] = addresses.outputs[0];
        }
        let sizes = bind(&node, &addresses, self.math, self.sms);
        let scratch = Memory::new(sizes.scratch_bytes, None);
        let constants = Memory::new(sizes.constants.len(), None);
        (addresses.scratch, addresses.constants) = (scratch.address(), constants.address());
        let Bound { commands, constants: table, .. } = bind(&node, &addresses, self.math, self.sms);
        let mut constants = constants;
        constants.bytes_mut().copy_from_slice(&table);
        commands.iter().for_each(|command| self.command(launch, command, schedule));
        let all = inputs.iter().chain(&outputs).chain(&states).chain([&scratch, &constants, &scalars]);
        all.for_each(|m| m.check(&self.name));
        for (i, memory) in inputs.iter().enumerate() {
            assert!(in_place || memory.bytes() == self.data(i), "{}: input {i} was written", self.name);
        }
        outputs.iter().chain(&states).map(|m| m.bytes().to_vec()).collect()
    }

    fn command(&self, launch: &Launcher, command: &Command, schedule: Schedule) {
        match command {
            // SAFETY: the addresses are those of live `Memory`, as the binding was given them; `check` finds what went past its end.
            Command::Zero { to, bytes } => unsafe { std::ptr::write_bytes(*to as *mut u8, 0, *bytes) },
            // SAFETY: as above.
            Command::Copy { to, from, bytes } => unsafe { std::ptr::copy(*from as *const u8, *to as *mut u8, *bytes) },
            Command::Kernel(kernel) => {
                let Kernel { name, grid, block, shared_bytes, args } = kernel;
                let mut aligned = vec![0u128; args.len().div_ceil(16).max(4)];
                bytemuck::cast_slice_mut(&mut aligned)[..args.len()].copy_from_slice(args);
                let (text, mut error) = (CString::new(*name).expect("no NUL"), vec![0 as c_char; 512]);
                let Schedule(order, landing, seed) = schedule;
                // SAFETY: the argument struct has the kernel's size, which the callee checks; its addresses are live.
                let status = unsafe {
                    launch(
                        text.as_ptr(),
                        grid.as_ptr(),
                        *block,
                        *shared_bytes,
                        aligned.as_ptr().cast(),
                        args.len(),
                        order,
                        landing,
                        seed,
                        error.as_mut_ptr(),
                        error.len(),
                    )
                };
                // SAFETY: the callee ends the text with NUL within the buffer.
                let error = unsafe { CStr::from_ptr(error.as_ptr()) }.to_string_lossy().into_owned();
                assert_eq!(status, 0, "{}: {schedule:?}: {error}", self.name);
            }
        }
    }
}

/// The bytes as elements, wherever they lie.
fn words<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

#[track_caller]
fn compare(what: &str, dtype: Dtype, got: &[u8], expected: &[f64], tolerance: f64) {
    let got: Vec<f64> = match dtype {
        Dtype::I32 => words::<i32>(got).iter().map(|&x| f64::from(x)).collect(),
        Dtype::U8 => got.iter().map(|&x| f64::from(x)).collect(),
        Dtype::Bf16 => words::<u16>(got).iter().map(|&x| bf16::from_bits(x).to_f64()).collect(),
        _ => words::<f32>(got).iter().map(|&x| f64::from(x)).collect(),
    };
    assert_eq!(got.len(), expected.len(), "{what}: elements");
    if !dtype.is_float() {
        let bad = got.iter().zip(expected).position(|(g, e)| g != e);
        assert!(
            bad.is_none(),
            "{what}: element {} is {}, expected {}",
            bad.unwrap(),
            got[bad.unwrap()],
            expected[bad.unwrap()]
        );
        return;
    }
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        let same = g.is_nan() == e.is_nan() && (g == e || g.is_infinite() == e.is_infinite());
        assert!(same, "{what}: element {i} is {g}, expected {e}");
    }
    let norm = |v: &mut dyn Iterator<Item = f64>| v.filter(|x| x.is_finite()).map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut got.iter().zip(expected).map(|(g, e)| if g == e { 0.0 } else { g - e }));
    let size = norm(&mut expected.iter().copied()).max(1e-30);
    let worst =
        got.iter().zip(expected).enumerate().max_by(|a, b| (a.1.0 - a.1.1).abs().total_cmp(&(b.1.0 - b.1.1).abs()));
    let (i, (g, e)) = worst.unwrap_or((0, (&0.0, &0.0)));
    assert!(
        error <= tolerance * size,
        "{what}: error {:.2e}, at most {tolerance:.0e}; element {i} is {g}, expected {e}",
        error / size
    );
}

/// Random floats in ±`scale`, the same for the same seed, in the dtype.
pub(crate) fn floats(dtype: Dtype, shape: &[usize], scale: f64, seed: u64) -> HostTensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f64 / (1u64 << 24) as f64
    };
    let shape = Shape::new(shape);
    let values: Vec<f32> = (0..shape.elements()).map(|_| (scale * (2.0 * next() - 1.0)) as f32).collect();
    HostTensor::from_f32(dtype, shape, &values).expect("as many values as the shape has")
}

/// Integers, given by a function of the index.
pub(crate) fn ints(shape: &[usize], f: impl Fn(usize) -> i32) -> HostTensor {
    let shape = Shape::new(shape);
    HostTensor::new(shape, &(0..shape.elements()).map(f).collect::<Vec<i32>>())
        .expect("as many values as the shape has")
}

/// Bytes, given by a function of the index.
pub(crate) fn bytes(shape: &[usize], f: impl Fn(usize) -> u8) -> HostTensor {
    let shape = Shape::new(shape);
    HostTensor::new(shape, &(0..shape.elements()).map(f).collect::<Vec<u8>>()).expect("as many values as the shape has")
}

/// f32 and bf16.
pub(crate) const FLOATS: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];

/// Tolerance of an op that does little arithmetic, by the dtype of its outputs.
pub(crate) fn tolerance(dtype: Dtype) -> f64 {
    if dtype == Dtype::Bf16 { 4e-3 } else { 1e-6 }
}
