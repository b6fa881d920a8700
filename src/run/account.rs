//! What goes into the report of a run, gathered while it goes on. Where no report was asked for, nothing is looked up.

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, RawFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{Stat, fstat};

use super::quiet;
use crate::cgroup::{Backend, Population, Usage};
use crate::child::Exit;
use crate::clock;
use crate::error::FileError;
use crate::escape::Escapes;
use crate::job::{JobId, Mode};
use crate::limit::{Kind, Limits};
use crate::lock::outsiders::Outsider;
use crate::lock::record::Pinned;
use crate::lock::{Lock, Other, Record, Seen};
use crate::machine::{self, Machine};
use crate::orphan;
use crate::pin::{CpuList, topology};
use crate::report::document::{End, Leftovers, Neighbour, Person, Pins, Process, Reason, Report, in_usec};
use crate::report::full;
use crate::settings::Settings;
use crate::supervisor::{Ended as Leftover, Outcome, signals};
use crate::verdict::{Limit, Verdict};

/// The account of one run; `None` where no report was asked for. What happens is told through a shared reference, which the
/// guard has as well.
#[derive(Debug)]
pub(super) struct Account(Option<Open>);

#[derive(Debug)]
struct Open {
    /// It is printed.
    text: bool,
    /// It has a verdict.
    judged: bool,
    /// It is written there.
    file: Option<(File, PathBuf)>,
    report: RefCell<Report>,
    held_since: Cell<Option<Instant>>,
    started: Cell<Option<Instant>>,
    given_back: Cell<Option<GivenBack>>,
}

/// When the machine was given back.
#[derive(Clone, Copy, Debug)]
struct GivenBack {
    /// On the clock of the tickets.
    at_usec: u64,
    /// How long it was held.
    held: Option<Duration>,
    /// How long the command was started before that.
    started: Option<Duration>,
}

impl Account {
    /// Opens the file of `--report-file`: that it cannot be written is found out before anything is run, and what an earlier
    /// run left in it is not taken for this one's.
    pub(super) fn open(settings: &Settings, command: &[OsString]) -> Result<Self, FileError> {
        let open = |path: &Path| {
            let file = open_file(path).map_err(FileError::on("write the report to", path))?;
            Ok((file, path.to_owned()))
        };
        if !settings.report && settings.report_file.is_none() {
            return Ok(Self(None));
        }
        let file = settings.report_file.as_deref().map(open).transpose()?;
        let command = command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let lock = settings.lock.clone();
        let mut report = Report::new(command, settings.mode, lock, SystemTime::now());
        report.message.clone_from(&settings.message);
        let report = RefCell::new(report);
        let (held_since, started, given_back) = (Cell::default(), Cell::default(), Cell::default());
        let judged = settings.quiet_limit != Limit::None;
        Ok(Self(Some(Open { text: settings.report, judged, file, report, held_since, started, given_back })))
    }

    /// A report was asked for.
    pub(super) fn is_wanted(&self) -> bool {
        self.0.is_some()
    }

