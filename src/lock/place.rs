//! A place in the queue, from joining to holding the machine to giving it back.

mod asking;

use std::borrow::Cow;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};

use super::cores::Claim;
use super::decide::{Decision, Entry, Life, Target, decide};
use super::file::LockFile;
use super::ofd::whole_file;
use super::queue::Queue;
use super::record::{Change, Joined, Record};
use super::ticket::{Seen, Ticket};
use super::wait::{self, Call, Slept};
use super::waiting::Waiting;
use super::{LockError, queue_directory};
use crate::job::Mode;
use crate::pin::{CpuList, Lease};
use crate::poll::Limits;
use crate::step::Step;

/// How many tickets ahead are looked at to tell the user who is in the way. Beyond, they are only counted.
const LOOKED_AT: usize = 64;

pub use asking::Ask;

/// Asks whether a dead ticket names nothing any more; see [`Queue`].
pub type Spent<'a> = &'a mut dyn FnMut(&Seen, &Record) -> bool;

/// How long even `--nonblock` and `--wait` let others have the directory locked, who have it for a moment only.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// How waiting for the machine ended.
#[derive(Debug)]
pub enum Woken {
    /// The machine is ours.
    Held,
    /// `--nonblock`, and it would have had to wait for these.
    Busy(Ahead),
    /// The descriptor to watch became readable.
    Interrupted,
    /// The deadline passed.
    TimedOut,
    /// Somebody has had the queue directory locked for longer than the asker was patient.
    QueueLocked,
    /// These have no supervisor and no guard, and cores that are needed: to be ended, or to be waited for.
    Orphans(Vec<(Seen, Record)>),
}

/// Another job that is alive, by its ticket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// Its place in the queue.
    pub number: u64,
    /// How it has the machine, or wants it, by the ticket's name: that is what excludes others, whatever its text says.
    pub mode: Mode,
    /// The ticket's owner: the user whose job it is.
    pub uid: u32,
    /// What the ticket says.
    pub record: Record,
}

impl Other {
    /// Whose ticket says something.
    pub fn seen(seen: &Seen) -> Option<Self> {
        let Entry { number, mode } = seen.entry;
        Some(Self { number, mode, uid: seen.uid, record: seen.record()? })
    }
}

/// Who is ahead of a waiter, as of the moment it looked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// How many jobs are in the way.
    pub jobs: usize,
    /// Every one of them was seen alive; false where there were too many to look at.
    pub exact: bool,
    /// The jobs that have the machine: we, or those before us, wait for them.
    pub holders: Vec<Other>,
    /// The jobs that wait before us, in the order of the queue; not where cores are waited for.
    pub waiters: Vec<Other>,
    /// The supervisors of the jobs that were looked at, whoever they are.
    pub supervisors: Vec<i32>,
    /// Where cores are waited for: every processor that is somebody's alone.
    pub taken: Option<CpuList>,
    /// Somebody who asked for cores before us has none yet: ours may be free.
    pub is_turn: bool,
}

/// A job in the queue.
#[derive(Debug)]
pub struct Place {
    file: LockFile,
    queue: Queue,
    ticket: Ticket,
    joined: Joined,
    mode: Mode,
    /// What is before us in the queue, as it was last read. Since then names may have gone, but none has come.
    before: Vec<Entry>,
    /// To be read again before the next look.
    stale: bool,
    /// It was stopped meanwhile, so that later jobs may have started before it.
    was_stopped: bool,
    /// It let its ticket go, and has not come back.
    is_stopped: bool,
    /// The cores that it has to itself.
    lease: Option<Lease>,
    /// What others had and wanted of cores when it last asked for some.
    claims: Vec<(Entry, Claim)>,
}

