//! The log's lines. The harness and every worker append to one file, each line with one write(2), so that the file has
//! all that happened in one order.

use std::fmt;

/// A job, by the number that the harness gave it.
pub(super) type JobNumber = u64;

/// How a job shares the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// `perflock`, `flock`.
    Exclusive,
    /// `pls`, `flock -s`.
    Shared,
}

impl Mode {
    /// Whether two jobs of these modes may not run at the same time.
    pub(super) fn conflicts_with(self, other: Self) -> bool {
        self == Self::Exclusive || other == Self::Exclusive
    }

    /// The word on the worker's command line and in the log.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
        }
    }
}

/// Who asks for the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// perflock or pls, waiting as long as it takes.
    Patient,
    /// perflock or pls with `-n` or `-w`: it may give up.
    Limited,
    /// Plain flock(1).
    Outsider,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Patient => "patient",
            Self::Limited => "limited",
            Self::Outsider => "outsider",
        }
    }
}

/// What the harness does to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Disturbance {
    /// SIGKILL to the supervisor.
    KillSupervisor,
    /// SIGKILL to the guard.
    KillGuard,
    /// SIGKILL to both, so close together that neither may have acted for the other.
    KillBoth,
    /// SIGSTOP to the supervisor, and SIGCONT.
    Freeze,
    /// SIGTSTP (^Z) to the supervisor, and SIGCONT.
    Suspend,
    /// SIGTERM to the supervisor.
    Cancel,
}

impl Disturbance {
    /// All of them.
    pub(super) const ALL: [Self; 6] =
        [Self::KillSupervisor, Self::KillGuard, Self::KillBoth, Self::Freeze, Self::Suspend, Self::Cancel];

    /// The word in the log.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::KillSupervisor => "kill-supervisor",
            Self::KillGuard => "kill-guard",
            Self::KillBoth => "kill-both",
            Self::Freeze => "freeze",
            Self::Suspend => "suspend",
            Self::Cancel => "cancel",
        }
    }

    /// Whether the job may end early by it, without a word of its own.
    pub(super) fn ends(self) -> bool {
        matches!(self, Self::KillSupervisor | Self::KillBoth | Self::Cancel)
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Ending {
    /// By an exit code.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// What a line says of its job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Harness: it is about to be started.
    Spawn(Kind, Mode),
    /// Harness: this is about to be done to it.
    Disturb(Disturbance),
    /// Harness: its supervisor (an outsider's flock) was reaped.
    Exit(Ending),
    /// Worker: it runs, and got the presence lock.
    Start {
        /// PERFLOCK_JOB; `-` for an outsider.
        ticket: String,
        /// Tickets that it overtook, as file names with commas between; `-` for none.
        overtook: String,
    },
    /// Worker: it runs, and did not get the presence lock: a job that it conflicts with has a living member.
    Overlap,
    /// Worker: it is done.
    Stop,
    /// Background process of a worker: it is done, and nobody has ended it.
    LeftoverStop,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Which job.
    pub(super) job: JobNumber,
    /// What happened.
    pub(super) event: Event,
}

/// Ends every line, so that one that was cut short is seen even if it was cut between two words.
const END: &str = ".";

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let job = self.job;
        match &self.event {
            Event::Spawn(kind, mode) => writeln!(f, "{job} spawn {} {} {END}", kind.word(), mode.word()),
            Event::Disturb(disturbance) => writeln!(f, "{job} disturb {} {END}", disturbance.word()),
            Event::Exit(ending) => writeln!(f, "{job} exit {ending} {END}"),
            Event::Start { ticket, overtook } => writeln!(f, "{job} start {ticket} {overtook} {END}"),
            Event::Overlap => writeln!(f, "{job} overlap {END}"),
            Event::Stop => writeln!(f, "{job} stop {END}"),
            Event::LeftoverStop => writeln!(f, "{job} leftover-stop {END}"),
        }
    }
}

impl Record {
    /// Reads a line without its newline; `None` if nobody would have written it.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let [job, words @ .., END] = words.as_slice() else { return None };
        let event = match *words {
            ["spawn", kind, mode] => Event::Spawn(
                [Kind::Patient, Kind::Limited, Kind::Outsider].into_iter().find(|known| known.word() == kind)?,
                [Mode::Exclusive, Mode::Shared].into_iter().find(|known| known.word() == mode)?,
            ),
            ["disturb", word] => {
                Event::Disturb(Disturbance::ALL.into_iter().find(|disturbance| disturbance.word() == word)?)
            }
            ["exit", "code", code] => Event::Exit(Ending::Code(code.parse().ok()?)),
            ["exit", "signal", signal] => Event::Exit(Ending::Signal(signal.parse().ok()?)),
            ["start", ticket, overtook] => Event::Start { ticket: ticket.to_owned(), overtook: overtook.to_owned() },
            ["overlap"] => Event::Overlap,
            ["stop"] => Event::Stop,
            ["leftover-stop"] => Event::LeftoverStop,
            _ => return None,
        };
        Some(Self { job: job.parse().ok()?, event })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_survives_its_own_spelling_and_no_part_of_one_is_a_line() {
        let start = Event::Start { ticket: "7-a-0000000b-c".to_owned(), overtook: "5.x,6.s".to_owned() };
        let events = [
            Event::Spawn(Kind::Limited, Mode::Shared),
            Event::Disturb(Disturbance::Suspend),
            Event::Exit(Ending::Signal(15)),
            Event::Exit(Ending::Code(0)),
            start,
            Event::Overlap,
            Event::Stop,
            Event::LeftoverStop,
        ];
        for event in events {
            let record = Record { job: 31, event };
            let line = record.to_string();
            let line = line.strip_suffix('\n').unwrap();
            assert_eq!(Record::parse(line), Some(record), "{line}");
            for cut in 0..line.len() {
                assert_eq!(Record::parse(&line[..cut]), None, "{}", &line[..cut]);
            }
        }
    }
}