    /// What a guard keeps open to write the report if the supervisor is killed.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref()?.file.as_ref().map(|(file, _)| file.as_fd())
    }

    fn note(&self, note: impl FnOnce(&mut Report)) {
        if let Some(open) = &self.0 {
            note(&mut open.report.borrow_mut());
        }
    }

    /// The lock file that `--private` chose.
    pub(super) fn uses(&self, lock: &Path) {
        self.note(|report| report.lock = lock.to_owned());
    }

    /// It runs inside this job.
    pub(super) fn inside(&self, outer: JobId) {
        self.note(|report| report.inside = Some(outer.to_string()));
        self.has_the_machine();
    }

    /// It waits, with this number; `outsiders` finds who uses plain flock.
    pub(super) fn waits(&self, number: u64, jobs_ahead: usize, outsiders: &dyn Fn() -> Vec<Outsider>) {
        self.note(|report| {
            // Most were in the way when it joined.
            report.waited.ahead = report.waited.ahead.max(jobs_ahead);
            let mut others = others(report, number);
            others.retain(|other| other.number < number && other.mode.conflicts_with(report.mode));
            let seen: Vec<Neighbour> = match &others[..] {
                [] => outsiders().iter().filter(|other| !other.waiting).map(by_flock).collect(),
                others => others.iter().map(job).collect(),
            };
            add(&mut report.waited.behind, seen);
        });
    }

    /// It waits for an orphan, if that lives: a job whose supervisor and guard are dead.
    pub(super) fn finds_orphan(&self, seen: &Seen, record: &Record, boot: &str, mountinfo: &str) {
        self.note(|report| {
            let group = orphan::group_of(seen, record, mountinfo).ok().flatten();
            if record.joined.boot == boot && group.is_some_and(|group| group.population() == Population::Populated) {
                add(&mut report.waited.behind, Other::seen(seen).iter().map(job).collect());
            }
        });
    }

    /// The wait is over, one way or the other.
    pub(super) fn waited(&self, time: Duration) {
        self.note(|report| report.waited.time = time);
    }

    /// Somebody cancelled it.
    pub(super) fn cancelled(&self, by_uid: u32) {
        self.note(|report| report.exit.cancelled_by = Some(Person::unnamed(by_uid)));
    }

    /// It has the machine.
    pub(super) fn holds(&self, id: JobId) {
        self.note(|report| {
            (report.number, report.job) = (Some(id.number), Some(id.to_string()));
            look_beside(report, clock::boottime_usec());
        });
        self.has_the_machine();
    }

    fn has_the_machine(&self) {
        self.0.iter().for_each(|open| open.held_since.set(Some(Instant::now())));
    }

    /// The machine is given back now: whoever gets it from here on did not share it with this job.
    pub(super) fn gives_back(&self) {
        if let Some(open) = &self.0 {
            let [held, started] = [&open.held_since, &open.started].map(|at| at.get().map(|at| at.elapsed()));
            open.given_back.set(Some(GivenBack { at_usec: clock::boottime_usec(), held, started }));
        }
    }

    fn given_back(&self) -> Option<GivenBack> {
        self.0.as_ref()?.given_back.get()
    }

    /// The group that it runs in.
    pub(super) fn tracked_by(&self, backend: Backend) {
        self.note(|report| report.tracked_by(backend));
    }

    /// It runs there, and has these cores to itself.
    pub(super) fn pinned(&self, pinned: &Pinned, reserved: Option<&CpuList>) {
        self.note(|report| report.pins = Pins::by_perflock(pinned, reserved));
    }

    /// It has these limits, by groups in v1 hierarchies where they are of these kinds; and why not others of the configuration.
    pub(super) fn limited(&self, limits: Limits, kinds: impl Iterator<Item = Kind>, unmet: Option<&str>) {
        self.note(|report| report.limited(limits, kinds, unmet));
    }

    /// Its main process was allowed to run there too.
    pub(super) fn moved_to(&self, cpus: Option<CpuList>) {
        self.note(|report| report.pins.moved_to = cpus);
    }

    /// The command runs since then.
    pub(super) fn runs(&self, since: Instant) {
        self.0.iter().for_each(|open| open.started.set(Some(since)));
    }

    /// The run ended without a job, for this reason. What went wrong was told already; returns why the file could not be
    /// written.
    pub(super) fn did_not_run(&self, reason: Reason, error: Option<String>) -> Option<String> {
        self.note(|report| {
            let reason = if report.exit.cancelled_by.is_some() { Reason::Cancelled } else { reason };
            (report.exit.reason, report.exit.error) = (reason, error);
            report.name_users();
        });
        self.write()
    }

    /// The supervisor was killed, and this is its guard: the job is over, and the machine given back.
    pub(super) fn supervisor_lost(&self, usage: Usage) {
        let given_back = self.given_back();
        let judged = self.0.as_ref().is_some_and(|open| open.judged);
        self.note(|report| {
            report.exit.reason = Reason::SupervisorLost;
            report.verdict = judged.then(quiet::supervisor_lost);
            report.usage = usage;
            report.held_usec = given_back.and_then(|given_back| given_back.held).map(in_usec);
            given_back.iter().for_each(|given_back| look_beside(report, given_back.at_usec));
            look_around(report);
        });
        // There is nobody left to tell that it cannot be written.
        let _ = self.write();
    }

    /// The job is over, and the machine given back. Returns what is to be printed: the report, if it was asked
    /// for, and why it could not be written where it should be.
    pub(super) fn finished(
        &self,
        outcome: &Outcome,
        cancelled_by: Option<u32>,
        escapes: Option<Escapes>,
        verdict: Option<Verdict>,
    ) -> (Option<String>, Option<String>) {
        let given_back = self.given_back();
        self.note(|report| {
            report.exit = end(outcome, cancelled_by);
            report.verdict = verdict;
            report.usage = outcome.usage;
            report.waited_for = Some(outcome.waited_for);
            report.wall_usec = Some(in_usec(outcome.wall));
            report.held_usec = given_back.and_then(|given_back| given_back.held).map(in_usec);
            let started = given_back.and_then(|given_back| given_back.started);
            report.lingered_usec = started.map(|started| in_usec(started.saturating_sub(outcome.wall)));
            // Until the last member ended: what lived on went on counting.
            let lasted_usec = outcome.lasted.as_micros().max(1) as f64;
            report.cpu_average_percent = outcome.usage.cpu_usec.map(|cpu_usec| 100.0 * cpu_usec as f64 / lasted_usec);
            let process = |ended: &Leftover| Process { pid: ended.pid, name: ended.name.clone() };
            let named = outcome.leftovers.iter().map(process).collect();
            report.leftovers = Some(Leftovers { count: outcome.leftover_count, named });
            (report.escaped, report.possible_escapes) = escapes.map(|found| (found.escaped, found.possible)).unzip();
            given_back.iter().for_each(|given_back| look_beside(report, given_back.at_usec));
            look_around(report);
        });
        let text = self.0.as_ref().filter(|open| open.text).map(|open| full::text(&open.report.borrow()));
        (text, self.write())
    }

    /// Writes the file, whole and in one piece.
    fn write(&self) -> Option<String> {
        let open = self.0.as_ref()?;
        let (mut file, path) = open.file.as_ref().map(|(file, path)| (file, path))?;
        signals::outlive_file_limits();
        let written = file.write_all(open.report.borrow().json().as_bytes());
        let kept = || match file.metadata() {
            Ok(it) if it.is_file() && it.nlink() == 0 && descriptor_named(path).is_none() => {
                Err(io::Error::other("it was removed meanwhile"))
            }
            _ => Ok(()),
        };
        let error = written.and_then(|()| kept()).err()?;
        Some(format!("warning: {}", FileError::on("write the report to", path)(error)))
    }
}

