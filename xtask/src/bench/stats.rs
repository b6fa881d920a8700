//! Medians, spreads, and the lines of the table.

use std::fmt;

/// The head of the table.
pub(super) const HEADER: &str = "\
| what | perflock | compared with | difference | target | |
|---|---|---|---|---|---|";

/// Some measured values.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    /// One more.
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The value of each pair.
    pub(super) fn pairs(&self, other: &Self, value: impl Fn(f64, f64) -> f64) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(&left, &right)| value(left, right)).collect())
    }

    /// What this share of the values is not above; 0 if there are none.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
        let position = share * last as f64;
        let (below, above) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
        below + (above - below) * position.fract()
    }

    /// The value in the middle.
    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Median and spread, with `digits` decimals: `2.01 (1.80–3.10)`.
    pub(super) fn show(&self, digits: usize) -> String {
        let [median, low, high] = [0.5, 0.05, 0.95].map(|share| self.quantile(share));
        format!("{median:.digits$} ({low:.digits$}–{high:.digits$})")
    }

    /// Median and spread of times.
    pub(super) fn show_msec(&self) -> String {
        format!("{} ms", self.show(if self.median() < 100.0 { 2 } else { 0 }))
    }
}

/// A line of the table.
#[derive(Debug, Clone)]
pub(super) struct Line {
    /// What was measured.
    pub(super) what: String,
    /// perflock's own value.
    pub(super) own: String,
    /// What it is compared with, and its value.
    pub(super) other: String,
    /// The difference or ratio.
    pub(super) difference: String,
    /// The target in words, and whether it was met.
    pub(super) target: Option<(&'static str, bool)>,
}

impl Line {
    /// There is a target, and it was missed.
    pub(super) fn missed(&self) -> bool {
        self.target.is_some_and(|(_, met)| !met)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, own, other, difference, target } = self;
        let (target, verdict) = match target {
            Some((target, true)) => (*target, "PASS"),
            Some((target, false)) => (*target, "MISS"),
            None => ("", ""),
        };
        write!(f, "| {what} | {own} | {other} | {difference} | {target} | {verdict} |")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_the_values() {
        let sample = Sample(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!([0.0, 0.5, 1.0].map(|share| sample.quantile(share)), [1.0, 2.5, 4.0]);
        assert_eq!(Sample::default().median().to_bits(), 0);
    }

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        let ratios = Sample(vec![2.0, 9.0, 8.0]).pairs(&Sample(vec![1.0, 3.0, 8.0]), |own, other| own / other);
        assert_eq!(ratios.show(1), "2.0 (1.1–2.9)");
    }
}
