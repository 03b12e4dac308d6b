//! Ranges of settings. A message says which setting, what was expected, what was found, and what to write instead.

/// A probability, 0 and 1 included.
pub(crate) fn probability(key: &str, p: f64) -> Result<(), String> {
    if (0.0..=1.0).contains(&p) {
        return Ok(());
    }
    Err(format!("method.{key} is a probability, expected 0 to 1, got {p}; 0.5 is the default"))
}

/// A share below 1.
pub(crate) fn below_one(key: &str, share: f64) -> Result<(), String> {
    if (0.0..1.0).contains(&share) {
        return Ok(());
    }
    Err(format!("method.{key} is expected to be at least 0 and less than 1, got {share}; 0 turns it off"))
}

/// A weight of a loss term.
pub(crate) fn weight(key: &str, weight: f64) -> Result<(), String> {
    if weight >= 0.0 && weight.is_finite() {
        return Ok(());
    }
    Err(format!(
        "method.{key} is the weight of a loss term, expected a finite number of at least 0, got {weight}; 0 turns the term off"
    ))
}

/// A softmax temperature.
pub(crate) fn temperature(t: f64) -> Result<(), String> {
    if t > 0.0 && t.is_finite() {
        return Ok(());
    }
    Err(format!(
        "method.temperature divides logits, expected a finite number above 0, got {t}; the usual values are 1 and 4"
    ))
}

/// A length in epochs.
pub(crate) fn epochs(key: &str, epochs: f64) -> Result<(), String> {
    if epochs >= 0.0 && epochs.is_finite() {
        return Ok(());
    }
    Err(format!(
        "method.{key} is a number of epochs, expected a finite number of at least 0, got {epochs}; 0 turns it off"
    ))
}

/// A number that divides or scales.
pub(crate) fn positive(key: &str, x: f64) -> Result<(), String> {
    if x > 0.0 && x.is_finite() {
        return Ok(());
    }
    Err(format!("method.{key}: expected a finite number above 0, got {x}"))
}
