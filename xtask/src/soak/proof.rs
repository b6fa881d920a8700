//! What the log proves: a pure function of its lines, fed as they come.
//!
//! - **Alone.** A job has a living member from its first line (or from the end of its supervisor, after which none of
//!   its members is born) to its last. If an incompatible job started in between, both were there. The worker's
//!   presence lock finds what the lines cannot: a job that was killed, and what it left behind, have no last line, but
//!   keep that lock while they live, and the next incompatible worker says `overlap`.
//! - **Cores.** Two jobs that have a core in common conflict, shared or not, if each of them was given its cores alone:
//!   by the same lines, and by a presence lock for each processor, of which the next worker says `taken`. What is left of
//!   a dead job keeps its cores, so nothing may be met. Every worker that is pinned says `strayed` unless the kernel lets it
//!   run exactly where it was told.
//! - **Order.** A worker names the tickets that were ahead of it in the queue while its job was started. Tickets that
//!   exist together are ordered by number, so this is all of what order means; numbers of a queue that ran empty in
//!   between say nothing about each other. Those that ask for cores are served in that order, too.
//! - **Once.** A job that nothing disturbed ran once and ended with 0; each other one ended in a way that what was done
//!   to it explains.
//!
//! One overlap is known and let pass: a plain flock(1) user beside a job whose supervisor and guard were both killed.

use std::collections::{HashMap, HashSet};
use std::fmt;

use perflock::pin::CpuList;

use super::record::{Disturbance, Ending, Event, JobNumber, Kind, Mode, Pin, Record};

/// EX_TEMPFAIL: the lock was not obtained.
const NOT_OBTAINED: i32 = 75;

/// A worker's exit code after `overlap`, `taken` and `strayed`.
const OVERLAPPED: i32 = 97;

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// The line that shows it, counted from 1.
    pub(super) line: usize,
    /// What is wrong.
    pub(super) what: String,
    /// The jobs that it is about.
    pub(super) jobs: Vec<JobNumber>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

/// What is known of a job.
#[derive(Debug)]
struct Job {
    kind: Kind,
    mode: Mode,
    pin: Pin,
    done_to_it: Vec<Disturbance>,
    /// What it was given alone, once it has started.
    cores: CpuList,
    /// Lines of its worker.
    started: Option<usize>,
    stopped: Option<usize>,
    overlapped: bool,
    /// It did not find its processors as it should.
    mispinned: bool,
    exited: Option<(usize, Ending)>,
}

impl Job {
    fn had(&self, disturbance: Disturbance) -> bool {
        self.done_to_it.contains(&disturbance)
    }

    /// Whether both may not run at the same time.
    fn conflicts_with(&self, other: &Self) -> bool {
        self.mode.conflicts_with(other.mode) || self.cores.meets(&other.cores)
    }

    /// Neither supervisor nor guard may be left to end what is left of it.
    fn may_be_orphan(&self) -> bool {
        let both = self.had(Disturbance::KillSupervisor) && self.had(Disturbance::KillGuard);
        self.had(Disturbance::KillBoth) || both
    }

    fn supervisor_was_killed(&self) -> bool {
        self.had(Disturbance::KillSupervisor) || self.had(Disturbance::KillBoth)
    }

    /// Whether it may have members without the lock being held for it.
    fn passes(&self, other: &Self) -> bool {
        let known = |outsider: &Self, orphan: &Self| outsider.kind == Kind::Outsider && orphan.may_be_orphan();
        known(self, other) || known(other, self)
    }

    /// Why its end is none that it could have had.
    fn wrong_end(&self, ending: Ending) -> Option<String> {
        let ran_once = self.started.is_some() && self.stopped.is_some();
        let explained = match ending {
            Ending::Code(0) => ran_once,
            Ending::Code(NOT_OBTAINED) => self.kind == Kind::Limited && self.started.is_none(),
            // That is a problem, or none, of its own.
            Ending::Code(OVERLAPPED) => self.overlapped || self.mispinned,
            Ending::Signal(libc::SIGKILL) => self.supervisor_was_killed(),
            Ending::Signal(libc::SIGTERM) => self.had(Disturbance::Cancel),
            Ending::Code(_) | Ending::Signal(_) => false,
        };
        let ran = match (self.started, self.stopped) {
            (None, _) => "never started",
            (Some(_), None) => "started and did not stop",
            (Some(_), Some(_)) => "ran",
        };
        let done: Vec<&str> = self.done_to_it.iter().map(|disturbance| disturbance.word()).collect();
        (!explained).then(|| format!("ended with {ending}, {ran}; done to it: [{}]", done.join(", ")))
    }
}

