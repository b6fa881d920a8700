//! The pipeline of `perflock` and `pls`, from what was typed to how it ends: the only file that sees the lock, the
//! job group and the supervisor together.
//!
//! `arguments → settings → command, backend → place in the queue → hold → job group → running → outcome → ending`
//!
//! Everything that can fail without the machine is tried before the queue is joined.

mod account;
mod cancel;
mod chronicle;
mod error;
mod here;
mod job;
mod limiting;
mod pinning;
mod quiet;
mod recording;
mod setting_up;
mod wait;

use std::ffi::{c_char, c_int};
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cgroup::{self, Choice, Detected, Place};
use crate::check;
use crate::child::Exit;
use crate::cli::{self, Aside, RunArgs};
use crate::diff;
use crate::escape;
use crate::exit::{self, Ending};
use crate::job::{JobId, Mode};
use crate::lock::{self, Hold, Joined, Lock, LockError, setup};
use crate::nested::{self, Outer};
use crate::pin::Plan;
use crate::report;
use crate::report::document::Reason;
use crate::say::{self, Say};
use crate::settings::{Environment, Settings, Verbosity, setup_command};
use crate::supervisor::Outcome;
use crate::supervisor::command::Command;
use crate::supervisor::inherit::{self, Inherited};
use crate::supervisor::signals::Signals;
use crate::text;
use account::Account;
use chronicle::Chronicle;
use error::Error;
use here::{Here, Prepared, no_group, weaker};
use job::{Finished, Job};
use limiting::Limiting;
use pinning::{CPUS_VARIABLE, Keeper, Pinning};
use wait::{Unstarted, fatal};

/// The job of a lock that a process belongs to. A job of another lock inside it replaces it.
const JOB_VARIABLE: &str = nested::VARIABLE;
/// A job that takes this long gets a line at the end.
const WORTH_A_LINE: Duration = Duration::from_secs(2);

/// So does one that waited this long.
const WORTH_TELLING: Duration = Duration::from_secs(1);

/// How that job holds the machine.
const MODE_VARIABLE: &str = "PERFLOCK_MODE";

/// `main` of `perflock` (exclusive) and `pls` (shared).
///
/// # Safety
/// See [`inherit::begin`].
pub unsafe fn main(mode: Mode, argc: c_int, argv: *const *const c_char) -> ! {
    // SAFETY: our caller keeps the promise.
    let (arguments, inherited) = unsafe { inherit::begin(argc, argv) };
    let name = match mode {
        Mode::Exclusive => "perflock",
        Mode::Shared => "pls",
    };
    let arguments = arguments.into_iter().skip(1).collect();
    let ending = match cli::parse_run(name, mode, arguments) {
        Ok(args) => with_arguments(name, mode, &args, inherited),
        Err(Aside::Show(text)) => show(&text),
        Err(Aside::Usage(text)) => {
            Say::new(name, Verbosity::Quiet).wrong(&text);
            Ending::Code(exit::OURS)
        }
    };
    ending.leave()
}

/// Prints what was asked for on stdout.
fn show(text: &str) -> Ending {
    Ending::Code(if say::print(text).is_ok() { 0 } else { exit::OURS })
}

fn with_arguments(name: &'static str, mode: Mode, args: &RunArgs, inherited: Inherited) -> Ending {
    let environment = Environment::read(|name| std::env::var_os(name));
    let early = Say::new(name, if args.quiet { Verbosity::Quiet } else { Verbosity::Normal });
    if args.check {
        return check::run(args, mode, &early);
    }
    if let Some((first, second)) = args.diffed() {
        return diff::run(first, second, args, &early);
    }
    let result = environment.configuration(args.config.as_ref()).map_err(Error::from).and_then(|(config, warnings)| {
        for warning in warnings {
            early.wrong(&warning);
        }
        let config = match args.setup || args.undo {
            true => environment.with_the_machine_s_histories(args.config.as_ref(), config)?,
            false => config,
        };
        let settings = Settings::new(args, &environment, config, mode);
        let say = Say::new(name, settings.verbosity);
        let is_named = args.lock.is_some() || environment.lock.is_some();
        match &args.cancel {
            _ if args.setup => setting_up::set_up(&settings, args, is_named, &say),
            _ if args.undo => setting_up::undo(&settings, args.dry_run, is_named, &say),
            Some(job) => cancel(settings, job, &say),
            None => {
                let account = Account::open(&settings, &args.command)?;
                let chronicle = Chronicle::begin(&settings.history, &args.command);
                Run { settings, say, inherited, account, chronicle }.run(args)
            }
        }
    });
    result.unwrap_or_else(|error| match error {
        Error::Signalled(signal) => Ending::Signal(signal),
        error => {
            early.wrong(&error.to_string());
            Ending::Code(error.code())
        }
    })
}

