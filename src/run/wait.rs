//! Waiting: from joining the queue to holding the machine, with nothing left of the dead, or to the signal or deadline that ends
//! the wait.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use super::{Error, Here, Prepared, Run};
use crate::exit::Ending;
use crate::history::expect::{self, Guess, Stage};
use crate::history::line::lock_text;
use crate::history::runs::{self, Asked};
use crate::lock::outsiders::Outsider;
use crate::lock::{self, Ahead, Ask, Hold, Joined, Lock, Other, Place, Queue, Record, Seen, Woken};
use crate::orphan;
use crate::pin::{CpuList, Plan};
use crate::poll::Limits;
use crate::procfs::Proc;
use crate::report;
use crate::settings::{Settings, Verbosity};
use crate::step::Step;
use crate::supervisor::signals::{self, Signals};
use crate::text;

/// Of the jobs ahead, the histories of so many users are read: a waiter is small, and there may be a thousand.
const USERS_LOOKED_UP: usize = 4;

/// How long a wait that should be over at once goes on without a word.
const PATIENCE: Duration = Duration::from_secs(5);

impl Run {
    /// Joins the queue and waits. The inner error is how to end without the machine.
    pub(super) fn obtain(
        &self,
        mut lock: Lock,
        joined: Joined,
        prepared: Prepared<'_>,
        started: Instant,
    ) -> Result<Result<Hold, Ending>, Error> {
        let Prepared { plan, here, signals, .. } = prepared;
        let limits = self.limits(signals, started);
        let spent =
            |seen: &Seen, record: &Record| orphan::is_spent(seen, record, &here.boot, &here.proc, &here.mountinfo);
        // Joining takes microseconds, unless a neighbour holds the directory's lock: then it is said who.
        let mut patience = Some(started + PATIENCE);
        // Also for --nonblock: the others who have it just now are gone in a moment.
        let last = limits.deadline.map(|at| at.max(started + lock::place::PATIENCE));
        let mut place = loop {
            let soon = Limits { deadline: last.into_iter().chain(patience).min(), ..limits };
            lock = match Place::join(lock, joined.clone(), soon, &mut { spent })? {
                Ok(place) => break place,
                Err(lock) => lock,
            };
            if patience.is_some_and(|at| at <= Instant::now()) {
                patience = None;
                self.queue_is_locked(&lock.queue, here);
            }
            match fatal(signals) {
                Some(signal) => return Ok(Err(Ending::Signal(signal))),
                None if last.is_some_and(|at| at <= Instant::now()) => {
                    return Ok(Err(self.gave_up(started, "the lock")));
                }
                None => {}
            }
        };
        // An exclusive job has every core.
        let plan = plan.filter(|_| joined.cores.is_some());
        let pick = |taken: &CpuList, used: &CpuList| plan.and_then(|plan| plan.pick(taken, used));
        // Of which it was told already that nobody here can see whether anything is left of them. They do not keep the machine
        // from others, nor cores.
        let unknown = RefCell::new(Vec::new());
        let counts_not = |seen: &Seen, record: &Record| {
            unknown.borrow().contains(&seen.file_identity()) || !orphan::is_hidden(seen, record) && spent(seen, record)
        };
        let mut patience = Some(PATIENCE);
        let mut awaiting = "the lock".to_owned();
        let mut told = false;
        let mut cancelled = None;
        loop {
            let on_wait = |ahead: Ahead, place: &Place| {
                if !told {
                    told = true;
                    let _ = signals.catch_stop(&self.inherited);
                }
                orphan::wake_guards(&ahead, &here.proc, &here.boot, here.pid_namespace);
                let who = self.in_the_way(&ahead, place, here);
                let what = awaited(plan, &ahead);
                awaiting = if ahead.taken.is_some() { what.clone() } else { "the lock".to_owned() };
                // Our ticket is live: a reader who does not read must not hold up the queue.
                // Cores of its own may be free later than the lock.
                let start = if plan.is_none() { self.expected_start(&ahead, place, here) } else { None };
                let start = start.map(|start| format!("; start in {}", expect::shown(&start)));
                self.say.note_now(&format!("waiting for {what}{who}{}", start.unwrap_or_default()));
                give_back_memory();
            };
            let ask = plan.map(|_| Ask { pick: &pick, spent: &counts_not, patience });
            let woken = place.wait(self.settings.nonblock, ask, limits, on_wait);
            let ending = match woken {
                Ok(Woken::Held) => {
                    if told {
                        signals::stop_by_default(&self.inherited);
                        self.say.note_now(&format!("got lock after {}", text::duration(started.elapsed())));
                    }
                    return Ok(Ok(place.hold()));
                }
                Ok(Woken::Busy(ahead)) => {
                    let who = self.in_the_way(&ahead, &place, here);
                    let what = awaited(plan, &ahead);
                    place.leave();
                    self.say.note(&format!("not waiting for {what}{who}"));
                    return Ok(Err(Ending::Code(self.settings.conflict_exit_code)));
                }
                Ok(Woken::QueueLocked) => {
                    patience = None;
                    self.queue_is_locked(place.queue(), here);
                    continue;
                }
                Ok(Woken::TimedOut) => self.gave_up(started, &awaiting),
                Ok(Woken::Orphans(orphans)) => match self.end_these(orphans, here, signals, limits, &|_| {}, &|seen| {
                    unknown.borrow_mut().push(seen.file_identity());
                }) {
                    Ok(None) => continue,
                    Ok(Some(Unstarted::GaveUp)) => self.gave_up(started, &awaiting),
                    Ok(Some(Unstarted::Signalled(signal))) => {
                        self.waiter_dies(signal, place.ticket().cancelled_by().or(cancelled))
                    }
                    Err(error) => {
                        place.leave();
                        return Err(error);
                    }
                },
                Ok(Woken::Interrupted) => match waiter_signal(signals) {
                    None => continue,
                    Some(WaiterSignal::Die(signal)) => {
                        self.waiter_dies(signal, place.ticket().cancelled_by().or(cancelled))
                    }
                    Some(WaiterSignal::Stop) => {
                        place.stop();
                        signals::stop_now();
                        // It may come back with another ticket.
                        cancelled = place.ticket().cancelled_by();
                        match place.resume(limits, &mut { spent }) {
                            Ok(true) => continue,
                            Ok(false) => match fatal(signals) {
                                Some(signal) => self.waiter_dies(signal, cancelled),
                                None => self.gave_up(started, &awaiting),
                            },
                            Err(error) => {
                                place.leave();
                                return Err(error.into());
                            }
                        }
                    }
                },
                Err(error) => {
                    place.leave();
                    return Err(error.into());
                }
            };
            place.leave();
            return Ok(Err(ending));
        }
    }