/// Opens the file that a report is to be written to, and empties it.
fn open_file(path: &Path) -> io::Result<File> {
    if let Some(fd) = descriptor_named(path) {
        // Not by its name: what stands in the file behind it is not ours to remove, each opening has a place of its own in it,
        // and a socket cannot be opened.
        // SAFETY: duplicates a number, which may mean nothing, and touches no memory.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
        if copy == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel made a new descriptor that nobody else owns.
        return Ok(unsafe { File::from_raw_fd(copy) });
    }
    // At the end of what the command may have written there itself.
    let file = OpenOptions::new().create(true).append(true).custom_flags(libc::O_NOCTTY).open(path)?;
    let opened = fstat(&file)?;
    let same = |other: Stat| (other.st_dev, other.st_ino) == (opened.st_dev, opened.st_ino);
    let printed_to = [fstat(io::stdout()), fstat(io::stderr())];
    // A log that our output goes to is kept, whatever its name.
    if file.metadata()?.is_file() && !printed_to.into_iter().flatten().any(same) {
        file.set_len(0)?;
    }
    Ok(file)
}

/// The descriptor that a path is another name of: `/dev/stdout`, `/dev/fd/3`.
fn descriptor_named(path: &Path) -> Option<RawFd> {
    match path.to_str()? {
        "/dev/stdout" => Some(libc::STDOUT_FILENO),
        "/dev/stderr" => Some(libc::STDERR_FILENO),
        path => path.strip_prefix("/dev/fd/").or_else(|| path.strip_prefix("/proc/self/fd/"))?.parse().ok(),
    }
}