/// Reads the log and remembers what is needed to judge the rest of it.
#[derive(Debug, Default)]
pub(super) struct Proof {
    lines: usize,
    jobs: HashMap<JobNumber, Job>,
    /// Every job that started, in order, with the line.
    starts: Vec<(usize, JobNumber)>,
    /// Started, and neither stopped nor ended.
    open: Vec<JobNumber>,
    tickets: HashSet<String>,
    leases: [usize; 2],
    /// What was found so far.
    pub(super) problems: Vec<Problem>,
}

impl Proof {
    /// Reads one line, without its newline.
    pub(super) fn feed(&mut self, line: &str) {
        self.lines += 1;
        let Some(Record { job, event }) = Record::parse(line) else {
            return self.problem(format!("a line was torn: {line:?}"), &[]);
        };
        match event {
            Event::Spawn(kind, mode, pin) => self.spawned(job, kind, mode, pin),
            _ if !self.jobs.contains_key(&job) => self.problem(format!("job {job} was never spawned"), &[job]),
            Event::Disturb(disturbance) => self.job(job).done_to_it.push(disturbance),
            Event::Exit(ending) => self.exited(job, ending),
            Event::Start { ticket, overtook, cpus } => self.started(job, &ticket, &overtook, cpus),
            Event::Overlap => self.overlapped(job),
            Event::Taken(cpu) => self.met_on(job, cpu),
            Event::Strayed(how) => {
                self.job(job).mispinned = true;
                self.problem(format!("job {job} does not run where it was told: {how}"), &[job]);
            }
            Event::Stop => {
                self.lives(job);
                self.open.retain(|&other| other != job);
                let at = self.lines;
                if self.jobs[&job].started.is_none() || self.job(job).stopped.replace(at).is_some() {
                    self.problem(format!("job {job} stopped without a start, or twice"), &[job]);
                }
            }
            Event::LeftoverStop => self.lives(job),
        }
    }

    /// The log is complete.
    pub(super) fn finish(&mut self) {
        let mut never: Vec<JobNumber> =
            self.jobs.iter().filter(|(_, job)| job.exited.is_none()).map(|(&number, _)| number).collect();
        never.sort_unstable();
        for number in never {
            self.problem(format!("job {number} never ended"), &[number]);
        }
    }

    /// How many jobs ended in each way.
    pub(super) fn endings(&self) -> Vec<(Kind, Ending, usize)> {
        let mut found: Vec<(Kind, Ending, usize)> = Vec::new();
        for job in self.jobs.values() {
            let Some((_, ending)) = job.exited else { continue };
            match found.iter_mut().find(|(kind, known, _)| (*kind, *known) == (job.kind, ending)) {
                Some((.., count)) => *count += 1,
                None => found.push((job.kind, ending, 1)),
            }
        }
        found.sort_by_key(|&(kind, ending, _)| (kind as u8, ending));
        found
    }

    /// How many workers found a living member of an orphan: plain flock(1) users, or the orphan itself.
    pub(super) fn known_overlaps(&self) -> usize {
        self.jobs.values().filter(|job| job.overlapped).count()
    }

    /// How many jobs with cores of their own started, and how many of these while another one ran.
    pub(super) fn leases(&self) -> [usize; 2] {
        self.leases
    }

    fn job(&mut self, number: JobNumber) -> &mut Job {
        // Every caller has looked.
        self.jobs.get_mut(&number).expect("a job that was spawned")
    }

    fn problem(&mut self, what: String, jobs: &[JobNumber]) {
        self.problems.push(Problem { line: self.lines, what, jobs: jobs.to_vec() });
    }

    fn spawned(&mut self, number: JobNumber, kind: Kind, mode: Mode, pin: Pin) {
        let job = Job {
            kind,
            mode,
            pin,
            done_to_it: Vec::new(),
            cores: CpuList::default(),
            started: None,
            stopped: None,
            overlapped: false,
            mispinned: false,
            exited: None,
        };
        if self.jobs.insert(number, job).is_some() {
            self.problem(format!("job {number} was spawned twice"), &[number]);
        }
    }

