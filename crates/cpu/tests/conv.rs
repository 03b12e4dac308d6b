//! Convolution against the f64 reference on random geometries, every instruction set; bits at 1, 2 and 4 threads; epilogues.

use cpu::conv::{Conv, ConvGeom, Epilogue};
use cpu::conv_reference as reference;
use cpu::gemm::{Gemm, gemm};
use cpu::simd::Isa;

/// xorshift64*: the same geometries and values on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32
    }
    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }
    fn pick(&mut self, from: &[usize]) -> usize {
        from[self.below(from.len())]
    }
    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next() as f32 / (1u64 << 31) as f32 - 1.0).collect()
    }
}

fn geom(
    n: usize,
    (h, w, c): (usize, usize, usize),
    k: usize,
    (r, s): (usize, usize),
    stride: usize,
    pad: usize,
) -> ConvGeom {
    let out = |size: usize, taps: usize| (size + 2 * pad - taps) / stride + 1;
    ConvGeom { n, h, w, c, k, r, s, p: out(h, r), q: out(w, s), stride, pad, groups: 1 }
}

fn random_geom(random: &mut Random) -> ConvGeom {
    loop {
        let (r, s) = (random.pick(&[1, 1, 2, 3, 3, 3, 5, 7]), random.pick(&[0, 0, 0, 1, 3]));
        let s = if s == 0 { r } else { s };
        let (pad, stride) = (random.below(4), random.pick(&[1, 1, 2, 2, 3]));
        let (h, w) = (1 + random.below(20), 1 + random.below(20));
        if r > h + 2 * pad || s > w + 2 * pad {
            continue;
        }
        let (c, k) = (1 + random.below(70), 1 + random.below(70));
        let mut g = geom(1 + random.below(5), (h, w, c), k, (r, s), stride, pad);
        match random.below(6) {
            0 => (g.c, g.k, g.groups) = (c, c, c),
            1 => {
                g.groups = 1 + random.below(4);
                (g.c, g.k) = ((1 + random.below(20)) * g.groups, (1 + random.below(20)) * g.groups);
            }
            _ => {}
        }
        return g;
    }
}

