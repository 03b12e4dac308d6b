use crate::harness::{Case, floats};
use cuda::Math;
use graph::{ConvArgs, Op};
use tensor::{Dtype, HostTensor};

/// x [n,h,w,c] by k filters of r×s.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    x: [usize; 4],
    k: usize,
    kernel: [usize; 2],
    args: ConvArgs,
}

const fn geometry(x: [usize; 4], k: usize, kernel: usize, stride: usize, pad: usize) -> Geometry {
    Geometry { x, k, kernel: [kernel, kernel], args: ConvArgs { stride, pad, groups: 1 } }
}

fn grouped(x: [usize; 4], k: usize, stride: usize, groups: usize) -> Geometry {
    Geometry { x, k, kernel: [3, 3], args: ConvArgs { stride, pad: 1, groups } }
}

impl Geometry {
    fn filters(&self, dtype: Dtype) -> HostTensor {
        let [r, s] = self.kernel;
        let cg = self.x[3] / self.args.groups;
        floats(dtype, &[self.k, r, s, cg], (3.0 / (r * s * cg) as f64).sqrt(), 2)
    }

    fn y(&self) -> [usize; 4] {
        let out =
            |size, kernel| graph::conv_out(size, kernel, self.args.stride, self.args.pad).expect("the kernel fits");
        [self.x[0], out(self.x[1], self.kernel[0]), out(self.x[2], self.kernel[1]), self.k]
    }
}

/// Dtype of activations, arithmetic of f32, normalised error.
const KINDS: [(Dtype, Math, f64); 3] =
    [(Dtype::F32, Math::F32, 1e-5), (Dtype::F32, Math::Tf32, 2e-3), (Dtype::Bf16, Math::F32, 5e-3)];

/// All three directions in each kind of arithmetic, with multiprocessors `sms`: many force small tiles and splits.
fn check(g: Geometry, sms: u32) {
    for (dtype, math, tolerance) in KINDS {
        let (x, w, dy) = (floats(dtype, &g.x, 1.0, 1), g.filters(Dtype::F32), floats(dtype, &g.y(), 1.0, 3));
        let case = |op: Op, inputs: Vec<HostTensor>| {
            let name = format!("{op:?} {:?} by {} {:?} {dtype} {math:?} sms {sms}", g.x, g.k, g.kernel);
            Case { math, sms, ..Case::new(&name, op, inputs) }
        };
        case(Op::Conv(g.args), vec![x.clone(), w.clone()]).check(tolerance);
        case(Op::Conv(g.args), vec![x.clone(), w.clone(), dy.clone()]).check(tolerance);
        let (hw, kernel) = ([g.x[1], g.x[2]], g.kernel);
        case(Op::ConvDgrad { conv: g.args, hw }, vec![dy.clone(), w.clone()]).check(tolerance);
        case(Op::ConvDgrad { conv: g.args, hw }, vec![dy.clone(), w, x.clone()]).check(tolerance);
        case(Op::ConvWgrad { conv: g.args, kernel }, vec![x, dy]).check(tolerance);
    }
}

#[test]
fn whole_chunks_of_channels() {
    // 3x3 of CIFAR nets, ragged tiles of pixels; 16 channels: two taps in one step of k.
    check(geometry([2, 9, 7, 16], 16, 3, 1, 1), 2);
    // Stride 2, even and odd images: sub-problems of dgrad with 1, 2, 2, 4 taps, of two sizes.
    check(geometry([2, 8, 8, 16], 32, 3, 2, 1), 2);
    check(geometry([1, 9, 11, 16], 32, 3, 2, 1), 2);
    // 1x1, stride 1 and 2: a sub-problem without taps stores zeros.
    check(geometry([2, 6, 6, 40], 72, 1, 1, 0), 2);
    check(geometry([2, 7, 7, 24], 40, 1, 2, 0), 2);
    // 5x5 and 7x7, stride 3: wide padding, three sub-problems a side.
    check(geometry([1, 8, 8, 8], 8, 5, 1, 2), 2);
    check(geometry([1, 10, 10, 8], 16, 7, 3, 3), 2);
    // No padding; output smaller than the filter.
    check(geometry([1, 5, 5, 8], 8, 3, 1, 0), 2);
    // An image smaller than the filter's reach.
    check(geometry([3, 1, 1, 8], 8, 3, 1, 1), 2);
}

