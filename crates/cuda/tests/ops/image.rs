use crate::harness::{Case, FLOATS, bytes, floats, ints, tolerance};
use graph::{ImageArgs, Op, Precision};
use tensor::{Dtype, HostTensor};

/// Pixels of every value.
fn pixels(shape: &[usize]) -> HostTensor {
    bytes(shape, |i| (i * 89 + i / 7 * 31) as u8)
}

fn image_args(size: [usize; 2], pad: usize, crop: bool, flip: bool) -> ImageArgs {
    ImageArgs { size, pad, mean: [0.4914, 0.4822, 0.4465], std: [0.2023, 0.1994, 0.2010], crop, flip }
}

/// The op in both precisions, aligned and not: f32 has the CPU's bits.
#[track_caller]
fn check_input(name: &str, op: &Op, inputs: &[HostTensor]) {
    for (precision, tolerance) in [(Precision::F32, 0.0), (Precision::Bf16, 4e-3)] {
        for shift in [0, 4] {
            let case = Case::new(&format!("{name} {precision:?} shift {shift}"), op.clone(), inputs.to_vec());
            let case = Case { precision, shift, ..case };
            case.check(tolerance);
            if inputs[0].shape()[3] == 3 {
                Case { name: format!("{} in pixels of 4", case.name), wide: [0, 1], ..case }.check(tolerance);
            }
        }
    }
}

/// The case, and again in pixels of four channels where its images have three.
#[track_caller]
fn check_wide(case: Case, tolerance: f64) {
    case.check(tolerance);
    if case.inputs[0].shape().dims().get(3) == Some(&3) {
        Case { name: format!("{} in pixels of 4", case.name), wide: [1, 1], ..case }.check(tolerance);
    }
}

#[test]
fn input_crops_and_flips() {
    // [h, w], output, pad. [8,8]: CIFAR's way, crops reach into the padding; rows of 24 elements are whole units. [9,10] → [8,8]:
    // central crop with halves to even. [5,6] → [7,9]: larger than the image, odd rows: one element a thread, and room below zero.
    // [48,40]: several blocks, each of which loops.
    let sizes =
        [([8, 8], [8, 8], 4), ([9, 10], [8, 8], 0), ([5, 6], [7, 9], 1), ([5, 6], [8, 8], 0), ([48, 40], [48, 40], 4)];
    for ([h, w], size, pad) in sizes {
        for c in [1, 3] {
            let n = if h == 48 { 2 } else { 5 };
            let room = |size: usize, crop: usize| (size + 2 * pad).saturating_sub(crop) as i32 + 1;
            let crop = ints(&[n, 2], |i| (i as i32 * 3 + 1) % room([h, w][i % 2], size[i % 2]));
            let flip = ints(&[n], |i| i as i32 % 2);
            for (cropped, flipped) in [(false, false), (true, false), (false, true), (true, true)] {
                let mut inputs = vec![pixels(&[n, h, w, c])];
                inputs.extend(cropped.then(|| crop.clone()));
                inputs.extend(flipped.then(|| flip.clone()));
                let op = Op::ImageInput(image_args(size, pad, cropped, flipped));
                check_input(&format!("input {h}x{w}x{c} to {size:?} {cropped} {flipped}"), &op, &inputs);
            }
        }
    }
}

/// A mask of half the cells of each pair.
fn mask(pairs: usize, [h, w]: [usize; 2], cell: usize) -> HostTensor {
    let cells = h.div_ceil(cell) * w.div_ceil(cell);
    bytes(&[pairs, cells], |i| u8::from(i * 5 % 7 < 3))
}

// Output and cell. 8 of 16: cells are whole units. 4 of 12: whole units of f32 and c = 3 alone. 3 of 7: the last cells are cut, one element
// a thread. 9 of 8: one cell is the whole image.
const CELLS: [([usize; 2], usize); 4] = [([16, 16], 8), ([12, 12], 4), ([7, 7], 3), ([8, 8], 9)];

#[test]
fn input_and_patch_swap_in_one_pass() {
    for (size, cell) in CELLS {
        for c in [1, 3] {
            let inputs = vec![
                pixels(&[6, size[0], size[1], c]),
                ints(&[6, 2], |i| i as i32 % 5),
                ints(&[6], |i| i as i32 % 3 % 2),
                mask(3, size, cell),
            ];
            let op = Op::ImageSwap { image: image_args(size, 2, true, true), cell };
            check_input(&format!("swap {size:?}x{c} cells of {cell}"), &op, &inputs);
            let op = Op::ImageSwap { image: image_args(size, 0, false, false), cell };
            check_input(
                &format!("swap {size:?}x{c} cells of {cell}, no crop"),
                &op,
                &[inputs[0].clone(), inputs[3].clone()],
            );
        }
    }
}