/// Sizes of the networks trained here, batch cut down: the first layers, both strides, the last stages, a stem, Fashion-MNIST.
fn network_geoms() -> Vec<ConvGeom> {
    vec![
        geom(3, (32, 32, 3), 16, (3, 3), 1, 1),
        geom(3, (32, 32, 16), 16, (3, 3), 1, 1),
        geom(3, (32, 32, 16), 32, (3, 3), 2, 1),
        geom(3, (32, 32, 16), 32, (1, 1), 2, 0),
        geom(2, (32, 32, 64), 64, (3, 3), 1, 1),
        geom(2, (16, 16, 128), 128, (3, 3), 1, 1),
        geom(5, (8, 8, 128), 256, (3, 3), 2, 1),
        geom(3, (4, 4, 512), 512, (3, 3), 1, 1),
        geom(2, (56, 56, 3), 64, (7, 7), 2, 3),
        geom(3, (28, 28, 1), 16, (3, 3), 1, 1),
        geom(9, (8, 8, 32), 64, (1, 1), 1, 0),
        geom(7, (1, 1, 130), 10, (1, 1), 1, 0),
        // Winograd tiles that stick out, without padding and with more than the usual one; row bands of one image.
        geom(2, (13, 18, 32), 64, (3, 3), 1, 0),
        geom(3, (9, 30, 16), 32, (3, 3), 1, 2),
        geom(1, (70, 69, 32), 32, (3, 3), 1, 1),
    ]
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

#[track_caller]
fn assert_close(got: &[f32], want: &[f64], what: &str) {
    let error: f64 = got.iter().zip(want).map(|(&g, w)| (f64::from(g) - w).powi(2)).sum();
    let norm: f64 = want.iter().map(|w| w * w).sum();
    assert!(error.sqrt() <= 1e-5 * norm.sqrt(), "{what}: normalised error {:.2e}", (error / norm).sqrt());
}

fn check_geom(g: ConvGeom, random: &mut Random) {
    let (x, w, dy) = (random.floats(g.x_len()), random.floats(g.w_len()), random.floats(g.y_len()));
    let (x64, w64, dy64) = (wide(&x), wide(&w), wide(&dy));
    let (mut y64, mut dx64, mut dw64) = (vec![1.0; g.y_len()], vec![1.0; g.x_len()], vec![1.0; g.w_len()]);
    reference::fprop(&g, &x64, &w64, &mut y64);
    reference::dgrad(&g, &dy64, &w64, &mut dx64);
    reference::wgrad(&g, &x64, &dy64, &mut dw64);
    for isa in Isa::available() {
        let conv = Conv { geom: g, isa };
        // NaN shows a value that is read before it is written.
        let (mut y, mut dx, mut dw) = (vec![f32::NAN; g.y_len()], vec![f32::NAN; g.x_len()], vec![f32::NAN; g.w_len()]);
        conv.fprop(&x, &w, &mut y, Epilogue::default());
        conv.dgrad(&dy, &w, &mut dx, Epilogue::default());
        conv.wgrad(&x, &dy, &mut dw);
        assert_close(&y, &y64, &format!("fprop {isa:?} {g:?}"));
        assert_close(&dx, &dx64, &format!("dgrad {isa:?} {g:?}"));
        assert_close(&dw, &dw64, &format!("wgrad {isa:?} {g:?}"));
    }
}

#[test]
fn random_geometries_match_the_reference() {
    let mut random = Random(0x5EED);
    for _ in 0..300 {
        let g = random_geom(&mut random);
        check_geom(g, &mut random);
    }
}

#[test]
fn network_geometries_match_the_reference() {
    let mut random = Random(0xC0FFEE);
    for g in network_geoms() {
        check_geom(g, &mut random);
    }
}

/// Central differences of Σ y·dy in f64: the reference's own gradients.
#[test]
fn reference_gradients_match_differences() {
    let mut random = Random(7);
    let mut g = geom(2, (5, 6, 4), 6, (3, 2), 2, 1);
    g.groups = 2;
    let (mut x, mut w) = (wide(&random.floats(g.x_len())), wide(&random.floats(g.w_len())));
    let dy = wide(&random.floats(g.y_len()));
    let (mut dx, mut dw) = (vec![0.0; g.x_len()], vec![0.0; g.w_len()]);
    reference::dgrad(&g, &dy, &w, &mut dx);
    reference::wgrad(&g, &x, &dy, &mut dw);
    let value = |x: &[f64], w: &[f64]| {
        let mut y = vec![0.0; g.y_len()];
        reference::fprop(&g, x, w, &mut y);
        y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>()
    };
    for i in 0..x.len() {
        let at = x[i];
        let difference = [1.0, -1.0].map(|sign| {
            x[i] = at + sign * 0.5;
            sign * value(&x, &w)
        });
        x[i] = at;
        assert!((difference.iter().sum::<f64>() - dx[i]).abs() < 1e-9, "dx[{i}]");
    }
    for i in 0..w.len() {
        let at = w[i];
        let difference = [1.0, -1.0].map(|sign| {
            w[i] = at + sign * 0.5;
            sign * value(&x, &w)
        });
        w[i] = at;
        assert!((difference.iter().sum::<f64>() - dw[i]).abs() < 1e-9, "dw[{i}]");
    }
}

#[test]
fn thread_count_does_not_change_bits() {
    let mut random = Random(0xB175);
    let mut geoms = network_geoms();
    geoms.extend((0..40).map(|_| random_geom(&mut random)));
    geoms.push(geom(1, (160, 120, 8), 24, (3, 3), 1, 1)); // row bands of one image
    for g in geoms {
        let (x, w, dy) = (random.floats(g.x_len()), random.floats(g.w_len()), random.floats(g.y_len()));
        let conv = Conv::new(g);
        let results = [1, 2, 4].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a small pool starts");
            let (mut y, mut dx, mut dw) = (vec![0.0; g.y_len()], vec![0.0; g.x_len()], vec![0.0; g.w_len()]);
            pool.install(|| {
                conv.fprop(&x, &w, &mut y, Epilogue::default());
                conv.dgrad(&dy, &w, &mut dx, Epilogue::default());
                conv.wgrad(&x, &dy, &mut dw);
            });
            [y, dx, dw].map(|values| values.into_iter().map(f32::to_bits).collect::<Vec<u32>>())
        });
        assert!(results[0] == results[1] && results[0] == results[2], "{g:?}");
    }
}

