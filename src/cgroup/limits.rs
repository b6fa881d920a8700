//! Limits of the job alone: how much memory it has, and how many tasks. Kernel side: cgroup-v2.rst ("Memory", "PID"),
//! Documentation/admin-guide/cgroup-v1/memory.rst and pids.rst.
//!
//! They are written into groups that perflock has just made for the job and in which nothing else ever is: its own group in v2,
//! where the controller can be had there, or groups of their own in the v1 hierarchies. Never into its scope, in which the guard
//! is too: what runs out of memory must be the job.
//!
//! *Swap* counts as memory: a job at its limit that went on in swap would measure the disk. In v2 it gets none
//! (`memory.swap.max` 0), in v1 memory and swap are limited together (`memory.memsw`).
//!
//! *One process is killed*, the largest, as everywhere else on the machine (`memory.oom.group` stays 0, and v1 has no such
//! thing): make(1) and test runners have their own way with a child that died, and whatever they make of it, it is said.
//!
//! *Between birth and exec* nobody may be killed: until then the command shares the supervisor's memory, and the kernel would
//! kill both. It does not: it passes over a process in vfork(2), and a limit that is too low for the arguments even makes
//! execve(2) fail.

use std::fs;
use std::path::{Path, PathBuf};

use super::controller::{self, Controller, V1Offer};
use super::detect::Place;
use super::v1;
use super::v2::Location;
use crate::error::FileError;
use crate::limit::{Kind, Limit};
use crate::text;

/// How a job can be limited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// By a group below this one in the v1 hierarchy.
    V1(Location),
    /// By the job's own group in v2.
    Group,
    /// Not at all.
    Unlimited {
        /// Why, as a sentence fragment.
        why: String,
        /// What mends it, if that is known.
        cure: Option<String>,
    },
}

/// Why a limit is not in force.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// A system call on a file of the group failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The kernel made something else of it.
    #[error("{} was to be {wanted} and is {given}", text::path(.path))]
    Other {
        /// The file.
        path: PathBuf,
        /// What was written.
        wanted: u64,
        /// What it says.
        given: String,
    },
}

/// What limits it.
pub fn controller_of(kind: Kind) -> Controller {
    match kind {
        Kind::Memory => Controller::Memory,
        Kind::Processes => Controller::Pids,
    }
}

/// How a job in a group that is made at `place` can be limited.
pub fn way(kind: Kind, place: &Place, v1: &V1Offer, mountinfo: &str, uid: u32) -> Way {
    let refused = match (v1, place) {
        // What has no group of its own has none for that either.
        (Ok(Some(parent)), Place::Scope(_) | Place::V2(_) | Place::V1(_)) => return Way::V1(parent.clone()),
        (Ok(_), _) => None,
        (Err(why), _) => Some(why.clone()),
    };
    match controller::in_v2(place, controller_of(kind), mountinfo, uid) {
        Ok(()) => Way::Group,
        Err(lack) => {
            let (why, cure) = controller::lack(refused.filter(|_| *place != Place::Subreaper), lack, uid);
            Way::Unlimited { why, cure }
        }
    }
}

/// Makes a job's group in the v1 hierarchy at `location`, with its limit.
///
/// # Errors
/// The kernel refused; nothing is left of it.
pub fn create_v1(location: Location, limit: Limit) -> Result<v1::Group, LimitError> {
    v1::Group::create(location, controller_of(limit.kind), |group| match limit.kind {
        Kind::Memory => limit_v1_memory(group, limit.value),
        Kind::Processes => set(&group.join("pids.max"), limit.value),
    })
}

fn limit_v1_memory(group: &Path, bytes: u64) -> Result<(), LimitError> {
    // What the job makes below counts too: so it is everywhere since Linux 5.11.
    let below = group.join("memory.use_hierarchy");
    if is(&below, "0") {
        fs::write(&below, "1").map_err(FileError::on("write to", &below))?;
    }
    // Copied from the group above: who comes to the limit would sleep for ever.
    let oom = group.join("memory.oom_control");
    if fs::read_to_string(&oom).is_ok_and(|text| super::usage::keyed(&text, "oom_kill_disable") == Some(1)) {
        fs::write(&oom, "0").map_err(FileError::on("write to", &oom))?;
    }
    set(&group.join("memory.limit_in_bytes"), bytes)?;
    // Without an account of swap (`swapaccount=0`) there is no such file. It may not be lower than the other.
    let with_swap = group.join("memory.memsw.limit_in_bytes");
    if with_swap.exists() { set(&with_swap, bytes) } else { Ok(()) }
}

