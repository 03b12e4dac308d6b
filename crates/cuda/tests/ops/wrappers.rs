//! Each wrapper of kernels/include alone, by kernels/check_wrappers.cu, against the definition of its instruction: bit for bit, on
//! hardware and on the stand-in. Nothing here knows how the stand-in does it.

use crate::hardware;
use crate::stand_in::{self, Memory, SCHEDULES, launcher};
use bytemuck::NoUninit;
use cuda::Kernel;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct CheckWrappersArgs {
    input: u64,
    output: u64,
    /// Divisor, multiplier, shift.
    divide: [u32; 3],
    n: u32,
}
const _: () = assert!(size_of::<CheckWrappersArgs>() == 32);

/// A launch of one block.
struct Check {
    name: &'static str,
    block: u32,
    shared_bytes: u32,
    divide: [u32; 3],
    n: u32,
}

impl Check {
    fn new(name: &'static str, block: u32, shared_bytes: u32) -> Check {
        Check { name, block, shared_bytes, divide: [1, 0, 0], n: 0 }
    }

    fn kernel(&self, input: u64, output: u64) -> Kernel {
        let Check { name, block, shared_bytes, divide, n } = *self;
        let args = bytemuck::bytes_of(&CheckWrappersArgs { input, output, divide, n }).to_vec();
        Kernel { name, grid: [1; 3], block, shared_bytes, args }
    }

    /// The words that it writes, in all schedules of the stand-in or on a GPU; none where there is neither.
    fn run(&self, input: &[u32], words: usize) -> Vec<Vec<u32>> {
        let Some(launch) = launcher() else {
            return hardware::run_check(input, words, &|from, to| self.kernel(from, to)).into_iter().collect();
        };
        let one = |schedule| {
            let bytes = bytemuck::cast_slice::<u32, u8>(input);
            let (from, to) = (Memory::new(bytes.len(), Some(bytes)), Memory::new(4 * words, None));
            stand_in::launch(launch, &self.kernel(from.address(), to.address()), schedule, self.name);
            [&from, &to].into_iter().for_each(|m| m.check(self.name));
            to.bytes().chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
        };
        SCHEDULES.map(one).into()
    }

    #[track_caller]
    fn expect(&self, input: &[u32], expected: &[u32]) {
        for got in self.run(input, expected.len()) {
            let wrong = got.iter().zip(expected).position(|(g, e)| g != e);
            if let Some(i) = wrong {
                panic!("{}: word {i} is {:#010x}, expected {:#010x}", self.name, got[i], expected[i]);
            }
        }
    }
}

/// Random words, the same for the same seed.
fn words(n: usize, seed: u32) -> Vec<u32> {
    let mut state = 2 * seed + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    (0..n).map(|_| next()).collect()
}

/// Two 16-bit elements of a register, the first in the lower half.
fn pair([low, high]: [u16; 2]) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

// ldmatrix: matrix i has the rows that lanes 8i to 8i + 7 name; lane l gets elements 2(l % 4) and the next of row l / 4 of each,
// transposed: those of column l / 4.
#[test]
fn ldmatrix() {
    let elements: Vec<u16> = (0..256).collect();
    let input: Vec<u32> = elements.chunks(2).map(|c| pair([c[0], c[1]])).collect();
    let element = |matrix: usize, row: usize, column: usize| elements[8 * ((8 * matrix + row) ^ 5) + column];
    let mut expected = vec![];
    for transposed in [false, true] {
        for lane in 0..32 {
            for matrix in 0..4 {
                let (major, minor) = (lane / 4, 2 * (lane % 4));
                expected.push(pair([0, 1].map(|k| match transposed {
                    false => element(matrix, major, minor + k),
                    true => element(matrix, minor + k, major),
                })));
            }
        }
    }
    Check::new("check_wrappers_ldmatrix", 32, 512).expect(&input, &expected);
}

/// A tile of 32 x 24 x `depth` in small integers, as f32.
struct Tile {
    depth: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

impl Tile {
    /// Factors in ±`most`, sums before in ±`before`: all results are exact in f32.
    fn new(depth: usize, most: u32, before: u32) -> Tile {
        let numbers = |n, seed, most: u32| {
            words(n, seed).iter().map(|w| (w % (2 * most + 1)) as f32 - most as f32).collect::<Vec<f32>>()
        };
        Tile { depth, a: numbers(32 * depth, 1, most), b: numbers(depth * 24, 2, most), c: numbers(32 * 24, 3, before) }
    }

    fn a(&self, row: usize, k: usize) -> f32 {
        self.a[row * self.depth + k]
    }

    fn b(&self, k: usize, column: usize) -> f32 {
        self.b[k * 24 + column]
    }

    fn product(&self, row: usize, column: usize) -> f32 {
        let sum = (0..self.depth).map(|k| f64::from(self.a(row, k)) * f64::from(self.b(k, column))).sum::<f64>();
        (f64::from(self.c[row * 24 + column]) + sum) as f32
    }

