//! A job that is pinned: how it can be kept where it is to run, and what is told of that.

use std::fs;
use std::path::Path;

use super::{Error, Here, Run};
use crate::cgroup::cpuset::{self, CpusetError, Way};
use crate::cgroup::v2::Location;
use crate::cgroup::{Detected, Place};
use crate::lock::record::Pinned;
use crate::pin::{Choice, CpuList, Partition, Pin, Plan, Strength, topology};
use crate::supervisor::placement::{Placement, can_bind_memory};
use crate::text;

/// Where the job runs, for the job itself.
pub(super) const CPUS_VARIABLE: &str = "PERFLOCK_CPUS";

/// A job's pin, and how it is kept.
pub(super) struct Pinning<'a> {
    plan: &'a Plan,
    pub(super) pin: Pin,
    /// Its group in the v1 cpuset hierarchy, where it gets one.
    pub(super) v1: Option<Location>,
    here: &'a Here,
}

impl<'a> Pinning<'a> {
    /// `pin` by `plan`, of the job whose group is called `name`.
    ///
    /// # Errors
    /// A processor went offline while the job waited, or memory was asked for and cannot be bound.
    pub(super) fn new(plan: &'a Plan, pin: Option<Pin>, here: &'a Here, name: &str) -> Result<Self, Error> {
        let gone = |cpus: &str| Error::Refused(format!("{cpus} went offline while this job waited; run it again"));
        let pin = pin.ok_or_else(|| gone("some cores"))?;
        let online = topology::online(Path::new("/"))?;
        let offline = pin.cpus.without(&online);
        if !offline.is_empty() {
            return Err(gone(&format!("cpus {offline}")));
        }
        // The same wherever the job's group is.
        let v1 = match way(plan, &Place::Subreaper, here) {
            Way::V1(parent) => Some(parent.child(name)),
            _ => None,
        };
        Ok(Self { plan, pin, v1, here })
    }

    /// How a job at this place is kept.
    pub(super) fn way(&self, place: &Place) -> Way {
        way(self.plan, place, self.here)
    }

    /// What the command does to itself before it executes. Memory is bound by a cpuset, where there is one.
    pub(super) fn placement(&self, way: &Way) -> Result<Placement<'_>, Error> {
        let binds = self.pin.memory_is_bound && matches!(way, Way::Affinity { .. });
        let can = binds && can_bind_memory();
        if binds && !can && self.pin.memory_is_asked_for {
            let why = "set_mempolicy(2) is refused here, by a container's filter or the kernel".to_owned();
            return Err(Error::Refused(format!("memory nodes {} cannot be bound: {why}", self.pin.memory_nodes)));
        }
        let memory_nodes = can.then_some(&self.pin.memory_nodes);
        Ok(Placement { tasks: None, cpus: Some(&self.pin.cpus), memory_nodes })
    }

    /// The affinity that is left where a cpuset cannot be had.
    ///
    /// # Errors
    /// It would be too weak.
    pub(super) fn weaker(&self, error: CpusetError) -> Result<Way, Error> {
        match self.plan.choice {
            Choice::Auto => Ok(Way::Affinity { why: error.to_string(), cure: None }),
            Choice::Hard | Choice::Soft => Err(error.into()),
        }
    }

    /// What its ticket and its report say.
    pub(super) fn told(&self, way: &Way, partition: Option<Partition>) -> Pinned {
        let strength = if matches!(way, Way::Affinity { .. }) { Strength::Soft } else { Strength::Hard };
        let Pin { cpus, memory_nodes, .. } = &self.pin;
        Pinned { cpus: cpus.clone(), memory_nodes: memory_nodes.clone(), strength, partition }
    }

    /// Nobody else is to use its processors.
    pub(super) fn is_isolated(&self) -> bool {
        self.plan.isolated
    }
}

fn way(plan: &Plan, place: &Place, here: &Here) -> Way {
    if plan.choice == Choice::Soft {
        return Way::Affinity { why: "--pin soft".to_owned(), cure: None };
    }
    cpuset::way(place, &here.proc, &here.mountinfo, rustix::process::geteuid().as_raw())
}

/// Whether a cpuset that is made this way can be a partition.
fn can_isolate(way: &Way, place: &Place) -> bool {
    match (way, place) {
        (Way::V2, _) => true,
        (Way::Scope, Place::Scope(manager)) => manager.is_system(),
        _ => false,
    }
}

/// Where a process that ended, or lives, was allowed to run: `/proc/PID/status`.
fn allowed(pid: i32) -> Option<CpuList> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?.parse().ok()
}

/// Where the main process, which ended and is not reaped, was allowed to run beside the processors that it was pinned to.
/// What its children did, nobody sees.
pub(super) fn moved_to(pin: &Pin, main: i32) -> Option<CpuList> {
    allowed(main).map(|list| list.without(&pin.cpus)).filter(|elsewhere| !elsewhere.is_empty())
}

impl Run {
    /// Leaves the places where a job can be kept as strongly as it was asked for, and announces a pin that is weaker than it
    /// could be.
    pub(super) fn places_for(&self, plan: &Plan, detected: &mut Detected, here: &Here) -> Result<(), Error> {
        let Some(first) = detected.places.first() else { return Ok(()) };
        let weak = way(plan, first, here);
        let isolated = plan.isolated;
        if isolated && !rustix::process::geteuid().is_root() {
            return Err(Error::Refused(
                "--isolated takes processors from everybody else, which only root may".to_owned(),
            ));
        }
        if isolated || plan.choice == Choice::Hard {
            detected.places.retain(|place| {
                let way = way(plan, place, here);
                if isolated { can_isolate(&way, place) } else { !matches!(way, Way::Affinity { .. }) }
            });
            return if detected.places.is_empty() { Err(too_weak(isolated, &weak)) } else { Ok(()) };
        }
        if matches!((&weak, plan.choice), (Way::Affinity { .. }, Choice::Auto)) {
            self.say.note(&by_affinity(&weak));
        }
        Ok(())
    }
}

/// What is said of a job that is kept by its affinity where that was not asked for.
pub(super) fn by_affinity(way: &Way) -> String {
    format!("pinned by affinity alone, which the job itself can change: {}; --pin soft silences this", why_not(way))
}

fn too_weak(isolated: bool, way: &Way) -> Error {
    let what = if isolated { "--isolated" } else { "--pin hard" };
    Error::Refused(format!("{what} cannot be had here: {}", why_not(way)))
}

/// Why a job is not kept better, with what mends it.
fn why_not(way: &Way) -> String {
    match way {
        Way::Affinity { why, cure: Some(cure) } => format!("{} ({cure})", text::escape(why)),
        Way::Affinity { why, cure: None } => text::escape(why),
        Way::V1(_) => "the cpuset controller is in the v1 hierarchy, which has no partitions".to_owned(),
        Way::Scope | Way::V2 => "its cpuset cannot be a partition".to_owned(),
    }
}
