//! Jobs in flight: one loop that starts them, disturbs them, and reaps them. It has one thread, and sleeps in poll(2).

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use super::area::{Area, USERS};
use super::child::Child;
use super::disturb::{self, Ticket};
use super::plan::Plan;
use super::proof::Proof;
use super::record::{Disturbance, Ending, Event, JobNumber, Kind, Record};
use crate::Failure;
use crate::room::Room;

/// When no job has ended for so long, something is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// A job that was suspended is continued again and again: it may have stopped only after the first time.
const CONTINUE_AGAIN: Duration = Duration::from_millis(50);

/// Guards of one job that are killed at most: the product replaces no more.
const GUARDS: usize = 2;

/// How many of the jobs want the machine alone: as a rule, and now and then, so that shared ones are many at a time and have
/// cores to dispute.
const EXCLUSIVE_PERCENT: [u8; 3] = [40, 40, 10];

/// How many jobs' words are kept for a message.
const REMEMBERED: usize = 500;

/// Set when the user or CI wants the soak to end.
pub(super) static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// When to stop starting jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// After so many.
    Jobs(u64),
    /// After so long.
    Time(Duration),
}

/// Something that is to be done at its time.
enum Due {
    Disturb,
    Continue(JobNumber),
    KeepContinuing(JobNumber),
}

/// A job that was not reaped yet.
struct Flying {
    child: Child,
    kind: Kind,
    done_to_it: Vec<Disturbance>,
}

/// A soak that goes on.
pub(super) struct Flight<'a> {
    area: &'a Area,
    room: Room,
    random: fastrand::Rng,
    log: File,
    reader: File,
    /// What was read of a line that is not complete.
    partial: Vec<u8>,
    flying: BTreeMap<JobNumber, Flying>,
    due: Vec<(Instant, Due)>,
    /// How many of the jobs want the machine alone.
    exclusive_percent: u8,
    /// Jobs started so far.
    pub(super) jobs: u64,
    /// What the log proves so far.
    pub(super) proof: Proof,
    /// How often each thing was done.
    pub(super) disturbances: BTreeMap<Disturbance, usize>,
    /// How often a job ended an orphan, or waited for one.
    pub(super) orphans: [usize; 2],
    /// The longest time in which no job ended.
    pub(super) longest_pause: Duration,
    /// What the latest jobs said.
    said: VecDeque<(JobNumber, String)>,
}

impl<'a> Flight<'a> {
    /// Prepares one.
    ///
    /// # Errors
    /// The log cannot be opened.
    pub(super) fn new(area: &'a Area, room: Room, seed: u64) -> Result<Self, Failure> {
        let failed = |error| format!("cannot open the log: {error}");
        Ok(Self {
            area,
            room,
            random: fastrand::Rng::with_seed(seed),
            log: File::options().append(true).open(area.log()).map_err(failed)?,
            reader: File::open(area.log()).map_err(failed)?,
            partial: Vec::new(),
            flying: BTreeMap::new(),
            due: Vec::new(),
            exclusive_percent: EXCLUSIVE_PERCENT[0],
            jobs: 0,
            proof: Proof::default(),
            disturbances: BTreeMap::new(),
            orphans: [0; 2],
            longest_pause: Duration::ZERO,
            said: VecDeque::new(),
        })
    }

    /// Starts jobs and sees all of them to their end, `parallel` at a time at most.
    ///
    /// # Errors
    /// The harness itself failed, or jobs are stuck.
    pub(super) fn fly(&mut self, until: Until, parallel: usize) -> Result<(), Failure> {
        let start = Instant::now();
        let mut last_end = start;
        let mut level = parallel;
        loop {
            let enough = match until {
                Until::Jobs(jobs) => self.jobs >= jobs,
                Until::Time(time) => start.elapsed() >= time,
            };
            let more = !enough && self.proof.problems.is_empty();
            if INTERRUPTED.load(Ordering::Relaxed) {
                return Err("interrupted".to_owned());
            }
            if more && self.flying.len() < level {
                self.start()?;
                // Now and then the queue is short, or empty: numbers begin anew, and jobs start without a wait.
                if self.jobs.is_multiple_of(50) {
                    level = *self.random.choice(&[1, 3, parallel / 2, parallel, parallel]).unwrap_or(&parallel);
                    level = level.clamp(1, parallel);
                    self.exclusive_percent = *self.random.choice(&EXCLUSIVE_PERCENT).unwrap_or(&EXCLUSIVE_PERCENT[0]);
                }
                if self.flying.len() < level {
                    continue;
                }
            }
            if !more && self.flying.is_empty() {
                return self.read_log();
            }
            if self.sleep_and_reap()? {
                self.longest_pause = self.longest_pause.max(last_end.elapsed());
                last_end = Instant::now();
            } else if last_end.elapsed() > PATIENCE {
                return Err(self.stuck());
            }
            self.do_what_is_due()?;
            self.read_log()?;
        }
    }

