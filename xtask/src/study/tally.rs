//! What reports say, counted. Pure.

use std::fmt;

use perflock::text;
use serde_json::Value;

use crate::bench::stats::Sample;

/// The head of the table.
pub(super) const HEADER: &str = "\
| scenario | runs | quiet | disturbed | unknown | elsewhere, median (ms) | worst (ms) | expected | culprit named |
|---|---|---|---|---|---|---|---|---|";

/// A verdict in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Quiet,
    Disturbed,
    /// Not known, or not told: a report of a perflock that gives no verdict.
    Unknown,
}

/// What a report says of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) word: Word,
    pub(super) elsewhere_usec: Option<u64>,
    /// Kind, name and programs of each culprit.
    by: Vec<(String, String, Vec<String>)>,
}

impl Seen {
    /// Reads a report; what it does not have is not known.
    pub(super) fn of(report: &Value) -> Self {
        let verdict = &report["verdict"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let by = list(&verdict["by"]).into_iter().map(|culprit| {
            let programs = list(&culprit["programs"]).iter().map(|program| text(&program["name"])).collect();
            (text(&culprit["kind"]), text(&culprit["name"]), programs)
        });
        Self {
            word: match verdict["word"].as_str() {
                Some("quiet") => Word::Quiet,
                Some("disturbed") => Word::Disturbed,
                _ => Word::Unknown,
            },
            elsewhere_usec: verdict["elsewhere_usec"].as_u64(),
            by: by.collect(),
        }
    }

    /// Whether it blames this one, and says by which program.
    fn names(&self, expected: &Expected) -> bool {
        let same = |(kind, name, programs): &(String, String, Vec<String>)| {
            kind == expected.kind
                && *name == expected.name
                && programs.iter().any(|program| program == expected.program)
        };
        self.word == Word::Disturbed && self.by.iter().any(same)
    }
}

/// Who has to be named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) program: &'static str,
}

/// The runs of one scenario.
#[derive(Clone, Debug)]
pub(super) struct Row {
    scenario: &'static str,
    expected: Word,
    /// What was said, run by run.
    pub(super) seen: Vec<Seen>,
    /// Who has to be named, run by run; empty where nobody has.
    pub(super) named: Vec<Expected>,
}

impl Row {
    /// Nobody disturbs.
    pub(super) fn quiet(scenario: &'static str) -> Self {
        Self { scenario, expected: Word::Quiet, seen: Vec::new(), named: Vec::new() }
    }

    /// Somebody does.
    pub(super) fn disturbed(scenario: &'static str) -> Self {
        Self { expected: Word::Disturbed, ..Self::quiet(scenario) }
    }

    fn count(&self, word: Word) -> usize {
        self.seen.iter().filter(|seen| seen.word == word).count()
    }

    /// Whom quiet jobs were said to be disturbed by, a line for each.
    pub(super) fn alarms(&self) -> Vec<String> {
        let alarms = self.seen.iter().filter(|seen| self.expected == Word::Quiet && seen.word == Word::Disturbed);
        alarms
            .map(|seen| {
                let by = seen.by.iter().map(|(kind, name, programs)| match programs.is_empty() {
                    true => format!("{kind} {name}"),
                    false => format!("{kind} {name} ({})", programs.join(", ")),
                });
                let by = text::escape(&by.collect::<Vec<_>>().join(", "));
                format!("{} was said to be disturbed by {}", self.scenario, if by.is_empty() { "nobody" } else { &by })
            })
            .collect()
    }

    fn found(&self) -> usize {
        self.seen.iter().zip(&self.named).filter(|(seen, expected)| seen.names(expected)).count()
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [quiet, disturbed, unknown] = [Word::Quiet, Word::Disturbed, Word::Unknown].map(|word| self.count(word));
        let mut elsewhere = Sample::default();
        self.seen.iter().filter_map(|seen| seen.elsewhere_usec).for_each(|usec| elsewhere.push(usec as f64 / 1000.0));
        // Of none there is no median.
        let msec = |share: f64| match self.seen.iter().any(|seen| seen.elsewhere_usec.is_some()) {
            true => format!("{:.1}", elsewhere.quantile(share)),
            false => "-".to_owned(),
        };
        let (expected, named) = match self.expected {
            Word::Disturbed => ("disturbed", format!("{} of {}", self.found(), self.named.len())),
            _ => ("quiet", String::new()),
        };
        write!(
            f,
            "| {} | {} | {quiet} | {disturbed} | {unknown} | {} | {} | {expected} | {named} |",
            self.scenario,
            self.seen.len(),
            msec(0.5),
            msec(1.0)
        )
    }
}

