//! A job that is pinned: how it can be kept where it is to run, and what is told of that.

use std::path::Path;

use super::{Error, Here, Run};
use crate::cgroup::controller::Controller;
use crate::cgroup::cpuset::{self, CpusetError, Way};
use crate::cgroup::v2::Location;
use crate::cgroup::{Detected, Place};
use crate::job::JobId;
use crate::lock::record::Pinned;
use crate::machine;
use crate::pin::{Choice, CpuList, Partition, Pin, Plan, Strength, topology};
use crate::supervisor::placement::{Placement, can_bind_memory};
use crate::text;

/// Where the job runs, for the job itself.
pub(super) const CPUS_VARIABLE: &str = "PERFLOCK_CPUS";

/// Where a job is to run, and what decides how it can be kept there.
#[derive(Clone, Copy)]
pub(super) struct Keeper<'a> {
    pub(super) plan: &'a Plan,
    pub(super) here: &'a Here,
    /// It is a part of another job.
    pub(super) nested: bool,
}

impl Keeper<'_> {
    /// How a job at this place is kept.
    fn way(self, place: &Place) -> Way {
        if self.plan.choice == Choice::Soft {
            return Way::Affinity { why: "--pin soft".to_owned(), cure: None };
        }
        let uid = rustix::process::geteuid().as_raw();
        match cpuset::way(place, self.here.v1_offer(Controller::Cpuset), &self.here.mountinfo, uid) {
            // A group that no ticket names has to go with that of the outer job.
            Way::V1(parent) if self.nested && JobId::in_group_path(&parent.path).next().is_none() => Way::Affinity {
                why: "the job that it is a part of has no cpuset".to_owned(),
                cure: Some("pin that one, too".to_owned()),
            },
            way => way,
        }
    }
}

/// A job's pin, and how it is kept.
pub(super) struct Pinning<'a> {
    keeper: Keeper<'a>,
    pub(super) pin: Pin,
    /// Its group in the v1 cpuset hierarchy, where it gets one.
    pub(super) v1: Option<Location>,
}

impl<'a> Pinning<'a> {
    /// `pin` of the job whose group is called `name`.
    ///
    /// # Errors
    /// A processor went offline while the job `waited`.
    pub(super) fn new(keeper: Keeper<'a>, pin: Option<Pin>, name: &str, waited: bool) -> Result<Self, Error> {
        let gone = |cpus: &str| Error::Refused(format!("{cpus} went offline while this job waited; run it again"));
        let pin = pin.ok_or_else(|| gone("some cores"))?;
        if waited {
            let offline = pin.cpus.without(&topology::online(Path::new("/"))?);
            if !offline.is_empty() {
                return Err(gone(&format!("cpus {offline}")));
            }
        }
        // The same wherever the job's group is.
        let v1 = match keeper.way(&Place::Subreaper) {
            Way::V1(parent) => Some(parent.child(name)),
            _ => None,
        };
        Ok(Self { keeper, pin, v1 })
    }

    /// How a job at this place is kept.
    pub(super) fn way(&self, place: &Place) -> Way {
        self.keeper.way(place)
    }

    /// Whether a pin that turns out to be soft is to be announced.
    pub(super) fn announces(&self, way: &Way) -> bool {
        self.keeper.plan.choice == Choice::Auto && matches!(way, Way::Affinity { .. })
    }

    /// What the command does to itself before it executes. It binds its memory in a v2 cpuset, too: before Linux 6.3 a process
    /// that is born there goes on with its parent's nodes. In v1 it is told when it joins.
    ///
    /// # Errors
    /// Memory was asked for by name, and cannot be bound.
    pub(super) fn placement(&self, way: &Way) -> Result<Placement<'_>, Error> {
        let binds = self.pin.memory_is_bound && !matches!(way, Way::V1(_));
        let can = binds && can_bind_memory();
        let needs = self.pin.memory_is_asked_for && matches!(way, Way::Affinity { .. });
        if binds && !can && needs {
            let why = "set_mempolicy(2) is refused here, by a container's filter or the kernel".to_owned();
            return Err(Error::Refused(format!("memory nodes {} cannot be bound: {why}", self.pin.memory_nodes)));
        }
        let memory_nodes = can.then_some(&self.pin.memory_nodes);
        Ok(Placement { cpus: Some(&self.pin.cpus), memory_nodes, ..Placement::default() })
    }

    /// The affinity that is left where a cpuset cannot be had.
    ///
    /// # Errors
    /// It would be too weak.
    pub(super) fn weaker(&self, error: CpusetError) -> Result<Way, Error> {
        match self.keeper.plan.choice {
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
        self.keeper.plan.isolated
    }
}

/// Where the main process, which ended and is not reaped, was allowed to run beside the processors that it was pinned to.
/// What its children did, nobody sees.
pub(super) fn moved_to(pin: &Pin, main: i32) -> Option<CpuList> {
    let (cpus, _) = machine::allowed_to(Path::new("/"), &main.to_string());
    let elsewhere = cpus?.parse::<CpuList>().ok()?.without(&pin.cpus);
    (!elsewhere.is_empty()).then_some(elsewhere)
}

impl Run {
    /// Leaves the places where a job can be kept as strongly as it was asked for, and announces a pin that is weaker than it
    /// could be.
    pub(super) fn places_for(&self, keeper: Keeper<'_>, detected: &mut Detected) -> Result<(), Error> {
        let plan = keeper.plan;
        let Some(first) = detected.places.first() else { return Ok(()) };
        let weak = keeper.way(first);
        let isolated = plan.isolated;
        if isolated && !rustix::process::geteuid().is_root() {
            return Err(Error::Refused(
                "--isolated takes processors from everybody else, which only root may".to_owned(),
            ));
        }
        if isolated || plan.choice == Choice::Hard {
            detected.places.retain(|place| {
                let way = keeper.way(place);
                if isolated { cpuset::can_isolate(&way, place) } else { !matches!(way, Way::Affinity { .. }) }
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
