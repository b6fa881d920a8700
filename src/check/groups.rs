//! What a job's group would be here, and what it could do.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::facts::Asker;
use crate::cgroup::controller::{self, Controller, V1Offer};
use crate::cgroup::cpuset;
use crate::cgroup::detect::{self, Detected, Place, Refusal};
use crate::cgroup::limits;
use crate::cgroup::v2::Location;
use crate::cgroup::{self, Backend, Choice, Usage};
use crate::job::JobId;
use crate::kernel;
use crate::limit::Kind;
use crate::machine;
use crate::pin::CpuList;
use crate::procfs::{self, Proc};

/// Linux 5.19 has `memory.peak`.
const MEMORY_PEAK: (u32, u32) = (5, 19);

/// What `--setup` or a package writes for systemd.
const DROP_IN: &str = "systemd/system/user@.service.d/perflock.conf";

/// How a job's memory is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryCount {
    /// The most it ever was.
    Peak,
    /// What it is.
    Now,
    /// Only where it is limited, by the v1 hierarchy.
    WhenLimited,
    /// Not at all.
    No {
        /// Why.
        why: String,
        /// What mends it.
        cure: Option<String>,
    },
}

/// Job groups, as they would be.
#[derive(Debug)]
pub struct Groups {
    /// `--cgroup`.
    pub choice: Choice,
    /// What a job would find.
    pub detected: Detected,
    /// The service manager was not asked whether it is there.
    pub unasked: bool,
    /// A group can be killed as a whole.
    pub kills: bool,
    /// CPU time is counted.
    pub counts_cpu: bool,
    /// Pressure is.
    pub counts_pressure: bool,
    /// Memory is.
    pub memory_count: MemoryCount,
    /// How memory can be limited.
    pub memory: limits::Way,
    /// How the number of processes can.
    pub pids: limits::Way,
    /// How a job can be kept on its processors.
    pub cpuset: cpuset::Way,
    /// Others can be kept off them.
    pub isolates: bool,
    /// Where it can run at all; `None` if the kernel does not say.
    pub reachable: Option<CpuList>,
    /// systemd runs here.
    pub systemd: bool,
    /// Controllers have hierarchies of cgroup v1.
    pub is_hybrid: bool,
    /// What the user's service manager has to give; `None` without one.
    pub delegated: Option<Vec<String>>,
    /// The machine was told to give it everything: since its next start it does.
    pub delegates: bool,
    /// Whether that runs without a session.
    pub lingers: io::Result<bool>,
}

impl Groups {
    /// Looks, from `inside` a job or not. If the machine `is_free`, the service manager is asked whether it is there.
    pub(super) fn look(root: &Path, proc: &Proc, asker: &Asker, choice: Choice, inside: bool, is_free: bool) -> Self {
        let mountinfo = procfs::read(&root.join("proc/self/mountinfo")).unwrap_or_default();
        let mountinfo = &*String::from_utf8_lossy(&mountinfo);
        let uid = asker.uid;
        let machine = detect::Machine { root, mountinfo, uid, bus_address: asker.bus_address.as_deref() };
        let mut detected = cgroup::choose(choice, proc, &machine);
        if inside {
            detected.within_a_job();
        }
        let unasked = !ask_manager(&mut detected, is_free);
        let own = detect::own_location(proc, mountinfo).ok();
        let place = detected.places.first().unwrap_or(&Place::Subreaper);
        let offer = |controller| nested_offer(controller::v1_offer(proc, mountinfo, controller), inside);
        let limit = |kind| limits::way(kind, place, &offer(limits::controller_of(kind)), mountinfo, uid);
        let cpuset = cpuset::way(place, &offer(Controller::Cpuset), mountinfo, uid);
        let memory = limit(Kind::Memory);
        let usage = own.as_ref().map(|own| Usage::read_all(&own.directory())).unwrap_or_default();
        let is_root = own.as_ref().is_some_and(|own| own.path == Path::new("/"));
        let has_group = !matches!(place, Place::Subreaper);
        let v1 = |name| proc.own_cgroup_v1(name).ok().flatten().is_some();
        Self {
            choice,
            unasked,
            kills: has_group && own.as_ref().is_some_and(detect::can_kill),
            // Every group has them but the root, which on some kernels has none of its own.
            counts_cpu: match place {
                Place::V1(site) => site.cpuacct_path().is_some(),
                _ => has_group && (is_root || usage.cpu_usec.is_some()),
            },
            counts_pressure: has_group
                && (usage.cpu_stall_usec.is_some() || is_root && procfs::read(&root.join("proc/pressure/cpu")).is_ok()),
            memory_count: memory_count(place, own.as_ref(), &memory),
            pids: limit(Kind::Processes),
            isolates: uid == 0 && cpuset::can_isolate(&cpuset, place),
            cpuset,
            memory,
            reachable: machine::reachable(),
            systemd: root.join("run/systemd/system").is_dir(),
            is_hybrid: ["memory", "cpuset", "pids"].into_iter().any(v1),
            delegated: delegated(mountinfo, uid),
            delegates: ["etc", "usr/lib"].iter().any(|directory| root.join(directory).join(DROP_IN).exists()),
            lingers: lingers(&root.join("var/lib/systemd/linger").join(&asker.user)),
            detected,
        }
    }