/// What all of it comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Total {
    quiet_runs: usize,
    false_alarms: usize,
    disturbed_runs: usize,
    found: usize,
    unknown: usize,
}

impl Total {
    /// Of these scenarios.
    pub(super) fn of(rows: &[Row]) -> Self {
        let mut total = Self::default();
        for row in rows {
            total.unknown += row.count(Word::Unknown);
            if row.expected == Word::Disturbed {
                total.disturbed_runs += row.seen.len();
                total.found += row.found();
            } else {
                total.quiet_runs += row.seen.len();
                total.false_alarms += row.count(Word::Disturbed);
            }
        }
        total
    }

    /// Every verdict was given, and was right.
    pub(super) fn is_met(self) -> bool {
        self.false_alarms == 0 && self.found == self.disturbed_runs && self.unknown == 0
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { quiet_runs, false_alarms, disturbed_runs, found, unknown } = self;
        write!(
            f,
            "false alarms {false_alarms} of {quiet_runs}, culprits {found} of {disturbed_runs}, unknown {unknown}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn quiet(usec: u64) -> Seen {
        Seen::of(&json!({"verdict": {"word": "quiet", "elsewhere_usec": usec, "by": []}}))
    }

    fn blames(kind: &str, name: &str, program: &str) -> Seen {
        let by = json!([
            {"kind": "user", "name": "root", "programs": []},
            {"kind": kind, "name": name, "programs": [{"name": "sh"}, {"name": program}]}
        ]);
        Seen::of(&json!({"verdict": {"word": "disturbed", "elsewhere_usec": 1_500_000, "by": by}}))
    }

    fn cron() -> Expected {
        Expected { kind: "service", name: "cron.service".to_owned(), program: "burner" }
    }

    #[test]
    fn a_study_that_found_everything_is_met() {
        let mut row = Row::quiet("idle");
        row.seen = vec![quiet(1000), quiet(3000), quiet(4000)];
        assert_eq!(row.to_string(), "| idle | 3 | 3 | 0 | 0 | 3.0 | 4.0 | quiet |  |");
        let mut culprit = Row::disturbed("service");
        culprit.seen = vec![blames("service", "cron.service", "burner")];
        culprit.named = vec![cron()];
        assert_eq!(culprit.to_string(), "| service | 1 | 0 | 1 | 0 | 1500.0 | 1500.0 | disturbed | 1 of 1 |");
        let total = Total::of(&[row, culprit]);
        assert_eq!(total.to_string(), "false alarms 0 of 3, culprits 1 of 1, unknown 0");
        assert!(total.is_met());
    }

    #[test]
    fn a_false_alarm_and_a_culprit_that_was_not_named_are_failures() {
        let mut row = Row::quiet("idle");
        row.seen = vec![quiet(1000), blames("user", "ann", "cc1")];
        assert_eq!(row.alarms(), ["idle was said to be disturbed by user root, user ann (sh, cc1)"]);
        assert!(!Total::of(&[row]).is_met());
        for wrong in [
            quiet(7),
            blames("user", "cron.service", "burner"),
            blames("service", "ssh.service", "burner"),
            blames("service", "cron.service", "other"),
        ] {
            let mut row = Row::disturbed("service");
            (row.seen, row.named) = (vec![wrong.clone()], vec![cron()]);
            let total = Total::of(&[row]);
            assert!(!total.is_met() && total.to_string().contains("culprits 0 of 1"), "{wrong:?}");
        }
    }

    #[test]
    fn a_report_without_a_verdict_is_unknown_and_no_success() {
        for report in [json!({}), json!({"verdict": null}), json!({"verdict": {"word": 7, "by": {}}}), json!([1])] {
            let mut row = Row::quiet("idle");
            row.seen = vec![Seen::of(&report)];
            assert_eq!(row.to_string(), "| idle | 1 | 0 | 0 | 1 | - | - | quiet |  |");
            assert!(!Total::of(&[row]).is_met());
        }
    }
}
