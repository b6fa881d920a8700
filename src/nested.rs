//! Nested use: perflock or pls inside a job of the same lock. It must not queue behind the job that it is a part of.

use crate::job::{GROUP_PREFIX, JobId, Mode};
use crate::lock::{Entry, Queue, Record, Seen};
use crate::procfs::{Proc, Stat};

/// The environment variable that names the job to its processes.
pub const VARIABLE: &str = "PERFLOCK_JOB";

/// What the name of an inner job's group begins with.
const PREFIX: &str = "nested-";

/// The group of a job inside another one: by its supervisor's pid and the moment, on `CLOCK_BOOTTIME`, since it has no
/// ticket.
pub fn group_name(pid: u32, started_usec: u64) -> String {
    format!("{GROUP_PREFIX}{PREFIX}{pid}-{started_usec:x}")
}

/// The supervisor's pid, in its own pid namespace, and when it started the job.
pub fn parse_group_name(name: &str) -> Option<(i32, u64)> {
    let (pid, started) = name.strip_prefix(GROUP_PREFIX)?.strip_prefix(PREFIX)?.split_once('-')?;
    let (pid, started_usec): (i32, u64) = (pid.parse().ok()?, u64::from_str_radix(started, 16).ok()?);
    // One spelling: no signs, no leading zeros.
    (pid > 0 && group_name(pid.cast_unsigned(), started_usec) == name).then_some((pid, started_usec))
}

/// How many tickets are looked at for an ancestor of ours.
const LOOKED_AT: usize = 64;

/// The job that this process is a part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Which.
    pub id: JobId,
    /// How it holds the machine.
    pub mode: Mode,
    /// Its command.
    pub command: Vec<String>,
}

/// Finds the job of this queue that we are in: by our own cgroup, else by PERFLOCK_JOB (a cgroup namespace hides the
/// group). Either must name a live ticket that was granted; lying harms only the liar, who could as well not use
/// perflock.
///
/// # Errors
/// A sentence: only our ancestry says that we are in a job, so waiting would wait for ourselves.
pub fn find(proc: &Proc, queue: &Queue, boot: &str, pid_namespace: u64) -> Result<Option<Outer>, String> {
    let entries = queue.entries().unwrap_or_default();
    if entries.is_empty() {
        return Ok(None);
    }
    let own = proc.own_cgroups().unwrap_or_default();
    let by_variable = || std::env::var(VARIABLE).ok()?.parse().ok();
    let mut candidates = own.iter().flat_map(|path| JobId::in_group_path(path)).chain(by_variable());
    if let Some(outer) = candidates.find_map(|id| running(queue, id)) {
        return Ok(Some(outer));
    }
    let ancestors = ancestors(proc);
    let is_ancestor = |stat: Stat| ancestors.iter().any(|ancestor| ancestor.pid == stat.pid);
    for seen in entries.into_iter().take(LOOKED_AT).filter_map(|entry| queue.see(entry)).filter(Seen::is_live) {
        let Some(record) = seen.record() else { continue };
        let ours = record.joined.boot == boot && record.joined.pid_namespace == pid_namespace;
        let granted = record.granted_usec.is_some();
        // A neighbour can write any number into a ticket of theirs, init's or our login shell's, but not make that process
        // one of theirs and a perflock.
        let supervisor = seen.supervisor(&record, proc).filter(|stat| matches!(&*stat.comm, "perflock" | "pls"));
        if ours && granted && supervisor.is_some_and(is_ancestor) {
            let command = crate::text::command_line(&record.joined.command);
            return Err(format!(
                "this runs below job {} ({command}), but its environment's {VARIABLE} does not say so: waiting would wait for itself; keep \
                 {VARIABLE} as the job has it",
                seen.entry.number
            ));
        }
    }
    Ok(None)
}

fn running(queue: &Queue, id: JobId) -> Option<Outer> {
    let modes = [Mode::Exclusive, Mode::Shared];
    modes.into_iter().find_map(|mode| {
        let seen = queue.see(Entry { number: id.number, mode })?;
        let record: Record = seen.record()?;
        let same = seen.id(&record) == id && seen.is_live() && record.granted_usec.is_some();
        same.then_some(Outer { id, mode, command: record.joined.command })
    })
}

fn ancestors(proc: &Proc) -> Vec<Stat> {
    let mut ancestors: Vec<Stat> = Vec::new();
    let mut pid = std::process::id().cast_signed();
    while let Ok(stat) = proc.stat(pid) {
        pid = stat.ppid;
        if ancestors.iter().any(|known| known.pid == stat.pid) {
            break;
        }
        ancestors.push(stat);
    }
    ancestors
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn other_spellings_are_no_inner_job_s() {
        for name in ["+5-7", "5-+7", "05-7", "5-07", "5-A", "0-7", "-5-7", "5-7-8", "5"] {
            assert_eq!(parse_group_name(&format!("perflock-nested-{name}")), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn an_inner_job_s_group_tells_its_supervisor(pid in 1..i32::MAX, started_usec: u64, other in "\\PC{0,40}") {
            let name = group_name(pid.cast_unsigned(), started_usec);
            prop_assert_eq!(parse_group_name(&name), Some((pid, started_usec)));
            let _ = parse_group_name(&format!("{GROUP_PREFIX}{PREFIX}{other}"));
        }
    }
}