#[test]
fn epilogue_is_applied_after_the_sum() {
    let mut random = Random(0xE91);
    let mut geoms = vec![geom(2, (7, 9, 200), 37, (3, 3), 2, 1), geom(4, (8, 8, 700), 20, (1, 1), 1, 0)];
    geoms.push(ConvGeom { c: 24, k: 24, groups: 24, ..geom(2, (9, 9, 24), 24, (3, 3), 1, 1) });
    geoms.push(geom(3, (7, 10, 32), 64, (3, 3), 1, 1)); // Winograd
    geoms.push(geom(3, (9, 9, 5), 33, (1, 1), 2, 0)); // image pixels that no output reads
    for (g, isa) in geoms.iter().flat_map(|g| Isa::available().into_iter().map(move |isa| (*g, isa))) {
        let conv = Conv { geom: g, isa };
        let (x, w, dy) = (random.floats(g.x_len()), random.floats(g.w_len()), random.floats(g.y_len()));
        let (bias, add, fork) = (random.floats(g.k), random.floats(g.y_len()), random.floats(g.x_len()));
        let (mut y, mut fused) = (vec![0.0; g.y_len()], vec![f32::NAN; g.y_len()]);
        conv.fprop(&x, &w, &mut y, Epilogue::default());
        for (i, y) in y.iter_mut().enumerate() {
            *y = (*y + bias[i % g.k] + add[i]).max(0.0);
        }
        let epilogue = Epilogue { bias: Some(&bias), add: Some(&add), relu: true, round_bf16: false };
        conv.fprop(&x, &w, &mut fused, epilogue);
        assert_close(&fused, &wide(&y), &format!("{isa:?} {g:?}"));
        let rounded: Vec<u32> = fused.iter().map(|&y| half::bf16::from_f32(y).to_f32().to_bits()).collect();
        conv.fprop(&x, &w, &mut fused, Epilogue { round_bf16: true, ..epilogue });
        assert!(fused.iter().map(|y| y.to_bits()).eq(rounded), "{isa:?} {g:?}");

        let (mut dx, mut fused) = (vec![0.0; g.x_len()], vec![f32::NAN; g.x_len()]);
        conv.dgrad(&dy, &w, &mut dx, Epilogue::default());
        dx.iter_mut().zip(&fork).for_each(|(dx, fork)| *dx += fork);
        conv.dgrad(&dy, &w, &mut fused, Epilogue { add: Some(&fork), ..Epilogue::default() });
        assert_close(&fused, &wide(&dx), &format!("{isa:?} {g:?}"));
    }
}

#[test]
fn gemm_gives_the_three_products_of_a_linear_layer() {
    let mut random = Random(0x6E);
    for size in [(64, 512, 10), (64, 64, 100), (1, 3, 5), (17, 700, 33), (6, 1, 1)] {
        let (rows, inputs, outputs) = size;
        let (x, w, dy) = (random.floats(rows * inputs), random.floats(outputs * inputs), random.floats(rows * outputs));
        let sum = |n: usize, f: &dyn Fn(usize) -> f32| (0..n).map(|i| f64::from(f(i))).sum::<f64>();
        let mut y = vec![f32::NAN; rows * outputs];
        gemm(Gemm::Nt, size, (&x, &w), &mut y, Epilogue::default());
        let want = |i: usize| sum(inputs, &|c| x[i / outputs * inputs + c] * w[i % outputs * inputs + c]);
        assert_close(&y, &(0..y.len()).map(want).collect::<Vec<_>>(), "nt");
        let mut dx = vec![f32::NAN; rows * inputs];
        gemm(Gemm::Nn, size, (&dy, &w), &mut dx, Epilogue::default());
        let want = |i: usize| sum(outputs, &|k| dy[i / inputs * outputs + k] * w[k * inputs + i % inputs]);
        assert_close(&dx, &(0..dx.len()).map(want).collect::<Vec<_>>(), "nn");
        let mut dw = vec![f32::NAN; outputs * inputs];
        gemm(Gemm::Tn, size, (&dy, &x), &mut dw, Epilogue::default());
        let want = |i: usize| sum(rows, &|n| dy[n * outputs + i / inputs] * x[n * inputs + i % inputs]);
        assert_close(&dw, &(0..dw.len()).map(want).collect::<Vec<_>>(), "tn");
    }
}

#[test]
#[should_panic(expected = "output size does not follow")]
fn wrong_output_size_is_refused() {
    let g = ConvGeom { p: 9, ..geom(1, (8, 8, 3), 4, (3, 3), 1, 1) };
    Conv::new(g).fprop(&vec![0.0; g.x_len()], &vec![0.0; g.w_len()], &mut vec![0.0; g.y_len()], Epilogue::default());
}
