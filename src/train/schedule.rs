//! The learning rate: linear warm-up, then a half cosine to zero.

/// Learning rate of step `s`, counted from 0, as `get_cosine_schedule_with_warmup` gives it:
/// `lr s / w` in the warm-up, then `lr (1 + cos(pi (s - w) / (T - w))) / 2`.
pub fn cosine(lr: f64, step: usize, warmup: usize, total: usize) -> f64 {
    if step < warmup {
        return lr * step as f64 / warmup.max(1) as f64;
    }
    let progress = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
    lr * (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
}
