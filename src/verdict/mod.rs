//! The verdict on a job that had the machine: was it quiet, or did somebody else use it meanwhile?
//!
//! # Theory of operation
//!
//! What is *seen* elsewhere is summed up, never the machine's CPU time less the job's: the counters of the whole machine go by
//! the ticks of its clock and are off by seconds on one that is idle. Nothing is looked at while the job runs. There are two
//! [`look`]s, just after the command was started and when its group is empty, with the machine still held:
//!
//! - In cgroup v2, `usage_usec` of `cpu.stat` is exact and has all that is below a group in it, what was removed included. The
//!   [`tree`]'s root has no such counter of its own, so its children are read; of that which the job is in, the job's own time
//!   is taken off. In a cgroup namespace the root is an ordinary group.
//! - Processes directly in the root, where all are on a machine without systemd, have no counters: there, and where the job has
//!   no group in v2, the processes themselves are looked at ([`crate::ticks`]).
//!
//! [`judge`] makes a verdict of the sum, by a [`Limit`]. Only if there was more than that is it asked who it was: which groups,
//! while the machine is held still, since the next job's time must not be in it; and who that is ([`name`]) when it was given
//! back.
//!
//! The first look waits a hundredth of a second for commands that are shorter, so that it costs them nothing, and gives up as
//! soon as the command has ended: of jobs shorter than [`SHORTEST`] nothing is said.
//!
//! Kernel threads, interrupts, what the host of a virtual machine took, heat and swap are read for a report, and shown
//! [`apart`]: much of it is the job's own doing. They count as a disturbance where the configuration says so.
//!
//! # What is known not to hold
//!
//! - A group directly below the root that was removed meanwhile took what it used with it. Below that, nothing is lost.
//! - The baseline by which groups are named has no more than [`look::NAMEABLE`] groups, those of the smallest slices: what was used
//!   in a larger slice is told of whoever runs in it at the end.
//! - Processes of the root that nobody waited for, and that lived between the looks only, are not seen. What others there were
//!   waited for is counted less what groups used, since it may be that: too little, never too much.
//! - What runs outside of a container is not seen in it: there is no machine that is known to be quiet.

pub mod apart;
pub mod judge;
mod limit;
pub mod look;
pub mod name;
mod tree;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use limit::{Apart, Counts, Limit};

use crate::text;

/// Of a shorter job no verdict is given: the counters of processes are not exact enough.
pub const SHORTEST: Duration = Duration::from_secs(1);

/// Whether the machine was quiet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    /// Nobody else used it, but for a little.
    Quiet,
    /// Somebody did.
    Disturbed,
    /// Nobody knows.
    Unknown,
}

/// The verdict on one job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// In one word.
    pub word: Word,
    /// Why it is not known, or what else than CPU time elsewhere disturbed.
    pub why: Option<String>,
    /// CPU time that was seen elsewhere.
    pub elsewhere_usec: Option<u64>,
    /// Whose it was, as far as that is known; the largest first.
    pub by: Vec<Culprit>,
    /// What is shown apart, where that was asked for.
    pub apart: Option<apart::Figures>,
}

/// Who used the machine beside a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Culprit {
    /// A user, a unit or a container.
    pub name: String,
    /// Which of these.
    pub kind: Kind,
    /// The user's number.
    pub uid: Option<u32>,
    /// The group, as `/proc/PID/cgroup` names it.
    pub group: Option<String>,
    /// CPU time meanwhile.
    pub cpu_usec: u64,
    /// By what, the largest first.
    pub programs: Vec<Program>,
}

/// What a culprit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A user's processes.
    User,
    /// A service of systemd's.
    Service,
    /// A container.
    Container,
}

/// Processes of the same name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Program {
    /// Chosen by themselves: hostile text.
    pub name: String,
    /// CPU time meanwhile.
    pub cpu_usec: u64,
    /// It may have been less: they were there before, and nobody knows what they had used then.
    pub at_most: bool,
}

/// How wide a culprit's name may be: that of a container has 64 digits.
const NAME_COLUMNS: usize = 32;

impl Verdict {
    /// That nobody knows, and why.
    pub fn unknown(why: impl Into<String>) -> Self {
        Self { word: Word::Unknown, why: Some(why.into()), elsewhere_usec: None, by: Vec::new(), apart: None }
    }

