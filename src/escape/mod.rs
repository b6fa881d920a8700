//! Escapes: what a job started and what is not in its group, looked for when the job is over.
//!
//! # Theory of operation
//!
//! A member cannot leave its group by itself, but root can move it, its user can where the groups are theirs, and a service
//! can be asked to start something: systemd, a container engine, a tmux or at daemon. perflock watches nobody for that
//! (no ptrace(2), no wakeups), so it looks once, when the machine was given back, at what lives. Nothing is ended: it is named.
//!
//! - **Escaped**, for certain: a process that carries the job's marker in the environment it was started with, or that
//!   descends from one that does. The group is empty, so that process is somewhere else.
//! - **Possible**: a group that appeared while the job ran, with a process of the same user in it: a transient unit of
//!   systemd's, or a group outside of any unit; or a container's, whoever its processes run as. Nothing tells whether the job
//!   had it made. Login sessions and units of unit files come and go by themselves, and are left out; so is whatever runs in
//!   a group that was there before, where a job's process cannot be told from the user's other ones.
//!
//! Which group is new is told by its inode number: kernfs gives them in order (fs/kernfs/dir.c, `idr_alloc_cyclic`, with a
//! generation above that since Linux 5.5), and the job's own group was made just before the command. Where the job has no group,
//! by the time stamp of the file that systemd writes for a transient unit.
//!
//! # What it costs
//!
//! Nobody waits for it but whoever waits for the exit code, and whoever gets the machine next runs beside it. So it looks only at
//! process numbers that were given away while the job ran, which the kernel does in order ([`numbers`]): after `perflock true`
//! that is none, however many processes the machine has.

mod numbers;
pub(crate) mod place;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::cgroup::{Usage, detect};
use crate::nested;
use crate::procfs::{Proc, Stat};
use place::Place;

/// What is done about escapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// They are looked for and named.
    Warn,
    /// Nobody looks.
    Ignore,
}

impl Choice {
    /// Reads `warn` or `ignore`.
    ///
    /// # Errors
    /// A sentence fragment with the words that are allowed.
    pub fn parse(word: &str) -> Result<Self, String> {
        match word {
            "warn" => Ok(Self::Warn),
            "ignore" => Ok(Self::Ignore),
            _ => Err(r#"escapes are "warn" or "ignore""#.to_owned()),
        }
    }
}

/// A process that the job started and that is in another group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Escaped {
    /// Its pid.
    pub pid: i32,
    /// Its name, chosen by itself: hostile text.
    pub name: String,
    /// Its arguments: hostile text.
    pub command: Vec<String>,
    /// The systemd unit that it is in.
    pub unit: Option<String>,
    /// Its group in the v2 hierarchy.
    pub group: Option<String>,
}

/// A group that appeared while the job ran and may be its doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Possible {
    /// The group in the v2 hierarchy.
    pub group: String,
    /// The systemd unit that it is.
    pub unit: Option<String>,
    /// It is a container's.
    pub container: bool,
    /// How many processes were seen in it.
    pub processes: usize,
    /// The first of them.
    pub pid: i32,
    /// What that runs: hostile text.
    pub command: Vec<String>,
    /// CPU time of the whole group since it was made.
    pub cpu_usec: Option<u64>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Escapes {
    /// For certain, in the order of their numbers.
    pub escaped: Vec<Escaped>,
    /// Perhaps.
    pub possible: Vec<Possible>,
}

/// By what a job's processes and the groups that came after it are known.
#[derive(Clone, Copy, Debug)]
pub struct Trail {
    /// Its main process, whose number was given before that of every other process of the job.
    pub main: i32,
    /// When that was born, on the clock of [`crate::clock`]: processes count suspended time as well.
    pub started_usec: u64,
    /// The inode number of the job's group, if it has one.
    pub group_inode: Option<u64>,
}

/// Where to look: the kernel's and systemd's files below a root, so that tests feed captured trees.
pub struct Here<'a> {
    /// Processes.
    pub proc: Proc,
    /// `/`, below which systemd keeps the files of transient units.
    pub root: &'a Path,
    /// Where the v2 hierarchy is mounted, in the words of proc_pid_mountinfo(5); asked for when there is something to look at.
    pub mountinfo: &'a dyn Fn() -> String,
    /// Whose job it was.
    pub uid: u32,
}

