//! How much may be used elsewhere: the configuration's `quiet-limit` and `quiet-counts`.

use std::fmt;
use std::time::Duration;

/// So little CPU time is no disturbance, however short the job: the clock by which processes are counted ticks every 10 ms, and
/// a machine that is idle does something now and then.
const LEAST_USEC: u64 = 100_000;

/// How much CPU time may be used elsewhere: `quiet-limit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Nobody looks.
    None,
    /// A part of one core, in hundredths of a percent.
    OfACore(u32),
}

impl Default for Limit {
    fn default() -> Self {
        Self::OfACore(500)
    }
}

impl Limit {
    /// Reads `5%`, `2.5%` or `none`.
    ///
    /// # Errors
    /// A sentence fragment that says what a limit looks like.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::None);
        }
        let percent = |text: &str| {
            let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
            let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            if !digits(whole) || !digits(decimals) || decimals.len() > 2 {
                return None;
            }
            format!("{whole}{decimals:0<2}").parse().ok()
        };
        text.strip_suffix('%')
            .and_then(percent)
            .map(Self::OfACore)
            .ok_or_else(|| r#"what may be used elsewhere is a part of one core ("5%", "0.5%"), or "none""#.to_owned())
    }

    /// The CPU time that may be used elsewhere in this time; `None` where nobody looks.
    pub fn usec(self, elapsed: Duration) -> Option<u64> {
        let Self::OfACore(hundredths) = self else { return None };
        let part = elapsed.as_micros() * u128::from(hundredths) / 10_000;
        Some(u64::try_from(part).unwrap_or(u64::MAX).max(LEAST_USEC))
    }
}

/// What else makes a machine not quiet: `quiet-counts`. The order is that in which it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Apart {
    /// CPU time of the kernel's own threads.
    KernelThreads,
    /// CPU time that the host of this virtual machine took.
    Steal,
    /// CPU time of interrupts.
    Interrupts,
    /// How often a processor was slowed down since it was too hot.
    Throttling,
    /// Memory that was swapped in or out.
    Swap,
}

/// Each by its name in the configuration.
const NAMES: [(&str, Apart); 5] = [
    ("kernel-threads", Apart::KernelThreads),
    ("steal", Apart::Steal),
    ("interrupts", Apart::Interrupts),
    ("throttling", Apart::Throttling),
    ("swap", Apart::Swap),
];

impl fmt::Display for Apart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(_, apart)| apart == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

/// Those of [`Apart`] that count, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(Vec<Apart>);

impl Counts {
    /// Reads `none`, or some names with commas between them.
    ///
    /// # Errors
    /// A sentence fragment with the words that are allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::default());
        }
        let known = |word: &str| NAMES.iter().find(|(name, _)| *name == word.trim()).map(|(_, apart)| *apart);
        let mut counts = text.split(',').map(known).collect::<Option<Vec<Apart>>>().ok_or_else(|| {
            let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
            format!(r#"what counts is "none", or some of {}"#, names.join(", "))
        })?;
        counts.sort_unstable();
        counts.dedup();
        Ok(Self(counts))
    }

    /// Whether nothing of it counts.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that count.
    pub fn iter(&self) -> impl Iterator<Item = Apart> {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_limit_is_a_part_of_a_core_or_none() {
        for (text, limit) in [
            ("5%", Limit::OfACore(500)),
            ("0%", Limit::OfACore(0)),
            ("0.5%", Limit::OfACore(50)),
            ("2.05%", Limit::OfACore(205)),
            ("10000%", Limit::OfACore(1_000_000)),
            ("none", Limit::None),
        ] {
            assert_eq!(Limit::parse(text), Ok(limit), "{text}");
        }
        for odd in ["", "5", "%", ".5%", "5.%", "-1%", "+1%", "1.234%", "99999999999%", "5 %", "None"] {
            assert!(Limit::parse(odd).is_err(), "{odd}");
        }
        let second = Duration::from_secs(1);
        assert_eq!(Limit::default().usec(second), Some(LEAST_USEC));
        assert_eq!(Limit::default().usec(second * 10), Some(500_000));
        assert_eq!(Limit::OfACore(0).usec(second * 10), Some(LEAST_USEC));
        assert_eq!(Limit::None.usec(second), None);
    }

    #[test]
    fn what_counts_is_a_list() {
        assert_eq!(Counts::parse("none"), Ok(Counts::default()));
        let some = Counts::parse("swap, steal,swap").unwrap();
        assert_eq!(some.iter().collect::<Vec<_>>(), [Apart::Steal, Apart::Swap]);
        for odd in ["", "steal,", "none,steal", "heat"] {
            assert!(Counts::parse(odd).unwrap_err().ends_with("kernel-threads, steal, interrupts, throttling, swap"));
        }
    }

    proptest! {
        #[test]
        fn any_limit_is_read_or_refused_and_never_below_the_least(text in "\\PC{0,8}|[0-9.]{0,12}%", usec: u64) {
            if let Ok(limit) = Limit::parse(&text) {
                let most = limit.usec(Duration::from_micros(usec));
                prop_assert!(most.is_none_or(|most| most >= LEAST_USEC));
            }
            let _ = Counts::parse(&text);
        }
    }
}
