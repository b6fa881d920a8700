//! Orphans: jobs whose supervisor and guard were both killed. The kernel freed their locks; their groups may live on.
//!
//! Their dead tickets name them. Whoever gets the lock next holds it while it deals with them: it kills an orphan of
//! its own user (root: anybody's), and waits for others. So no two jobs that conflict have members at the same time.

use std::path::{Component, Path};
use std::time::Instant;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::cgroup::controller::Controller;
use crate::cgroup::legacy::{self, Site};
use crate::cgroup::{self, Backend, GroupError, JobGroup, Population, detect, subreaper, v1, v2};
use crate::lock::{Ahead, Record, Seen};
use crate::poll::Limits;
use crate::procfs::Proc;
use crate::say::Say;
use crate::supervisor::guard::until_empty;
use crate::supervisor::step::UNKILLABLE;
use crate::supervisor::stuck;
use crate::{report, text};

/// The path of the group that a ticket names, in the hierarchy of its backend. The ticket's text chose it, so it must be a group
/// of this very job.
fn path_of<'a>(seen: &Seen, record: &'a Record) -> Option<&'a Path> {
    let (_, path) = record.group.as_ref()?;
    let path = path.as_ref()?;
    (path.file_name()?.to_str()? == seen.id(record).group_name()).then_some(path)
}

/// Where the group is that a ticket names, in the v2 hierarchy.
pub fn location_of(seen: &Seen, record: &Record, mountinfo: &str) -> Option<v2::Location> {
    let path = path_of(seen, record).filter(|_| !is_in_v1(record))?;
    detect::locate(mountinfo, path).ok()
}

/// The same in hierarchies of v1.
pub fn site_of(seen: &Seen, record: &Record, mountinfo: &str) -> Option<Site> {
    site(record, path_of(seen, record)?, mountinfo)
}

fn site(record: &Record, path: &Path, mountinfo: &str) -> Option<Site> {
    let hierarchy = record.hierarchy.as_ref().filter(|_| is_in_v1(record))?;
    Site::locate(mountinfo, hierarchy, path, record.cpuacct.as_deref())
}

fn is_in_v1(record: &Record) -> bool {
    record.group.as_ref().is_some_and(|(backend, _)| backend == Backend::V1.name())
}

/// Opens the group that a dead ticket names. `None` if there is none: it is gone, or not one that this ticket could name.
///
/// # Errors
/// It cannot be told: the group is there, or may be.
pub fn group_of(seen: &Seen, record: &Record, mountinfo: &str) -> Result<Option<Box<dyn JobGroup>>, GroupError> {
    let Some((backend, _)) = &record.group else { return Ok(None) };
    if *backend == Backend::Subreaper.name() {
        return Ok(Some(Box::new(subreaper::Group::adopt(&seen.id(record).group_name()))));
    }
    let adopted = if let Some(site) = site_of(seen, record, mountinfo) {
        legacy::Group::adopt(site, seen.uid).map(|group| group.map(|group| Box::new(group) as Box<dyn JobGroup>))
    } else if let Some(location) = location_of(seen, record, mountinfo) {
        v2::Group::adopt(location, seen.uid).map(|group| group.map(|group| Box::new(group) as Box<dyn JobGroup>))
    } else {
        return Ok(None);
    };
    match adopted {
        // Somebody else's group: the ticket is forged, and names nothing.
        Err(GroupError::Refused { .. }) => Ok(None),
        other => other,
    }
}

/// Whether only the ticket's owner and root can tell if its job has members: they are told by their environment.
pub fn is_hidden(seen: &Seen, record: &Record) -> bool {
    let own = rustix::process::geteuid();
    let marked = record.group.as_ref().is_some_and(|(backend, _)| backend == Backend::Subreaper.name());
    marked && !own.is_root() && own.as_raw() != seen.uid
}

/// Whether the group that a ticket names lies where we cannot look. A path with detours is nobody's: perflock records none.
fn is_out_of_sight(record: &Record, mountinfo: &str) -> bool {
    let Some((_, Some(path))) = &record.group else { return false };
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let seen = if is_in_v1(record) {
        site(record, path, mountinfo).is_some()
    } else {
        detect::locate(mountinfo, path).is_ok()
    };
    plain && !seen
}

/// Removes what an empty group leaves: itself, and the job's groups in v1 hierarchies.
pub fn remove(group: Option<&dyn JobGroup>, seen: &Seen, record: &Record, mountinfo: &str) {
    if let Some(group) = group {
        let _ = group.remove();
    }
    let named =
        [(Controller::Cpuset, &record.cpuset), (Controller::Memory, &record.memory), (Controller::Pids, &record.pids)];
    for (controller, path) in named.into_iter().filter_map(|(controller, path)| Some((controller, path.as_ref()?))) {
        v1::remove_named(path, controller, &seen.id(record).group_name(), seen.uid, mountinfo);
    }
}

/// Whether a dead ticket names nothing any more and can be removed. An empty group that it names is removed with it.
pub fn is_spent(seen: &Seen, record: &Record, boot: &str, proc: &Proc, mountinfo: &str) -> bool {
    if record.joined.boot != boot {
        return true;
    }
    let same_pids = proc.own_namespace("pid").is_ok_and(|own| own == record.joined.pid_namespace);
    let is_its_container_gone = || !same_pids && is_empty_namespace(record.joined.pid_namespace, proc);
    if record.stopped && (!same_pids || record.joined.supervisor(proc).is_some()) {
        return is_its_container_gone();
    }
    let same_groups = proc.own_namespace("cgroup").is_ok_and(|own| own == record.joined.cgroup_namespace);
    if record.group.is_some() && !same_groups || is_out_of_sight(record, mountinfo) {
        // Not seen from here does not mean empty.
        return is_its_container_gone();
    }
    match group_of(seen, record, mountinfo) {
        Ok(Some(group)) if group.population() == Population::Populated => false,
        Ok(group) => {
            remove(group.as_deref(), seen, record, mountinfo);
            true
        }
        // For want of a descriptor, say: what cannot be seen to be empty is not.
        Err(_) => false,
    }
}

