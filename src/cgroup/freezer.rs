//! Thawing what a v1 freezer keeps from dying. Kernel side: Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst.
//!
//! On a hybrid machine a member can be in any group of the v1 freezer hierarchy, put there by the job or by somebody else.
//! Unlike the freezer of v2, that one holds up SIGKILL: a process that it froze ends when it is thawed. So a job that was killed
//! and does not end is thawed, but only by groups that have nobody else in them: what others have frozen stays so.
//!
//! Between the look into a group and the word to it, its owner may put another process in, which is then thawed as well. That
//! cannot be excluded, and takes one who could thaw it too.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::v2::{Location, subgroups};
use super::{JobGroup, detect, v1};
use crate::procfs::{self, Proc};

/// What the kernel calls it.
const CONTROLLER: &str = "freezer";

/// A member that is frozen by a group which is not ours to thaw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// Its process.
    pub pid: i32,
    /// The group's directory.
    pub group: PathBuf,
}

/// Thaws the members of a job that was killed, as far as nobody else is thawed by that. Returns the others.
pub(super) fn thaw(job: &dyn JobGroup) -> Vec<Frozen> {
    let proc = Proc::default();
    // Most machines have no such hierarchy, and most others no group in it.
    let Ok(Some(_)) = proc.own_cgroup_v1(CONTROLLER) else { return Vec::new() };
    let mountinfo = detect::own_mountinfo();
    let root = v1::locate_by_name(&mountinfo, Path::new("/"), CONTROLLER);
    if root.is_some_and(|root| subgroups(&root.directory()).is_ok_and(|groups| groups.is_empty())) {
        return Vec::new();
    }
    let mut looked_at: HashMap<PathBuf, Vec<PathBuf>> = HashMap::new();
    let mut left = Vec::new();
    for pid in job.members() {
        for path in groups_of(&proc, pid) {
            let not_ours = looked_at.entry(path).or_insert_with_key(|path| {
                let location = v1::locate_by_name(&mountinfo, path, CONTROLLER);
                let freezing = location.map(|location| freezing(&location)).unwrap_or_default();
                freezing.into_iter().filter(|group| !thaw_group(group, job, &proc)).collect()
            });
            left.extend(not_ours.iter().map(|group| Frozen { pid, group: group.clone() }));
        }
    }
    left
}

/// The groups that a process is in which may be frozen, by its threads: each can be in one of its own. The kernel shows a frozen
/// thread in state D.
fn groups_of(proc: &Proc, pid: i32) -> Vec<PathBuf> {
    let suspect = proc.stat(pid).is_ok_and(|stat| stat.state == 'D' || stat.is_headless());
    if !suspect {
        return Vec::new();
    }
    let threads = proc.threads(pid).unwrap_or_default();
    let groups = threads.into_iter().filter_map(|thread| proc.cgroup_v1(thread, CONTROLLER).ok().flatten());
    let mut groups: Vec<PathBuf> = groups.collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// The groups, this one and those above, that were told to freeze what is in them. One that freezes for a group which is not
/// mounted here is told of itself.
fn freezing(location: &Location) -> Vec<PathBuf> {
    let read = |group: &Path, file: &str| fs::read_to_string(group.join(file)).unwrap_or_default();
    let state = read(&location.directory(), "freezer.state");
    // The root of the hierarchy has none.
    if matches!(state.trim(), "" | "THAWED") {
        return Vec::new();
    }
    let mut told = Vec::new();
    let mut at = Some(location.clone());
    while let Some(group) = at {
        let directory = group.directory();
        if read(&directory, "freezer.self_freezing").trim() == "1" {
            told.push(directory);
        }
        at = group.parent();
    }
    if told.is_empty() {
        told.push(location.directory());
    }
    told
}

/// Thaws a group if every process in it and below it is a member of the job. Whether that was done.
fn thaw_group(group: &Path, job: &dyn JobGroup, proc: &Proc) -> bool {
    // Elsewhere, processes of other pid namespaces are left out of what is listed.
    if !proc.sees_every_pid_namespace() {
        return false;
    }
    let Ok(inside) = processes_below(group) else { return false };
    is_only(&inside, job.members()) && fs::write(group.join("freezer.state"), "THAWED").is_ok()
}

/// Whether there are processes, and all of them are members.
fn is_only(inside: &[i32], mut members: Vec<i32>) -> bool {
    members.sort_unstable();
    !inside.is_empty() && inside.iter().all(|pid| members.binary_search(pid).is_ok())
}

/// Every process with a thread in the group or below it.
///
/// # Errors
/// A part could not be read: who is in it is not known.
fn processes_below(group: &Path) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    let mut pending = vec![group.to_owned()];
    while let Some(group) = pending.pop() {
        let text = procfs::read(&group.join("cgroup.procs"))?;
        let pids = String::from_utf8_lossy(&text).lines().map(str::parse).collect::<Result<Vec<i32>, _>>();
        found.extend(pids.map_err(io::Error::other)?);
        pending.extend(subgroups(&group)?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_group_of_members_is_thawed() {
        assert!(is_only(&[5, 7, 7], vec![7, 3, 5]));
        assert!(!is_only(&[5, 8], vec![7, 3, 5]));
        // Of another pid namespace.
        assert!(!is_only(&[0, 5], vec![5]));
        // Nobody to be thawed, or not to be seen.
        assert!(!is_only(&[], vec![5]));
    }

    /// A captured hierarchy: groups with what they were told and what they are.
    fn captured(groups: &[(&str, &str, &str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, self_freezing, state, procs) in groups {
            let group = root.path().join(name);
            fs::create_dir_all(&group).unwrap();
            fs::write(group.join("freezer.self_freezing"), self_freezing).unwrap();
            fs::write(group.join("freezer.state"), state).unwrap();
            fs::write(group.join("cgroup.procs"), procs).unwrap();
        }
        root
    }

    fn at(root: &tempfile::TempDir, path: &str) -> Location {
        Location { mount: root.path().to_owned(), relative: path.into(), path: Path::new("/").join(path) }
    }

    #[test]
    fn the_groups_that_were_told_to_freeze_are_found_upwards() {
        let root = captured(&[
            ("a", "1\n", "FROZEN\n", ""),
            ("a/b", "0\n", "FROZEN\n", ""),
            ("a/b/c", "1\n", "FREEZING\n", ""),
            ("d", "0\n", "THAWED\n", ""),
            ("e", "0\n", "FROZEN\n", ""),
        ]);
        let found = |path: &str| freezing(&at(&root, path));
        let named = |names: &[&str]| names.iter().map(|name| root.path().join(name)).collect::<Vec<_>>();
        assert_eq!(found("a/b/c"), named(&["a/b/c", "a"]));
        assert_eq!(found("a/b"), named(&["a"]));
        // By one above what is mounted.
        assert_eq!(found("e"), named(&["e"]));
        assert_eq!(found("d"), named(&[]));
        assert_eq!(found(""), named(&[]));
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_empty() {
        let root = captured(&[("a", "1\n", "FROZEN\n", "5\n6\n"), ("a/b", "0\n", "FROZEN\n", "7\n")]);
        assert_eq!(processes_below(&root.path().join("a")).unwrap(), [5, 6, 7]);
        fs::write(root.path().join("a/b/cgroup.procs"), "x\n").unwrap();
        assert!(processes_below(&root.path().join("a")).is_err());
        fs::remove_file(root.path().join("a/b/cgroup.procs")).unwrap();
        assert!(processes_below(&root.path().join("a")).is_err());
    }
}