    fn started(&mut self, number: JobNumber, ticket: &str, overtook: &str, cpus: Option<CpuList>) {
        let pin = self.jobs[&number].pin;
        if cpus.is_some() != (pin != Pin::Free) {
            self.problem(format!("job {number} is {} and was given {cpus:?}", pin.word()), &[number]);
        }
        if pin == Pin::Leased {
            self.job(number).cores = cpus.unwrap_or_default();
        }
        self.lives(number);
        if overtook != "-" {
            self.problem(format!("job {number} (ticket {ticket}) overtook {overtook}"), &[number]);
        }
        if (ticket == "-") != (self.jobs[&number].kind == Kind::Outsider) {
            self.problem(format!("job {number} has the ticket {ticket}"), &[number]);
        } else if ticket != "-" && !self.tickets.insert(ticket.to_owned()) {
            self.problem(format!("the ticket {ticket} was used before job {number}"), &[number]);
        }
        let at = self.lines;
        if self.job(number).started.replace(at).is_some() {
            self.problem(format!("job {number} started twice"), &[number]);
        }
        // Whoever got the presence lock is proof that the members of these are gone.
        let me = &self.jobs[&number];
        let (gone, open): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.open).into_iter().partition(|other| self.jobs[other].conflicts_with(me));
        if pin == Pin::Leased {
            self.leases[0] += 1;
            self.leases[1] += usize::from(open.iter().any(|other| self.jobs[other].pin == Pin::Leased));
        }
        let without_reason: Vec<JobNumber> =
            gone.into_iter().filter(|other| !self.jobs[other].done_to_it.iter().any(|done| done.ends())).collect();
        self.open = open;
        self.open.push(number);
        self.starts.push((at, number));
        for other in without_reason {
            let what = format!("job {number} started before job {other} stopped, which nothing had ended");
            self.problem(what, &[number, other]);
        }
    }

    fn overlapped(&mut self, number: JobNumber) {
        self.lives(number);
        self.job(number).overlapped = true;
        let me = &self.jobs[&number];
        let others = || self.jobs.iter().filter(|(other, job)| **other != number && job.conflicts_with(me));
        if others().any(|(&other, job)| job.passes(me) && self.may_be_left(other, job)) {
            return;
        }
        let suspects = others().filter(|(other, job)| self.may_run(**other, job)).map(|(&other, _)| other).collect();
        self.met("met living members of a job that it conflicts with", number, suspects);
    }

    fn met_on(&mut self, number: JobNumber, cpu: u32) {
        self.lives(number);
        self.job(number).mispinned = true;
        let owns = |other: JobNumber, job: &Job| other != number && job.cores.contains(cpu) && self.may_run(other, job);
        let suspects = self.jobs.iter().filter(|(other, job)| owns(**other, job)).map(|(&other, _)| other).collect();
        self.met(
            &format!("was given cpu {cpu}, where it met living members of a job that has it alone"),
            number,
            suspects,
        );
    }

    fn met(&mut self, whom: &str, number: JobNumber, mut suspects: Vec<JobNumber>) {
        suspects.sort_unstable();
        let names: Vec<String> = suspects.iter().map(ToString::to_string).collect();
        let what = format!("job {number} {whom}, one of [{}]", names.join(", "));
        self.problem(what, &[&[number], &suspects[..]].concat());
    }

    /// Whether an outsider, or an orphan, may have members.
    fn may_be_left(&self, number: JobNumber, job: &Job) -> bool {
        let Some((exited, _)) = job.exited else { return true };
        // Before the next job with a ticket is started, the orphan is ended.
        let ends_it = |&(at, other): &(usize, JobNumber)| {
            let next = &self.jobs[&other];
            at > exited && other != number && next.kind != Kind::Outsider && next.conflicts_with(job)
        };
        job.kind != Kind::Outsider && !self.starts.iter().any(ends_it)
    }

    /// Whether the log leaves it open that this job, which started, has members.
    fn may_run(&self, number: JobNumber, job: &Job) -> bool {
        let ended = job.exited.is_some() && !job.supervisor_was_killed();
        let succeeded = |&(at, other): &(usize, JobNumber)| {
            Some(at) > job.started && other != number && self.jobs[&other].conflicts_with(job)
        };
        job.started.is_some() && !ended && !self.starts.iter().any(succeeded)
    }

    fn exited(&mut self, number: JobNumber, ending: Ending) {
        let at = self.lines;
        if self.job(number).exited.replace((at, ending)).is_some() {
            return self.problem(format!("job {number} ended twice"), &[number]);
        }
        if let Some(why) = self.jobs[&number].wrong_end(ending) {
            self.problem(format!("job {number} {why}"), &[number]);
        }
    }

    /// A member of this job has just written a line.
    fn lives(&mut self, number: JobNumber) {
        let job = &self.jobs[&number];
        let exited = job.exited.map(|(line, _)| line);
        if exited.is_some() && !job.supervisor_was_killed() {
            self.problem(format!("job {number} has a living member after its end"), &[number]);
        }
        let job = &self.jobs[&number];
        let Some(since) = job.started.into_iter().chain(exited).min() else { return };
        let later = self.starts.iter().rev().take_while(|(line, _)| *line > since);
        let beside: Vec<JobNumber> = later
            .map(|&(_, other)| other)
            .filter(|other| *other != number && self.jobs[other].conflicts_with(job))
            .filter(|other| !self.jobs[other].passes(job))
            .collect();
        for other in beside {
            self.problem(format!("job {other} started while job {number} had a living member"), &[number, other]);
        }
    }
}

#[cfg(test)]
mod tests;
