//! Running one job in its group, between holding the machine and giving it back.

use std::os::fd::BorrowedFd;

use super::{Error, Run, fatal};
use crate::cgroup::{JobGroup, Population};
use crate::lock::{Change, Hold};
use crate::report;
use crate::supervisor::command::Command;
use crate::supervisor::guard::{Guard, until_empty};
use crate::supervisor::signals::Signals;
use crate::supervisor::spawn::{self, Main, SpawnError};
use crate::supervisor::step::News;
use crate::supervisor::{Notice, Outcome, Supervisor};

/// A job that may start now.
pub(super) struct Job<'a> {
    pub(super) run: &'a Run,
    pub(super) command: &'a Command,
    pub(super) signals: &'a Signals,
    /// `None` inside another job, which holds the machine for us.
    pub(super) hold: Option<&'a Hold>,
}

/// A job that was seen to its end.
pub(super) struct Finished {
    pub(super) outcome: Outcome,
    /// Told to end, not yet reaped.
    pub(super) guard: Option<Guard>,
    /// What is to be said when the machine is given back.
    pub(super) warnings: Vec<String>,
}

impl Job<'_> {
    /// Runs the command in `group` to its end, and leaves the group removed.
    pub(super) fn run(&self, group: &mut dyn JobGroup, variables: &[(&str, String)]) -> Result<Finished, Error> {
        let shared: Vec<BorrowedFd<'_>> = self.hold.iter().flat_map(|hold| hold.descriptors()).collect();
        let start_guard = |group: &dyn JobGroup| {
            Guard::start(group, &shared, &|| {
                if let Some(hold) = self.hold {
                    hold.ticket().unlink();
                }
            })
        };
        let (guard, main) = match self.start(group, variables, &start_guard) {
            Ok(started) => started,
            Err(error) => {
                // The child that could not execute the command is gone in a moment.
                until_empty(group, group.population() == Population::Populated, None);
                // The error is what there is to say.
                let _ = group.remove();
                return Err(error);
            }
        };
        let mut notice = |notice: Notice| self.notice(notice);
        let signals = self.signals;
        let mut supervisor =
            Supervisor { group, signals, start_guard: &start_guard, guard: Some(guard), notice: &mut notice };
        let outcome = supervisor.watch(&main, self.run.settings.policy);
        let guard = supervisor.guard.take();
        if outcome.is_err() {
            // We cannot watch it, so it must not go on.
            until_empty(group, true, None);
            guard.iter().for_each(Guard::end);
        }
        let removed = group.remove();
        let outcome = outcome.map_err(Error::system("wait for the command"))?;
        let warning = |error| format!("warning: {error}; it is empty, and has to be removed by hand (rmdir)");
        Ok(Finished { outcome, guard, warnings: removed.map_err(warning).err().into_iter().collect() })
    }

    fn start(
        &self,
        group: &mut dyn JobGroup,
        variables: &[(&str, String)],
        start_guard: &dyn Fn(&dyn JobGroup) -> std::io::Result<Guard>,
    ) -> Result<(Guard, Main), Error> {
        let guard = start_guard(group).map_err(Error::system("start the guard"))?;
        group.exclude(guard.pid);
        self.record(&Change::Guard { pid: guard.pid });
        let main = loop {
            // Before there is a command to forward it to, a signal ends us.
            if let Some(signal) = fatal(self.signals) {
                break Err(Error::Signalled(signal));
            }
            match spawn::spawn(self.command, &self.run.inherited, self.signals, group.maker(), variables) {
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

    /// Only what others are shown: a full disk must not end a job that runs.
    fn record(&self, change: &Change) {
        if let Some(hold) = self.hold {
            let _ = hold.ticket().record(change);
        }
    }

    fn notice(&self, notice: Notice) {
        let say = &self.run.say;
        match notice {
            Notice::News(News::Releasing, ..) => self.record(&Change::Releasing),
            Notice::News(news, living, count) => {
                let line = report::news(news, &living, count, &self.run.settings.policy);
                // Those that went wrong are said even with --quiet.
                let wrong = matches!(news, News::TimeLimit | News::Unkillable);
                if wrong { say.wrong_now(&line) } else { say.note_now(&line) }
            }
            Notice::Guard(pid) => {
                self.record(&Change::Guard { pid });
                say.wrong_now(&format!("warning: the guard was killed; another took its place ({pid})"));
            }
            Notice::Unguarded => say.wrong_now(
                "warning: the guard was killed and cannot be replaced; if this process is killed too, the next job ends \
                 this one first",
            ),
            Notice::CannotKill(why) => say.wrong_now(&why),
        }
    }
}