impl Place {
    /// Joins the queue of the lock file. The lock is handed back if `limits` ended the wait for the directory.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn join(
        lock: Lock,
        joined: Joined,
        limits: Limits<'_>,
        spent: Spent<'_>,
    ) -> Result<Result<Self, Lock>, LockError> {
        let Some((ticket, before)) = enter(&lock.queue, &joined, limits, spent)? else {
            return Ok(Err(lock));
        };
        let mode = joined.mode;
        let Lock { file, queue } = lock;
        Ok(Ok(Self {
            file,
            queue,
            ticket,
            joined,
            mode,
            before,
            stale: false,
            was_stopped: false,
            is_stopped: false,
            lease: None,
            claims: Vec::new(),
        }))
    }

    /// Our ticket.
    pub fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// The queue that it is in.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The lock file that is waited for.
    pub fn lock_file(&self) -> &LockFile {
        &self.file
    }

    /// Waits until the machine is ours, and cores that `ask` is for. With `nonblock` it never sleeps. `on_wait` is told once per
    /// change of what is waited for, never woken for anything else. May be called again after `Interrupted` and `Orphans`.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn wait(
        &mut self,
        nonblock: bool,
        ask: Option<Ask<'_>>,
        limits: Limits<'_>,
        mut on_wait: impl FnMut(Ahead, &Self),
    ) -> Result<Woken, LockError> {
        let mut told = None;
        let mut next = Waiting::Look;
        loop {
            next = match next {
                Waiting::Look | Waiting::LookAgain => {
                    let lacks_cores = ask.is_some() && self.lease.is_none();
                    next.looked(self.decide()?, lacks_cores)
                }
                Waiting::AskForCores => match ask.map(|ask| self.ask_for_cores(ask, limits)).transpose()? {
                    Some(Ok(cores)) => Waiting::asked(&cores),
                    Some(Err(woken)) => return Ok(woken),
                    None => Waiting::TryLock,
                },
                Waiting::TryLock => Waiting::tried(self.file.try_lock(self.mode)?),
                // What is left of the dead may be nothing at all, or be ended at once.
                Waiting::Sleep(target) if nonblock && target != Target::Orphans => {
                    return Ok(Woken::Busy(self.ahead_of(target).unwrap_or_default()));
                }
                Waiting::Sleep(target) => {
                    if told != Some(target) && !nonblock {
                        told = Some(target);
                        on_wait(self.ahead_of(target)?, self);
                    }
                    if target == Target::Orphans {
                        return Ok(Woken::Orphans(self.orphans_with_cores()));
                    }
                    match self.sleep_on(target, limits)? {
                        Slept::Done => Waiting::woke(target),
                        Slept::Interrupted => return Ok(Woken::Interrupted),
                        Slept::TimedOut => return Ok(Woken::TimedOut),
                    }
                }
                Waiting::LetGo => {
                    self.file.unlock();
                    Waiting::Look
                }
                Waiting::Granted => return self.granted(),
            };
        }
    }

    fn decide(&mut self) -> Result<Decision, LockError> {
        let me = self.ticket.entry;
        if self.stale {
            self.before = self.queue.entries()?;
            self.before.retain(|entry| entry.number < me.number);
        }
        self.stale = true;
        // A ticket that cannot be opened for want of descriptors is not a dead one.
        let mut failure = None;
        let decision = decide(me, &self.before, |entry| match self.queue.try_see(entry) {
            Ok(seen) => seen.map_or(Life::Dead, |seen| seen.life()),
            Err(error) => {
                failure = Some(error);
                Life::Waiting
            }
        });
        failure.map_or(Ok(decision), Err)
    }

    fn sleep_on(&self, target: Target, limits: Limits<'_>) -> Result<Slept, LockError> {
        let Limits { interrupt, deadline } = limits;
        let sleep = |call| wait::sleep_on(call, interrupt, deadline).map_err(LockError::Wait);
        match target {
            Target::LockFile => sleep(Call::Flock(self.file.as_fd(), self.mode)),
            Target::Ticket(entry) => match self.queue.try_see(entry)? {
                Some(seen) => sleep(Call::WriterGone(seen.as_fd())),
                None => Ok(Slept::Done),
            },
            Target::Turn(entry) => match self.queue.try_see(entry)? {
                Some(seen) => sleep(Call::AskerServed(seen.as_fd())),
                None => Ok(Slept::Done),
            },
            Target::Cores => self.sleep_until_cores_are_free(limits),
            // Whoever knows job groups deals with them.
            Target::Orphans => Ok(Slept::Done),
        }
    }

    /// We have the lock file: check that it still excludes others, and say so in the ticket.
    fn granted(&self) -> Result<Woken, LockError> {
        if !self.file.still_named() {
            self.file.unlock();
            return Err(LockError::Replaced(self.file.path().to_owned()));
        }
        Step::LockTaken.reached();
        let at_usec = crate::clock::boottime_usec();
        if let Err(error) = self.ticket.record(&Change::Granted { at_usec }) {
            self.file.unlock();
            return Err(error);
        }
        Step::Granted.reached();
        Ok(Woken::Held)
    }

    /// Who is ahead of us now, who would sleep on `target`.
    fn ahead_of(&self, target: Target) -> Result<Ahead, LockError> {
        if matches!(target, Target::Turn(_) | Target::Cores | Target::Orphans) {
            return self.ahead_for_cores();
        }
        let me = self.ticket.entry;
        let queue = who_may_have_started(&self.queue, &self.before, self.was_stopped)?;
        let conflicting = |e: Entry| e.number < me.number && e.mode.conflicts_with(me.mode);
        let looked_at = queue.iter().copied().take(LOOKED_AT);
        // Those too many to look at are counted as if they lived.
        let mut jobs = queue.iter().skip(LOOKED_AT).filter(|&&entry| conflicting(entry)).count();
        let exact = jobs == 0;
        let (mut holders, mut waiters) = (Vec::new(), Vec::new());
        let mut supervisors = Vec::new();
        for seen in looked_at.filter_map(|entry| self.queue.see(entry)).filter(Seen::is_live) {
            jobs += usize::from(conflicting(seen.entry));
            let Some(other) = Other::seen(&seen) else { continue };
            supervisors.push(other.record.joined.pid);
            if other.record.granted_usec.is_some() {
                holders.push(other);
            } else if other.number < me.number {
                waiters.push(other);
            }
        }
        Ok(Ahead { jobs, exact, holders, waiters, supervisors, ..Ahead::default() })
    }

    /// Lets others pass while this waiter is stopped. Its ticket keeps its place until [`Place::resume`].
    pub fn stop(&mut self) {
        (self.was_stopped, self.is_stopped) = (true, true);
        self.lease = None;
        // If this cannot be written, a newcomer may clean the ticket away and the place is lost: still safe.
        let _ = self.ticket.record(&Change::Stopped);
        let _ = fcntl(self.ticket.file(), FcntlArg::F_OFD_SETLK(&whole_file(libc::F_UNLCK)));
    }

    /// Goes on after [`Place::stop`]: in the old place if nobody overtook it, else at the end of the queue.
    /// False if `limits` ended the wait for the directory.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn resume(&mut self, limits: Limits<'_>, spent: Spent<'_>) -> Result<bool, LockError> {
        {
            // Under the directory's flock nobody can be removing our ticket.
            let Some(_lock) = self.queue.lock_directory(limits.interrupt, limits.deadline)? else {
                return Ok(false);
            };
            if self.ticket.still_named() && !self.overtaken()? && self.ticket.relock() {
                // Any line after `stopped` says that the waiter goes on.
                let resumed = Change::Resumed;
                self.is_stopped = false;
                self.ticket.record(&resumed)?;
                return Ok(true);
            }
            // It is not locked: only under the directory's lock can its name not come to mean another's.
            self.ticket.retire();
        }
        let joined_usec = crate::clock::boottime_usec();
        let joined = Joined { joined_usec, ..self.joined.clone() };
        let Some((ticket, before)) = enter(&self.queue, &joined, limits, spent)? else {
            return Ok(false);
        };
        (self.before, self.stale) = (before, false);
        (self.ticket, self.joined, self.is_stopped) = (ticket, joined, false);
        Ok(true)
    }

    /// Whether a job that came later and conflicts with us was started meanwhile, be it alive or an orphan. Then we go
    /// to the end, so that whoever may have members when we start is always ahead of us: see [`Hold::dead`]. If we ask for
    /// cores, so does one that came later and has some: it may wait for somebody between us, who would wait for us.
    fn overtaken(&self) -> Result<bool, LockError> {
        let me = self.ticket.entry;
        let asks = self.joined.cores.is_some();
        let entries = self.queue.entries()?;
        let later = entries.into_iter().filter(|e| e.number > me.number && (asks || e.mode.conflicts_with(me.mode)));
        let passed = |seen: Seen| {
            let started = |record: Record| record.granted_usec.is_some() && seen.entry.mode.conflicts_with(me.mode);
            let served = |record: &Record| asks && record.cores.is_some();
            seen.record().is_some_and(|record| served(&record) || started(record))
        };
        Ok(later.filter_map(|entry| self.queue.see(entry)).any(passed))
    }

    /// Leaves the queue. A ticket that was let go is left to a newcomer, who removes it under the directory's lock.
    pub fn leave(self) {
        if !self.is_stopped {
            self.ticket.retire();
        }
    }

    /// After [`Woken::Held`].
    pub fn hold(self) -> Hold {
        let Self { file, queue, ticket, before, was_stopped, lease, .. } = self;
        Hold { file, queue, ticket, before, was_stopped, lease }
    }
}

