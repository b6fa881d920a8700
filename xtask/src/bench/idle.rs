//! What supervisor and guard do and weigh while a job runs: they must do nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::area::Inside;
use super::stats::Line;
use super::tools::{Running, wait_until};
use crate::Failure;

/// How long they are watched.
pub(super) const WATCHED: Duration = Duration::from_secs(10);

/// How long they get to settle first.
pub(super) const SETTLE: Duration = Duration::from_secs(1);

/// Measures one job.
///
/// # Errors
/// A program cannot be run, or its files cannot be read.
pub(super) fn measure(place: &Inside) -> Result<Vec<Line>, Failure> {
    let mut command = place.perflock()?;
    command.args(["sleep", "30"]);
    let running = Running::start(&mut command)?;
    let supervisor = running.pid();
    let mut guard = None;
    wait_until("the guard has started", || {
        guard = child_named(supervisor, "perflock-guard");
        guard.is_some() && child_named(supervisor, "sleep").is_some()
    })?;
    let pids = [Some(supervisor), guard].into_iter().flatten();
    let processes: Vec<PathBuf> = pids.map(|pid| Path::new("/proc").join(pid.to_string())).collect();
    std::thread::sleep(SETTLE);
    let sum = |read: fn(&Path) -> Option<u64>| -> Result<u64, Failure> {
        let values = processes.iter().map(|process| read(process)).collect::<Option<Vec<_>>>();
        values.map(|values| values.iter().sum()).ok_or_else(|| "cannot read supervisor's and guard's files".to_owned())
    };
    let before = sum(switches)?;
    std::thread::sleep(WATCHED);
    let switched = sum(switches)? - before;
    let each: Vec<String> = processes.iter().map(|process| pss_kib(process).unwrap_or(0).to_string()).collect();
    let pss_kib = sum(pss_kib)?;
    running.terminate()?;
    Ok(vec![
        Line {
            what: format!("voluntary context switches, supervisor and guard, {} s of a running job", WATCHED.as_secs()),
            own: switched.to_string(),
            other: String::new(),
            difference: String::new(),
            target: Some(("0", switched == 0)),
        },
        Line {
            what: "memory (PSS), supervisor and guard".to_owned(),
            own: format!("{pss_kib} KiB ({} KiB)", each.join(" + ")),
            other: String::new(),
            difference: String::new(),
            target: Some(("≤ 2048 KiB", pss_kib <= 2048)),
        },
    ])
}

/// The child of this process with this name.
fn child_named(parent: u32, name: &str) -> Option<u32> {
    let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        value(&status, "PPid:") == Some(u64::from(parent)) && status.starts_with(&format!("Name:\t{name}\n"))
    })
}

/// Voluntary context switches of every thread of the process.
pub(super) fn switches(process: &Path) -> Option<u64> {
    let threads = fs::read_dir(process.join("task")).ok()?.flatten();
    threads
        .map(|thread| value(&fs::read_to_string(thread.path().join("status")).ok()?, "voluntary_ctxt_switches:"))
        .sum()
}

/// The process's share of the memory that it uses, in KiB.
pub(super) fn pss_kib(process: &Path) -> Option<u64> {
    value(&fs::read_to_string(process.join("smaps_rollup")).ok()?, "Pss:")
}

/// The number behind `key` at the start of a line.
pub(super) fn value(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_their_whole_key() {
        let status = "Name:\tx\nPPid:\t12\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t9\n";
        assert_eq!(value(status, "voluntary_ctxt_switches:"), Some(7));
        assert_eq!(value("Pss:                 812 kB\nPss_Dirty: 1 kB\n", "Pss:"), Some(812));
        assert_eq!(value(status, "Uid:"), None);
    }
}
