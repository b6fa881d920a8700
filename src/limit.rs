//! What a job may have at most of memory and processes: words for it, what they mean, and when a limit is to blame. Pure;
//! [`crate::cgroup::limits`] puts limits in force.

use serde::{Deserialize, Serialize};

use crate::text;

/// No program starts with less.
pub const LEAST_MEMORY: u64 = 1 << 20;

/// How far below its limit a group may be when the kernel finds no room for the pages that it wants at once.
const NEARLY: u64 = 64 << 10;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Memory, in bytes.
    Memory,
    /// Processes and threads.
    Processes,
}

impl Kind {
    /// The option.
    pub fn option(self) -> &'static str {
        match self {
            Self::Memory => "--memory",
            Self::Processes => "--pids",
        }
    }
}

/// What an option or a key says: a limit, or that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound(pub Option<u64>);

impl Bound {
    /// Reads a size.
    ///
    /// # Errors
    /// A sentence fragment that says what it may be.
    pub fn memory(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        match text::parse_size(text) {
            Some(bytes) if bytes < LEAST_MEMORY => {
                Err(format!("no program starts with less than {} of memory", text::exact_bytes(LEAST_MEMORY)))
            }
            Some(bytes) => Ok(Self(Some(bytes))),
            None => Err("a size is in bytes (1073741824) or has a unit (512M, 2G, 1.5GiB), or is none".to_owned()),
        }
    }

    /// Reads a number of processes.
    ///
    /// # Errors
    /// A sentence fragment that says what it may be.
    pub fn processes(text: &str) -> Result<Self, String> {
        match text.parse::<u32>() {
            _ if text == "none" => Ok(Self(None)),
            Ok(0) => Err("a job has at least one process".to_owned()),
            Ok(count) => Ok(Self(Some(count.into()))),
            Err(_) => Err("a number of processes is expected, or none".to_owned()),
        }
    }
}

/// One limit that a job is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Of what.
    pub kind: Kind,
    /// How much.
    pub value: u64,
    /// Asked for on the command line: without it nothing is run. Else it is a default from the configuration.
    pub asked: bool,
}

impl Limit {
    /// `memory 512M`, `200 processes`.
    pub fn shown(&self) -> String {
        match self.kind {
            Kind::Memory => format!("memory {}", text::exact_bytes(self.value)),
            Kind::Processes => text::count(usize::try_from(self.value).unwrap_or(usize::MAX), "process"),
        }
    }
}

/// Limits that are in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory and swap together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
}

impl Limits {
    /// There is none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds one.
    pub fn add(&mut self, limit: Limit) {
        match limit.kind {
            Kind::Memory => self.memory_bytes = Some(limit.value),
            Kind::Processes => self.processes = Some(limit.value),
        }
    }

    /// The limit of memory, if a job that had so much at most has come to it. Where the kernel does not tell, it may have.
    pub fn memory_reached(self, peak_bytes: Option<u64>) -> Option<u64> {
        let reached = |limit: u64| peak_bytes.is_none_or(|peak| peak.saturating_add(NEARLY) >= limit);
        self.memory_bytes.filter(|&limit| reached(limit))
    }

    /// The limit of processes, if forks of a job that had so many at most were refused for it, and not for a limit above.
    pub fn processes_reached(self, forks_refused: u64, peak: Option<u64>) -> Option<u64> {
        self.processes.filter(|&limit| forks_refused > 0 && peak.is_none_or(|peak| peak >= limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_read_and_what_is_none_is_told() {
        assert_eq!(Bound::memory("512M"), Ok(Bound(Some(512 << 20))));
        assert_eq!(Bound::memory("1048576"), Ok(Bound(Some(1 << 20))));
        assert_eq!(Bound::memory("none"), Ok(Bound(None)));
        for small in ["0", "1", "0G", "1023K", "0.5M"] {
            assert_eq!(Bound::memory(small).unwrap_err(), "no program starts with less than 1M of memory", "{small}");
        }
        for bad in ["", "-1", "-5M", "M", "lots", "1X", "None", "99999999999999999999", "1e9"] {
            let said = "a size is in bytes (1073741824) or has a unit (512M, 2G, 1.5GiB), or is none";
            assert_eq!(Bound::memory(bad).unwrap_err(), said, "{bad}");
        }
        assert_eq!(Bound::processes("1"), Ok(Bound(Some(1))));
        assert_eq!(Bound::processes("none"), Ok(Bound(None)));
        assert_eq!(Bound::processes("0").unwrap_err(), "a job has at least one process");
        for bad in ["", "-1", "1.5", "many", "4294967296", "1K"] {
            assert_eq!(Bound::processes(bad).unwrap_err(), "a number of processes is expected, or none", "{bad}");
        }
    }

    #[test]
    fn a_limit_is_only_blamed_when_the_job_was_at_it() {
        let limits = Limits { memory_bytes: Some(64 << 20), processes: Some(10) };
        let at = |memory_peak_bytes, forks_refused, tasks_peak| {
            (
                limits.memory_reached(memory_peak_bytes).is_some(),
                limits.processes_reached(forks_refused, tasks_peak).is_some(),
            )
        };
        assert_eq!(at(Some(64 << 20), 3, Some(10)), (true, true));
        assert_eq!(at(Some((64 << 20) - 8192), 0, Some(10)), (true, false));
        assert_eq!(at(Some(32 << 20), 3, Some(9)), (false, false));
        // An older kernel.
        assert_eq!(at(None, 1, None), (true, true));
        assert_eq!(Limits::default().memory_reached(None), None);
    }
}
