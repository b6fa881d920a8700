//! Whether the machine was quiet while a job had it: when it is looked, and what is said.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags};

use super::Run;
use super::job::Job;
use crate::cgroup::v2::Location;
use crate::cgroup::{JobGroup, Usage};
use crate::clock;
use crate::exit;
use crate::job::Mode;
use crate::procfs::Proc;
use crate::supervisor::Outcome;
use crate::supervisor::spawn::Main;
use crate::text;
use crate::verdict::look::{First, Missing, Scene, Seen};
use crate::verdict::{Limit, SHORTEST, Verdict, Word, judge, name};

/// A command that ends within this time is not slowed down by a look that nobody needs: a tenth of a millisecond on processors and
/// locks that it wants as well.
const STARTS_WITHIN: Duration = Duration::from_millis(10);

/// What was seen elsewhere while a job ran, or why nobody knows.
#[derive(Debug)]
pub(super) struct Watched {
    seen: Result<Seen, String>,
    /// Where the job's group was in the v2 hierarchy.
    job: Option<Location>,
}

impl Watched {
    fn unknown(why: String) -> Self {
        Self { seen: Err(why), job: None }
    }
}

impl Job<'_> {
    /// Looks at what others use, when the command has been started and nobody has anything else to do. It gives up when
    /// the command ends: a short job takes no longer for it. `None` where nobody wants to know.
    pub(super) fn first_look(&self, group: &dyn JobGroup, guard: i32, main: &Main) -> Option<Result<First, Missing>> {
        if !self.run.is_judged() || self.hold.is_none() {
            return None;
        }
        // A signal ends this wait. The look is short: it does not wait for that.
        let mut fds = [main.pidfd.as_fd(), self.signals.fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        if crate::poll::until(&mut fds, Some(main.started + STARTS_WITHIN)).is_err() || main.has_ended() {
            return Some(Err(Missing::Ended));
        }
        let own = || {
            let ours = [std::process::id().cast_signed(), guard];
            group.members().into_iter().chain(ours).collect()
        };
        Some(First::look(&self.scene(&Proc::default(), group), own, &|| !main.has_ended()))
    }

    /// Looks again, now that the group is empty, and neither removed nor the machine given back: whoever gets it next is not to
    /// be counted.
    pub(super) fn second_look(
        &self,
        first: Option<Result<First, Missing>>,
        group: &dyn JobGroup,
        outcome: &Outcome,
    ) -> Option<Watched> {
        if let Some(outer) = self.inside {
            return Some(Watched::unknown(format!("it ran inside job {}, whose verdict counts", outer.number)));
        }
        let first = first?;
        if !judge::is_long_enough(outcome.lasted) {
            return Some(Watched::unknown(format!("it took less than {}", text::exact_duration(SHORTEST))));
        }
        // What the job used and its supervisor did not wait for, somebody else may have.
        let unwaited = |counted: Option<u64>| {
            let counted = counted.or(outcome.usage.cpu_usec).or_else(|| group.usage(Usage::read).cpu_usec);
            counted.map_or(0, |usec| usec.saturating_sub(outcome.waited_for.cpu_usec()))
        };
        let most_usec = |elapsed| self.run.settings.quiet_limit.usec(elapsed).unwrap_or(u64::MAX);
        let proc = Proc::default();
        let seen = first.and_then(|first| first.second(&self.scene(&proc, group), unwaited, most_usec));
        let seen = seen.map_err(|missing| match missing {
            Missing::Ended => "the command ended before it was looked".to_owned(),
            Missing::Why(why) => why,
        });
        Some(Watched { seen, job: group.v2_location().cloned() })
    }

    fn scene<'a>(&self, proc: &'a Proc, group: &'a dyn JobGroup) -> Scene<'a> {
        let settings = &self.run.settings;
        Scene {
            proc,
            root: Path::new("/"),
            job: group.v2_location(),
            job_inode: group.inode(),
            apart: self.run.account.is_wanted() || !settings.quiet_counts.is_empty(),
            ticks_per_second: rustix::param::clock_ticks_per_second(),
            ours: clock::cpu_time,
        }
    }
}

impl Run {
    /// Whether anybody wants to know.
    fn is_judged(&self) -> bool {
        let settings = &self.settings;
        let wanted = settings.mode == Mode::Exclusive || self.account.is_wanted() || settings.require_quiet;
        wanted && settings.quiet_limit != Limit::None
    }

    /// The verdict, with names: asked for when the machine was given back. `None` where nobody wants to know.
    pub(super) fn verdict(&self, watched: Option<Watched>) -> Option<Verdict> {
        let settings = &self.settings;
        if !self.is_judged() {
            let why = r#"nobody looked (quiet-limit = "none")"#;
            return settings.require_quiet.then(|| Verdict::unknown(why));
        }
        let Watched { seen, job } = watched?;
        let seen = match seen {
            Ok(seen) => seen,
            Err(why) => return Some(Verdict::unknown(why)),
        };
        let mut verdict = judge::judge(&seen, settings.quiet_limit, &settings.quiet_counts);
        if verdict.word == Word::Disturbed {
            let ticks_per_second = rustix::param::clock_ticks_per_second();
            verdict.by = name::culprits(&seen, &Proc::default(), job.as_ref(), ticks_per_second);
        }
        // Most who look at a report's figures want to know that these were there; nobody else asked for them.
        verdict.apart = verdict.apart.filter(|_| self.account.is_wanted());
        verdict.apart = verdict.apart.map(|figures| figures.with_frequencies(Path::new("/")));
        Some(verdict)
    }

    /// Says what it is worth a line for. Returns the exit code, if that is to be another one than the command's 0.
    pub(super) fn tell_verdict(&self, verdict: Option<&Verdict>, succeeded: bool) -> Option<u8> {
        let verdict = verdict?;
        let what = verdict.what();
        let fails = self.settings.require_quiet && succeeded && verdict.word != Word::Quiet;
        let status = format!("exit status {} (--require-quiet)", exit::NOT_QUIET);
        match verdict.word {
            Word::Disturbed if fails => self.say.wrong(&format!("the machine was not quiet: {what}; {status}")),
            Word::Unknown if fails => {
                self.say.wrong(&format!("it is not known whether the machine was quiet: {what}; {status}"));
            }
            // Others share the machine with a shared job by design.
            Word::Disturbed if self.settings.mode == Mode::Exclusive => {
                self.say.wrong(&format!("warning: the machine was not quiet: {what}"));
            }
            Word::Unknown => self.say.detail(&format!("it is not known whether the machine was quiet: {what}")),
            _ => self.say.detail(&format!("the machine was {}", verdict.told())),
        }
        fails.then_some(exit::NOT_QUIET)
    }
}

/// What a guard says whose supervisor was killed: the second look was that one's to take.
pub(super) fn supervisor_lost() -> Verdict {
    Verdict::unknown("perflock was killed")
}