    /// C or D as lane `lane` holds it: registers of [2][3] products, rows g, g, g + 8, g + 8 and columns 2q, 2q + 1.
    fn sums(lane: usize, value: impl Fn(usize, usize) -> f32) -> Vec<u32> {
        let (g, q) = (lane / 4, lane % 4);
        let at = |i: usize| (16 * (i / 12) + g + 8 * (i % 4 / 2), 8 * (i / 4 % 3) + 2 * q + i % 2);
        (0..24).map(|i| value(at(i).0, at(i).1).to_bits()).collect()
    }

    /// Input of the kernel, `fragment` being a lane's A[2][4] and then B[3][2]; and what it must give, NaN as none.
    fn check(&self, name: &'static str, fragment: impl Fn(usize) -> Vec<u32>) {
        let input: Vec<u32> =
            (0..32).flat_map(|l| [fragment(l), Tile::sums(l, |r, c| self.c[r * 24 + c])].concat()).collect();
        let expected: Vec<u32> = (0..32).flat_map(|l| Tile::sums(l, |r, c| self.product(r, c))).collect();
        let check = Check::new(name, 32, 0);
        for got in check.run(&input, expected.len()) {
            for (i, (got, expected)) in got.iter().map(|&w| f32::from_bits(w)).zip(&expected).enumerate() {
                let expected = f32::from_bits(*expected);
                let same = got == expected || got.is_nan() && expected.is_nan();
                assert!(same, "{name}: lane {}, register {}: {got}, expected {expected}", i / 24, i % 24);
            }
        }
    }
}

// mma.m16n8k16 of bf16: a0 = A[g][2q, 2q+1], a1 = A[g+8][..], a2 = A[g][2q+8, 2q+9], a3 = A[g+8][..]; b0 = B[2q, 2q+1][g],
// b1 = B[2q+8, 2q+9][g].
#[test]
fn mma_bf16() {
    let mut tile = Tile::new(16, 127, 1 << 16); // 8 bits, what bf16 holds
    for nan in [false, true] {
        if nan {
            tile.a[21 * 16 + 6] = f32::NAN; // row 21 of the result, and no other
        }
        tile.check("check_wrappers_mma_bf16", |lane| {
            let (g, q) = (lane / 4, lane % 4);
            let upper = |v: f32| (v.to_bits() >> 16) as u16;
            let a = (0..8).map(|i| {
                let (row, k) = (16 * (i / 4) + g + 8 * (i % 2), 2 * q + 8 * (i % 4 / 2));
                pair([0, 1].map(|j| upper(tile.a(row, k + j))))
            });
            let b = (0..6).map(|i| pair([0, 1].map(|j| upper(tile.b(2 * q + 8 * (i % 2) + j, 8 * (i / 2) + g)))));
            a.chain(b).collect()
        });
    }
}

// mma.m16n8k8 of tf32: a0 = A[g][q], a1 = A[g+8][q], a2 = A[g][q+4], a3 = A[g+8][q+4]; b0 = B[q][g], b1 = B[q+4][g].
#[test]
fn mma_tf32() {
    let mut tile = Tile::new(8, 1023, 1 << 16); // 11 bits, what tf32 holds; sums below 2^24
    for nan in [false, true] {
        if nan {
            tile.b[3 * 24 + 17] = f32::NAN; // column 17 of the result, and no other
        }
        tile.check("check_wrappers_mma_tf32", |lane| {
            let (g, q) = (lane / 4, lane % 4);
            let a = (0..8).map(|i| tile.a(16 * (i / 4) + g + 8 * (i % 2), q + 4 * (i % 4 / 2)).to_bits());
            let b = (0..6).map(|i| tile.b(q + 4 * (i % 2), 8 * (i / 2) + g).to_bits());
            a.chain(b).collect()
        });
    }
}

// cp.async with a source size of 0 writes zeros; after wait_group N all but the newest N groups have landed.
#[test]
fn asynchronous_copies() {
    let input = words(64 * 12, 4);
    let expected: Vec<u32> = (0..64)
        .flat_map(|t| {
            let from = &input[12 * t..];
            let valid = |x: u32| if t % 3 != 0 { x } else { 0 };
            let second = from[4..8].iter().map(|&x| valid(x));
            from[..4].iter().copied().chain(second).chain([9, 10, 11].map(|i| valid(from[i]))).collect::<Vec<u32>>()
        })
        .collect();
    Check::new("check_wrappers_copies", 64, 64 * 44).expect(&input, &expected);
}

/// The multiple of 2^`dropped` of the bits that is nearest to a float that is no NaN; `tie` chooses of the lower and the upper.
fn nearest(x: u32, dropped: u32, tie: impl Fn(u32, u32) -> u32) -> u32 {
    let lower = x >> dropped << dropped;
    let upper = lower + (1 << dropped);
    // The bit pattern above the largest finite one is infinity, and counts as the power of two that it would be.
    let value = |bits: u32| {
        let magnitude = bits & 0x7fff_ffff;
        if magnitude == 0x7f80_0000 { 2f64.powi(128) } else { f64::from(f32::from_bits(magnitude)) }
    };
    let (below, above) = (value(x) - value(lower), value(upper) - value(x));
    match below.total_cmp(&above) {
        _ if below == 0.0 => lower,
        std::cmp::Ordering::Less => lower,
        std::cmp::Ordering::Greater => upper,
        std::cmp::Ordering::Equal => tie(lower, upper),
    }
}

// cvt.rn.bf16.f32: to nearest, ties to even, subnormal numbers kept, every NaN is 0x7fff. cvt.rna.tf32.f32: to nearest, ties away
// from zero; a NaN stays one.
#[test]
fn rounding() {
    let mut input = words(4096, 5);
    for exponent in [0u32, 1, 2, 100, 127, 128, 200, 253, 254] {
        for sign in [0, 1] {
            // Zero, subnormal and normal numbers at and next to the ties of both formats, odd and even; the largest ones overflow.
            for low in
                [0u32, 1, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x3001, 0x7fff, 0x8000, 0x8001, 0x1_7fff, 0x1_8000]
            {
                input.push(sign << 31 | exponent << 23 | low);
                input.push(sign << 31 | exponent << 23 | 0x7f_ffff ^ low);
            }
        }
        input.extend([0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0xffc0_0000, 0x7fc1_2345]);
    }
    let is_nan = |x: u32| f32::from_bits(x).is_nan();
    let check = Check { n: input.len() as u32, ..Check::new("check_wrappers_round", 256, 0) };
    for got in check.run(&input, 3 * input.len()) {
        for (&x, got) in input.iter().zip(got.chunks(3)) {
            let value = f32::from_bits(x);
            let even = |lower: u32, upper: u32| if lower >> 16 & 1 == 0 { lower } else { upper };
            let half = if is_nan(x) { 0x7fff_0000 } else { nearest_or_same(x, 16, even) };
            assert_eq!([got[0], got[1]], [half >> 16, half], "{value:e} ({x:#010x}) as bf16: {got:#010x?}");
            if is_nan(x) {
                assert!(is_nan(got[2]), "{x:#010x} as tf32: {:#010x}", got[2]);
            } else {
                let expected = nearest_or_same(x, 13, |_, upper| upper);
                assert_eq!(got[2] >> 13 << 13, expected, "{value:e} ({x:#010x}) as tf32: {:#010x}", got[2]);
            }
        }
    }
}

/// Infinities are what they are.
fn nearest_or_same(x: u32, dropped: u32, tie: impl Fn(u32, u32) -> u32) -> u32 {
    if x << 1 == 0xff00_0000 { x } else { nearest(x, dropped, tie) }
}

// shfl: the value of the lane that is named; of the own lane where up and down pass the end. Votes over the whole warp.
#[test]
fn lanes() {
    let input = words(32, 6);
    let ballot = (0..32).fold(0, |b, l| b | (input[l] % 2) << l);
    let expected: Vec<u32> = (0..32usize)
        .flat_map(|l| {
            let from =
                [(7 * l + 3) % 32, l ^ 5, if l + 3 < 32 { l + 3 } else { l }, l.checked_sub(2).unwrap_or(l), l ^ 16];
            from.map(|l| input[l]).into_iter().chain([ballot, 1, 0])
        })
        .collect();
    Check::new("check_wrappers_lanes", 32, 0).expect(&input, &expected);
}

// n / d by multiplication with m = ceil(2^(32 + s) / d), s = ceil(log2 d) - 1, for n < 2^31.
#[test]
fn division() {
    for divisor in
        [1u32, 2, 3, 5, 7, 9, 49, 56, 64, 1000, 3136, 50_176, 65_537, 12_845_056, (1 << 30) + 1, (1 << 31) - 1]
    {
        let mut input: Vec<u32> = words(2048, 7).iter().map(|w| w >> 1).collect();
        for multiple in (0..64).map(|i| u64::from(divisor) * (1 + i * i * i)) {
            input.extend((multiple - 1..multiple + 2).filter(|&n| n < 1 << 31).map(|n| n as u32));
        }
        input.extend([0, (1 << 31) - 1]);
        let shift = if divisor > 1 { (divisor - 1).ilog2() } else { 0 };
        let multiplier = if divisor > 1 { (1u64 << (32 + shift)).div_ceil(divisor.into()) as u32 } else { 0 };
        let check = Check {
            divide: [divisor, multiplier, shift],
            n: input.len() as u32,
            ..Check::new("check_wrappers_divide", 256, 0)
        };
        let expected: Vec<u32> = input.iter().map(|n| n / divisor).collect();
        check.expect(&input, &expected);
    }
}
