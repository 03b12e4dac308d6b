use crate::harness::{Case, FLOATS, bytes, floats, tolerance};
use graph::{Op, PoolArgs, conv_out};
use tensor::{Dtype, HostTensor, Shape};

/// Image [n,h,w,c]; kernel, stride, pad; multiprocessors.
const SIZES: [([usize; 4], [usize; 3], u32); 9] = [
    ([2, 14, 14, 16], [3, 2, 1], 2), // the stem of an ImageNet ResNet: windows overlap
    ([2, 9, 12, 24], [3, 1, 1], 1),  // a pixel in nine windows; blocks loop
    ([3, 8, 6, 8], [2, 2, 0], 1),    // no overlap, one pack a pixel
    ([1, 7, 5, 8], [5, 3, 2], 1),    // two steps over a window's columns; height and width differ
    ([2, 9, 9, 16], [2, 3, 0], 1),   // pixels that no window covers
    ([2, 11, 7, 3], [3, 2, 1], 1),   // channels no multiple of 8: the general kernels
    ([1, 4, 4, 8], [4, 4, 0], 1),    // one window
    ([1, 5, 5, 10], [1, 2, 0], 1),   // a window of one pixel
    ([1, 3, 3, 8], [3, 1, 2], 1),    // windows with one pixel inside
];

fn for_sizes(f: impl Fn(&str, Dtype, [usize; 4], [usize; 4], PoolArgs, u32)) {
    for dtype in FLOATS {
        for ([n, h, w, c], [kernel, stride, pad], sms) in SIZES {
            let size = |axis| conv_out(axis, kernel, stride, pad).expect("a window fits");
            let name = format!("{dtype} {:?} kernel {kernel} stride {stride} pad {pad}", [n, h, w, c]);
            f(&name, dtype, [n, h, w, c], [n, size(h), size(w), c], PoolArgs { kernel, stride, pad }, sms);
        }
    }
}

fn case(name: String, op: Op, inputs: Vec<HostTensor>, sms: u32) -> Case {
    Case { sms, ..Case::new(&name, op, inputs) }
}

#[test]
fn maximum() {
    for_sizes(|name, dtype, image, _, pool, sms| {
        case(format!("max {name}"), Op::MaxPool(pool), vec![floats(dtype, &image, 4.0, 1)], sms).check(0.0);
    });
}

#[test]
fn first_of_equal_maxima_and_nan_before_numbers() {
    let pool = PoolArgs { kernel: 3, stride: 2, pad: 1 };
    for c in [8, 3] {
        let shape = Shape::new(&[1, 6, 6, c]);
        // Three values, so that windows are full of ties; here and there a NaN, or nothing but minus infinity.
        let values: Vec<f32> = (0..shape.elements())
            .map(|i| match i * 7919 % 23 {
                0 => f32::NAN,
                1 if i % c == 1 => 0.0,
                _ if i % c == 1 => f32::NEG_INFINITY,
                r => (r % 3) as f32,
            })
            .collect();
        let x = HostTensor::from_f32(Dtype::F32, shape, &values).expect("as many values as the shape has");
        case(format!("max with ties {c}"), Op::MaxPool(pool), vec![x], 1).check(0.0);
    }
}

#[test]
fn gradient_of_the_maximum() {
    for_sizes(|name, dtype, [n, h, w, c], output, pool, sms| {
        // Any tap, also ones outside the image: those windows give their gradient to nobody.
        let taps = pool.kernel * pool.kernel;
        let argmax = bytes(&output, |i| (i * 31 % taps) as u8);
        let op = Op::MaxPoolGrad { pool, hw: [h, w] };
        let dy = floats(dtype, &[n, output[1], output[2], c], 1.0, 2);
        case(format!("max gradient {name}"), op, vec![dy, argmax], sms).check(tolerance(dtype));
    });
}

#[test]
fn average_and_gradient() {
    for_sizes(|name, dtype, image, output, pool, sms| {
        let x = floats(dtype, &image, 4.0, 1);
        case(format!("average {name}"), Op::AvgPool(pool), vec![x], sms).check(tolerance(dtype));
        let op = Op::AvgPoolGrad { pool, hw: [image[1], image[2]] };
        case(format!("average gradient {name}"), op, vec![floats(dtype, &output, 1.0, 2)], sms).check(tolerance(dtype));
    });
}

// 1 and 49 pixels: rows of threads without and with several pixels. 1600: unrolled. 10 channels: the general kernels. 264: two columns
// of blocks, the second with idle threads.
const GLOBAL: [[usize; 4]; 5] = [[3, 1, 1, 64], [2, 7, 7, 264], [2, 40, 40, 8], [3, 7, 5, 10], [5, 8, 8, 16]];

#[test]
fn global_average_and_gradient() {
    for dtype in FLOATS {
        for image in GLOBAL {
            let [n, h, w, c] = image;
            let x = floats(dtype, &image, 4.0, 1);
            case(format!("global {dtype} {image:?}"), Op::GlobalAvgPool, vec![x], 1).check(tolerance(dtype));
            let op = Op::GlobalAvgPoolGrad { hw: [h, w] };
            let dy = floats(dtype, &[n, c], 1.0, 2);
            let gradient = case(format!("global gradient {dtype} {image:?}"), op, vec![dy], 1);
            gradient.check(tolerance(dtype));
            // Pooled features in f32 within a bf16 step.
            Case { precision: graph::Precision::Bf16, ..gradient }.check(tolerance(Dtype::Bf16));
        }
    }
}
