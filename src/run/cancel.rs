//! `--cancel JOB`: a waiter leaves the queue, a job is ended, an orphan is killed. Nothing is signalled that was not seen to
//! be the job's: a ticket is its owner's text, and root must not be made to end somebody else's process by it.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Error, Here};
use crate::cgroup::{JobGroup, Population, signal_members};
use crate::exit::Ending;
use crate::job::JobId;
use crate::lock::{Change, Lock, Record, Seen};
use crate::nested;
use crate::orphan;
use crate::poll::Limits;
use crate::report;
use crate::say::Say;
use crate::supervisor::guard::until_empty;
use crate::text;

/// How long what has nothing left to do may take to end.
const AT_ONCE: Duration = Duration::from_secs(5);

/// After this long it is said what is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// A job that is to be cancelled.
struct Target<'a> {
    here: &'a Here,
    say: &'a Say,
    seen: Seen,
    record: Record,
    /// `job 7 (make bench of alice)`.
    what: String,
}

/// Cancels the job that `which` names, by its number or by its whole identity, and waits until it is gone.
pub(super) fn cancel(lock: &Lock, here: &Here, which: &str, grace: Duration, say: &Say) -> Result<Ending, Error> {
    let Some((seen, record)) = find(lock, here, which)? else {
        let which = text::escape(which);
        return Err(Error::Refused(format!("there is no job {which} here; wholock shows the jobs with their numbers")));
    };
    let command = text::command_line(&record.joined.command);
    let user = text::escape(&crate::user::name(seen.uid));
    let what = format!("job {} ({command} of {user})", seen.entry.number);
    let target = Target { here, say, seen, record, what };
    target.check()?;
    target.cancel(grace)?;
    say.note(&format!("cancelled {}", target.what));
    Ok(Ending::Code(0))
}

/// The job, if it is in the queue, has the machine, or is an orphan.
fn find(lock: &Lock, here: &Here, which: &str) -> Result<Option<(Seen, Record)>, Error> {
    let id: Option<JobId> = which.parse().ok();
    let number = id.map(|id| id.number).or_else(|| which.parse().ok());
    let Some(number) = number else {
        let which = text::escape(which);
        return Err(Error::Usage(format!("{which} is not a job's number; wholock shows them")));
    };
    let entries = lock.queue.entries()?.into_iter().filter(|entry| entry.number == number);
    let seen = entries.filter_map(|entry| lock.queue.see(entry));
    let known = seen.filter_map(|seen| seen.record().map(|record| (seen, record)));
    let meant = known.filter(|(seen, record)| id.is_none_or(|id| seen.id(record) == id));
    let mut jobs: Vec<(Seen, Record)> = meant
        .filter(|(seen, record)| {
            seen.is_live() || !orphan::is_spent(seen, record, &here.boot, &here.proc, &here.mountinfo)
        })
        .collect();
    if jobs.len() > 1 {
        // perflock gives no number twice, but somebody may have made such a ticket.
        let ids: Vec<String> = jobs.iter().map(|(seen, record)| seen.id(record).to_string()).collect();
        return Err(Error::Refused(format!("{number} means more than one job; name one of: {}", ids.join(", "))));
    }
    Ok(jobs.pop())
}

