//! The log's lines. The harness and every worker append to one file, each line with one write(2), so that the file has
//! all that happened in one order.

use std::fmt;

use perflock::pin::CpuList;

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

/// Where a job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pin {
    /// Wherever the kernel likes.
    Free,
    /// On some processors that others use too.
    Pinned,
    /// On cores that no other such job has: `pls --cores`.
    Leased,
}

impl Pin {
    /// All of them.
    const ALL: [Self; 3] = [Self::Free, Self::Pinned, Self::Leased];

    /// The word on the worker's command line and in the log.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Pinned => "pinned",
            Self::Leased => "leased",
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
    Spawn(Kind, Mode, Pin),
    /// Harness: this is about to be done to it.
    Disturb(Disturbance),
    /// Harness: its supervisor (an outsider's flock) was reaped.
    Exit(Ending),
    /// Worker: it runs, and got the presence lock, and those of its cores.
    Start {
        /// PERFLOCK_JOB; `-` for an outsider.
        ticket: String,
        /// Tickets that it overtook, as file names with commas between; `-` for none.
        overtook: String,
        /// PERFLOCK_CPUS, which is also where it may run; none, and `-` in the log, where there is no such variable.
        cpus: Option<CpuList>,
    },
    /// Worker: it runs, and did not get the presence lock: a job that it conflicts with has a living member.
    Overlap,
    /// Worker: it runs, and another job's member has the presence lock of this processor, which it was given alone.
    Taken(u32),
    /// Worker: it runs, and where it may run is not what PERFLOCK_CPUS says, or what it asked for. In its own words.
    Strayed(String),
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
            Event::Spawn(kind, mode, pin) => {
                writeln!(f, "{job} spawn {} {} {} {END}", kind.word(), mode.word(), pin.word())
            }
            Event::Disturb(disturbance) => writeln!(f, "{job} disturb {} {END}", disturbance.word()),
            Event::Exit(ending) => writeln!(f, "{job} exit {ending} {END}"),
            Event::Start { ticket, overtook, cpus } => {
                let cpus = cpus.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
                writeln!(f, "{job} start {ticket} {overtook} {cpus} {END}")
            }
            Event::Overlap => writeln!(f, "{job} overlap {END}"),
            Event::Taken(cpu) => writeln!(f, "{job} taken {cpu} {END}"),
            Event::Strayed(how) => writeln!(f, "{job} strayed {how} {END}"),
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
            ["spawn", kind, mode, pin] => Event::Spawn(
                [Kind::Patient, Kind::Limited, Kind::Outsider].into_iter().find(|known| known.word() == kind)?,
                [Mode::Exclusive, Mode::Shared].into_iter().find(|known| known.word() == mode)?,
                Pin::ALL.into_iter().find(|known| known.word() == pin)?,
            ),
            ["disturb", word] => {
                Event::Disturb(Disturbance::ALL.into_iter().find(|disturbance| disturbance.word() == word)?)
            }
            ["exit", "code", code] => Event::Exit(Ending::Code(code.parse().ok()?)),
            ["exit", "signal", signal] => Event::Exit(Ending::Signal(signal.parse().ok()?)),
            ["start", ticket, overtook, cpus] => Event::Start {
                ticket: ticket.to_owned(),
                overtook: overtook.to_owned(),
                cpus: if cpus == "-" { None } else { Some(cpus.parse().ok()?) },
            },
            ["overlap"] => Event::Overlap,
            ["taken", cpu] => Event::Taken(cpu.parse().ok()?),
            ["strayed", how] => Event::Strayed(how.to_owned()),
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
        let start = |cpus| Event::Start { ticket: "7-a-0000000b-c".to_owned(), overtook: "5.x,6.s".to_owned(), cpus };
        let events = [
            Event::Spawn(Kind::Limited, Mode::Shared, Pin::Leased),
            Event::Disturb(Disturbance::Suspend),
            Event::Exit(Ending::Signal(15)),
            Event::Exit(Ending::Code(0)),
            start(None),
            start(Some([0, 2, 3].into_iter().collect())),
            Event::Overlap,
            Event::Taken(7),
            Event::Strayed("0-3,not-1".to_owned()),
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
