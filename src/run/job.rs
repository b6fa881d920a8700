//! Running one job in its group, between holding the machine and giving it back.

use std::cell::Cell;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use super::limiting::{Limited, Limiting};
use super::pinning::{self, Pinning};
use super::quiet::Watched;
use super::{Error, Run, WORTH_A_LINE, fatal, no_group, weaker};
use crate::cgroup::controller::{self, Controller};
use crate::cgroup::cpuset::{self, Way};
use crate::cgroup::legacy::{self, Site};
use crate::cgroup::scope;
use crate::cgroup::systemd::{Manager, Missing, NoAnswer, Restriction};
use crate::cgroup::v2::Location;
use crate::cgroup::{Backend, Detected, JobGroup, Place, Population, Refusal, Usage, subreaper, v1, v2};
use crate::escape::Trail;
use crate::helper::{Begun, Interrupt};
use crate::job::JobId;
use crate::lock::{Change, Hold};
use crate::pin::Partition;
use crate::report;
use crate::report::document::in_usec;
use crate::step::Step;
use crate::supervisor::command::Command;
use crate::supervisor::guard::{Charge, Guard, until_empty};
use crate::supervisor::launcher::{Launched, Launcher, NotLaunched, Work};
use crate::supervisor::placement::Placement;
use crate::supervisor::signals::Signals;
use crate::supervisor::spawn::{self, Main, SpawnError, Start};
use crate::supervisor::step::News;
use crate::supervisor::{Notice, Outcome, Read, StartGuard, Supervisor};

/// A job that may start now.
pub(super) struct Job<'a> {
    pub(super) run: &'a Run,
    pub(super) command: &'a Command,
    pub(super) signals: &'a Signals,
    /// `None` inside another job, which holds the machine for us.
    pub(super) hold: Option<&'a Hold>,
    /// That other job.
    pub(super) inside: Option<JobId>,
    /// It waited so long that there is a line at its end, however short it is.
    pub(super) told: bool,
    /// Its group's name.
    pub(super) name: &'a str,
    /// What its environment has besides ours.
    pub(super) variables: &'a [(&'a str, String)],
    /// Where it is to run, if that was asked for.
    pub(super) pinning: Option<&'a Pinning<'a>>,
    /// What it may have at most, if it is limited.
    pub(super) limiting: Option<&'a Limiting<'a>>,
}

/// How a job is kept where it is to run, and within its limits.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// `None`: nowhere in particular.
    pub(super) way: Option<Way>,
    /// Its group in the v1 hierarchy.
    cpuset: Option<v1::Group>,
    /// What it may have at most.
    pub(super) limited: Limited,
}

/// A job that was seen to its end.
pub(super) struct Finished {
    pub(super) outcome: Outcome,
    /// By what its processes are known that left its group.
    pub(super) trail: Trail,
    /// Told to end, not yet reaped.
    pub(super) guard: Option<Guard>,
    /// What is to be said when the machine is given back.
    pub(super) warnings: Vec<String>,
    /// What others used meanwhile, where somebody wants to know.
    pub(super) watched: Option<Watched>,
}

