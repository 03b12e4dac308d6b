//! Times fprop, dgrad and wgrad on the layers of three CIFAR networks: `conv_bench [threads] [batch] [filter]`.
//!
//! One line a layer: median milliseconds and GFLOP/s of each direction; then the sum over a network, layers repeated as
//! often as it has them.

use std::time::Instant;

use cpu::conv::{Conv, ConvGeom, Epilogue};

/// Network, how often, image side, channels in and out, filter side, stride.
const LAYERS: [(&str, usize, usize, usize, usize, usize, usize); 31] = [
    ("resnet18", 1, 32, 3, 64, 3, 1),
    ("resnet18", 4, 32, 64, 64, 3, 1),
    ("resnet18", 1, 32, 64, 128, 3, 2),
    ("resnet18", 1, 32, 64, 128, 1, 2),
    ("resnet18", 3, 16, 128, 128, 3, 1),
    ("resnet18", 1, 16, 128, 256, 3, 2),
    ("resnet18", 1, 16, 128, 256, 1, 2),
    ("resnet18", 3, 8, 256, 256, 3, 1),
    ("resnet18", 1, 8, 256, 512, 3, 2),
    ("resnet18", 1, 8, 256, 512, 1, 2),
    ("resnet18", 3, 4, 512, 512, 3, 1),
    ("resnet8x4", 1, 32, 3, 32, 3, 1),
    ("resnet8x4", 1, 32, 32, 64, 3, 1),
    ("resnet8x4", 1, 32, 32, 64, 1, 1),
    ("resnet8x4", 1, 32, 64, 64, 3, 1),
    ("resnet8x4", 1, 32, 64, 128, 3, 2),
    ("resnet8x4", 1, 32, 64, 128, 1, 2),
    ("resnet8x4", 1, 16, 128, 128, 3, 1),
    ("resnet8x4", 1, 16, 128, 256, 3, 2),
    ("resnet8x4", 1, 16, 128, 256, 1, 2),
    ("resnet8x4", 1, 8, 256, 256, 3, 1),
    ("resnet8", 1, 32, 3, 16, 3, 1),
    ("resnet8", 2, 32, 16, 16, 3, 1),
    ("resnet8", 1, 32, 16, 32, 3, 2),
    ("resnet8", 1, 32, 16, 32, 1, 2),
    ("resnet8", 1, 16, 32, 32, 3, 1),
    ("resnet8", 1, 16, 32, 64, 3, 2),
    ("resnet8", 1, 16, 32, 64, 1, 2),
    ("resnet8", 1, 8, 64, 64, 3, 1),
    ("fashion", 1, 28, 1, 16, 3, 1),
    ("stem", 1, 64, 3, 64, 7, 2),
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| args.get(i).and_then(|arg| arg.parse().ok()).unwrap_or(default);
    let (threads, batch) = (number(0, 2), number(1, 64));
    let only = args.get(2).map_or("", String::as_str);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("the pool starts");
    println!("{threads} threads, batch {batch}: ms GFLOP/s of fprop, dgrad, wgrad");
    let mut sums: Vec<(&str, f64, f64)> = Vec::new();
    for (network, times, side, c, k, r, stride) in LAYERS {
        let name = format!("{network} {c}->{k}@{side} k{r}s{stride}");
        if !name.contains(only) {
            continue;
        }
        let pad = r / 2;
        let out = (side + 2 * pad - r) / stride + 1;
        let g = ConvGeom { n: batch, h: side, w: side, c, k, r, s: r, p: out, q: out, stride, pad, groups: 1 };
        let ms = pool.install(|| layer(g));
        let gflop = g.flops() as f64 * 1e-9;
        let cells = ms.map(|ms| format!("{ms:8.3} {:6.1}", gflop / ms * 1e3));
        println!("{name:32} {}", cells.join("  "));
        // The first layer's image needs no gradient.
        let directions = if c <= 3 { [1.0, 0.0, 1.0] } else { [1.0; 3] };
        let ms: f64 = ms.iter().zip(directions).map(|(ms, on)| ms * on * times as f64).sum();
        let gflop = gflop * directions.iter().sum::<f64>() * times as f64;
        match sums.iter_mut().find(|sum| sum.0 == network) {
            Some(sum) => *sum = (network, sum.1 + ms, sum.2 + gflop),
            None => sums.push((network, ms, gflop)),
        }
    }
    for (network, ms, gflop) in sums {
        println!("{network:32} {ms:8.3} ms {:6.1} GFLOP/s", gflop / ms * 1e3);
    }
}

/// Median milliseconds of fprop, dgrad, wgrad.
fn layer(g: ConvGeom) -> [f64; 3] {
    let fill = |n: usize| (0..n).map(|i| (i * 7919 % 1013) as f32 / 506.5 - 1.0).collect::<Vec<f32>>();
    let (x, w, dy) = (fill(g.x_len()), fill(g.w_len()), fill(g.y_len()));
    let (mut y, mut dx, mut dw) = (vec![0.0; g.y_len()], vec![0.0; g.x_len()], vec![0.0; g.w_len()]);
    let conv = Conv::new(g);
    [
        median(|| conv.fprop(&x, &w, &mut y, Epilogue::default())),
        median(|| conv.dgrad(&dy, &w, &mut dx, Epilogue::default())),
        median(|| conv.wgrad(&x, &dy, &mut dw)),
    ]
}

fn median(mut work: impl FnMut()) -> f64 {
    work();
    let mut ms: Vec<f64> = (0..9)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    ms.sort_by(f64::total_cmp);
    ms[ms.len() / 2]
}
