//! Where a report says what, and how what it says is compared and shown.

use std::time::Duration;

use serde_json::Value;

use super::told;
use crate::report::full::signal_name;
use crate::text;

/// What a condition is about, in the order in which it explains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// What was run, by whom: if that differs, nothing else has to.
    Run,
    /// Whether anybody else disturbed it.
    Others,
    /// How the machine is set, and which it is.
    Machine,
    /// Where it could run.
    Pins,
    /// How it had the machine, and who else had.
    Lock,
    /// What it was allowed at most.
    Limits,
    /// What slowed it down and is nobody's doing.
    Apart,
    /// What it had to wait for.
    Stalls,
    /// What it left behind.
    Left,
    /// How its processes were kept together, and by which perflock.
    Tracking,
}

impl Area {
    /// As people and programs read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Others => "others",
            Self::Machine => "machine",
            Self::Pins => "pins",
            Self::Lock => "lock",
            Self::Limits => "limits",
            Self::Apart => "apart",
            Self::Stalls => "stalls",
            Self::Left => "left",
            Self::Tracking => "tracking",
        }
    }
}

/// A value that a report tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Compared as it is shown.
    Exactly(String),
    /// Compared by what in it has to be the same, and shown with what may differ.
    Named {
        /// What has to be the same.
        key: Vec<String>,
        /// What is shown.
        shown: String,
    },
    /// The report says that it does not know, and why.
    Unknown(String),
    /// A time. Compared as what can be felt in a run.
    Usec(u64),
    /// A size that is never quite the same.
    Bytes(u64),
    /// A number of small things.
    Events(u64),
    /// A number of things each of which counts.
    Count(u64),
}

impl Told {
    /// Whether it says anything.
    pub fn is_known(&self) -> bool {
        !matches!(self, Self::Unknown(_))
    }

    /// Its number, if it is one: says little without another to compare it with.
    pub fn figure(&self) -> Option<u64> {
        match *self {
            Self::Usec(n) | Self::Bytes(n) | Self::Events(n) | Self::Count(n) => Some(n),
            Self::Exactly(_) | Self::Named { .. } | Self::Unknown(_) => None,
        }
    }

    /// Whether it is another than this one of a run that took as long, as the shorter of the two.
    pub fn differs(&self, other: &Self, wall_usec: u64) -> bool {
        match (self, other) {
            (Self::Named { key: ours, .. }, Self::Named { key: theirs, .. }) => ours != theirs,
            (&Self::Usec(ours), &Self::Usec(theirs)) => ours.abs_diff(theirs) > (wall_usec / 100).max(10_000),
            (&Self::Bytes(ours), &Self::Bytes(theirs)) => apart(ours, theirs, 64 << 20, 100),
            (&Self::Events(ours), &Self::Events(theirs)) => apart(ours, theirs, 1000, 10),
            _ => self != other,
        }
    }

    /// For a person; not yet escaped.
    pub fn shown(&self) -> String {
        match self {
            Self::Exactly(text) | Self::Unknown(text) | Self::Named { shown: text, .. } => text.clone(),
            &Self::Usec(usec) => text::measured(Duration::from_micros(usec)),
            &Self::Bytes(bytes) => text::bytes(bytes),
            Self::Events(number) | Self::Count(number) => number.to_string(),
        }
    }
}

/// Whether two numbers differ by more than this, and by more than that part of the larger.
fn apart(ours: u64, theirs: u64, least: u64, part: u64) -> bool {
    let by = ours.abs_diff(theirs);
    by > least && by > ours.max(theirs) / part
}

/// A condition of a run.
pub struct Field {
    /// What it is about.
    pub area: Area,
    /// What it is called.
    pub what: &'static str,
    /// Where it stands, as RFC 6901 has it.
    pointer: &'static str,
    /// What `null` says there; if nothing, it is not known.
    null: Option<&'static str>,
    /// What another value says. `None` if it is of another kind.
    read: fn(&Value) -> Option<Told>,
}