/// `--cancel`.
fn cancel(settings: Settings, job: &str, say: &Say) -> Result<Ending, Error> {
    crate::kernel::check()?;
    let path = if settings.private { setup::private_lock()? } else { settings.lock };
    cancel::cancel(&Lock::open(&path)?, &Here::look()?, job, settings.policy.grace, say)
}

/// One run of a command.
struct Run {
    settings: Settings,
    say: Say,
    inherited: Inherited,
    account: Account,
    chronicle: Chronicle,
}

/// What a job's environment has besides ours.
fn variables(id: JobId, mode: Mode, pinning: Option<&Pinning<'_>>) -> Vec<(&'static str, String)> {
    let cpus = pinning.map(|pinning| (CPUS_VARIABLE, pinning.pin.cpus.to_string()));
    [(JOB_VARIABLE, id.to_string()), (MODE_VARIABLE, mode.to_string())].into_iter().chain(cpus).collect()
}

impl Run {
    fn run(mut self, args: &RunArgs) -> Result<Ending, Error> {
        let result = self.attempt(args);
        if let Err(error) = &result {
            let error = match error {
                Error::Signalled(signal) => {
                    format!("ended by {} before the command was started", report::full::signal_name(*signal))
                }
                error => error.to_string(),
            };
            let out_of_memory = matches!(&result, Err(Error::TooLittleMemory { .. }));
            self.did_not_run(if out_of_memory { Reason::OutOfMemory } else { Reason::Failed }, Some(error));
        }
        result
    }

    fn attempt(&mut self, args: &RunArgs) -> Result<Ending, Error> {
        crate::kernel::check()?;
        let command = Command::look_up(&args.command, std::env::var_os("PATH").as_deref())?;
        if command.missing_yet {
            let name = text::escape(&args.command[0].to_string_lossy());
            self.say.wrong(&format!("warning: {name} does not exist yet; it is looked for again when the job starts"));
        }
        let here = Here::look()?;
        let mut detected = self.detect(&here)?;
        if self.settings.private {
            self.settings.lock = setup::private_lock()?;
            self.account.uses(&self.settings.lock);
        }
        let lock = self.open_lock()?;
        let outer = nested::find(&here.proc, &lock.queue, &here.boot, here.pid_namespace).map_err(Error::Refused)?;
        // A job inside another stays where that one is.
        let plan =
            self.settings.pin.as_ref().map(|asked| Plan::new(asked, Path::new("/"), outer.is_some())).transpose()?;
        // Of children: the command stops, and orphans may come home to us.
        let signals = Signals::install(&self.inherited, true).map_err(Error::system("install signal handlers"))?;
        let limiting = Limiting::new(&self.settings.limits, &here, outer.is_some());
        let (plan, limiting) = (plan.as_ref(), limiting.as_ref());
        let prepared = Prepared { command: &command, plan, limiting, here: &here, signals: &signals };
        match outer {
            Some(outer) => self.run_nested(prepared, &mut detected, &outer),
            None => self.run_queued(prepared, args, &mut detected, lock),
        }
    }

    /// Finds the backends. Refusing to run is done here, before anything else is touched, if it is known.
    fn detect(&self, here: &Here) -> Result<Detected, Error> {
        let bus_address = std::env::var_os("DBUS_SESSION_BUS_ADDRESS");
        let machine = cgroup::detect::Machine {
            root: Path::new("/"),
            mountinfo: &here.mountinfo,
            uid: rustix::process::geteuid().as_raw(),
            bus_address: bus_address.as_deref(),
        };
        let detected = cgroup::choose(self.settings.cgroup, &here.proc, &machine);
        match detected.places.first() {
            None => Err(no_group(&detected)),
            Some(Place::Subreaper) if self.settings.cgroup == Choice::Auto => {
                self.say.note(&weaker(&detected));
                Ok(detected)
            }
            Some(_) => Ok(detected),
        }
    }

    /// Opens lock file and queue; root makes what is missing.
    fn open_lock(&self) -> Result<Lock, Error> {
        let lock = &self.settings.lock;
        match Lock::open(lock) {
            Err(LockError::Missing(_)) if rustix::process::geteuid().is_root() => {
                for change in setup::set_up(lock, setup::Users::All, false)? {
                    self.say.note(&change.done());
                }
                self.say.note("the lock is now set up for everybody (for one group: perflock --setup --group NAME)");
                if ["/.dockerenv", "/run/.containerenv"].iter().any(|mark| Path::new(mark).exists()) {
                    self.say.note("this is a container: the lock is the container's own, not the host's");
                }
                Ok(Lock::open(lock)?)
            }
            Err(LockError::Missing(path)) => Err(Error::NotSetUp(self.not_set_up(&path))),
            other => Ok(other?),
        }
    }

