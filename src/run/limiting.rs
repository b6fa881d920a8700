//! A job whose memory or processes are limited: how that can be put in force, and what is told of it.

use super::job::Job;
use super::{Error, Here, Run};
use crate::cgroup::controller::{self, Controller};
use crate::cgroup::limits::{self, LimitError, Way, controller_of};
use crate::cgroup::v2::Location;
use crate::cgroup::{Detected, Place, Usage, v1, v2};
use crate::error::FileError;
use crate::job::JobId;
use crate::limit::{Kind, Limit, Limits};
use crate::lock::Change;
use crate::supervisor::spawn::SpawnError;
use crate::text;

/// What a job is to have at most.
pub(super) struct Limiting<'a> {
    limits: Vec<Limit>,
    here: &'a Here,
    /// It is a part of another job.
    nested: bool,
}

/// A limit of the configuration that cannot be put in force.
struct Unmet {
    limit: Limit,
    why: String,
    cure: Option<String>,
}

/// How a job is limited.
#[derive(Debug, Default)]
pub(super) struct Limited {
    /// Its groups in v1 hierarchies.
    pub(super) groups: Vec<(Kind, v1::Group)>,
    /// For its own group, when that is there.
    later: Vec<Limit>,
    /// In force.
    pub(super) limits: Limits,
    /// Configured, and not in force.
    unmet: Option<String>,
}

impl<'a> Limiting<'a> {
    /// `None`: there is nothing to limit. A job inside another is in that one's limits: defaults are for jobs as a whole.
    pub(super) fn new(limits: &[Limit], here: &'a Here, nested: bool) -> Option<Self> {
        let limits: Vec<Limit> = limits.iter().copied().filter(|limit| limit.asked || !nested).collect();
        (!limits.is_empty()).then_some(Self { limits, here, nested })
    }

    /// How a job at this place is limited.
    fn way(&self, limit: &Limit, place: &Place) -> Way {
        let uid = rustix::process::geteuid().as_raw();
        let v1 = self.here.v1_offer(controller_of(limit.kind));
        match limits::way(limit.kind, place, v1, &self.here.mountinfo, uid) {
            // A group that no ticket names has to go with that of the outer job.
            Way::V1(parent) if self.nested && JobId::in_group_path(&parent.path).next().is_none() => Way::Unlimited {
                why: "the job that it is a part of has no such limit".to_owned(),
                cure: Some(format!("give that one {}, too", limit.kind.option())),
            },
            // A scope would be outside of the job that it is a part of.
            Way::Unlimited { why, .. } if self.nested && matches!(place, Place::V2(_)) => {
                Way::Unlimited { why, cure: Some("limit the job that it is a part of".to_owned()) }
            }
            way => way,
        }
    }

    /// Why the job would not be as it was configured at this place.
    fn unmet(&self, place: &Place) -> Vec<Unmet> {
        let configured = self.limits.iter().filter(|limit| !limit.asked);
        let unmet = configured.filter_map(|limit| match self.way(limit, place) {
            Way::Unlimited { why, cure } => Some(Unmet { limit: *limit, why, cure }),
            Way::V1(_) | Way::Group => None,
        });
        unmet.collect()
    }

    /// The job's groups in v1 hierarchies, whether they are there or not; `name` is that of its own group.
    fn v1_groups<'b>(&'b self, name: &'b str) -> impl Iterator<Item = (Kind, Location)> + use<'a, 'b> {
        // The same wherever the job's own group is.
        let parent = |limit: &Limit| self.here.v1_offer(controller_of(limit.kind)).as_ref().ok().cloned().flatten();
        self.limits.iter().filter_map(move |limit| Some((limit.kind, parent(limit)?.child(name))))
    }
}

impl Run {
    /// Leaves the places where the limits that were asked for can be put in force, and tells of those that were configured and
    /// cannot.
    pub(super) fn limits_for(&self, limiting: Option<&Limiting<'_>>, detected: &mut Detected) -> Result<(), Error> {
        let Some(limiting) = limiting else { return Ok(()) };
        for limit in limiting.limits.iter().filter(|limit| limit.asked) {
            let Some(first) = detected.places.first() else { return Ok(()) };
            let way = limiting.way(limit, first);
            detected.places.retain(|place| !matches!(limiting.way(limit, place), Way::Unlimited { .. }));
            if let (true, Way::Unlimited { why, cure }) = (detected.places.is_empty(), way) {
                let cure = cure.map(|cure| format!(" ({cure})")).unwrap_or_default();
                let option = limit.kind.option();
                return Err(Error::Refused(format!("{option} cannot be had here: {}{cure}", text::escape(&why))));
            }
        }
        if let Some(line) = detected.places.first().and_then(|first| not_as_configured(&limiting.unmet(first))) {
            self.say.note(&line);
        }
        Ok(())
    }
}

/// What is said of a job that is not limited as it was configured, if that is so.
fn not_as_configured(unmet: &[Unmet]) -> Option<String> {
    let parts: Vec<String> =
        unmet.iter().map(|unmet| format!("{}: {}", unmet.limit.shown(), text::escape(&unmet.why))).collect();
    let cure = unmet.iter().find_map(|unmet| unmet.cure.as_ref()).map(|cure| format!("; {cure}")).unwrap_or_default();
    let options: Vec<String> = unmet.iter().map(|unmet| format!("{} none", unmet.limit.kind.option())).collect();
    let (parts, options) = (parts.join("; "), options.join(" "));
    (!unmet.is_empty()).then(|| format!("not limited as configured ({parts}{cure}); {options} silences this"))
}