#[test]
fn every_tile_is_forced() {
    // Wide and many pixels: 128x128, 128x64, 64x64, 64x32 of fprop and dgrad; 128x128 to 32x64 of wgrad.
    check(geometry([2, 12, 12, 136], 144, 1, 1, 0), 2);
    check(geometry([2, 12, 12, 64], 64, 1, 1, 0), 2);
    check(geometry([2, 12, 12, 64], 64, 1, 1, 0), 5);
    check(geometry([2, 12, 12, 64], 64, 1, 1, 0), 100);
}

#[test]
fn splits_of_wgrad_are_summed_in_order() {
    // 1,300 pixels: three splits in bf16, more in f32, the last one short.
    check(geometry([2, 25, 26, 8], 16, 3, 1, 1), 8);
}

/// Images in pixels of four channels: outputs with and without a tail, their statistics, and filters' gradients.
#[test]
fn stems() {
    let cases = [
        // CIFAR's, ragged tiles of pixels: nine taps are four chunks of bf16 and a half; two and more splits of wgrad.
        (geometry([2, 9, 7, 3], 16, 3, 1, 1), 2),
        (geometry([2, 25, 26, 3], 16, 3, 1, 1), 8),
        (geometry([2, 25, 26, 3], 64, 3, 1, 1), 8),
        // ImageNet's, even and odd images: each tile, 49 taps.
        (geometry([2, 33, 31, 3], 64, 7, 2, 3), 2),
        (geometry([2, 32, 32, 3], 64, 7, 2, 3), 8),
        (geometry([1, 16, 15, 3], 72, 7, 2, 3), 100),
        // Filters in no whole chunks: element by element. One pixel a filter; an image smaller than the filter's reach.
        (geometry([2, 8, 8, 3], 10, 3, 2, 1), 2),
        (geometry([2, 5, 5, 3], 8, 1, 1, 0), 2),
        (geometry([3, 1, 1, 3], 8, 3, 1, 1), 2),
    ];
    for (dtype, math, tolerance) in KINDS {
        for (g, sms) in cases {
            let (x, w, dy) = (floats(dtype, &g.x, 1.0, 1), g.filters(Dtype::F32), floats(dtype, &g.y(), 1.0, 3));
            let case = |op: Op, inputs: Vec<HostTensor>| {
                let name = format!("stem {op:?} {:?} by {} {:?} {dtype} {math:?} sms {sms}", g.x, g.k, g.kernel);
                Case { math, sms, wide: [1, 0], ..Case::new(&name, op, inputs) }
            };
            let (bias, shortcut) = (floats(Dtype::F32, &[g.k], 1.0, 4), dy.clone());
            case(Op::Conv(g.args), vec![x.clone(), w.clone()]).check(tolerance);
            let act = Op::ConvAct { conv: g.args, relu: true };
            case(act, vec![x.clone(), w.clone(), bias, shortcut]).check(tolerance);
            let stats = Op::ConvStats { conv: g.args, groups: g.x[0] };
            case(stats, vec![x.clone(), w]).check(tolerance.max(2e-5) * 4.0);
            case(Op::ConvWgrad { conv: g.args, kernel: g.kernel }, vec![x, dy]).check(tolerance);
        }
    }
}

/// More than 256 tiles, whose moments are merged in two steps while the filters lie in the same working memory.
#[test]
fn statistics_of_a_stem_in_two_steps() {
    let g = geometry([1, 130, 131, 3], 16, 3, 1, 1);
    let (x, w) = (floats(Dtype::Bf16, &g.x, 1.0, 1), g.filters(Dtype::F32));
    let case = Case::new("stem statistics in two steps", Op::ConvStats { conv: g.args, groups: 1 }, vec![x, w]);
    Case { wide: [1, 0], ..case }.check(2e-2);
}

