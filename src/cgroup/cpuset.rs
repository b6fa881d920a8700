//! Cpusets: what keeps a job on its processors and memory nodes whatever it asks for. Kernel side: cgroup-v2.rst ("Cpuset"),
//! Documentation/admin-guide/cgroup-v1/cpusets.rst.
//!
//! Where the controller is in a v1 hierarchy, as on a hybrid machine, the job gets a group of its own there: see [`v1`].
//!
//! Where it is in v2, the job's scope is told where it may run (`AllowedCPUs`), or, at the root of the hierarchy, the job's
//! group. Nowhere else: enabling a controller below a group that has processes, as ours has us, makes a job group impossible.
//!
//! If the last processor of a v1 cpuset goes offline, the kernel moves its processes to the group above.
//!
//! The kernel of v2 takes any list and quietly leaves out what the groups above do not have: so what became of it is read.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::controller::{self, Controller, V1Offer};
use super::detect::Place;
use super::v1;
use super::v2::Location;
use crate::error::FileError;
use crate::pin::{CpuList, Partition, Pin};

/// How a job can be kept on its processors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// By a group below this one in the v1 hierarchy.
    V1(Location),
    /// By its systemd scope.
    Scope,
    /// By the job's group itself, below the root of the v2 hierarchy.
    V2,
    /// By what it inherits alone.
    Affinity {
        /// Why not better, as a sentence fragment.
        why: String,
        /// What mends it, if that is known.
        cure: Option<String>,
    },
}

/// Why a job is not kept where it was to be.
#[derive(Debug, thiserror::Error)]
pub enum CpusetError {
    /// A system call on a file of the cpuset failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The kernel allows less than it was told to.
    #[error("the job's cpuset has only {what} {given} of {wanted}, since one above it ({}) is narrower", crate::text::path(.path))]
    Narrower {
        /// `cpus` or `memory nodes`.
        what: &'static str,
        /// What it has.
        given: CpuList,
        /// What it was to have.
        wanted: CpuList,
        /// Its directory.
        path: PathBuf,
    },
    /// No partition can be made.
    #[error("cpus {cpus} cannot be isolated: {why}")]
    NoPartition {
        /// The processors.
        cpus: CpuList,
        /// The kernel's reason.
        why: String,
    },
}

/// How a job in a group that is made at `place` can be kept on its processors.
pub fn way(place: &Place, v1: &V1Offer, mountinfo: &str, uid: u32) -> Way {
    let refused = match v1 {
        Ok(Some(parent)) => return Way::V1(parent.clone()),
        Ok(None) => None,
        Err(why) => Some(why.clone()),
    };
    match controller::in_v2(place, Controller::Cpuset, mountinfo, uid) {
        Ok(()) => {
            if matches!(place, Place::Scope(_)) {
                Way::Scope
            } else {
                Way::V2
            }
        }
        Err(lack) => {
            let (why, cure) = controller::lack(refused, lack, uid);
            Way::Affinity { why, cure }
        }
    }
}

/// Whether a cpuset that is made this way can be a partition.
pub fn can_isolate(way: &Way, place: &Place) -> bool {
    match (way, place) {
        (Way::V2, _) => true,
        (Way::Scope, Place::Scope(manager)) => manager.is_system(),
        _ => false,
    }
}

/// Makes a job's group in the v1 hierarchy at `location`.
///
/// # Errors
/// The kernel refused; nothing is left of it.
pub fn create_v1(location: Location, pin: &Pin) -> Result<v1::Group, CpusetError> {
    // Both, whatever was copied from the group above (cgroup.clone_children): a task can join only where there is some of each.
    v1::Group::create(location, Controller::Cpuset, |group| {
        let write = |name: &str, list: &CpuList| {
            let file = group.join(name);
            fs::write(&file, list.to_string()).map_err(FileError::on("write to", &file))
        };
        write("cpuset.mems", &pin.memory_nodes)?;
        Ok(write("cpuset.cpus", &pin.cpus)?)
    })
}

/// Restricts a v2 group whose parent has the controller enabled.
///
/// # Errors
/// The kernel refused, or allows less.
pub fn restrict(group: &Path, pin: &Pin) -> Result<(), CpusetError> {
    let write = |name: &str, list: &CpuList| {
        let file = group.join(name);
        fs::write(&file, list.to_string()).map_err(FileError::on("write to", &file))
    };
    write("cpuset.cpus", &pin.cpus)?;
    if pin.memory_is_bound {
        write("cpuset.mems", &pin.memory_nodes)?;
    }
    check(group, pin)
}