impl Job<'_> {
    /// Runs the command to its end in the strongest group that can be had, and leaves that removed. A place that proves to
    /// be none moves from the places to the refusals.
    pub(super) fn run(&self, detected: &mut Detected, mountinfo: &str) -> Result<Finished, Error> {
        let mut shared: Vec<BorrowedFd<'_>> = self.hold.iter().flat_map(|hold| hold.descriptors()).collect();
        shared.extend(self.run.account.descriptor());
        let after = |usage| {
            let usage = self.with_v1_counters(usage);
            self.remove_v1();
            self.run.account.gives_back();
            self.run.chronicle.gives_back();
            if let Some(hold) = self.hold {
                hold.release_by_guard();
            }
            self.run.chronicle.supervisor_lost(&self.run.settings, &usage);
            self.run.account.supervisor_lost(usage);
        };
        let charge = Charge { keep: &shared, after: &after, policy: self.run.settings.policy };
        let result = self.in_a_place(detected, mountinfo, charge);
        if result.is_err() {
            // The error is what there is to say.
            self.remove_v1();
        }
        result
    }

    fn in_a_place(&self, detected: &mut Detected, mountinfo: &str, charge: Charge<'_>) -> Result<Finished, Error> {
        let mut leaving = None;
        let mut first = true;
        while !detected.places.is_empty() {
            let place = detected.places.remove(0);
            let way = self.pinning.map(|pinning| pinning.way(&place));
            // Of the first it was told before there was a wait.
            if let (false, Some(way)) = (first, way.as_ref().filter(|way| self.announces(way))) {
                self.run.say.wrong_now(&pinning::by_affinity(way));
            }
            if !first {
                self.tell_unmet(&place);
            }
            first = false;
            match &place {
                Place::Scope(manager) => match self.in_scope(manager, &place, way, charge, mountinfo, &mut leaving)? {
                    Ok(finished) => return Ok(finished),
                    Err(Missing { why, cure }) => {
                        // The next place makes them anew.
                        self.remove_v1();
                        detected.refused.insert(0, Refusal { backend: Backend::Scope, why, cure });
                        if detected.places.first() == Some(&Place::Subreaper) {
                            self.run.say.note_now(&weaker(detected));
                        }
                    }
                },
                Place::V2(parent) => {
                    // Named in the ticket before it exists: whatever dies now, the next perflock knows where to look.
                    self.record_group(Backend::V2, Some(parent.child(self.name).path))?;
                    Step::GroupNamed.reached();
                    let mut kept = self.keep(way, &place)?;
                    let mut group = v2::Group::create(parent, self.name)?;
                    let restricted = match (self.pinning, &kept.way) {
                        (Some(pinning), Some(Way::V2)) => self.restrict(pinning, parent, &group),
                        _ => Ok(None),
                    };
                    restricted
                        .and_then(|partition| {
                            self.limit_group(&mut kept.limited, Some(parent), &group)?;
                            self.record_kept(&kept, partition)
                        })
                        .inspect_err(|_| abandon(&group))?;
                    return self.in_group(&mut group, &kept, charge);
                }
                Place::V1(site) => return self.in_v1(site, way, &place, charge),
                Place::Subreaper => {
                    self.record_group(Backend::Subreaper, None)?;
                    Step::GroupNamed.reached();
                    let kept = self.keep(way, &place)?;
                    self.record_kept(&kept, None)?;
                    let mut group = subreaper::Group::create(self.name)?;
                    // A launcher that leaves is a child of ours, but none of the job's.
                    leaving.into_iter().for_each(|pid| group.exclude(pid));
                    return self.in_group(&mut group, &kept, charge);
                }
            }
        }
        Err(no_group(detected))
    }

    /// In groups of v1, into which the command writes itself.
    fn in_v1(&self, parent: &Site, way: Option<Way>, place: &Place, charge: Charge<'_>) -> Result<Finished, Error> {
        let site = parent.child(self.name);
        self.record_group_in(Backend::V1, Some(site.path().to_owned()), Some(&site))?;
        Step::GroupNamed.reached();
        let kept = self.keep(way, place)?;
        self.record_kept(&kept, None)?;
        let mut group = legacy::Group::create(parent, self.name)?;
        self.in_group(&mut group, &kept, charge)
    }

    fn announces(&self, way: &Way) -> bool {
        self.pinning.is_some_and(|pinning| pinning.announces(way))
    }

    /// Makes the job's groups in v1 hierarchies, those that it gets. Its ticket names them already. A cpuset that cannot be had,
    /// since others have its processors exclusively say, leaves the job its affinity, unless that is too weak.
    fn keep(&self, way: Option<Way>, place: &Place) -> Result<Kept, Error> {
        let limited = self.limit(place)?;
        let (Some(Way::V1(_)), Some(pinning)) = (&way, self.pinning) else {
            return Ok(Kept { way, cpuset: None, limited });
        };
        match pinning.v1.clone().map(|location| cpuset::create_v1(location, &pinning.pin)).transpose() {
            Ok(cpuset) => Ok(Kept { way, cpuset, limited }),
            Err(error) => {
                let way = pinning.weaker(error)?;
                self.run.say.wrong_now(&pinning::by_affinity(&way));
                Ok(Kept { way: Some(way), cpuset: None, limited })
            }
        }
    }

    /// Restricts the job's own group, below the root of the v2 hierarchy.
    fn restrict(&self, pinning: &Pinning<'_>, root: &Location, group: &v2::Group) -> Result<Option<Partition>, Error> {
        controller::enable_below(&root.directory(), Controller::Cpuset)?;
        let directory = group.location().directory();
        cpuset::restrict(&directory, &pinning.pin)?;
        self.isolate(pinning, &directory)
    }

    /// Takes its processors from everybody else, if that was asked for.
    fn isolate(&self, pinning: &Pinning<'_>, restricted: &Path) -> Result<Option<Partition>, Error> {
        if !pinning.is_isolated() {
            return Ok(None);
        }
        let partition = cpuset::isolate(restricted, &pinning.pin)?;
        if partition == Partition::Root {
            self.run.say.note_now(
                "this kernel cannot isolate processors: nobody else uses them, but it balances load between them",
            );
        }
        Ok(Some(partition))
    }

    /// What the command is started with.
    fn start_with<'a>(&'a self, kept: &'a Kept) -> Result<Start<'a>, Error> {
        let placement = match (self.pinning, &kept.way) {
            (Some(pinning), Some(way)) => pinning.placement(way)?,
            _ => Placement::default(),
        };
        let mut limits = kept.limited.groups.iter().map(|(_, group)| group.tasks());
        let groups = [kept.cpuset.as_ref().map(v1::Group::tasks), limits.next(), limits.next()];
        let placement = Placement { groups, ..placement };
        Ok(Start { inherited: &self.run.inherited, variables: self.variables, placement })
    }

    /// In a group into which we make guard and command ourselves.
    fn in_group(&self, group: &mut dyn JobGroup, kept: &Kept, charge: Charge<'_>) -> Result<Finished, Error> {
        Step::GroupMade.reached();
        let start_guard = |group: &dyn JobGroup| Guard::start(group, charge);
        let started = self.start_with(kept).and_then(|start| self.start(group, start, &start_guard));
        match started {
            Ok((guard, main)) => self.watch(group, guard, &main, &start_guard, &kept.limited),
            Err(error) => {
                let error = self.because_of_memory(error, &kept.limited, || group.usage(Usage::read));
                abandon(group);
                Err(error)
            }
        }
    }

    /// In a scope, where a launcher makes guard and command. The inner error: it cannot be had.
    fn in_scope(
        &self,
        manager: &Manager,
        place: &Place,
        way: Option<Way>,
        charge: Charge<'_>,
        mountinfo: &str,
        leaving: &mut Option<i32>,
    ) -> Result<Result<Finished, Missing>, Error> {
        self.record_group(Backend::Scope, None)?;
        let mut kept = self.keep(way, place)?;
        let restricted = self.pinning.filter(|_| kept.way == Some(Way::Scope));
        let open = || scope::Group::open_around_us(self.name, mountinfo);
        let work = Work { command: self.command, start: self.start_with(&kept)?, charge, open: &open };
        // It has a copy of everything that it needs.
        let launcher = Launcher::start(work).map_err(Error::system("start a process"))?;
        let signalled = Cell::new(None);
        let ends_us = || {
            signalled.set(fatal(self.signals));
            signalled.get().is_some()
        };
        let interrupt = Interrupt { fd: self.signals.fd(), ends_us: &ends_us };
        // The launcher leaves when we end or are killed, and the scope goes with it.
        let asked = restricted.map(|pinning| Restriction { pin: &pinning.pin, isolated: pinning.is_isolated() });
        let mut group = match scope::Group::create(manager, self.name, asked, launcher.pid, mountinfo, &interrupt) {
            Ok(group) => group,
            Err(NoAnswer { missing, begun }) => {
                match begun {
                    Begun::Yes => *leaving = Some(launcher.leave()),
                    Begun::No => launcher.dismiss(),
                }
                return missing.map(Err).ok_or(Error::Signalled(signalled.get().unwrap_or(libc::SIGTERM)));
            }
        };
        Step::GroupMade.reached();
        if let Err(error) = self.record_group(Backend::Scope, Some(group.path().to_owned())) {
            launcher.dismiss();
            abandon(&group);
            return Err(error);
        }
        Step::GroupNamed.reached();
        let Launched { guard, command: gate, stopped } = match launcher.go(&interrupt) {
            Ok(launched) => launched,
            Err(NotLaunched::Failed(error)) => {
                abandon(&group);
                let why = format!("no process can be made in the scope: {}", crate::error::reason(&error));
                return Ok(Err(Missing { why, cure: None }));
            }
            Err(NotLaunched::Interrupted) => {
                abandon(&group);
                return Err(Error::Signalled(signalled.get().unwrap_or(libc::SIGTERM)));
            }
        };
        self.record(&Change::Guard { pid: guard.pid });
        // With the launcher gone and the command not yet executing. A cpuset becomes a partition before it is divided.
        let partition = restricted.map_or(Ok(None), |pinning| self.isolate(pinning, &group.scope_directory()));
        group.enable_controllers();
        let pinned = partition.and_then(|partition| {
            restricted.map_or(Ok(()), |pinning| group.check_cpuset(&pinning.pin))?;
            self.limit_group(&mut kept.limited, None, group.job())?;
            self.record_kept(&kept, partition)
        });
        let main = gate.map_err(Error::from).and_then(|gate| match (pinned, fatal(self.signals)) {
            (Err(error), _) => {
                gate.turn_away();
                Err(error)
            }
            // It may have come before the command was born, and then the command does not know of it.
            (_, Some(signal)) => {
                gate.turn_away();
                Err(Error::Signalled(signal))
            }
            (_, None) if stopped || guard.was_stopped() => {
                gate.turn_away();
                Err(stopped_early(&group))
            }
            // A guard that was told to stop kills what stands at the gate.
            (_, None) => gate.let_in(self.command).map_err(|error| match error {
                SpawnError::Fork(_) if guard.was_stopped() => stopped_early(&group),
                error => error.into(),
            }),
        });
        match main {
            Ok(main) => {
                let start_guard = |group: &dyn JobGroup| {
                    let mut guard = Guard::start(group, charge)?;
                    guard.outside = !scope::take_in_guard(manager, group, guard.pid);
                    Ok(guard)
                };
                self.watch(&mut group, guard, &main, &start_guard, &kept.limited).map(Ok)
            }
            Err(error) => {
                let error = self.because_of_memory(error, &kept.limited, || group.usage(Usage::read));
                guard.end();
                guard.reap();
                abandon(&group);
                Err(error)
            }
        }
    }

    /// Watches over the job until it is over.
    fn watch(
        &self,
        group: &mut dyn JobGroup,
        guard: Guard,
        main: &Main,
        start_guard: &StartGuard<'_>,
        limited: &Limited,
    ) -> Result<Finished, Error> {
        self.run.account.runs(main.started);
        self.run.say.detail_now(&format!("job group: {}", group.ways()));
        let started_usec = crate::clock::boottime_usec().saturating_sub(in_usec(main.started.elapsed()));
        let guard_pid = guard.pid;
        let first_look = Cell::new(None);
        let started = |group: &dyn JobGroup, main: &Main| first_look.set(self.first_look(group, guard_pid, main));
        let mut notice = |notice: Notice| self.notice(notice);
        let counters = |wall| self.counters(wall, !limited.limits.is_empty());
        let mut supervisor = Supervisor {
            group,
            signals: self.signals,
            start_guard,
            guard: Some(guard),
            notice: &mut notice,
            nested: self.hold.is_none(),
            counters: &counters,
            started: &started,
        };
        let outcome = supervisor.watch(main, self.run.settings.policy);
        let guard = supervisor.guard.take();
        if outcome.is_err() {
            // We cannot watch it, so it must not go on.
            until_empty(group, true, None);
        }
        let watched = outcome.as_ref().ok().and_then(|outcome| self.second_look(first_look.take(), group, outcome));
        let outcome = outcome.map(|it| Outcome { usage: self.with_v1_counters(it.usage), ..it });
        let trail = Trail { main: main.pid, started_usec, group_inode: group.inode() };
        let removed = group.remove();
        let left = self.remove_v1();
        // In a scope, and where we could not watch, this is the first time that it is told.
        guard.iter().for_each(Guard::end);
        Step::GroupRemoved.reached();
        let outcome = outcome.map_err(Error::system("wait for the command"))?;
        let by_hand = "has to be removed by hand (rmdir)";
        let warnings =
            removed.err().map(|error| format!("warning: {error}; it is empty, and {by_hand}")).into_iter().chain(
                // The job's group is empty, but whoever left that is in here still.
                left.iter().map(|error| {
                    format!(
                        "warning: {error}; if a process that left the job's group is in it, it {by_hand} when that ends"
                    )
                }),
            );
        let warnings = warnings.chain(report::limits_reached(&outcome, limited.limits)).collect();
        Ok(Finished { outcome, trail, guard, warnings, watched })
    }

    /// What is to be read of a job that took this long: nothing that nobody is told. That one came to its limits is told.
    fn counters(&self, wall: Duration, is_limited: bool) -> Option<Read> {
        if self.run.account.is_wanted() || wall >= WORTH_A_LINE || is_limited {
            return Some(Usage::read_all);
        }
        (self.told || self.run.say.is_verbose()).then_some(Usage::read)
    }

    fn start(
        &self,
        group: &mut dyn JobGroup,
        start: Start<'_>,
        start_guard: &StartGuard<'_>,
    ) -> Result<(Guard, Main), Error> {
        let guard = start_guard(group).map_err(Error::system("start the guard"))?;
        Step::GuardForked.reached();
        group.exclude(guard.pid);
        self.record(&Change::Guard { pid: guard.pid });
        let main = loop {
            // Before there is a command to forward it to, a signal ends us.
            if let Some(signal) = fatal(self.signals) {
                break Err(Error::Signalled(signal));
            }
            match spawn::spawn(self.command, start, self.signals, group.maker()) {
                Err(SpawnError::Signalled) => {}
                other => break other.map_err(Error::from),
            }
        };
        match main {
            Ok(main) => Ok((guard, main)),
            Err(error) => {
                guard.end();
                guard.reap();
                Err(error)
            }
        }
    }

    fn notice(&self, notice: Notice) {
        let say = &self.run.say;
        match notice {
            // Nothing is read of which nobody is told.
            Notice::MainEnded(pid) => {
                if let Some(pinning) = self.pinning.filter(|_| self.run.account.is_wanted()) {
                    self.run.account.moved_to(pinning::moved_to(&pinning.pin, pid));
                }
            }
            Notice::News(News::Releasing, ..) => self.record(&Change::Releasing),
            Notice::News(news, living, count) => {
                let line = report::news(news, &living, count, &self.run.settings.policy);
                // Those that went wrong are said even with --quiet.
                let wrong = news == News::TimeLimit;
                if wrong { say.wrong_now(&line) } else { say.note_now(&line) }
            }
            Notice::Guard(pid, outside) => {
                self.record(&Change::Guard { pid });
                let only = if outside { "; systemd did not move it into the job's scope: it ends with this session" } else { "" };
                say.wrong_now(&format!("warning: the guard was killed; another took its place ({pid}){only}"));
            }
            Notice::Unguarded => say.wrong_now(
                "warning: the guard was killed and cannot be replaced; if this process is killed too, the next job ends \
                 this one first",
            ),
            Notice::Traced(tracer) => say.wrong_now(&report::traced(&tracer)),
            Notice::Stuck(stuck, count) => say.wrong_now(&report::stuck(&stuck, count)),
            Notice::CannotKill(why) => say.wrong_now(&why),
        }
    }
}

fn stopped_early(group: &dyn JobGroup) -> Error {
    Error::Refused(format!(
        "systemd stopped the job's scope ({}) before the command was started",
        group.unit().unwrap_or_default()
    ))
}

/// Leaves the group of a job that did not start. A child that could not execute the command is gone in a moment.
fn abandon(group: &dyn JobGroup) {
    until_empty(group, group.population() == Population::Populated, None);
    // The error is what there is to say.
    let _ = group.remove();
}