/// Notes who else has the machine, of those that had it `at_usec`. An exclusive job has it alone, also where its ticket is
/// still there, or there already.
fn look_beside(report: &mut Report, at_usec: u64) {
    let (Mode::Shared, Some(number)) = (report.mode, report.number) else { return };
    let others = others(report, number);
    let had_it = |other: &&Other| other.record.granted_usec.is_some_and(|granted_usec| granted_usec <= at_usec);
    let holders = others.iter().filter(had_it).filter(|other| !other.mode.conflicts_with(report.mode));
    add(&mut report.shared_with, holders.map(job).collect());
}

/// Whoever cannot be looked at is not told of.
fn others(report: &Report, own: u64) -> Vec<Other> {
    Lock::open(&report.lock).and_then(|lock| lock.others(own)).unwrap_or_default()
}

fn add(known: &mut Vec<Neighbour>, seen: Vec<Neighbour>) {
    let new: Vec<Neighbour> = seen.into_iter().filter(|neighbour| !known.contains(neighbour)).collect();
    known.extend(new);
}

/// What is looked up when a job is over.
fn look_around(report: &mut Report) {
    let root = Path::new("/");
    if report.pins.by.is_none() {
        (report.pins.cpus, report.pins.memory_nodes) = machine::allowed(root);
    } else {
        let pinned: Option<CpuList> = report.pins.cpus.as_deref().and_then(|cpus| cpus.parse().ok());
        let offline = pinned.zip(topology::online(root).ok()).map(|(cpus, online)| cpus.without(&online));
        report.pins.offline = offline.filter(|offline| !offline.is_empty());
    }
    report.machine = Machine::read(root);
    report.notes = full::notes(report);
    report.name_users();
}

fn end(outcome: &Outcome, cancelled_by: Option<u32>) -> End {
    let reason = reason(outcome, cancelled_by.is_some());
    End { reason, cancelled_by: cancelled_by.map(Person::of), ..End::by_itself(outcome.exit) }
}

/// Why a job ended.
pub(super) fn reason(outcome: &Outcome, is_cancelled: bool) -> Reason {
    let killed = outcome.exit == Exit::Signal(libc::SIGKILL);
    if is_cancelled {
        Reason::Cancelled
    } else if outcome.timed_out {
        Reason::TimeLimit
    } else if outcome.stopped.is_some() {
        Reason::Stopped
    } else if outcome.cut_short {
        Reason::Killed
    } else if killed && outcome.usage.oom_kills.is_some_and(|kills| kills > 0) {
        Reason::OutOfMemory
    } else {
        End::by_itself(outcome.exit).reason
    }
}

fn job(other: &Other) -> Neighbour {
    let joined = &other.record.joined;
    Neighbour {
        number: Some(other.number),
        pid: joined.pid,
        user: Some(Person::unnamed(other.uid)),
        mode: other.mode,
        command: joined.command.clone(),
    }
}

fn by_flock(other: &Outsider) -> Neighbour {
    Neighbour {
        number: None,
        pid: other.pid,
        user: other.uid.map(Person::unnamed),
        mode: other.mode,
        command: other.command.clone(),
    }
}