    fn not_set_up(&self, missing: &Path) -> String {
        format!(
            "this machine is not set up: {} is missing\nfor everybody, once: sudo {}\n\
             only among your own jobs: {} --private CMD",
            missing.display(),
            setup_command(&self.settings.lock),
            self.say.name(),
        )
    }

    /// A job inside another job of the same lock: it runs at once, if the outer job's mode covers it.
    fn run_nested(&self, prepared: Prepared<'_>, detected: &mut Detected, outer: &Outer) -> Result<Ending, Error> {
        let Prepared { command, plan, limiting, here, signals } = prepared;
        let mode = self.settings.mode;
        if !outer.mode.covers(mode) {
            let command = text::command_line(&outer.command);
            return Err(Error::Refused(format!(
                "this runs inside the {} job {} ({command}), which does not have the machine alone; start the outer command with perflock",
                outer.mode, outer.id.number
            )));
        }
        if self.settings.require_quiet {
            return Err(Error::Refused(format!(
                "this runs inside job {}, whose verdict counts: give --require-quiet to that one",
                outer.id.number
            )));
        }
        self.say.detail(&format!("inside job {}, which holds the machine: starting at once", outer.id.number));
        // In the outer job's group or, if that cannot be divided, in the fallback.
        // No word about it: what the inner job loses sight of, the outer one ends.
        detected.within_a_job();
        self.limits_for(limiting, detected)?;
        let keeper = plan.map(|plan| Keeper { plan, here, nested: true });
        if let Some(keeper) = keeper {
            self.places_for(keeper, detected)?;
            if keeper.plan.cores().is_some() {
                self.say
                    .note("inside a job, cores are chosen among that job's, and other jobs inside it may get the same");
            }
        }
        let name = nested::group_name(std::process::id(), crate::clock::boottime_usec());
        self.account.inside(outer.id);
        let pinning = keeper.map(|keeper| Pinning::new(keeper, keeper.plan.pin(None), &name, false)).transpose();
        let result = pinning.and_then(|pinning| {
            let variables = variables(outer.id, outer.mode, pinning.as_ref());
            let (name, variables, pinning) = (&*name, &*variables, pinning.as_ref());
            Job {
                run: self,
                command,
                signals,
                hold: None,
                inside: Some(outer.id),
                told: false,
                name,
                variables,
                pinning,
                limiting,
            }
            .run(detected, &here.mountinfo)
        });
        self.finish(result, None, Duration::ZERO)
    }

    fn run_queued(
        &self,
        prepared: Prepared<'_>,
        args: &RunArgs,
        detected: &mut Detected,
        lock: Lock,
    ) -> Result<Ending, Error> {
        let Prepared { plan, limiting, here, signals, .. } = prepared;
        self.limits_for(limiting, detected)?;
        plan.map_or(Ok(()), |plan| self.places_for(Keeper { plan, here, nested: false }, detected))?;
        let started = Instant::now();
        let argv: Vec<String> = args.command.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
        let own = here.proc.stat(std::process::id().cast_signed()).map_err(Error::system("read /proc/self/stat"))?;
        let joined = Joined {
            format: lock::record::FORMAT,
            boot: here.boot.clone(),
            joined_usec: crate::clock::boottime_usec(),
            pid: own.pid,
            start_ticks: own.start_ticks,
            pid_namespace: here.pid_namespace,
            cgroup_namespace: here.cgroup_namespace,
            mode: self.settings.mode,
            command: Joined::fit_command(&argv),
            message: self.settings.message.as_deref().map(Joined::fit_message),
            // Whoever has the machine alone has every core.
            cores: plan.and_then(Plan::cores).filter(|_| self.settings.mode == Mode::Shared),
        };
        let obtained = self.obtain(lock, joined, prepared, started)?;
        let waited = started.elapsed();
        self.account.waited(waited);
        let hold = match obtained {
            Ok(hold) => hold,
            Err(ending) => return Ok(self.without_the_machine(ending)),
        };
        // From here on the machine is ours: whatever fails, it is given back.
        let limits = self.limits(signals, started);
        match self.end_orphans(here, &hold, signals, limits) {
            Ok(None) => {
                // To the user that was a wait like any other.
                self.account.waited(started.elapsed());
                self.chronicle.holds(hold.ticket().id);
                self.account.holds(hold.ticket().id);
                let result = self.run_held(prepared, detected, &hold, waited >= WORTH_TELLING);
                self.finish(result, Some(hold), waited)
            }
            Ok(Some(ended)) => {
                self.account.waited(started.elapsed());
                let cancelled = hold.ticket().cancelled_by();
                hold.release();
                Ok(self.without_the_machine(match ended {
                    Unstarted::GaveUp => self.gave_up(started, "the lock"),
                    Unstarted::Signalled(signal) => {
                        cancelled.into_iter().for_each(|by_uid| self.cancelled(by_uid));
                        Ending::Signal(signal)
                    }
                }))
            }
            Err(error) => {
                hold.release();
                Err(error)
            }
        }
    }