/// Whether a pid namespace has no process left, as that of a container that ended. A job's processes are in its supervisor's or in
/// one below, which ends with it. Only root on the host sees them all; false means unknown.
fn is_empty_namespace(namespace: u64, proc: &Proc) -> bool {
    let sees_all = rustix::process::geteuid().is_root() && proc.sees_every_pid_namespace();
    // One that is gone is in none; one that is not shown to us may be in any. Init is in the first, and may be hidden.
    let is_in_it = |&pid: &i32| match proc.namespace(pid, "pid") {
        // One that nobody has waited for yet is dead, but has not left.
        Ok(its) => its == namespace && proc.stat(pid).is_ok_and(|stat| !stat.is_dead()),
        Err(_) if pid == 1 => false,
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    };
    sees_all && proc.pids().is_ok_and(|pids| !pids.iter().any(is_in_it))
}

/// What became of an orphan.
#[derive(Debug)]
pub enum End {
    /// No member is left, and nothing is named by its ticket any more.
    Gone,
    /// It cannot be told from here.
    Unknown,
    /// The wait for its end was ended.
    Interrupted,
    /// Whether it is empty could not be seen: nothing may be started beside it.
    Failed(GroupError),
}

/// Ends the orphan behind a dead ticket, or waits until it has ended. Called with the lock file held.
pub fn end(
    seen: &Seen,
    record: &Record,
    cgroup_namespace: u64,
    boot: &str,
    mountinfo: &str,
    limits: Limits<'_>,
    say: &Say,
) -> End {
    if record.joined.boot != boot || record.joined.cgroup_namespace != cgroup_namespace {
        return End::Unknown;
    }
    let user = text::escape(&crate::user::name(seen.uid));
    let command = text::command_line(&record.joined.command);
    if is_hidden(seen, record) {
        say.wrong_now(&format!(
            "warning: the job {command} of {user} ran without a job group, and its supervisor was killed; whether its \
             processes ended is unknown (only {user} or root can see; the next perflock of either ends them)"
        ));
        return End::Unknown;
    }
    if is_out_of_sight(record, mountinfo) {
        return End::Unknown;
    }
    let group = match group_of(seen, record, mountinfo) {
        Ok(Some(group)) => group,
        Ok(None) => {
            remove(None, seen, record, mountinfo);
            return End::Gone;
        }
        Err(error) => return End::Failed(error),
    };
    if group.population() == Population::Empty {
        remove(Some(&*group), seen, record, mountinfo);
        return End::Gone;
    }
    let own = rustix::process::geteuid();
    let ours = own.is_root() || own.as_raw() == seen.uid;
    let what = format!("the job {command} of {user}, whose supervisor was killed,");
    if ours {
        say.wrong_now(&format!("ending {what} before starting"));
    } else {
        say.note_now(&format!("waiting for {what} to end (only {user} or root can end it)"));
    }
    let ended = if ours { kill(&*group, limits, say) } else { until_empty(&*group, false, Some(limits)) };
    if !ended {
        return End::Interrupted;
    }
    remove(Some(&*group), seen, record, mountinfo);
    End::Gone
}

/// Kills a group until it is empty. Says who does not end, if that takes long. False if `limits` ended it.
fn kill(group: &dyn JobGroup, limits: Limits<'_>, say: &Say) -> bool {
    let patience = Instant::now() + UNKILLABLE;
    if limits.deadline.is_none_or(|at| at > patience) {
        if until_empty(group, true, Some(Limits { deadline: Some(patience), ..limits })) {
            return true;
        }
        if Instant::now() >= patience {
            let (stuck, count) = stuck::look(group, &cgroup::kill_survivors(group));
            if count > 0 {
                say.wrong_now(&report::stuck(&stuck, count));
            }
        }
    }
    until_empty(group, true, Some(limits))
}

/// A guard that somebody stopped cannot do its work when its supervisor dies, and would hold the machine for ever.
/// Lets those of the holders ahead go on, if they are ours to.
pub fn wake_guards(ahead: &Ahead, proc: &Proc, boot: &str, pid_namespace: u64) {
    let here = |record: &Record| record.joined.boot == boot && record.joined.pid_namespace == pid_namespace;
    let holders = ahead.holders.iter().filter(|holder| here(&holder.record));
    holders.for_each(|holder| wake_guard(holder.uid, &holder.record, proc));
}

/// The same for one job of this boot and pid namespace, whose ticket belongs to `owner`.
pub fn wake_guard(owner: u32, record: &Record, proc: &Proc) {
    let guard = record.guard_pid.filter(|&pid| pid > 1).and_then(Pid::from_raw);
    let (None, Some(pid)) = (record.joined.supervisor(proc), guard) else { return };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    // Looked at after the pidfd was opened: if it is a guard now, the pidfd is that guard's.
    // A ticket can name anybody's process: only its owner's is continued.
    let stat = proc.stat(pid.as_raw_pid());
    let its_own = proc.uid(pid.as_raw_pid()).is_ok_and(|uid| uid == owner);
    if its_own && stat.is_ok_and(|stat| stat.comm == "perflock-guard" && stat.state == 'T') {
        let _ = pidfd_send_signal(pidfd, Signal::CONT);
    }
}
