//! The v2 mount as cgroups-rs sees it.

use std::path::{Path, PathBuf};

use cgroups_rs::fs::cgroup::Cgroup;
use cgroups_rs::fs::error::Error;
use cgroups_rs::fs::{Hierarchy, Subsystem};

/// Kills every process in a group, which has a `cgroup.kill`, once.
///
/// # Errors
/// The kernel refused.
pub(super) fn kill(mount: &Path, relative: &Path) -> Result<(), Error> {
    Cgroup::load(Box::new(Unified(mount.to_owned())), relative).kill()
}

/// A v2 hierarchy by its mount: cgroups-rs's own detection knows no hybrid machine, and with no subsystem it opens and
/// creates nothing.
#[derive(Debug)]
struct Unified(PathBuf);

impl Hierarchy for Unified {
    fn subsystems(&self) -> Vec<Subsystem> {
        Vec::new()
    }

    fn root(&self) -> PathBuf {
        self.0.clone()
    }

    fn root_control_group(&self) -> Cgroup {
        Cgroup::load(Box::new(Self(self.0.clone())), "")
    }

    fn parent_control_group(&self, path: &str) -> Cgroup {
        let parent = Path::new(path).parent().unwrap_or(Path::new(""));
        Cgroup::load(Box::new(Self(self.0.clone())), parent)
    }

    fn v2(&self) -> bool {
        true
    }
}
