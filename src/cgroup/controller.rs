//! Where a controller is that a job needs: in a hierarchy of cgroup v1, or in v2, and whether it is ours to use there.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags};

use super::detect::{self, Place};
use super::v1;
use super::v2::Location;
use crate::error::FileError;
use crate::procfs::Proc;

/// A controller that perflock uses itself; others are the job's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    /// Processors and memory nodes.
    Cpuset,
    /// The amount of memory.
    Memory,
    /// The number of tasks.
    Pids,
}

impl Controller {
    /// As the kernel calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpuset => "cpuset",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }

    /// As messages call it.
    fn shown(self) -> &'static str {
        match self {
            Self::Cpuset => "cpuset",
            Self::Memory => "memory controller",
            Self::Pids => "pids controller",
        }
    }
}

/// Why a controller is not ours to use, as a sentence fragment, and what mends it.
pub(super) type Lack = (String, String);

/// What root is told to do for plain users.
pub const DELEGATE: &str = "sudo perflock --setup, and then log out of every session and in again";

/// What the v1 hierarchy of a controller offers: our own group, `None` where there is no such hierarchy, or why there is nothing
/// to be had, as a sentence fragment.
pub type V1Offer = Result<Option<Location>, String>;

/// Looks what the v1 hierarchy of a controller offers.
///
/// # Errors
/// See [`V1Offer`].
pub fn v1_offer(proc: &Proc, mountinfo: &str, controller: Controller) -> V1Offer {
    let Some(path) = proc.own_cgroup_v1(controller.name()).ok().flatten() else { return Ok(None) };
    let Some(own) = v1::locate(mountinfo, &path, controller) else {
        let name = controller.name();
        return Err(format!(
            "the {name} hierarchy that this process is in is not mounted here, or is another controller's, too"
        ));
    };
    let directory = own.directory();
    rustix::fs::accessat(rustix::fs::CWD, &directory, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).map_err(
        |errno| format!("no write access to {}: {}", directory.display(), crate::error::reason(&errno.into())),
    )?;
    Ok(Some(own))
}

/// Whether a job's group that is made at `place` can have the controller in v2: in its systemd scope, or below the root of the
/// hierarchy.
pub(super) fn in_v2(place: &Place, controller: Controller, mountinfo: &str, uid: u32) -> Result<(), Lack> {
    match place {
        Place::Scope(manager) => {
            let group = if manager.is_system() {
                PathBuf::from("/")
            } else {
                PathBuf::from(format!("/user.slice/user-{uid}.slice/user@{uid}.service"))
            };
            let found = detect::locate(mountinfo, &group).is_ok_and(|location| has(&location.directory(), controller));
            let why = format!("your service manager has no {} to give", controller.shown());
            found.then_some(()).ok_or((why, DELEGATE.to_owned()))
        }
        // The root of the hierarchy alone has no type, and may have both processes and controllers.
        Place::V2(own) if !own.directory().join("cgroup.type").exists() && has(&own.directory(), controller) => Ok(()),
        Place::V2(own) => {
            let what = match controller {
                Controller::Cpuset => "no cpuset can be made".to_owned(),
                other => format!("no group can have the {}", other.shown()),
            };
            let why = format!("{what} below {}, which has processes", own.directory().display());
            Err((why, "run perflock where systemd gives its jobs a scope".to_owned()))
        }
        Place::V1(_) => {
            let why = format!("no hierarchy of cgroup v1 that is mounted here has the {}", controller.shown());
            Err((why, "mount one, or let the kernel have it (cgroup_enable on its command line)".to_owned()))
        }
        Place::Subreaper => Err(("the job has no group of its own".to_owned(), "see --cgroup".to_owned())),
    }
}

/// The same where v1 was looked at before: what it `refused` is nearer to the point than what v2 does not have.
pub(super) fn lack(refused: Option<String>, (why, cure): Lack, uid: u32) -> (String, Option<String>) {
    let as_root = || (uid != 0).then(|| "run perflock as root".to_owned());
    match refused {
        Some(why) => (why, as_root()),
        None => (why, Some(cure)),
    }
}

fn has(group: &Path, controller: Controller) -> bool {
    let controllers = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    controllers.split_ascii_whitespace().any(|name| name == controller.name())
}

/// Enables a controller below the root of the v2 hierarchy, unless it is. It stays so.
///
/// # Errors
/// The kernel refused.
pub fn enable_below(root: &Path, controller: Controller) -> Result<(), FileError> {
    let file = root.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&file).unwrap_or_default();
    if enabled.split_ascii_whitespace().any(|name| name == controller.name()) {
        return Ok(());
    }
    fs::write(&file, format!("+{}", controller.name())).map_err(FileError::on("write to", &file))
}
