//! Two scenarios in turns, and what the one is worth by the other: pair by pair, because a machine is not the same from one
//! minute to the next.

use std::fmt::{self, Write as _};

use serde::Serialize;

use super::Report;

/// What `--compare` showed: A by B, in pairs.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    a: Vec<Report>,
    b: Vec<Report>,
    /// Of the rates.
    ratio_min: f64,
    ratio_median: f64,
    ratio_max: f64,
    /// Of the messages for a second of CPU time.
    cpu_ratio_min: f64,
    cpu_ratio_median: f64,
    cpu_ratio_max: f64,
}

/// Least, middle and greatest.
struct Spread(f64, f64, f64);

impl Comparison {
    /// Runs both that often, and turns round who is first.
    pub(super) fn run(
        pairs: usize,
        mut a: impl FnMut() -> anyhow::Result<Report>,
        mut b: impl FnMut() -> anyhow::Result<Report>,
    ) -> anyhow::Result<Self> {
        let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
        for pair in 0..pairs {
            if pair % 2 == 0 {
                of_a.push(a()?);
                of_b.push(b()?);
            } else {
                of_b.push(b()?);
                of_a.push(a()?);
            }
        }
        let both = || of_a.iter().zip(&of_b);
        let rates = Spread::of(both().map(|(a, b)| a.messages_per_second / b.messages_per_second));
        let cpu = Spread::of(both().map(|(a, b)| b.cpu_us_per_message / a.cpu_us_per_message));
        Ok(Self {
            ratio_min: rates.0,
            ratio_median: rates.1,
            ratio_max: rates.2,
            cpu_ratio_min: cpu.0,
            cpu_ratio_median: cpu.1,
            cpu_ratio_max: cpu.2,
            a: of_a,
            b: of_b,
        })
    }
}

impl Spread {
    fn of(ratios: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<_> = ratios.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |place: usize| sorted.get(place).copied().unwrap_or(f64::NAN);
        Self(at(0), at(sorted.len() / 2), at(sorted.len().saturating_sub(1)))
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        for report in self.a.iter().chain(&self.b) {
            // Writing to a String cannot fail.
            writeln!(text, "{}", report.line()).ok();
        }
        let name = |reports: &[Report]| reports.first().map_or("", |report| report.scenario);
        write!(
            f,
            "{text}{} / {} in {} pairs: {:.3} of its messages a second (from {:.3} to {:.3}), {:.3} of its messages for a second of CPU (from {:.3} to {:.3})",
            name(&self.a),
            name(&self.b),
            self.a.len(),
            self.ratio_median,
            self.ratio_min,
            self.ratio_max,
            self.cpu_ratio_median,
            self.cpu_ratio_min,
            self.cpu_ratio_max
        )
    }
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn a_spread_is_of_sorted_ratios() {
        let Spread(min, median, max) = Spread::of([0.9, 1.2, 1.0].into_iter());
        assert_eq!((min, median, max), (0.9, 1.0, 1.2));
    }
}
