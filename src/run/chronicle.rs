//! What goes into the user's history of a run: noted while it goes on, without looking anything up, and written when the machine was
//! given back. The guard has it as well, and writes it if the supervisor was killed.

use std::cell::Cell;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use super::{Run, account};
use crate::cgroup::Usage;
use crate::error::FileError;
use crate::history::line::{self, End, Line};
use crate::history::{self, Keeping, Size, file};
use crate::job::JobId;
use crate::report::document::{Reason, in_usec};
use crate::settings::Settings;
use crate::supervisor::{Outcome, signals};
use crate::verdict::Verdict;

/// The run, as far as a line of history tells of it.
#[derive(Debug)]
pub(super) struct Chronicle {
    /// What a line has of the command; `None` where there is no history.
    command: Option<(Vec<String>, usize)>,
    started: SystemTime,
    /// The same moment, by a clock that nobody sets.
    since: Instant,
    held: Cell<Option<Held>>,
    given_back_after: Cell<Option<Duration>>,
}

/// The machine is held: by this job, after so long.
#[derive(Clone, Copy, Debug)]
struct Held {
    id: JobId,
    after: Duration,
}

impl Chronicle {
    /// A run that begins now.
    pub(super) fn begin(keeping: &Keeping, command: &[OsString]) -> Self {
        let keep = || {
            let command: Vec<String> = command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
            history::line::kept_of(&command, keeping.commands)
        };
        Self {
            command: (keeping.size != Size::Nothing).then(keep),
            started: SystemTime::now(),
            since: Instant::now(),
            held: Cell::default(),
            given_back_after: Cell::default(),
        }
    }

    /// It has the machine.
    pub(super) fn holds(&self, id: JobId) {
        self.held.set(Some(Held { id, after: self.since.elapsed() }));
    }

    /// The machine is given back now.
    pub(super) fn gives_back(&self) {
        self.given_back_after.set(Some(self.since.elapsed()));
    }

    /// The job is over, and the machine given back.
    fn finished(
        &self,
        settings: &Settings,
        outcome: &Outcome,
        is_cancelled: bool,
        verdict: Option<&Verdict>,
    ) -> Result<bool, FileError> {
        let reason = account::reason(outcome, is_cancelled);
        let cpu_usec = outcome.usage.cpu_usec.unwrap_or_else(|| outcome.waited_for.cpu_usec());
        self.write(settings, |line| {
            line.exit = End::new(reason, outcome.exit);
            line.wall_usec = Some(in_usec(outcome.wall));
            line.cpu_usec = Some(cpu_usec);
            line.memory_peak_bytes = outcome.usage.memory_peak_bytes;
            line.verdict = verdict.map(|verdict| verdict.word);
        })
    }

    /// The supervisor was killed, and this is its guard: the job is over, and the machine given back.
    pub(super) fn supervisor_lost(&self, settings: &Settings, usage: &Usage) {
        let written = self.write(settings, |line| {
            line.cpu_usec = usage.cpu_usec;
            line.memory_peak_bytes = usage.memory_peak_bytes;
        });
        // There is nobody left to tell that it cannot be written.
        drop(written);
    }

    /// Writes the line of a job that had the machine, as `complete` makes it. A job inside another had nothing of its own: that
    /// one counts. False if there is no place for it.
    fn write(&self, settings: &Settings, complete: impl FnOnce(&mut Line)) -> Result<bool, FileError> {
        let (Some((command, words_left_out)), Some(Held { id, after })) = (&self.command, self.held.get()) else {
            return Ok(true);
        };
        let held = self.given_back_after.get().map_or(Duration::ZERO, |given_back| given_back.saturating_sub(after));
        let mut line = Line {
            version: line::VERSION,
            job: id.to_string(),
            number: id.number,
            uid: rustix::process::geteuid().as_raw(),
            mode: settings.mode,
            lock: line::lock_text(&settings.lock.to_string_lossy()),
            started: self.started,
            waited_usec: in_usec(after),
            held_usec: in_usec(held),
            wall_usec: None,
            cpu_usec: None,
            memory_peak_bytes: None,
            exit: End { reason: Reason::SupervisorLost, code: None, signal: None },
            command: command.clone(),
            words_left_out: *words_left_out,
            verdict: None,
        };
        complete(&mut line);
        signals::outlive_file_limits();
        file::append(&settings.history, is_for_all(settings), &line)
    }
}

/// Whether a job's line is for all who look into the directory of histories. Of a lock that not everybody may use, so are the tickets,
/// and the line is no more public than these, unless the directory is not either.
fn is_for_all(settings: &Settings) -> bool {
    let is_public = |path: &Path| std::fs::metadata(path).is_ok_and(|found| found.mode() & 0o004 != 0);
    !settings.private && (is_public(&settings.lock) || !is_public(&settings.history.directory))
}

impl Run {
    /// Writes the line of a job that is over. Returns what is to be said if that cannot be done: a full disk changes nothing of how
    /// the job ended.
    pub(super) fn keep_history(
        &self,
        outcome: &Outcome,
        is_cancelled: bool,
        verdict: Option<&Verdict>,
    ) -> Option<String> {
        match self.chronicle.finished(&self.settings, outcome, is_cancelled, verdict) {
            Ok(true) => None,
            Ok(false) => {
                self.say.detail("there is no place for a history (perflock --setup makes one for everybody)");
                None
            }
            Err(error) => Some(format!("warning: {error}")),
        }
    }
}
