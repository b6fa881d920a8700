//! What the harness does to jobs. Signals go only to its own children, by pidfd, and to guards that a ticket names and
//! that were seen to be a child's guard after their pidfd was opened.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

use super::area::Area;
use super::child::Child;

/// How long a process may take to stop before it is killed all the same.
const STOPS: Duration = Duration::from_millis(50);

/// A ticket's words about its job.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    /// The supervisor's pid.
    pub(super) supervisor: i32,
    /// The last guard's pid.
    pub(super) guard: Option<i32>,
    /// The job has the machine.
    pub(super) granted: bool,
}

impl Ticket {
    /// Reads a ticket's text. `None` where its first line is not there.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let pid = |line: &Value| line["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        let mut ticket = Self { supervisor: pid(&lines.next()?)?, guard: None, granted: false };
        for line in lines {
            match line["event"].as_str() {
                Some("granted") => ticket.granted = true,
                Some("guard") => ticket.guard = pid(&line),
                _ => {}
            }
        }
        Some(ticket)
    }
}

/// Every ticket that can be read.
pub(super) fn tickets(area: &Area) -> Vec<Ticket> {
    let entries = fs::read_dir(area.queue()).into_iter().flatten().flatten();
    entries.filter_map(|entry| Ticket::parse(&fs::read_to_string(entry.path()).ok()?)).collect()
}

/// The guard that the ticket of this child names. `None` if it is not, or no longer, a guard of this child.
pub(super) fn guard_of(area: &Area, child: &Child, ticket: &Ticket) -> Option<OwnedFd> {
    let pid = ticket.guard?;
    let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // Looked at after the pidfd was opened: if it is the guard now, the pidfd is that guard's.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let parent = child.pid.to_string();
    let is_guard = field("Name:") == Some("perflock-guard") && field("PPid:") == Some(&parent) && area.contains(pid);
    is_guard.then_some(pidfd)
}

/// Kills a guard.
pub(super) fn kill(guard: OwnedFd) {
    // It may have ended by itself meanwhile.
    let _ = pidfd_send_signal(guard, Signal::KILL);
}

/// Kills both, in an order that `random` chooses: one right after the other, or so that neither can act.
pub(super) fn kill_both(child: &Child, guard: OwnedFd, random: &mut fastrand::Rng) {
    match random.u8(0..4) {
        0 => {
            child.signal(Signal::KILL);
            kill(guard);
        }
        1 => {
            kill(guard);
            child.signal(Signal::KILL);
        }
        _ => {
            child.signal(Signal::STOP);
            let end = Instant::now() + STOPS;
            while state_of(child.pid) != Some('T') && Instant::now() < end {
                std::thread::sleep(Duration::from_micros(200));
            }
            kill(guard);
            child.signal(Signal::KILL);
        }
    }
}

/// The state letter of a process.
pub(super) fn state_of(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_guard_of_a_ticket_counts() {
        let text = "{\"format\":1,\"pid\":7}\n{\"event\":\"granted\",\"at_usec\":1}\n{\"event\":\"guard\",\"pid\":8}\n\
            {\"event\":\"guard\",\"pid\":9}\n{\"event\":\"gua";
        assert_eq!(Ticket::parse(text), Some(Ticket { supervisor: 7, guard: Some(9), granted: true }));
        assert_eq!(Ticket::parse("{\"pid\":7}\n"), Some(Ticket { supervisor: 7, guard: None, granted: false }));
        assert_eq!(Ticket::parse(""), None);
    }
}