#[test]
fn any_channels() {
    // Stems: 1 and 3 channels, 3x3 and 7x7 stride 2.
    check(geometry([2, 8, 8, 3], 16, 3, 1, 1), 2);
    check(geometry([1, 16, 15, 3], 64, 7, 2, 3), 2);
    check(geometry([3, 7, 7, 1], 8, 3, 1, 1), 2);
    // Channels that are multiples of 4 but not of 8, and of neither.
    check(geometry([1, 6, 6, 12], 20, 3, 1, 1), 2);
    check(geometry([1, 6, 6, 13], 7, 3, 2, 1), 2);
}

#[test]
fn groups() {
    // Groups with whole chunks, and narrow ones.
    check(grouped([1, 6, 6, 32], 48, 1, 2), 2);
    check(grouped([2, 6, 6, 16], 16, 2, 4), 2);
    // Depthwise in whole chunks and in single channels, small and with several splits, and two filters a channel.
    check(grouped([2, 7, 7, 72], 72, 1, 72), 2);
    check(grouped([4, 24, 24, 8], 8, 1, 8), 100);
    check(grouped([2, 7, 7, 12], 12, 1, 12), 2);
    check(
        Geometry {
            kernel: [5, 5],
            args: ConvArgs { stride: 2, pad: 2, groups: 35 },
            ..grouped([1, 9, 8, 35], 35, 1, 35)
        },
        2,
    );
    check(grouped([2, 7, 7, 8], 8, 2, 8), 2);
    check(grouped([1, 5, 5, 6], 12, 1, 6), 2);
}

#[test]
fn frozen_convolutions_add_bias_and_shortcut() {
    for (dtype, math, tolerance) in KINDS {
        for g in [geometry([2, 9, 7, 16], 24, 3, 1, 1), geometry([2, 8, 8, 3], 10, 3, 2, 1)] {
            let (x, w, bias) = (floats(dtype, &g.x, 1.0, 1), g.filters(Dtype::F32), floats(Dtype::F32, &[g.k], 1.0, 4));
            let shortcut = floats(dtype, &g.y(), 1.0, 5);
            for relu in [false, true] {
                for inputs in [
                    vec![x.clone(), w.clone(), bias.clone()],
                    vec![x.clone(), w.clone(), bias.clone(), shortcut.clone()],
                ] {
                    let name = format!("conv act {:?} relu {relu} inputs {} {dtype} {math:?}", g.x, inputs.len());
                    let op = Op::ConvAct { conv: g.args, relu };
                    Case { math, ..Case::new(&name, op, inputs) }.check(tolerance);
                }
            }
        }
    }
}

#[test]
fn statistics_of_the_output_as_stored() {
    // One tile and several, a ragged last one, two runs that no tile may cross, more than 256 tiles (merged in two steps),
    // single channels, depthwise.
    let cases = [
        (geometry([2, 9, 7, 16], 24, 3, 1, 1), 1),
        (geometry([4, 9, 7, 16], 40, 1, 1, 0), 2),
        (geometry([2, 12, 12, 64], 136, 1, 1, 0), 1),
        (geometry([3, 79, 75, 8], 8, 1, 1, 0), 3),
        (geometry([1, 130, 131, 8], 12, 1, 1, 0), 1),
        (geometry([2, 8, 8, 3], 10, 3, 2, 1), 2),
        (grouped([2, 7, 7, 32], 48, 1, 2), 2),
        (grouped([2, 7, 7, 24], 24, 2, 24), 1),
    ];
    for (dtype, math, tolerance) in KINDS {
        for (g, groups) in cases {
            let (x, w) = (floats(dtype, &g.x, 1.0, 1), g.filters(Dtype::F32));
            let addend = floats(dtype, &g.y(), 1.0, 3);
            for inputs in [vec![x.clone(), w.clone()], vec![x, w, addend]] {
                let name = format!("conv stats {:?} by {} groups {groups} {dtype} {math:?}", g.x, g.k);
                let name = format!("{name} inputs {}", inputs.len());
                // Means near zero are differences of large sums: their error is set against that of the deviation.
                let op = Op::ConvStats { conv: g.args, groups };
                Case { math, ..Case::new(&name, op, inputs) }.check(tolerance.max(2e-5) * 4.0);
            }
        }
    }
}