    /// Somebody has had the queue directory locked for long: says who.
    fn queue_is_locked(&self, queue: &Queue, here: &Here) {
        let holder = lock::outsiders::holder(&here.proc, queue);
        let who = holder.map(|holder| report::in_the_way(&Ahead::default(), &|_| None, &|| vec![holder.clone()]));
        let (queue, who) = (queue.path().display(), who.unwrap_or_default());
        self.say.note_now(&format!("waiting for the queue: {queue} is locked{who}"));
    }

    fn waiter_dies(&self, signal: i32, cancelled_by: Option<u32>) -> Ending {
        if let Some(by_uid) = cancelled_by {
            self.account.cancelled(by_uid);
            self.say.note_now(&report::cancelled(by_uid));
        }
        Ending::Signal(signal)
    }

    /// With the machine held: deals with orphans. What ended the wait for one, if anything did.
    pub(super) fn end_orphans(
        &self,
        here: &Here,
        hold: &Hold,
        signals: &Signals,
        limits: Limits<'_>,
    ) -> Result<Option<Unstarted>, Error> {
        let forget = |seen: &Seen| hold.forget(seen, limits);
        let ended = self.end_these(hold.dead()?, here, signals, limits, &forget, &|_| {})?;
        if ended.is_none() {
            Step::OrphansEnded.reached();
        }
        Ok(ended)
    }

    /// Deals with these orphans; `forget` is told of those that are gone, `pass_over` of those of which that cannot be told.
    /// What ended the wait for one, if anything did.
    fn end_these(
        &self,
        orphans: Vec<(Seen, Record)>,
        here: &Here,
        signals: &Signals,
        limits: Limits<'_>,
        forget: &dyn Fn(&Seen),
        pass_over: &dyn Fn(&Seen),
    ) -> Result<Option<Unstarted>, Error> {
        for (seen, record) in orphans {
            self.account.finds_orphan(&seen, &record, &here.boot, &here.mountinfo);
            loop {
                match orphan::end(&seen, &record, here.cgroup_namespace, &here.boot, &here.mountinfo, limits, &self.say)
                {
                    orphan::End::Gone if record.group.is_some() => forget(&seen),
                    orphan::End::Gone => {}
                    orphan::End::Unknown => pass_over(&seen),
                    orphan::End::Interrupted => {
                        if let Some(signal) = fatal(signals) {
                            return Ok(Some(Unstarted::Signalled(signal)));
                        }
                        if limits.deadline.is_some_and(|at| at <= Instant::now()) {
                            return Ok(Some(Unstarted::GaveUp));
                        }
                        // A child that came home, or a ^Z that was late: neither ends the wait.
                        continue;
                    }
                    orphan::End::Failed(error) => return Err(error.into()),
                }
                break;
            }
        }
        Ok(None)
    }

    /// Somebody cancelled it before the command was started.
    pub(super) fn cancelled(&self, by_uid: u32) {
        self.account.cancelled(by_uid);
        self.say.wrong(&report::cancelled(by_uid));
    }

