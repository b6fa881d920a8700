//! Cgroups as directories: what is below one, who is in it, and its removal.

use std::fs;
use std::path::{Path, PathBuf};

/// The groups directly below.
pub(crate) fn children(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// Every group for which `wanted` holds; nothing below one of those is looked at, nor anything called by one of these
/// names.
pub(crate) fn find(root: &Path, without: &[&str], wanted: &dyn Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for child in children(root) {
        let name = child.file_name().unwrap().to_string_lossy().into_owned();
        if wanted(&name) {
            found.push(child);
        } else if !without.contains(&&*name) {
            found.extend(find(&child, without, wanted));
        }
    }
    found.sort();
    found
}

/// Whether a group of this name is a job's: the one that its processes are in, not the scope around it.
pub(crate) fn is_job(name: &str) -> bool {
    name.starts_with("perflock-") && !is_scope(name)
}

/// Whether a group of this name is what systemd makes for a job.
pub(crate) fn is_scope(name: &str) -> bool {
    name.starts_with("perflock-") && name.ends_with(".scope")
}

/// Every process in the group and below it, but for groups of these names.
pub(crate) fn processes(group: &Path, without: &[&str]) -> Vec<i32> {
    let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<i32> = procs.lines().filter_map(|line| line.parse().ok()).collect();
    for child in children(group) {
        if !without.contains(&&*child.file_name().unwrap().to_string_lossy()) {
            found.extend(processes(&child, without));
        }
    }
    found
}

/// Kills everything in a group, once; whether it is empty now.
pub(crate) fn kill(group: &Path) -> bool {
    if fs::write(group.join("cgroup.kill"), "1").is_err() {
        // Before Linux 5.14.
        processes(group, &[]).into_iter().for_each(|pid| kill_member(group, pid));
    }
    // Gone is empty.
    !fs::read_to_string(group.join("cgroup.events")).unwrap_or_default().contains("populated 1")
}

/// Kills a process if it is in the group, by a pidfd: its number may be another's by now.
fn kill_member(group: &Path, pid: i32) {
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
    let Some(opened) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { return };
    if processes(group, &[]).contains(&pid) {
        let _ = pidfd_send_signal(&opened, Signal::KILL);
    }
}

/// Removes an empty group and what is below it; whether it is gone.
pub(crate) fn remove(group: &Path) -> bool {
    for child in children(group) {
        remove(&child);
    }
    fs::remove_dir(group).is_ok() || !group.exists()
}

/// The v2 group of a process, as this process sees it: a path that begins with a slash.
pub(crate) fn path_of(pid: i32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned()
}

/// Where the v2 hierarchy is mounted.
pub(crate) fn mount() -> Result<PathBuf, String> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").map_err(|e| e.to_string())?;
    let mounts =
        mountinfo.lines().filter(|line| line.contains(" - cgroup2 ")).filter_map(|line| line.split(' ').nth(4));
    // Another mount may hide the one that is listed.
    let mut mounts = mounts.map(PathBuf::from).filter(|mount| mount.join("cgroup.procs").exists());
    mounts.next().ok_or_else(|| "no cgroup v2 hierarchy is mounted".to_owned())
}
