//! The update section: gradient norm, optimizer, averages, running statistics and a method's state.
//!
//! Every write to a state is gated by the finite flag of its phase.

use crate::elementwise::{BLOCK, for_block_pairs, for_blocks, sum};
use crate::io::{Io, Real};
use graph::{BnRunningLayer, LarsArgs, SgdArgs, SlotId};

/// gradients and loss values → Σ g² over the first `grads`, finite flag. A norm² beyond f64 counts as not finite.
pub(crate) fn grad_norm<T: Real>(io: &mut Io<'_>, grads: usize) {
    let square = |[g]: [T; 1]| g.to_f64() * g.to_f64();
    let sums: Vec<f64> = io.inputs.iter().map(|g| sum([g.real::<T>()], square)).collect();
    let finite = sums.iter().all(|s| s.is_finite());
    io.outputs[0].real::<T>()[0] = T::of(sums[..grads].iter().sum());
    io.outputs[1].real::<T>()[0] = if finite { T::ONE } else { T::ZERO };
}

/// norm², finite, gradients; states: parameter, momentum, … See [`SgdArgs`].
pub(crate) fn sgd<T: Real>(io: &mut Io<'_>, args: &SgdArgs) {
    if !io.is_finite::<T>(1) {
        return;
    }
    let norm = io.real::<T>(0)[0].to_f64().sqrt();
    // torch.nn.utils.clip_grad_norm_.
    let clip = T::of(args.clip_norm.map_or(1.0, |limit| (limit / (norm + 1e-6)).min(1.0)));
    let (lr, momentum) = (io.scalars.get(SlotId::LR), T::of(args.momentum));
    for ((param, states), g) in args.params.iter().zip(io.states.chunks_exact_mut(2)).zip(&io.inputs[2..]) {
        let [w, m] = states else { continue };
        let (g, lr, decay) = (g.real::<T>(), T::of(lr * param.lr_factor), T::of(param.weight_decay));
        for_block_pairs((w.real::<T>(), BLOCK), (m.real::<T>(), BLOCK), |i, w, m| {
            for ((w, m), &g) in w.iter_mut().zip(m).zip(&g[i * BLOCK..]) {
                let g = clip * g + decay * *w;
                *m = momentum * *m + g;
                *w = *w - lr * if args.nesterov { g + momentum * *m } else { *m };
            }
        });
    }
}

/// finite, gradients; states: parameter, momentum, … See [`LarsArgs`]. Norms are added in f64.
pub(crate) fn lars<T: Real>(io: &mut Io<'_>, args: &LarsArgs) {
    if !io.is_finite::<T>(0) {
        return;
    }
    let (lr, momentum) = (io.scalars.get(SlotId::LR), T::of(args.momentum));
    let norm = |x: &[T]| sum([x], |[x]| x.to_f64() * x.to_f64()).sqrt();
    let params = args.params.iter().zip(&args.adapts);
    for (((param, &adapts), states), g) in params.zip(io.states.chunks_exact_mut(2)).zip(&io.inputs[1..]) {
        let [w, v] = states else { continue };
        let (w, v, g) = (w.real::<T>(), v.real::<T>(), g.real::<T>());
        let trust = match (norm(w), norm(g)) {
            (w, g) if adapts && w > 0.0 && g > 0.0 => args.trust * w / (g + param.weight_decay * w + args.epsilon),
            _ => 1.0,
        };
        let (rate, decay) = (T::of(lr * param.lr_factor * trust), T::of(param.weight_decay));
        for_block_pairs((w, BLOCK), (v, BLOCK), |i, w, v| {
            for ((w, v), &g) in w.iter_mut().zip(v).zip(&g[i * BLOCK..]) {
                *v = momentum * *v + rate * (g + decay * *w);
                *w = *w - *v;
            }
        });
    }
}

/// finite; states: average, source, … → average ← d · average + (1 − d) · source.
pub(crate) fn ema<T: Real>(io: &mut Io<'_>, decay: SlotId) {
    if !io.is_finite::<T>(0) {
        return;
    }
    let decay = io.scalars.get(decay);
    let (keep, take) = (T::of(decay), T::of(1.0 - decay));
    for states in io.states.chunks_exact_mut(2) {
        let [average, source] = states else { continue };
        let source = &*source.real::<T>();
        for_blocks(average.real::<T>(), BLOCK, |i, average| {
            average.iter_mut().zip(&source[i * BLOCK..]).for_each(|(a, &s)| *a = keep * *a + take * s);
        });
    }
}

/// finite, then for each layer `forwards` pairs of carried mean and unbiased variance [g,c] → running statistics.
/// The first micro-batches that `Scalars::running` counts, in order, in each the forwards, in each the groups; states: mean, variance, …
pub(crate) fn bn_running<T: Real>(io: &mut Io<'_>, momentum: f64, layers: &[BnRunningLayer]) {
    if !io.is_finite::<T>(0) {
        return;
    }
    let (keep, take) = (T::of(1.0 - momentum), T::of(momentum));
    let mut pairs = io.inputs[1..].chunks_exact(2);
    for (layer, states) in layers.iter().zip(io.states.chunks_exact_mut(2)) {
        let micros = io.scalars.running.min(io.scalars.micro_units.len());
        let forwards: Vec<_> = pairs.by_ref().take(layer.forwards).collect();
        for (i, state) in states.iter_mut().enumerate() {
            let running = state.real::<T>();
            let stats = |micro| forwards.iter().map(move |pair| pair[i].slot(micro).real::<T>());
            for stats in (0..micros).flat_map(stats) {
                for stat in stats.chunks_exact(running.len()) {
                    for _ in 0..layer.updates {
                        running.iter_mut().zip(stat).for_each(|(r, &s)| *r = keep * *r + take * s);
                    }
                }
            }
        }
    }
}

/// finite, carried rows → the state: the valid rows of each micro-batch, one after another.
pub(crate) fn assign<T: Real>(io: &mut Io<'_>) {
    if !io.is_finite::<T>(0) {
        return;
    }
    let rows = io.inputs[1];
    let (count, row) = (rows.shape[0], rows.shape.elements() / rows.shape[0].max(1));
    let mut state = io.states[0].real::<T>();
    for micro in 0..io.scalars.micro_units.len() {
        let valid = io.scalars.valid_rows(count, micro) * row;
        let (here, rest) = state.split_at_mut(valid);
        here.copy_from_slice(&rows.slot(micro).real()[..valid]);
        state = rest;
    }
}

/// finite, carried index, carried rows → state[index] = rows; later rows win, a negative index is padding.
pub(crate) fn scatter<T: Real>(io: &mut Io<'_>) {
    if !io.is_finite::<T>(0) {
        return;
    }
    let (index, rows) = (io.inputs[1], io.inputs[2]);
    let (count, row) = (index.shape.elements(), rows.shape.elements() / index.shape.elements().max(1));
    let state = io.states[0].real::<T>();
    for micro in 0..io.scalars.micro_units.len() {
        let (index, rows) = (index.slot(micro).i32(), rows.slot(micro).real::<T>());
        for (r, &i) in index.iter().enumerate().take(io.scalars.valid_rows(count, micro)) {
            if let Ok(i) = usize::try_from(i) {
                state[i * row..][..row].copy_from_slice(&rows[r * row..][..row]);
            }
        }
    }
}
