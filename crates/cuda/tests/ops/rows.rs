use crate::harness::{Case, FLOATS, bytes, floats, ints, tolerance};
use graph::{Axis, Op};
use plan::Scalars;
use tensor::{Dtype, HostTensor};

/// Values of a dtype: what moves bytes must move these unchanged.
fn values(dtype: Dtype, shape: &[usize], seed: usize) -> HostTensor {
    match dtype {
        Dtype::I32 => ints(shape, |i| (i * 7919 + seed) as i32 - 300),
        Dtype::U8 => bytes(shape, |i| (i * 37 + seed) as u8),
        dtype => floats(dtype, shape, 2.0, seed as u64),
    }
}

const DTYPES: [Dtype; 4] = [Dtype::F32, Dtype::Bf16, Dtype::I32, Dtype::U8];

#[track_caller]
fn check(name: &str, op: Op, inputs: &[HostTensor]) {
    for shift in [0, 4] {
        Case { shift, ..Case::new(&format!("{name} shift {shift}"), op.clone(), inputs.to_vec()) }.check(0.0);
    }
}

#[test]
fn concat() {
    for dtype in DTYPES {
        // Channels. [16,32]: units of 16 bytes. [6,2,4]: smaller units. [1,1,1]: a unit is an element. Nine inputs: three kernels.
        let widths: [&[usize]; 5] = [&[16, 32], &[6, 2, 4], &[1, 1, 1], &[5], &[3, 16, 1, 2, 8, 4, 4, 4, 7]];
        for widths in widths {
            let inputs: Vec<_> = widths.iter().enumerate().map(|(k, &c)| values(dtype, &[3, 2, 5, c], k + 1)).collect();
            check(&format!("concat channels {widths:?} {dtype}"), Op::Concat { axis: Axis::Channel }, &inputs);
            let inputs: Vec<_> = widths.iter().enumerate().map(|(k, &n)| values(dtype, &[n, 3], k + 1)).collect();
            check(&format!("concat batch {widths:?} {dtype}"), Op::Concat { axis: Axis::Batch }, &inputs);
        }
    }
    // Several blocks, each of which loops.
    let inputs = [values(Dtype::Bf16, &[700, 58], 1), values(Dtype::Bf16, &[700, 58], 2)];
    check("concat 116 channels", Op::Concat { axis: Axis::Channel }, &inputs);
}

#[test]
fn slice_and_unslice() {
    for dtype in DTYPES {
        // Width, start, length: whole, units of 16 bytes in the middle, an odd start, the end, one.
        for (total, start, len) in [(8, 0, 8), (48, 16, 16), (9, 3, 5), (12, 8, 4), (7, 6, 1), (6, 0, 2)] {
            let name = format!("{start}+{len} of {total} {dtype}");
            for (axis, wide, narrow) in
                [(Axis::Channel, [5, 3, total], [5, 3, len]), (Axis::Batch, [total, 3, 5], [len, 3, 5])]
            {
                let x = values(dtype, &wide, 1);
                check(&format!("slice {axis:?} {name}"), Op::Slice { axis, start, len }, &[x]);
                let dy = values(dtype, &narrow, 2);
                check(&format!("unslice {axis:?} {name}"), Op::Unslice { axis, start, total }, &[dy]);
            }
        }
    }
}

#[test]
fn gather() {
    for dtype in DTYPES {
        // 32: units of 16 bytes. 5: elements. 1200: several blocks in a loop.
        for width in [32, 5, 1200] {
            let x = values(dtype, &[7, width], 1);
            // Rows twice, in any order, none; more rows than the source.
            let index = ints(&[11], |i| [3, -1, 0, 6, 6, 2, -5, 1, 3, i32::MIN, 5][i]);
            check(&format!("gather rows of {width} {dtype}"), Op::GatherRows, &[x, index]);
        }
    }
}

#[test]
fn scatter_add() {
    for dtype in FLOATS {
        // 24: whole units. 7: one element a thread. 4200: a tile of each dtype and a part, or one element a thread.
        for (width, n, rows) in [(24, 40, 9), (7, 33, 5), (4200, 3, 2), (4201, 3, 2), (8, 4500, 3), (8, 1, 3)] {
            let dy = floats(dtype, &[n, width], 1.0, 3);
            // Negative entries count nothing, row rows - 2 has none. 4500 entries: three rounds.
            let index = ints(&[n], |i| if i % 5 == 3 { -1 } else { (i * i % rows) as i32 });
            for shift in [0, 4] {
                let name = format!("scatter {n} rows of {width} to {rows} {dtype} shift {shift}");
                let case = Case::new(&name, Op::ScatterAddRows { rows }, vec![dy.clone(), index.clone()]);
                Case { shift, ..case }.check(tolerance(dtype));
            }
        }
    }
}

#[test]
fn channel_shuffle() {
    for dtype in FLOATS {
        // Channels, groups: a row is whole packs; ShuffleNetV2's 116, where a pack crosses rows; three and eight groups; groups of one; one
        // group; rows shorter than a pack.
        for (c, groups) in [(16, 2), (116, 2), (24, 3), (40, 8), (6, 6), (5, 1), (2, 2)] {
            // 3 rows of 5: a tail. 200 rows: several blocks in a loop.
            for rows in [[3, 5], [20, 10]] {
                let x = floats(dtype, &[rows[0], rows[1], c], 2.0, 4);
                check(&format!("shuffle {c} in {groups} {rows:?} {dtype}"), Op::ChannelShuffle { groups }, &[x]);
            }
        }
    }
}

#[test]
fn rolling_rows() {
    for dtype in [Dtype::F32, Dtype::I32] {
        for width in [8, 3] {
            let state = values(dtype, &[10, width], 1);
            // At the beginning; in the middle, after a short micro-batch; over the end; past it.
            for micro in 0..4 {
                let micro_units = vec![[8, 4], [8, 3], [8, 4], [8, 4]];
                for shift in [0, 4] {
                    let name = format!("rolling {width} {dtype} micro-batch {micro} shift {shift}");
                    let case = Case::new(&name, Op::RollingRows { rows: 4 }, vec![state.clone()]);
                    let scalars = Scalars { micro_units: micro_units.clone(), micro, ..case.scalars.clone() };
                    Case { scalars, shift, ..case }.check(0.0);
                }
            }
        }
    }
}

#[test]
fn whole_values() {
    for dtype in DTYPES {
        let x = values(dtype, &[3, 7], 1);
        for op in [Op::Detach, Op::Reduce, Op::Carry] {
            check(&format!("{op} {dtype}"), op.clone(), std::slice::from_ref(&x));
        }
        check(&format!("zero {dtype}"), Op::Zero, &[x]);
    }
}