    /// As each user, runs a last job: it ends what is left of the others.
    ///
    /// # Errors
    /// One of them did not end as it should, or the log is not complete.
    pub(super) fn land(&mut self) -> Result<(), Failure> {
        for (user, uid) in USERS.into_iter().enumerate() {
            let words = ["--lock".into(), self.area.lock().into(), "--cgroup=required".into(), "true".into()];
            let words = [self.area.path("perflock").into()].into_iter().chain(words).collect();
            let mut child = Child::start(self.area, user, words).map_err(|e| format!("cannot start a job: {e}"))?;
            let end = Instant::now() + PATIENCE;
            let ending = loop {
                let left = end.saturating_duration_since(Instant::now());
                wait_for(&mut [PollFd::from_borrowed_fd(child.pidfd(), PollFlags::IN)], left)?;
                let ending = child.reap();
                if ending.is_some() || left.is_zero() {
                    break ending;
                }
            };
            if ending != Some(Ending::Code(0)) {
                return Err(format!("the last job of {uid} ended with {ending:?}: {}", child.said()));
            }
        }
        self.read_log()?;
        if !self.partial.is_empty() {
            let partial = String::from_utf8_lossy(&self.partial).into_owned();
            self.proof.feed(&partial);
        }
        self.proof.finish();
        Ok(())
    }

    /// What a job said on stderr, if it is not long ago.
    pub(super) fn said(&self, job: JobNumber) -> Option<&str> {
        self.said.iter().find(|(number, _)| *number == job).map(|(_, text)| text.as_str())
    }

    fn record(&mut self, job: JobNumber, event: Event) -> Result<(), Failure> {
        let line = Record { job, event }.to_string();
        match self.log.write(line.as_bytes()) {
            Ok(length) if length == line.len() => Ok(()),
            Ok(_) => Err("the log took a part of a line".to_owned()),
            Err(error) => Err(format!("cannot write to the log: {error}")),
        }
    }

    fn start(&mut self) -> Result<(), Failure> {
        self.jobs += 1;
        let job = self.jobs;
        let plan = Plan::draw(&mut self.random, &self.room, self.exclusive_percent);
        self.record(job, Event::Spawn(plan.kind, plan.mode, plan.pin))?;
        let child = Child::start(self.area, plan.user, plan.words(self.area, job));
        let child = child.map_err(|error| format!("cannot start a job: {error}"))?;
        self.flying.insert(job, Flying { child, kind: plan.kind, done_to_it: Vec::new() });
        if self.random.u8(0..100) < 45 {
            let at = Instant::now() + Duration::from_micros(self.random.u64(0..30_000));
            self.due.push((at, Due::Disturb));
        }
        Ok(())
    }