impl Field {
    /// What a report tells of it. `None` if it does not.
    pub fn told(&self, report: &Value) -> Option<Told> {
        match report.pointer(self.pointer)? {
            Value::Null => self.null.map(|text| Told::Exactly(text.to_owned())),
            value => (self.read)(value),
        }
    }

    /// Whether it is a part of something that this report does not have at all.
    pub fn is_part_of_nothing(&self, report: &Value) -> bool {
        self.pointer.starts_with("/verdict/") && !report["verdict"].is_object()
    }
}

const NONE: Option<&str> = Some("none");

/// Every condition, in the order in which it explains.
pub const FIELDS: [Field; 50] = {
    const fn field(
        area: Area,
        what: &'static str,
        pointer: &'static str,
        null: Option<&'static str>,
        read: fn(&Value) -> Option<Told>,
    ) -> Field {
        Field { area, what, pointer, null, read }
    }
    use Area::{Apart, Left, Limits, Lock, Machine, Others, Pins, Run, Stalls, Tracking};
    [
        field(Run, "command", "/command", None, told::command),
        field(Run, "user", "/user", None, told::user),
        field(Others, "verdict", "/verdict", None, told::verdict),
        field(Others, "CPU elsewhere", "/verdict/elsewhere_usec", None, usec),
        field(Machine, "host", "/machine/host", None, string),
        field(Machine, "CPU model", "/machine/cpu_model", None, string),
        field(Machine, "kernel", "/machine/kernel", None, string),
        field(Machine, "governor", "/machine/governor", None, string),
        field(Machine, "turbo", "/machine/turbo", None, switch),
        field(Machine, "SMT", "/machine/smt", None, switch),
        field(Machine, "CPUs online", "/machine/cpus_online", None, string),
        field(Machine, "huge pages", "/machine/transparent_huge_pages", None, string),
        field(Machine, "ASLR", "/machine/aslr", None, number),
        field(Machine, "memory", "/machine/memory_bytes", None, bytes),
        field(Machine, "swap", "/machine/swap_bytes", None, bytes),
        field(Machine, "swap in use", "/machine/swap_used_bytes", None, bytes),
        field(Pins, "pinned by", "/pins/by", Some("nothing"), string),
        field(Pins, "pin", "/pins/strength", NONE, string),
        field(Pins, "CPUs", "/pins/cpus", None, string),
        field(Pins, "memory nodes", "/pins/memory_nodes", None, string),
        field(Pins, "cores of its own", "/pins/reserved", NONE, string),
        field(Pins, "partition", "/pins/partition", NONE, string),
        field(Pins, "left its pin for", "/pins/moved_to", NONE, string),
        field(Pins, "pinned but offline", "/pins/offline", NONE, string),
        field(Lock, "mode", "/mode", None, string),
        field(Lock, "shared with", "/shared_with", None, told::neighbours),
        field(Lock, "inside a job", "/inside", Some("no"), told::inside),
        field(Lock, "file", "/lock", None, string),
        field(Limits, "memory", "/limits/memory_bytes", NONE, exact_bytes),
        field(Limits, "processes", "/limits/processes", NONE, number),
        field(Limits, "not in force", "/limits/not_in_force", NONE, string),
        field(Limits, "held back", "/usage/throttled_usec", None, usec),
        field(Apart, "throttled", "/verdict/apart/throttled", None, count),
        field(Apart, "stolen by the host", "/verdict/apart/steal_usec", None, usec),
        field(Apart, "kernel threads", "/verdict/apart/kernel_threads_usec", None, usec),
        field(Apart, "interrupts", "/verdict/apart/interrupts_usec", None, usec),
        field(Apart, "pages swapped in", "/verdict/apart/swapped_in_pages", None, events),
        field(Apart, "pages swapped out", "/verdict/apart/swapped_out_pages", None, events),
        field(Stalls, "CPU awaited", "/usage/cpu_stall_usec", None, usec),
        field(Stalls, "memory awaited", "/usage/memory_stall_usec", None, usec),
        field(Stalls, "disk awaited", "/usage/io_stall_usec", None, usec),
        field(Stalls, "read from disk", "/usage/read_bytes", None, bytes),
        field(Stalls, "faults from disk", "/usage/major_faults", None, events),
        field(Stalls, "out of memory", "/usage/oom_kills", None, count),
        field(Stalls, "forks refused", "/usage/forks_refused", None, count),
        field(Left, "leftovers", "/leftovers", None, told::leftovers),
        field(Left, "escaped", "/escaped", None, told::escaped),
        field(Left, "possibly escaped", "/possible_escapes", None, told::possible),
        field(Tracking, "tracking", "/tracking", None, string),
        field(Tracking, "perflock", "/perflock", None, string),
    ]
};

