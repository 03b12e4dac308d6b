//! Weights and images of the goldens, by the formula of tests/goldens/README.md. Other crates' tests include this file.

/// FNV-1a, 32 bits, of the bytes.
pub(crate) fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811C_9DC5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// u[i] = sin(0.37 (i mod 10007) + fnv1a(name) mod 1000).
pub(crate) fn wave(name: &str, elements: usize) -> Vec<f64> {
    let phase = f64::from(fnv1a(name) % 1000);
    (0..elements).map(|i| (0.37 * (i % 10_007) as f64 + phase).sin()).collect()
}

/// The tensor of this published name and shape (filters KCRS), row-major; `prefix` is `teacher.` for a teacher.
pub(crate) fn weight(prefix: &str, name: &str, shape: &[usize]) -> Vec<f64> {
    let u = wave(&format!("{prefix}{name}"), shape.iter().product());
    let field = name.rsplit('.').next().unwrap_or(name);
    let scale = |factor: f64| move |u: f64| factor * u;
    let value: Box<dyn Fn(f64) -> f64> = match field {
        "num_batches_tracked" => Box::new(|_| 0.0),
        "running_var" => Box::new(|u| 1.0 + 0.5 * u * u),
        "running_mean" | "bias" => Box::new(scale(0.1)),
        _ if shape.len() == 1 => Box::new(|u| 1.0 + 0.1 * u),
        _ => Box::new(scale((2.0 / shape[1..].iter().product::<usize>() as f64).sqrt())),
    };
    u.into_iter().map(value).collect()
}