    /// With the machine held: runs the job; `told` says that there is a line at its end, however short it is.
    fn run_held(
        &self,
        prepared: Prepared<'_>,
        detected: &mut Detected,
        hold: &Hold,
        told: bool,
    ) -> Result<Finished, Error> {
        let Prepared { command, plan, limiting, here, signals } = prepared;
        let id = hold.ticket().id;
        let name = id.group_name();
        let keeper = plan.map(|plan| Keeper { plan, here, nested: false });
        let pin = |keeper: Keeper<'_>| keeper.plan.pin(hold.lease());
        let pinning = keeper.map(|keeper| Pinning::new(keeper, pin(keeper), &name, told)).transpose()?;
        let variables = variables(id, self.settings.mode, pinning.as_ref());
        let (name, variables, pinning) = (&*name, &*variables, pinning.as_ref());
        Job { run: self, command, signals, hold: Some(hold), inside: None, told, name, variables, pinning, limiting }
            .run(detected, &here.mountinfo)
    }

    /// Notes in the report that the machine was not obtained.
    fn without_the_machine(&self, ending: Ending) -> Ending {
        let error = match ending {
            Ending::Signal(signal) => Some(format!("ended by {} while it waited", report::full::signal_name(signal))),
            Ending::Code(_) => None,
        };
        self.did_not_run(Reason::LockNotObtained, error);
        ending
    }

    fn did_not_run(&self, reason: Reason, error: Option<String>) {
        self.account.did_not_run(reason, error).iter().for_each(|line| self.say.wrong(line));
    }

    /// Gives the machine back, and only then prints: a slow terminal never holds it.
    fn finish(&self, result: Result<Finished, Error>, hold: Option<Hold>, waited: Duration) -> Result<Ending, Error> {
        self.account.gives_back();
        self.chronicle.gives_back();
        // Jobs inside another are told apart by nothing: that one looks, when all of them are over.
        let id = hold.as_ref().map(|hold| hold.ticket().id).filter(|_| self.settings.escapes == escape::Choice::Warn);
        let told = hold.is_some() && waited >= WORTH_TELLING;
        let failed = !matches!(&result, Ok(Finished { outcome: Outcome { exit: Exit::Code(0), .. }, .. }));
        let cancelled = hold.as_ref().filter(|_| failed).and_then(|hold| hold.ticket().cancelled_by());
        if let Some(hold) = hold {
            hold.release();
        }
        let given_back_usec = crate::clock::boottime_usec();
        if let (Some(by_uid), Err(_)) = (cancelled, &result) {
            self.cancelled(by_uid);
        }
        let Finished { outcome, trail, guard, warnings, watched } = result?;
        if let Some(guard) = guard {
            guard.reap();
        }
        let what_happened =
            [cancelled.map(report::cancelled), report::stopped(&outcome), report::ended(&outcome, self.say.name())];
        // Before anything is printed: a reader of stderr may be slow.
        let escapes = id.map(|id| escape::Here::look().escapes(&id.to_string(), trail, given_back_usec));
        let escaped = escapes.as_ref().map(report::escapes::warnings).unwrap_or_default();
        let verdict = self.verdict(watched);
        let (full, no_report) = self.account.finished(&outcome, cancelled, escapes, verdict.clone());
        let not_written = [no_report, self.keep_history(&outcome, cancelled.is_some(), verdict.as_ref())];
        let told_of = what_happened.iter().flatten().chain(&escaped).chain(not_written.iter().flatten());
        for line in warnings.iter().chain(told_of) {
            self.say.wrong(line);
        }
        let succeeded = outcome.exit == Exit::Code(0) && !outcome.timed_out;
        let not_quiet = self.tell_verdict(verdict.as_ref(), succeeded);
        let worth_a_line = outcome.wall >= WORTH_A_LINE || told;
        match full {
            // Asked for by name, so said even with --quiet.
            Some(full) => self.say.wrong(&full),
            None if worth_a_line && io::stderr().is_terminal() => self.say.note(&report::usage(&outcome, waited)),
            None => self.say.detail(&report::usage(&outcome, waited)),
        }
        Ok(match outcome.exit {
            _ if outcome.timed_out => Ending::Code(exit::TIMED_OUT),
            Exit::Code(0) => Ending::Code(not_quiet.unwrap_or(0)),
            // waitid(2) gives the eight bits that the command exited with.
            Exit::Code(code) => Ending::Code(code.cast_unsigned() as u8),
            Exit::Signal(signal) => Ending::Signal(signal),
        })
    }
}
