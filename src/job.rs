//! The words every other module shares: a job's mode and a job's identity.

use std::fmt;
use std::path::{Component, Path};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How a job holds the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Alone: no other job runs.
    Exclusive,
    /// Beside other shared jobs, never beside an exclusive one.
    Shared,
}

impl Mode {
    /// Whether two jobs of these modes may not run at the same time.
    pub fn conflicts_with(self, other: Self) -> bool {
        self == Self::Exclusive || other == Self::Exclusive
    }

    /// Whether a job of this mode already gives what a job of mode `inner` started within it asks for.
    pub fn covers(self, inner: Self) -> bool {
        self == Self::Exclusive || inner == Self::Shared
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
        })
    }
}

/// What every job group's name begins with. Nothing is ever killed in or removed from a group of another name.
pub const GROUP_PREFIX: &str = "perflock-";

/// Which job: never the number alone, since a number is used again once the highest ticket is gone, and on
/// ext4 an inode number is used again at once. The moment of joining tells such two apart, the boot id two boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId {
    /// The place in the queue: the ticket's file name.
    pub number: u64,
    /// The ticket's inode number.
    pub inode: u64,
    /// The first 32 bits of `/proc/sys/kernel/random/boot_id`.
    pub boot: u32,
    /// When the job joined the queue, on `CLOCK_BOOTTIME`.
    pub joined_usec: u64,
}

impl JobId {
    /// The name of the job's group.
    pub fn group_name(&self) -> String {
        format!("{GROUP_PREFIX}{self}")
    }

    /// The jobs that a cgroup path runs through, the innermost first. They may be of several locks.
    pub fn in_group_path(path: &Path) -> impl Iterator<Item = Self> {
        path.components().rev().filter_map(|component| match component {
            Component::Normal(name) => name.to_str()?.strip_prefix(GROUP_PREFIX)?.parse().ok(),
            _ => None,
        })
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:x}-{:08x}-{:x}", self.number, self.inode, self.boot, self.joined_usec)
    }
}

/// The text is not a job's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAJobId;

impl FromStr for JobId {
    type Err = NotAJobId;

    fn from_str(text: &str) -> Result<Self, NotAJobId> {
        let mut parts = text.split('-');
        let mut next = |radix| {
            let part = parts.next().ok_or(NotAJobId)?;
            u64::from_str_radix(part, radix).map_err(|_| NotAJobId)
        };
        let id = Self {
            number: next(10)?,
            inode: next(16)?,
            boot: next(16)?.try_into().map_err(|_| NotAJobId)?,
            joined_usec: next(16)?,
        };
        // One spelling per job: no signs, no leading zeros, nothing behind.
        if id.to_string() == text { Ok(id) } else { Err(NotAJobId) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exclusive_conflicts_with_everything_and_shared_only_with_exclusive() {
        use Mode::{Exclusive, Shared};
        assert!(Exclusive.conflicts_with(Exclusive));
        assert!(Exclusive.conflicts_with(Shared));
        assert!(Shared.conflicts_with(Exclusive));
        assert!(!Shared.conflicts_with(Shared));
        assert!(Exclusive.covers(Shared) && Exclusive.covers(Exclusive) && Shared.covers(Shared));
        assert!(!Shared.covers(Exclusive));
    }

    proptest! {
        #[test]
        fn an_identity_survives_its_own_spelling(number: u64, inode: u64, boot: u32, joined_usec: u64) {
            let id = JobId { number, inode, boot, joined_usec };
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            let nested = format!("/a/{}/sub/perflock-1-2-00000003-4", id.group_name());
            let inner = JobId { number: 1, inode: 2, boot: 3, joined_usec: 4 };
            prop_assert_eq!(JobId::in_group_path(Path::new(&nested)).collect::<Vec<_>>(), [inner, id]);
        }

        #[test]
        fn any_text_is_read_without_panic_and_only_in_its_own_spelling(text in "\\PC{0,60}") {
            if let Ok(id) = text.parse::<JobId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in ["", "1", "1-2-3", "01-2-00000003-4", "+1-2-00000003-4", "1-2-00000003-4-5", "1-2-3-4"] {
            assert_eq!(text.parse::<JobId>(), Err(NotAJobId), "{text}");
        }
    }
}