/// Limits the job's own group in v2.
///
/// # Errors
/// The kernel refused, or the controller is not on there.
pub fn limit_group(group: &Path, limit: Limit) -> Result<(), LimitError> {
    match limit.kind {
        Kind::Memory => {
            set(&group.join("memory.max"), limit.value)?;
            // A kernel without swap has no such file.
            let swap = group.join("memory.swap.max");
            if swap.exists() { set(&swap, 0) } else { Ok(()) }
        }
        Kind::Processes => set(&group.join("pids.max"), limit.value),
    }
}

fn is(file: &Path, value: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.trim() == value)
}

/// Writes a limit, and looks what became of it: the kernel counts memory in pages.
fn set(file: &Path, wanted: u64) -> Result<(), LimitError> {
    fs::write(file, wanted.to_string()).map_err(FileError::on("write to", file))?;
    let text = fs::read_to_string(file).map_err(FileError::on("read", file))?;
    let page = rustix::param::page_size() as u64;
    match text.trim().parse::<u64>() {
        Ok(given) if given == wanted || given == wanted / page * page => Ok(()),
        _ => Err(LimitError::Other { path: file.to_owned(), wanted, given: text::escape(text.trim()) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group's directory with files of these names, all of which say `max`.
    fn group(files: &[&str]) -> tempfile::TempDir {
        let group = tempfile::tempdir().unwrap();
        files.iter().for_each(|name| fs::write(group.path().join(name), "max\n").unwrap());
        group
    }

    fn limit(kind: Kind, value: u64) -> Limit {
        Limit { kind, value, asked: true }
    }

    #[test]
    fn swap_is_no_way_out() {
        let says = |group: &tempfile::TempDir, name: &str| fs::read_to_string(group.path().join(name)).unwrap();
        let both = group(&["memory.max", "memory.swap.max"]);
        limit_group(both.path(), limit(Kind::Memory, 5 << 20)).unwrap();
        assert_eq!((says(&both, "memory.max"), says(&both, "memory.swap.max")), ("5242880".into(), "0".into()));
        let without = group(&["memory.max"]);
        limit_group(without.path(), limit(Kind::Memory, 5 << 20)).unwrap();
        assert!(!without.path().join("memory.swap.max").exists());
        let v1 = group(&["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]);
        limit_v1_memory(v1.path(), 5 << 20).unwrap();
        assert_eq!(says(&v1, "memory.memsw.limit_in_bytes"), "5242880");
        assert!(!v1.path().join("memory.use_hierarchy").exists());
    }

    #[test]
    fn an_old_or_odd_group_above_makes_no_difference() {
        let v1 = group(&["memory.limit_in_bytes"]);
        fs::write(v1.path().join("memory.use_hierarchy"), "0\n").unwrap();
        fs::write(v1.path().join("memory.oom_control"), "oom_kill_disable 1\nunder_oom 0\n").unwrap();
        limit_v1_memory(v1.path(), 5 << 20).unwrap();
        assert!(is(&v1.path().join("memory.use_hierarchy"), "1") && is(&v1.path().join("memory.oom_control"), "0"));
    }

    #[test]
    fn what_is_not_in_force_is_an_error() {
        let nowhere = Path::new("/nonexistent");
        let error = limit_group(nowhere, limit(Kind::Processes, 5)).unwrap_err().to_string();
        assert_eq!(error, "cannot write to /nonexistent/pids.max: No such file or directory");
        let error = set(Path::new("/dev/null"), 5).unwrap_err().to_string();
        assert_eq!(error, "/dev/null was to be 5 and is ");
    }
}