/// What a run came to: what is to be explained.
pub(super) struct Outcome {
    pub(super) what: &'static str,
    /// Where it may stand; of each pair of reports the first where both tell something.
    pub(super) of: &'static [fn(&Value) -> Option<Told>],
}

/// The outcomes, the first first. Each has a second source, since a job's group does not keep every count everywhere, and the two
/// sources do not count the same.
pub(super) const OUTCOMES: [Outcome; 6] = [
    Outcome { what: "wall", of: &[|report| usec(report.get("wall_usec")?)] },
    Outcome {
        what: "CPU time",
        of: &[
            |report| usec(report.pointer("/usage/cpu_usec")?),
            |report| {
                let part = |name| report.get("waited_for")?.get(name)?.as_u64();
                Some(Told::Usec(part("user_usec")?.saturating_add(part("system_usec")?)))
            },
        ],
    },
    Outcome { what: "waited", of: &[|report| usec(report.get("waited_usec")?)] },
    Outcome { what: "held", of: &[|report| usec(report.get("held_usec")?)] },
    Outcome {
        what: "memory peak",
        of: &[
            |report| bytes(report.pointer("/usage/memory_peak_bytes")?),
            |report| bytes(report.pointer("/waited_for/largest_process_bytes")?),
        ],
    },
    Outcome { what: "exit", of: &[|report| exit(report.get("exit")?)] },
];

fn string(value: &Value) -> Option<Told> {
    value.as_str().map(|text| Told::Exactly(text.to_owned()))
}

fn switch(value: &Value) -> Option<Told> {
    value.as_bool().map(|on| Told::Exactly(if on { "on" } else { "off" }.to_owned()))
}

fn number(value: &Value) -> Option<Told> {
    value.as_u64().map(|number| Told::Exactly(number.to_string()))
}

fn count(value: &Value) -> Option<Told> {
    value.as_u64().map(Told::Count)
}

fn exact_bytes(value: &Value) -> Option<Told> {
    value.as_u64().map(|bytes| Told::Exactly(text::exact_bytes(bytes)))
}

fn usec(value: &Value) -> Option<Told> {
    value.as_u64().map(Told::Usec)
}

fn bytes(value: &Value) -> Option<Told> {
    value.as_u64().map(Told::Bytes)
}

fn events(value: &Value) -> Option<Told> {
    value.as_u64().map(Told::Events)
}

/// `code 0`, `time-limit, signal 15 (SIGTERM)`.
fn exit(exit: &Value) -> Option<Told> {
    let reason = exit.get("reason")?.as_str()?;
    let number = |name| i32::try_from(exit.get(name)?.as_i64()?).ok();
    let code = number("code").map(|code| format!("code {code}"));
    let how: Vec<String> = code.into_iter().chain(number("signal").map(signal_name)).collect();
    let by_itself = matches!(reason, "exited" | "signal") && !how.is_empty();
    let why = (!by_itself).then(|| reason.to_owned());
    Some(Told::Exactly(why.into_iter().chain(how).collect::<Vec<_>>().join(", ")))
}
