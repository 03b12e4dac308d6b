//! Runs one op twice, on the CPU and by the kernels of its binding, and compares the outputs and states.

use crate::hardware;
use crate::stand_in::{self, Launcher, Memory, SCHEDULES, Schedule, launcher};
use cpu::io::{Input, Io, Output, Real};
use cuda::{Addresses, Bound, Command, Math, bind};
use graph::{Graph, NodeId, Op, Place, Precision, Rows, Section, Source, StateKind, Value, ValueId};
use plan::{Arena, Arg, Cost, Launch, Loc, Scalars};
use tensor::{Dtype, HostTensor, Shape, bf16};

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
    /// Of the first inputs and outputs, how many are images that lie with a fourth channel of zeros on the device.
    pub wide: [usize; 2],
}

impl Case {
    pub(crate) fn new(name: &str, op: Op, inputs: Vec<HostTensor>) -> Case {
        let bf16 = inputs.iter().any(|x| x.dtype() == Dtype::Bf16);
        let scalars = Scalars { slots: vec![0.1, 8.0, 8.0, 0.9], micro_units: vec![[8, 8]], micro: 0, running: 1 };
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
            wide: [0; 2],
        }
    }

    /// Compares CPU and kernels, normalised error of each float output at most `tolerance`, integers equal: in all schedules on the
    /// stand-in; twice on a GPU, and twice as the binding would have it for the GPU's own multiprocessors.
    #[track_caller]
    pub(crate) fn check(&self, tolerance: f64) {
        let shapes = self.outputs();
        let (device, stored) = self.on_device(&shapes);
        let narrow = |written: Vec<Vec<u8>>| self.narrow(written, &shapes);
        if let Some(launch) = launcher() {
            let runs = SCHEDULES.map(|s| (format!("{s:?}"), narrow(device.on_kernels(launch, &stored, s))));
            return self.compare(&shapes, &self.on_cpu(&shapes), &runs, tolerance);
        }
        let runs = |sms: u32| {
            let run = |i: usize| {
                Some((format!("{sms} multiprocessors, run {i}"), narrow(hardware::run(&device, &stored, sms)?)))
            };
            (1..=2).map(run).collect::<Option<Vec<_>>>()
        };
        let (Some(forced), Some(own)) = (runs(self.sms), runs(0)) else {
            return println!("{}: skipped, SIMGPU is not set and there is no GPU", self.name);
        };
        let expected = self.on_cpu(&shapes);
        [forced, own].iter().for_each(|runs| self.compare(&shapes, &expected, runs, tolerance));
    }

    /// The case and its outputs with images as they lie on the device.
    fn on_device(&self, shapes: &[(Shape, Dtype)]) -> (Case, Vec<(Shape, Dtype)>) {
        let (mut device, mut stored) = (self.clone(), shapes.to_vec());
        for x in &mut device.inputs[..self.wide[0]] {
            let pixels = x.bytes().chunks_exact(3 * x.dtype().size());
            let bytes: Vec<u8> = pixels.flat_map(|p| [p, &vec![0; x.dtype().size()]].concat()).collect();
            *x = HostTensor::from_bytes(x.dtype(), wide(x.shape()), &bytes).expect("as many bytes as the shape has");
        }
        stored[..self.wide[1]].iter_mut().for_each(|s| s.0 = wide(s.0));
        (device, stored)
    }

    /// What the device wrote without the fourth channel, which is zero.
    fn narrow(&self, mut written: Vec<Vec<u8>>, shapes: &[(Shape, Dtype)]) -> Vec<Vec<u8>> {
        for (bytes, (_, dtype)) in written.iter_mut().zip(shapes).take(self.wide[1]) {
            let pixels = bytes.chunks_exact(4 * dtype.size()).map(|p| p.split_at(3 * dtype.size()));
            assert!(pixels.clone().all(|p| p.1.iter().all(|&b| b == 0)), "{}: a fourth channel", self.name);
            *bytes = pixels.flat_map(|p| p.0).copied().collect();
        }
        written
    }

    /// The first run with the CPU, the others with the first.
    #[track_caller]
    fn compare(
        &self,
        shapes: &[(Shape, Dtype)],
        expected: &[Vec<f64>],
        runs: &[(String, Vec<Vec<u8>>)],
        tolerance: f64,
    ) {
        let (name, (_, first)) = (&self.name, &runs[0]);
        for (i, ((got, expected), &(shape, dtype))) in first.iter().zip(expected).zip(&self.written(shapes)).enumerate()
        {
            compare(&format!("{name} output {i} {dtype}{shape}"), dtype, got, expected, tolerance);
        }
        for (what, got) in &runs[1..] {
            assert!(first == got, "{name}: {what} gives other bits");
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
    pub(crate) fn slot_bytes(&self) -> usize {
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
        let scalars = cuda::encode_scalars(&self.scalars);
        let scalars = Memory::new(scalars.len(), Some(&scalars));
        let loc = Loc { arena: Arena::Work, offset: 0 };
        let arg = |shape, dtype| Arg { value: ValueId(0), loc, shape, stored: shape, dtype };
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
            Command::Gather(_) => unreachable!("{}: an op of one rank", self.name),
            Command::Kernel(kernel) => stand_in::launch(launch, kernel, schedule, &self.name),
        }
    }
}

/// An image of three channels as it lies with four.
fn wide(shape: Shape) -> Shape {
    let d = shape.dims();
    assert_eq!((d.len(), d[3]), (4, 3), "an image");
    Shape::new(&[d[0], d[1], d[2], 4])
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