    /// `quiet`, `disturbed: 3.1 core-seconds by alice (cc1plus 2.9)`, `unknown: it took less than 1s`.
    pub fn told(&self) -> String {
        match self.word {
            Word::Quiet => "quiet".to_owned(),
            Word::Disturbed => format!("disturbed: {}", self.what()),
            Word::Unknown => format!("unknown: {}", self.what()),
        }
    }

    /// What disturbed, or why nobody knows.
    pub fn what(&self) -> String {
        let why = self.why.as_ref().map(|why| text::escape(why));
        let elsewhere =
            self.elsewhere_usec.filter(|_| self.word == Word::Disturbed && (why.is_none() || !self.by.is_empty()));
        let elsewhere = elsewhere.map(|usec| format!("{} core-seconds{}", core_seconds(usec), self.by_whom()));
        elsewhere.into_iter().chain(why).collect::<Vec<_>>().join("; ")
    }

    fn by_whom(&self) -> String {
        let mut names: Vec<String> = self.by.iter().map(Culprit::told).collect();
        match names.pop() {
            None => String::new(),
            Some(last) if names.is_empty() => format!(" by {last}"),
            Some(last) => format!(" by {} and {last}", names.join(", ")),
        }
    }
}

impl Culprit {
    fn told(&self) -> String {
        let name = text::cut(&text::escape(&self.name), NAME_COLUMNS);
        let program = self.programs.first().map(|program| {
            let bound = if program.at_most { "up to " } else { "" };
            format!(" ({} {bound}{})", text::escape(&program.name), core_seconds(program.cpu_usec))
        });
        name + &program.unwrap_or_default()
    }
}

/// CPU time in seconds of one core, with one decimal.
pub(crate) fn core_seconds(usec: u64) -> String {
    format!("{:.1}", usec as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn culprit(name: &str, cpu_usec: u64, programs: &[(&str, u64, bool)]) -> Culprit {
        let program =
            |&(name, cpu_usec, at_most): &(&str, u64, bool)| Program { name: name.to_owned(), cpu_usec, at_most };
        let programs = programs.iter().map(program).collect();
        Culprit { name: name.to_owned(), kind: Kind::User, uid: Some(7), group: None, cpu_usec, programs }
    }

    fn disturbed(by: Vec<Culprit>) -> Verdict {
        Verdict { word: Word::Disturbed, elsewhere_usec: Some(3_120_000), by, why: None, ..Verdict::unknown("") }
    }

    #[test]
    fn a_verdict_reads_like_this() {
        let alice = culprit("alice", 3_000_000, &[("cc1plus", 2_900_000, false), ("make", 1, false)]);
        let bob = culprit("b\x1b[2Jb", 400_000, &[("a\nb", 360_000, true)]);
        assert_eq!(disturbed(vec![alice.clone()]).told(), "disturbed: 3.1 core-seconds by alice (cc1plus 2.9)");
        assert_eq!(
            disturbed(vec![alice.clone(), bob.clone()]).told(),
            r"disturbed: 3.1 core-seconds by alice (cc1plus 2.9) and b\u{1b}[2Jb (a\nb up to 0.4)"
        );
        let three = disturbed(vec![culprit("a", 1, &[]), culprit("b", 1, &[]), culprit("c", 1, &[])]);
        assert_eq!(three.told(), "disturbed: 3.1 core-seconds by a, b and c");
        assert_eq!(disturbed(vec![]).told(), "disturbed: 3.1 core-seconds");
        let swapped = Verdict { why: Some("7 pages were swapped".to_owned()), ..disturbed(vec![]) };
        assert_eq!(swapped.told(), "disturbed: 7 pages were swapped");
        let both = Verdict { by: vec![culprit("a", 1, &[])], ..swapped };
        assert_eq!(both.told(), "disturbed: 3.1 core-seconds by a; 7 pages were swapped");
        assert_eq!(Verdict::unknown("it took\nless").told(), r"unknown: it took\nless");
        assert_eq!(Verdict { word: Word::Quiet, why: None, ..disturbed(vec![]) }.told(), "quiet");
    }

    proptest! {
        /// Programs and groups are named by others.
        #[test]
        fn no_name_writes_to_a_terminal_what_it_likes(name: String, program: String, usec: u64) {
            let told = disturbed(vec![culprit(&name, usec, &[(&program, usec, true)])]).told();
            prop_assert!(!told.chars().any(char::is_control), "{:?}", told);
        }
    }
}