    /// Sleeps until a job ended or something is due; whether a job ended.
    fn sleep_and_reap(&mut self) -> Result<bool, Failure> {
        let next = self.due.iter().map(|(at, _)| *at).min();
        let left = next.map_or(Duration::from_secs(1), |at| at.saturating_duration_since(Instant::now()));
        let children = self.flying.values().map(|flying| flying.child.pidfd());
        let mut fds: Vec<PollFd<'_>> = children.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        wait_for(&mut fds, left)?;
        let ready = self.flying.keys().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty()).map(|(&job, _)| job);
        let ready: Vec<JobNumber> = ready.collect();
        for job in &ready {
            let Some(mut flying) = self.flying.remove(job) else { continue };
            let ending = flying.child.reap().ok_or_else(|| format!("job {job} cannot be reaped"))?;
            self.record(*job, Event::Exit(ending))?;
            let said = flying.child.said();
            self.orphans[0] += said.matches("whose supervisor was killed, before starting").count();
            self.orphans[1] += said.matches("whose supervisor was killed, to end").count();
            self.said.push_back((*job, said));
            if self.said.len() > REMEMBERED {
                self.said.pop_front();
            }
        }
        Ok(!ready.is_empty())
    }

    fn do_what_is_due(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.due).into_iter().partition(|(at, _)| *at <= now);
        self.due = later;
        for (_, due) in due {
            match due {
                Due::Disturb => self.disturb()?,
                Due::Continue(job) => self.proceed(job),
                Due::KeepContinuing(job) => {
                    self.proceed(job);
                    if self.flying.contains_key(&job) {
                        self.due.push((now + CONTINUE_AGAIN, Due::KeepContinuing(job)));
                    }
                }
            }
        }
        Ok(())
    }

    fn proceed(&self, job: JobNumber) {
        if let Some(flying) = self.flying.get(&job) {
            flying.child.signal(Signal::CONT);
        }
    }

    /// Does something to some job.
    fn disturb(&mut self) -> Result<(), Failure> {
        let tickets = disturb::tickets(self.area);
        let job_of = |ticket: &Ticket| {
            let whose = |flying: &Flying| flying.child.pid == ticket.supervisor && flying.kind != Kind::Outsider;
            self.flying.iter().find(|(_, flying)| whose(flying)).map(|(&job, _)| job)
        };
        let holders: Vec<_> =
            tickets.iter().filter(|ticket| ticket.granted).filter_map(|t| Some((job_of(t)?, t))).collect();
        let waiters = tickets.iter().filter(|ticket| !ticket.granted).filter_map(job_of);
        let waiters: Vec<JobNumber> = waiters.collect();
        // Any job at all may also be one that has no ticket yet, or none any more.
        let any: Vec<JobNumber> =
            self.flying.iter().filter(|(_, flying)| flying.kind != Kind::Outsider).map(|(&job, _)| job).collect();
        let (what, from) = match self.random.u8(0..100) {
            0..16 => (Disturbance::KillSupervisor, None),
            16..32 => (Disturbance::KillGuard, Some(true)),
            32..52 => (Disturbance::KillBoth, Some(true)),
            52..68 => (Disturbance::Freeze, None),
            68..86 => (Disturbance::Suspend, Some(false)),
            _ => (Disturbance::Cancel, None),
        };
        let holding: Vec<JobNumber> = holders.iter().map(|(job, _)| *job).collect();
        let from_holders = from.unwrap_or_else(|| self.random.u8(0..100) < 70);
        let candidates = if from_holders {
            &holding
        } else if from.is_some() {
            &waiters
        } else {
            &any
        };
        let Some(&job) = self.random.choice(candidates) else { return Ok(()) };
        let flying = &self.flying[&job];
        let is_guards = matches!(what, Disturbance::KillGuard | Disturbance::KillBoth);
        let guards_killed = flying.done_to_it.iter().filter(|done| **done == Disturbance::KillGuard).count();
        let guard = holders.iter().find(|(holder, _)| *holder == job).filter(|_| is_guards && guards_killed < GUARDS);
        let guard = guard.and_then(|(_, ticket)| disturb::guard_of(self.area, &flying.child, ticket));
        if is_guards && guard.is_none() {
            return Ok(());
        }
        self.record(job, Event::Disturb(what))?;
        *self.disturbances.entry(what).or_default() += 1;
        let soon = Instant::now() + Duration::from_micros(self.random.u64(0..20_000));
        if let Some(flying) = self.flying.get_mut(&job) {
            flying.done_to_it.push(what);
            match (what, guard) {
                (Disturbance::KillGuard, Some(guard)) => disturb::kill(guard),
                (Disturbance::KillBoth, Some(guard)) => disturb::kill_both(&flying.child, guard, &mut self.random),
                (Disturbance::KillSupervisor, _) => flying.child.signal(Signal::KILL),
                (Disturbance::Cancel, _) => flying.child.signal(Signal::TERM),
                (Disturbance::Freeze, _) => {
                    flying.child.signal(Signal::STOP);
                    self.due.push((soon, Due::Continue(job)));
                }
                (Disturbance::Suspend, _) => {
                    flying.child.signal(Signal::TSTP);
                    self.due.push((soon, Due::KeepContinuing(job)));
                }
                (Disturbance::KillGuard | Disturbance::KillBoth, None) => {}
            }
        }
        Ok(())
    }

    fn read_log(&mut self) -> Result<(), Failure> {
        self.reader.read_to_end(&mut self.partial).map_err(|error| format!("cannot read the log: {error}"))?;
        let complete = self.partial.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let rest = self.partial.split_off(complete);
        let lines = std::mem::replace(&mut self.partial, rest);
        for line in String::from_utf8_lossy(&lines).lines() {
            self.proof.feed(line);
        }
        Ok(())
    }

    /// What there is to see when nothing goes on: what those say that have the machine, or hold it up without a ticket.
    fn stuck(&mut self) -> Failure {
        let mut lines = vec![format!("no job has ended for {} s; there are", PATIENCE.as_secs())];
        let tickets = disturb::tickets(self.area);
        for (job, flying) in &mut self.flying {
            let pid = flying.child.pid;
            let ticket = tickets.iter().find(|ticket| ticket.supervisor == pid);
            let state = disturb::state_of(pid).unwrap_or('?');
            let done: Vec<&str> = flying.done_to_it.iter().map(|done| done.word()).collect();
            let done = done.join(", ");
            let place = ticket.map_or("without a ticket", |ticket| if ticket.granted { "holding" } else { "waiting" });
            lines.push(format!("job {job}, pid {pid}, state {state}, {place}, done to it: [{done}]"));
            if place != "waiting" {
                lines.extend(flying.child.said().lines().map(|line| format!("job {job} said: {line}")));
            }
        }
        lines.join("\n  ")
    }
}

/// poll(2) that a signal may end early.
fn wait_for(fds: &mut [PollFd<'_>], time: Duration) -> Result<(), Failure> {
    let time = Timespec::try_from(time).map_err(|error| format!("cannot wait: {error}"))?;
    match poll(fds, Some(&time)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(format!("cannot wait for jobs: {error}")),
    }
}