/// Those before us, and everybody where we were stopped: then those that have the machine may have come later.
fn who_may_have_started<'a>(
    queue: &Queue,
    before: &'a [Entry],
    was_stopped: bool,
) -> Result<Cow<'a, [Entry]>, LockError> {
    if was_stopped { Ok(queue.entries()?.into()) } else { Ok(before.into()) }
}

/// A ticket at the end of the queue, and what is before it.
fn enter(
    queue: &Queue,
    joined: &Joined,
    limits: Limits<'_>,
    spent: Spent<'_>,
) -> Result<Option<(Ticket, Vec<Entry>)>, LockError> {
    let draft = queue.draft(joined)?;
    let Some(lock) = queue.lock_directory(limits.interrupt, limits.deadline)? else {
        return Ok(None);
    };
    Ok(Some(queue.publish(draft, joined, &lock, spent)?))
}

/// The machine, held.
#[derive(Debug)]
pub struct Hold {
    file: LockFile,
    queue: Queue,
    ticket: Ticket,
    /// What was before us when we last looked.
    before: Vec<Entry>,
    was_stopped: bool,
    lease: Option<Lease>,
}

impl Hold {
    /// Our ticket.
    pub fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// The cores that the job has to itself, if it asked for some.
    pub fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// The descriptors whose open file descriptions are the lock and the ticket's life: a guard shares them.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.file.as_fd(), self.ticket.as_fd()]
    }

    /// Dead tickets of jobs that may not run beside a job of our mode. Their groups may still have members. Such a ticket
    /// is ahead of us: it keeps its number until its group is empty, and numbers only grow past it. Only where we were
    /// stopped may a later job have started, and died, before us.
    ///
    /// # Errors
    /// The queue directory could not be read.
    pub fn dead(&self) -> Result<Vec<(Seen, Record)>, LockError> {
        let me = self.ticket.entry;
        let others = who_may_have_started(&self.queue, &self.before, self.was_stopped)?;
        let conflicting = others.iter().filter(|e| e.number != me.number && e.mode.conflicts_with(me.mode));
        Ok(conflicting
            .copied()
            .filter_map(|entry| self.queue.see(entry))
            .filter(|seen| !seen.is_live())
            .filter_map(|seen| seen.record().map(|record| (seen, record)))
            .collect())
    }

    /// Removes the ticket of a dead job of which nothing is left. Left to a later newcomer if somebody has the directory
    /// locked just now.
    pub fn forget(&self, seen: &Seen, limits: Limits<'_>) {
        let now = Limits { deadline: Some(std::time::Instant::now()), ..limits };
        if let Ok(Some(lock)) = self.queue.lock_directory(now.interrupt, now.deadline) {
            self.queue.remove_dead(&lock, seen, &mut |_, _| true);
        }
    }

    /// Gives the machine back. The lock file first: the ticket keeps our place until the machine is free, and is
    /// unlinked while it is still locked, so that nobody can meanwhile take it for a dead one and its number for free.
    pub fn release(self) {
        self.give_back(Step::LockReleased);
        Step::TicketRemoved.reached();
    }

    /// The same, by the guard of a supervisor that is dead.
    pub fn release_by_guard(&self) {
        self.give_back(Step::GuardReleased);
    }

    fn give_back(&self, released: Step) {
        self.file.unlock();
        released.reached();
        self.ticket.retire();
    }
}

/// Lock file and queue of a machine that is set up, opened.
#[derive(Debug)]
pub struct Lock {
    /// The lock file.
    pub file: LockFile,
    /// The queue directory.
    pub queue: Queue,
}

impl Lock {
    /// The jobs that are alive, in the order of the queue, but not that of number `own`; the first few of very many. Asking
    /// takes no lock.
    ///
    /// # Errors
    /// The queue directory could not be read.
    pub fn others(&self, own: u64) -> Result<Vec<Other>, LockError> {
        let entries = self.queue.entries()?.into_iter().filter(|entry| entry.number != own).take(LOOKED_AT);
        let live = entries.filter_map(|entry| self.queue.see(entry)).filter(Seen::is_live);
        Ok(live.filter_map(|seen| Other::seen(&seen)).collect())
    }

    /// Opens both, without joining.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn open(path: &std::path::Path) -> Result<Self, LockError> {
        Ok(Self { file: LockFile::open(path)?, queue: Queue::open(&queue_directory(path))? })
    }
}