    /// Where a job's group would be made.
    pub fn place(&self) -> Option<&Place> {
        self.detected.places.first()
    }

    /// A job has a group of its own.
    pub fn has_group(&self) -> bool {
        self.place().is_some_and(|place| *place != Place::Subreaper)
    }

    /// It would be in a scope of the user's own service manager.
    pub fn is_in_user_scope(&self) -> bool {
        matches!(self.place(), Some(Place::Scope(manager)) if !manager.is_system())
    }
}

/// Refuses the service manager if nobody listens for it; false if that was not asked.
fn ask_manager(detected: &mut Detected, is_free: bool) -> bool {
    let Some(Place::Scope(manager)) = detected.places.first() else { return true };
    if !is_free {
        return false;
    }
    if let Err(missing) = manager.listens() {
        detected.places.remove(0);
        detected.refused.push(Refusal { backend: Backend::Scope, why: missing.why, cure: missing.cure });
    }
    true
}

/// What the v1 hierarchy offers to a job inside another: a group that no ticket names has to go with that of the outer job.
fn nested_offer(offer: V1Offer, inside: bool) -> V1Offer {
    match offer {
        Ok(Some(parent)) if inside && JobId::in_group_path(&parent.path).next().is_none() => {
            Err("the job that this is a part of has no group there".to_owned())
        }
        offer => offer,
    }
}

fn memory_count(place: &Place, own: Option<&Location>, memory: &limits::Way) -> MemoryCount {
    let enabled = |own: &Location| {
        let enabled = fs::read_to_string(own.directory().join("cgroup.subtree_control")).unwrap_or_default();
        enabled.split_ascii_whitespace().any(|name| name == Controller::Memory.name())
    };
    let counted = match place {
        Place::Scope(_) => *memory == limits::Way::Group,
        _ => own.is_some_and(enabled),
    };
    match memory {
        _ if counted && *place != Place::Subreaper => {
            let peak = kernel::is_at_least(&kernel::release(), MEMORY_PEAK);
            if peak { MemoryCount::Peak } else { MemoryCount::Now }
        }
        limits::Way::V1(_) | limits::Way::Group => MemoryCount::WhenLimited,
        limits::Way::Unlimited { why, cure } => MemoryCount::No { why: why.clone(), cure: cure.clone() },
    }
}

fn delegated(mountinfo: &str, uid: u32) -> Option<Vec<String>> {
    let group = PathBuf::from(format!("/user.slice/user-{uid}.slice/user@{uid}.service"));
    let directory = detect::locate(mountinfo, &group).ok()?.directory();
    let controllers = fs::read_to_string(directory.join("cgroup.controllers")).ok()?;
    Some(controllers.split_ascii_whitespace().map(str::to_owned).collect())
}

/// Whether a user lingers: systemd-logind keeps an empty file for each who does.
fn lingers(file: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(file) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