#[test]
fn patch_swap() {
    for dtype in FLOATS {
        for (size, cell) in CELLS {
            // 1 and 3: images, units of 16, 4 and 2 bytes. 8: features.
            for c in [1, 3, 8] {
                for shift in [0, 4] {
                    let x = floats(dtype, &[4, size[0], size[1], c], 2.0, 5);
                    let name = format!("patches of {size:?}x{c}, cells of {cell}, {dtype} shift {shift}");
                    let case = Case::new(&name, Op::PatchSwap { cell }, vec![x, mask(2, size, cell)]);
                    check_wide(Case { shift, ..case }, 0.0);
                }
            }
        }
    }
}

#[test]
fn boxes_pasted_and_erased() {
    // Inside; whole; over every edge; empty; reversed; far outside.
    let cuts: [[i32; 4]; 6] =
        [[1, 2, 4, 5], [0, 0, 6, 8], [-3, -2, 100, 3], [2, 2, 2, 6], [4, 5, 1, 2], [i32::MIN, 3, i32::MAX, i32::MAX]];
    for dtype in FLOATS {
        // [6,8,3] and [6,8,1]: whole units, boxes that begin within one. [5,7,3]: one element a thread. [6,8,5]: channels without a value.
        for shape in [[6, 6, 8, 3], [6, 6, 8, 1], [6, 5, 7, 3], [6, 6, 8, 5]] {
            for shift in [0, 4] {
                let x = floats(dtype, &shape, 2.0, 6);
                for (k, cut) in cuts.iter().enumerate() {
                    let permutation = ints(&[6], |i| (i as i32 * 5 + 2) % 6);
                    let inputs = vec![x.clone(), permutation, ints(&[4], |i| cut[i])];
                    let case =
                        Case::new(&format!("paste {cut:?} of {shape:?} {dtype} shift {shift}"), Op::PasteBox, inputs);
                    check_wide(Case { shift, ..case }, 0.0);
                    if k == 0 {
                        let boxes = ints(&[6, 4], |i| cuts[i / 4][i % 4]);
                        let op = Op::EraseBoxes { fill: [0.25, -1.5, 3.0] };
                        let case =
                            Case::new(&format!("erase {shape:?} {dtype} shift {shift}"), op, vec![x.clone(), boxes]);
                        check_wide(Case { shift, ..case }, 0.0);
                    }
                }
            }
        }
    }
}

#[test]
fn mixed_rows_and_gradient() {
    for dtype in FLOATS {
        // [6,33,40]: several blocks in a loop, whole units. [5,7]: one element a thread. [3,1]: a column. [2,8,4,80]: two tiles and a part. [4,5,7,3]: images.
        for shape in [&[6, 33, 40][..], &[5, 7], &[3, 1], &[2, 8, 4, 80], &[4, 5, 7, 3]] {
            for (lambda, shift) in [(0.3, 0), (1.0, 4)] {
                let lambda = HostTensor::from_f32(Dtype::F32, tensor::Shape::new(&[]), &[lambda]).unwrap();
                let n = shape[0] as i32;
                let x = floats(dtype, shape, 2.0, 7);
                let name = format!("{shape:?} {dtype} shift {shift}");
                let inputs = vec![x.clone(), ints(&[shape[0]], |i| (i as i32 + 2) % n), lambda.clone()];
                let case = Case::new(&format!("mix {name}"), Op::MixRows, inputs.clone());
                check_wide(Case { shift, ..case }, tolerance(dtype));
                let case = Case::new(&format!("mix grad {name}"), Op::MixRowsGrad, inputs);
                Case { shift, ..case }.check(tolerance(dtype));
                // Not a permutation: a row that several took, and rows that none took.
                let inputs = vec![x, ints(&[shape[0]], |i| (i % 2) as i32), lambda];
                let case = Case::new(&format!("mix grad of few {name}"), Op::MixRowsGrad, inputs);
                Case { shift, ..case }.check(tolerance(dtype));
            }
        }
    }
}