impl Here<'_> {
    /// This machine, and who we are.
    pub fn look() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        Self { proc: Proc::default(), root: Path::new("/"), mountinfo: &detect::own_mountinfo, uid }
    }

    /// Looks for what the job `id` left elsewhere, now that its group is empty and the machine given back at `until_usec`.
    pub fn escapes(&self, id: &str, trail: Trail, until_usec: u64) -> Escapes {
        let young = self.born_between(trail, until_usec);
        if young.is_empty() {
            return Escapes::default();
        }
        let carries = |stat: &&Stat| self.proc.environ_has(stat.pid, nested::VARIABLE, id).unwrap_or(false);
        let carriers: Vec<i32> = young.iter().filter(carries).map(|stat| stat.pid).collect();
        let (escaped, others) = with_descendants(young, &carriers);
        let escaped: Vec<Escaped> = escaped.into_iter().map(|stat| self.escaped(stat)).collect();
        let possible = self.possible(&others, &escaped, trail);
        Escapes { escaped, possible }
    }

    /// Processes that began while the job ran and live.
    fn born_between(&self, trail: Trail, until_usec: u64) -> Vec<Stat> {
        let ticks = |at_usec: u64| crate::clock::to_ticks(at_usec, rustix::param::clock_ticks_per_second());
        // A tick more, since both we and the kernel round down.
        let (first, last) = (ticks(trail.started_usec).saturating_sub(1), ticks(until_usec).saturating_add(1));
        let given = numbers::given_since(trail.main, crate::clock::since(trail.started_usec), &self.proc);
        let alive = |pid: &i32| {
            let stat = self.proc.stat(*pid).ok()?;
            let own = stat.pid == std::process::id().cast_signed();
            let young = (first..=last).contains(&stat.start_ticks);
            (young && !own && !stat.kernel_thread && !stat.is_dead()).then_some(stat)
        };
        given.among(&self.proc).iter().filter_map(alive).collect()
    }

    fn escaped(&self, stat: Stat) -> Escaped {
        // Where there is no v2 hierarchy, units are in systemd's own.
        let in_v1 = || self.proc.cgroup_v1(stat.pid, "name=systemd").ok().flatten();
        let group = self.proc.cgroup_v2(stat.pid).ok().or_else(in_v1);
        let unit = group.as_deref().and_then(|group| Place::of(group).unit.map(str::to_owned));
        Escaped {
            pid: stat.pid,
            name: stat.comm,
            command: self.proc.cmdline(stat.pid).unwrap_or_default(),
            unit,
            group: group.map(|group| group.to_string_lossy().into_owned()),
        }
    }

    /// New groups with these processes in them.
    fn possible(&self, stats: &[Stat], escaped: &[Escaped], trail: Trail) -> Vec<Possible> {
        let mut groups: HashMap<PathBuf, Vec<&Stat>> = HashMap::new();
        for stat in stats {
            let Ok(path) = self.proc.cgroup_v2(stat.pid) else { continue };
            let place = Place::of(&path);
            let ours = || self.proc.uid(stat.pid).is_ok_and(|uid| uid == self.uid);
            if !place.is_a_job && (place.container || ours()) {
                groups.entry(path).or_default().push(stat);
            }
        }
        if groups.is_empty() {
            return Vec::new();
        }
        let mountinfo = (self.mountinfo)();
        let wall = SystemTime::now().checked_sub(crate::clock::since(trail.started_usec));
        let mut found: Vec<Possible> = Vec::new();
        let mut groups: Vec<(&Path, &[&Stat])> =
            groups.iter().map(|(path, stats)| (path.as_path(), stats.as_slice())).collect();
        groups.sort_unstable_by_key(|(_, stats)| stats[0].pid);
        for (path, members) in groups {
            let place = Place::of(path);
            let Some(group) = self.new_group(path, &place, trail, wall, &mountinfo) else { continue };
            let name = group.to_string_lossy().into_owned();
            let unit = place.unit.filter(|_| group == place.group).map(str::to_owned);
            if let Some(known) = found.iter_mut().find(|known| known.group == name) {
                known.processes += members.len();
                continue;
            }
            // A unit of which it is known for certain is not told of twice.
            if escaped.iter().any(|it| it.group.as_ref().is_some_and(|known| Path::new(known).starts_with(group))) {
                continue;
            }
            let usage = detect::locate(&mountinfo, group).map(|location| Usage::read(&location.directory()));
            found.push(Possible {
                group: name,
                unit,
                container: place.container,
                processes: members.len(),
                pid: members[0].pid,
                command: self.proc.cmdline(members[0].pid).unwrap_or_default(),
                cpu_usec: usage.ok().and_then(|usage| usage.cpu_usec),
            });
        }
        found
    }

    /// The group at `path`, or the unit that it belongs to, if that appeared since, and not by itself.
    fn new_group<'p>(
        &self,
        path: &'p Path,
        place: &Place<'p>,
        trail: Trail,
        began: Option<SystemTime>,
        mountinfo: &str,
    ) -> Option<&'p Path> {
        let is_new = |group: &Path| {
            let directory = detect::locate(mountinfo, group).ok()?.directory();
            Some(fs::symlink_metadata(directory).ok()?.ino() > trail.group_inode?)
        };
        let file =
            place.unit.and_then(|unit| fs::symlink_metadata(place.transient_file(self.root, self.uid, unit)).ok());
        let written_since = || Some(file.as_ref()?.modified().ok()? >= began?);
        if is_new(place.group).or_else(written_since)? {
            let by_itself = place.is_a_login || place.unit.is_some() && file.is_none();
            return (place.container || !by_itself).then_some(place.group);
        }
        // A group that somebody made in a unit that was there.
        (path != place.group && !place.container && is_new(path)?).then_some(path)
    }
}

/// Those of `stats` that are `carriers` or descend from them, and the rest.
fn with_descendants(stats: Vec<Stat>, carriers: &[i32]) -> (Vec<Stat>, Vec<Stat>) {
    let parents: HashMap<i32, i32> = stats.iter().map(|stat| (stat.pid, stat.ppid)).collect();
    let descends = |stat: &Stat| {
        let mut pid = stat.pid;
        // A chain of parents is no longer than there are processes, unless it was read while they changed.
        for _ in 0..=parents.len() {
            if carriers.contains(&pid) {
                return true;
            }
            let Some(&parent) = parents.get(&pid) else { return false };
            pid = parent;
        }
        false
    };
    stats.into_iter().partition(descends)
}

/// How much CPU time makes a possible escape worth a word that nobody asked for.
pub const NOTABLE_CPU: Duration = Duration::from_secs(1);

impl Possible {
    /// It has used so much CPU time that a benchmark may have felt it.
    pub fn is_notable(&self) -> bool {
        self.cpu_usec.is_some_and(|usec| Duration::from_micros(usec) > NOTABLE_CPU)
    }
}

#[cfg(test)]
mod tests;