impl Job<'_> {
    /// The paths of the job's groups in v1 hierarchies that limit it, for its ticket.
    pub(super) fn v1_path(&self, kind: Kind) -> Option<std::path::PathBuf> {
        self.limiting?.v1_groups(self.name).find(|(of, _)| *of == kind).map(|(_, location)| location.path)
    }

    /// Says of a place that is not the first what was said of that one before there was a wait.
    pub(super) fn tell_unmet(&self, place: &Place) {
        let line = self.limiting.and_then(|limiting| not_as_configured(&limiting.unmet(place)));
        line.iter().for_each(|line| self.run.say.note_now(line));
    }

    /// Makes those of the job's groups that are in v1 hierarchies. The ticket names them already.
    pub(super) fn limit(&self, place: &Place) -> Result<Limited, Error> {
        let mut limited = Limited::default();
        let Some(limiting) = self.limiting else { return Ok(limited) };
        for limit in &limiting.limits {
            match limiting.way(limit, place) {
                Way::V1(parent) => match limits::create_v1(parent.child(self.name), *limit) {
                    Ok(group) => {
                        limited.groups.push((limit.kind, group));
                        limited.limits.add(*limit);
                    }
                    Err(error) => self.not_limited(&mut limited, limit, error)?,
                },
                Way::Group => limited.later.push(*limit),
                Way::Unlimited { .. } => {}
            }
        }
        limited.unmet = not_as_configured(&limiting.unmet(place));
        Ok(limited)
    }

    /// Limits the job's own group, before its command executes; `root` is the root of the hierarchy, if it is directly below.
    pub(super) fn limit_group(
        &self,
        limited: &mut Limited,
        root: Option<&Location>,
        group: &v2::Group,
    ) -> Result<(), Error> {
        for limit in std::mem::take(&mut limited.later) {
            let enabled =
                root.map_or(Ok(()), |root| Ok(controller::enable_below(&root.directory(), controller_of(limit.kind))?));
            match enabled.and_then(|()| limits::limit_group(&group.location().directory(), limit)) {
                Ok(()) => limited.limits.add(limit),
                Err(error) => self.not_limited(limited, &limit, error)?,
            }
        }
        Ok(())
    }

    /// A limit could not be put in force though it seemed so: an error if it was asked for.
    fn not_limited(&self, limited: &mut Limited, limit: &Limit, error: LimitError) -> Result<(), Error> {
        if limit.asked {
            return Err(error.into());
        }
        let line = not_as_configured(&[Unmet { limit: *limit, why: error.to_string(), cure: None }]);
        line.iter().for_each(|line| self.run.say.note_now(line));
        limited.unmet = limited.unmet.take().into_iter().chain(line).reduce(|a, b| format!("{a}; {b}"));
        Ok(())
    }

    /// Says in ticket and report what the job may have.
    pub(super) fn record_limits(&self, limited: &Limited) -> Result<(), Error> {
        if self.limiting.is_none() {
            return Ok(());
        }
        let kinds = limited.groups.iter().map(|(kind, _)| *kind);
        self.run.account.limited(limited.limits, kinds, limited.unmet.as_deref());
        match self.hold {
            Some(hold) if !limited.limits.is_empty() => Ok(hold.ticket().record(&Change::Limited(limited.limits))?),
            _ => Ok(()),
        }
    }

    /// What the job has used, with what its groups in v1 hierarchies counted. For its guard too, which knows them by name.
    pub(super) fn with_v1_counters(&self, usage: Usage) -> Usage {
        let groups = self.limiting.into_iter().flat_map(|limiting| limiting.v1_groups(self.name));
        groups.map(|(kind, location)| (kind, location.directory())).filter(|(_, group)| group.is_dir()).fold(
            usage,
            |usage, (kind, group)| match kind {
                Kind::Memory => usage.with_v1_memory(&group),
                Kind::Processes => usage.with_v1_pids(&group),
            },
        )
    }

    /// Removes the job's groups in v1 hierarchies, those that it has.
    pub(super) fn remove_v1(&self) -> Vec<FileError> {
        let cpuset = self.pinning.and_then(|pinning| pinning.v1.clone()).map(|location| (Controller::Cpuset, location));
        let limits = self.limiting.into_iter().flat_map(|limiting| limiting.v1_groups(self.name));
        let groups = cpuset.into_iter().chain(limits.map(|(kind, location)| (controller_of(kind), location)));
        groups.filter_map(|(controller, location)| v1::remove(&location, controller).err()).collect()
    }

    /// A command that could not be executed for want of memory within its limit is not told as any other: the kernel's reason
    /// would be that its arguments are too long. `usage` is what its group counted so far.
    pub(super) fn because_of_memory(&self, error: Error, limited: &Limited, usage: impl FnOnce() -> Usage) -> Error {
        let Error::Spawn(SpawnError::Exec { name, source }) = &error else { return error };
        if !matches!(source.raw_os_error(), Some(libc::E2BIG | libc::ENOMEM)) || limited.limits.memory_bytes.is_none() {
            return error;
        }
        match limited.limits.memory_reached(self.with_v1_counters(usage()).memory_peak_bytes) {
            Some(limit) => Error::TooLittleMemory { name: name.clone(), limit: text::exact_bytes(limit) },
            None => error,
        }
    }
}