/// Whether the v2 group has what it was given.
///
/// # Errors
/// It has less, or cannot be read.
pub fn check(group: &Path, pin: &Pin) -> Result<(), CpusetError> {
    let memory = pin.memory_is_bound.then_some(("memory nodes", "cpuset.mems.effective", &pin.memory_nodes));
    for (what, name, wanted) in [("cpus", "cpuset.cpus.effective", &pin.cpus)].into_iter().chain(memory) {
        let file = group.join(name);
        let text = fs::read_to_string(&file).map_err(FileError::on("read", &file))?;
        let given: CpuList = text.parse().unwrap_or_default();
        if given != *wanted {
            let (wanted, path) = (wanted.clone(), group.to_owned());
            return Err(CpusetError::Narrower { what, given, wanted, path });
        }
    }
    Ok(())
}

/// Takes the processors of a restricted group from everybody else. What a kernel that cannot isolate offers is taken.
///
/// # Errors
/// The kernel refused: `cpuset.cpus.partition` says why.
pub fn isolate(group: &Path, pin: &Pin) -> Result<Partition, CpusetError> {
    let file = group.join("cpuset.cpus.partition");
    let set = |word: &str| {
        fs::write(&file, word)?;
        fs::read_to_string(&file)
    };
    become_partition(set).map_err(|why| CpusetError::NoPartition { cpus: pin.cpus.clone(), why })
}

/// Tries every kind, the best first. `set` writes a word to the file and reads what it says then: a word that was taken may
/// still be `invalid`, with the reason behind it.
fn become_partition(mut set: impl FnMut(&str) -> io::Result<String>) -> Result<Partition, String> {
    let mut why = String::new();
    for partition in [Partition::Isolated, Partition::Root] {
        match set(partition.name()) {
            Ok(said) if said.trim() == partition.name() => return Ok(partition),
            Ok(said) => why = format!("the kernel says: {}", crate::text::escape(said.trim())),
            Err(error) => why = crate::error::reason(&error),
        }
    }
    // Not one that is none.
    let _ = set("member");
    Err(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(cpus: &str, memory_nodes: &str) -> Pin {
        let list = |text: &str| text.parse().unwrap();
        Pin {
            cpus: list(cpus),
            memory_nodes: list(memory_nodes),
            memory_is_bound: true,
            memory_is_asked_for: false,
            reserved: None,
        }
    }

    #[test]
    fn what_a_group_above_does_not_have_is_told() {
        let group = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(group.path().join(name), text).unwrap();
        write("cpuset.cpus.effective", "0-3\n");
        write("cpuset.mems.effective", "0\n");
        assert!(check(group.path(), &pin("0-3", "0")).is_ok());
        let narrower = check(group.path(), &pin("0-4", "0")).unwrap_err().to_string();
        assert!(narrower.starts_with("the job's cpuset has only cpus 0-3 of 0-4, since"), "{narrower}");
        let narrower = check(group.path(), &pin("0-3", "0-1")).unwrap_err().to_string();
        assert!(narrower.starts_with("the job's cpuset has only memory nodes 0 of 0-1, since"), "{narrower}");
        fs::remove_file(group.path().join("cpuset.cpus.effective")).unwrap();
        assert!(matches!(check(group.path(), &pin("0-3", "0")), Err(CpusetError::File(_))));
    }

    #[test]
    fn the_best_partition_that_the_kernel_makes_is_taken() {
        let tried = |answer: &dyn Fn(&str) -> io::Result<String>| {
            let mut words = Vec::new();
            let made = become_partition(|word| {
                words.push(word.to_owned());
                answer(word)
            });
            (made, words.join(" "))
        };
        let says = |word: &str| Ok(format!("{word}\n"));
        assert_eq!(tried(&says), (Ok(Partition::Isolated), "isolated".to_owned()));
        // Before Linux 6.1 there is one kind.
        let refused = || Err(io::Error::from_raw_os_error(libc::EINVAL));
        let old = |word: &str| if word == "isolated" { refused() } else { says(word) };
        assert_eq!(tried(&old), (Ok(Partition::Root), "isolated root".to_owned()));
        let invalid = |word: &str| Ok(format!("{word} invalid (Parent is not a partition root)\n"));
        let why = "the kernel says: root invalid (Parent is not a partition root)".to_owned();
        assert_eq!(tried(&invalid), (Err(why), "isolated root member".to_owned()));
        assert_eq!(tried(&|_| refused()).0, Err("Invalid argument".to_owned()));
    }
}