impl Target<'_> {
    /// Whether it is ours to cancel, from here.
    fn check(&self) -> Result<(), Error> {
        let (own, owner) = (rustix::process::geteuid(), self.seen.uid);
        if !own.is_root() && own.as_raw() != owner {
            let user = text::escape(&crate::user::name(owner));
            return Err(Error::Refused(format!("{} is not yours; only {user} or root can cancel it", self.what)));
        }
        let joined = &self.record.joined;
        if joined.boot != self.here.boot || joined.pid_namespace != self.here.pid_namespace {
            return Err(Error::Refused(format!("{} runs in another container; cancel it from there", self.what)));
        }
        let id = self.seen.id(&self.record);
        let groups = self.here.proc.own_cgroups().unwrap_or_default();
        let by_variable = || std::env::var(nested::VARIABLE).is_ok_and(|name| name == id.to_string());
        if groups.iter().flat_map(|path| JobId::in_group_path(path)).any(|outer| outer == id) || by_variable() {
            return Err(Error::Refused(format!("this runs inside {}; cancel it from outside", self.what)));
        }
        Ok(())
    }

    fn cancel(&self, grace: Duration) -> Result<(), Error> {
        let by_uid = rustix::process::geteuid().as_raw();
        // For its supervisor to tell. Without it the job ends all the same.
        let _ = self.seen.append(&Change::Cancelled { by_uid });
        match self.supervisor() {
            Some(supervisor) => self.end_with_supervisor(&supervisor, grace),
            None if self.seen.is_live() => self.wait_for_guard(),
            None => self.end_orphan(),
        }
    }

    /// The supervisor, by a descriptor that means it and nobody else.
    fn supervisor(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(self.seen.supervisor(&self.record, &self.here.proc)?.pid)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Looked at again now that the number cannot come to mean another.
        let stat = self.seen.supervisor(&self.record, &self.here.proc)?;
        (stat.state != 'Z').then_some(pidfd)
    }

    /// TERM, the grace period, KILL. Stopped processes take TERM only when they go on.
    fn end_with_supervisor(&self, supervisor: &OwnedFd, grace: Duration) -> Result<(), Error> {
        for signal in [Signal::TERM, Signal::CONT] {
            let _ = pidfd_send_signal(supervisor, signal);
        }
        let group = self.group()?;
        let now = self.seen.record();
        if group.is_none() && now.is_none_or(|record| record.granted_usec.is_none()) {
            // It waits: TERM ends it.
            return self.last_resort(supervisor, None);
        }
        if let Some(group) = &group {
            signal_members(&**group, &group.members(), Signal::CONT);
        }
        let end = Instant::now() + grace;
        let soon = end.min(Instant::now() + PATIENCE);
        if self.gone(Some(supervisor), soon)? {
            return Ok(());
        }
        let members = group.as_ref().map(|group| group.members().len());
        let whom =
            members.map_or_else(|| self.what.clone(), |n| format!("{} of {}", text::count(n, "process"), self.what));
        let left = text::duration(end.saturating_duration_since(Instant::now()));
        self.say.note(&format!("waiting for {whom} to end; killed in {left}"));
        if self.gone(Some(supervisor), end)? {
            return Ok(());
        }
        if let Some(group) = &group {
            // The supervisor may have been stopped again: this does without it.
            self.kill(&**group)?;
        }
        self.last_resort(supervisor, group.as_deref())
    }

    /// A supervisor that does not end when it has nothing left to do is killed. If there is a guard, it does the rest.
    fn last_resort(&self, supervisor: &OwnedFd, group: Option<&dyn JobGroup>) -> Result<(), Error> {
        if self.gone(Some(supervisor), Instant::now() + AT_ONCE)? {
            return Ok(());
        }
        let _ = pidfd_send_signal(supervisor, Signal::KILL);
        if let Some(group) = group {
            self.kill(group)?;
        }
        if self.gone(Some(supervisor), Instant::now() + AT_ONCE)? { Ok(()) } else { Err(self.stays()) }
    }

    fn wait_for_guard(&self) -> Result<(), Error> {
        orphan::wake_guard(self.seen.uid, &self.record, &self.here.proc);
        if self.gone(None, Instant::now() + AT_ONCE)? { Ok(()) } else { Err(self.stays()) }
    }

    fn end_orphan(&self) -> Result<(), Error> {
        match self.group()? {
            Some(group) => {
                self.kill(&*group)?;
                orphan::remove(Some(&*group), &self.seen, &self.record, &self.here.mountinfo);
                Ok(())
            }
            None => Err(Error::Refused(format!(
                "{} lost its supervisor, and whether its processes ended cannot be told from here",
                self.what
            ))),
        }
    }

    fn group(&self) -> Result<Option<Box<dyn JobGroup>>, Error> {
        // Its supervisor may have recorded it a moment ago.
        let record = self.seen.record();
        Ok(orphan::group_of(&self.seen, record.as_ref().unwrap_or(&self.record), &self.here.mountinfo)?)
    }

    fn kill(&self, group: &dyn JobGroup) -> Result<(), Error> {
        let (never, _writer) = std::io::pipe().map_err(Error::system("make a pipe"))?;
        let limits = Limits { interrupt: never.as_fd(), deadline: Some(Instant::now() + AT_ONCE) };
        if until_empty(group, true, Some(limits)) || group.population() == Population::Empty {
            return Ok(());
        }
        Err(self.stays())
    }

    /// Whether the supervisor ended and nobody holds the ticket any more, in time.
    fn gone(&self, supervisor: Option<&OwnedFd>, deadline: Instant) -> Result<bool, Error> {
        if let Some(supervisor) = supervisor {
            let mut fds = [PollFd::new(supervisor.as_fd(), PollFlags::POLLIN)];
            crate::poll::until(&mut fds, Some(deadline)).map_err(Error::system("wait for a process"))?;
            if fds[0].any() != Some(true) {
                return Ok(false);
            }
        }
        Ok(self.seen.wait_gone(deadline)?)
    }

    fn stays(&self) -> Error {
        let members = self.group().ok().flatten().map(|group| group.members()).unwrap_or_default();
        Error::Refused(format!("{} does not end: {}", self.what, report::still_there(members.len())))
    }
}