    /// Who is in the way, for a message; the report is told as well.
    fn in_the_way(&self, ahead: &Ahead, place: &Place, here: &Here) -> String {
        let outsiders = outsiders(ahead, place, &here.proc);
        self.account.waits(place.ticket().entry.number, ahead.jobs, &outsiders);
        report::in_the_way(ahead, &|record| here.login_uid(record), &outsiders)
    }

    /// When it may start, from how long the jobs ahead took before. Nothing is read of which nobody is told.
    fn expected_start(&self, ahead: &Ahead, place: &Place, here: &Here) -> Option<Guess> {
        if self.settings.verbosity == Verbosity::Quiet
            || ahead.holders.is_empty()
            || ahead.taken.is_some()
            || !ahead.exact
        {
            return None;
        }
        let jobs: Vec<&Other> = ahead.holders.iter().chain(&ahead.waiters).collect();
        let asked: Vec<Asked<'_>> = jobs
            .iter()
            .map(|job| Asked { uid: job.uid, mode: job.mode, command: &job.record.joined.command })
            .collect();
        let Settings { history, lock, mode, .. } = &self.settings;
        let mut runs = runs::of_jobs(history, &lock_text(&lock.to_string_lossy()), &asked, USERS_LOOKED_UP);
        let mut stages: Vec<_> = jobs.iter().map(|job| (job.mode, here.stage(job))).collect();
        runs.push(Vec::new());
        stages.push((*mode, Stage::Waits));
        let start = expect::starts(&stages, &runs).pop().flatten()?;
        // Looked for last: where nothing would be said anyway, /proc/locks need not be read. Jobs behind us, and those of containers,
        // are no outsiders, though we know no ticket of theirs.
        let is_perflock = |pid| here.proc.stat(pid).is_ok_and(|stat| matches!(&*stat.comm, "perflock" | "pls"));
        outsiders(ahead, place, &here.proc)().iter().all(|other| is_perflock(other.pid)).then_some(start)
    }

    pub(super) fn gave_up(&self, started: Instant, what: &str) -> Ending {
        if self.settings.nonblock {
            self.say
                .note("not waiting for lock: somebody has the queue locked, or what is left of a job is in the way");
        } else {
            self.say.note(&format!("gave up after waiting {} for {what}", text::duration(started.elapsed())));
        }
        Ending::Code(self.settings.conflict_exit_code)
    }

    /// What ends every wait before the command starts.
    pub(super) fn limits<'a>(&self, signals: &'a Signals, started: Instant) -> Limits<'a> {
        let wait = if self.settings.nonblock { Some(Duration::ZERO) } else { self.settings.wait };
        Limits { interrupt: signals.fd(), deadline: wait.and_then(|wait| started.checked_add(wait)) }
    }
}

/// Gives the kernel back what the start has freed: a waiter may sleep for hours, beside hundreds of others.
fn give_back_memory() {
    // SAFETY: only memory that malloc(3) knows to be free is given back.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// What is waited for: the lock, or cores.
fn awaited(plan: Option<&Plan>, ahead: &Ahead) -> String {
    let cores = plan.zip(ahead.taken.as_ref()).and_then(|(plan, taken)| Some((plan.cores()?, plan.cores_free(taken)?)));
    match cores {
        Some((asked, _)) if ahead.is_turn => format!("{} (others asked before)", text::count(asked, "core")),
        Some((asked, (free, all))) => format!("{} ({free} of {all} free)", text::count(asked, "core")),
        None => "lock".to_owned(),
    }
}

/// What ended the wait for an orphan.
pub(super) enum Unstarted {
    GaveUp,
    Signalled(i32),
}

enum WaiterSignal {
    Stop,
    Die(i32),
}

/// What came for a waiter: whatever ends a program by default wins over ^Z.
fn waiter_signal(signals: &Signals) -> Option<WaiterSignal> {
    let arrived: Vec<i32> =
        signals.drain().iter().map(|arrived| arrived.signal).filter(|&s| s != libc::SIGCHLD).collect();
    let fatal = arrived.iter().find(|&&signal| signal != libc::SIGTSTP);
    match (fatal, arrived.is_empty()) {
        (Some(&signal), _) => Some(WaiterSignal::Die(signal)),
        (None, false) => Some(WaiterSignal::Stop),
        (None, true) => None,
    }
}

/// A signal that came and ends us.
pub(super) fn fatal(signals: &Signals) -> Option<i32> {
    match waiter_signal(signals) {
        Some(WaiterSignal::Die(signal)) => Some(signal),
        _ => None,
    }
}

/// Who has the lock file by plain flock(2), for a message. Only asked for when no ticket explains the wait; nobody without one
/// has cores.
fn outsiders(ahead: &Ahead, place: &Place, proc: &Proc) -> impl Fn() -> Vec<Outsider> {
    let own = std::process::id().cast_signed();
    let ours: Vec<i32> = ahead.supervisors.iter().copied().chain([own]).collect();
    let for_cores = ahead.taken.is_some();
    move || match for_cores {
        true => Vec::new(),
        false => lock::outsiders::outsiders(proc, place.lock_file(), &ours).unwrap_or_default(),
    }
}
