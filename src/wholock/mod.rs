//! `wholock`: who holds the machine, who waits, and what each job uses. It looks and changes nothing, takes no lock,
//! and needs no privilege: tickets are readable by whoever may use the lock, and groups' counters by everybody.

pub mod cores;
pub mod expected;
pub mod full;
pub mod history;
pub mod job;
pub mod json;
pub mod load;
pub mod snapshot;
pub mod tree;
pub mod view;
pub mod watch;

use std::ffi::{c_char, c_int};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::cgroup::Usage;
use crate::cli::{self, Aside, WholockArgs};
use crate::config::ConfigError;
use crate::error::FileError;
use crate::exit::{self, Ending};
use crate::history::{Keeping, line};
use crate::lock::{Lock, LockError, setup};
use crate::procfs::Proc;
use crate::say::{self, Say};
use crate::settings::{Environment, Verbosity, keeping, lock_path};
use crate::supervisor::inherit::{self, Inherited};
use crate::ticks::Ticks;
use cores::CoreMap;
use snapshot::Snapshot;

/// How long jobs are watched to see what they use now.
const SAMPLE: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Lock(LockError),
    #[error("this machine is not set up: {0}; nobody can hold it (to set it up: sudo perflock --setup)")]
    NotSetUp(LockError),
    #[error("there is no process {0}")]
    NoProcess(i32),
    #[error("there is no job {0}; wholock alone shows the jobs with their numbers")]
    NoJob(String),
    #[error("there is no user {0}")]
    NoUser(String),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("cannot write: {}", crate::error::reason(.0))]
    Write(io::Error),
    #[error(transparent)]
    Watch(#[from] watch::Error),
}

/// `main` of `wholock`.
///
/// # Safety
/// See [`inherit::begin`].
pub unsafe fn main(argc: c_int, argv: *const *const c_char) -> ! {
    // SAFETY: our caller keeps the promise.
    let (arguments, inherited) = unsafe { inherit::begin(argc, argv) };
    let say = Say::new("wholock", Verbosity::Normal);
    let ending = match cli::parse_wholock(arguments.into_iter().skip(1).collect()) {
        Ok(args) => run(&args, &inherited, &say),
        Err(Aside::Show(text)) => print(&text).map(|()| Ending::Code(0)),
        Err(Aside::Usage(text)) => {
            say.wrong(&text);
            Ok(Ending::Code(exit::OURS))
        }
    };
    let ending = ending.unwrap_or_else(|error| {
        say.wrong(&error.to_string());
        Ending::Code(exit::OURS)
    });
    ending.leave()
}

fn run(args: &WholockArgs, inherited: &Inherited, say: &Say) -> Result<Ending, Error> {
    let environment = Environment::read(|name| std::env::var_os(name));
    let (config, warnings) = environment.configuration(args.config.as_ref())?;
    for warning in warnings {
        say.wrong(&warning);
    }
    let path = match args.private {
        true => setup::private_path(),
        false => lock_path(args.lock.as_ref(), &environment, &config),
    };
    if args.history {
        return past(args, &path, &keeping(&environment, &config), say).map(|()| Ending::Code(0));
    }
    // Every ticket is open at once while they are looked at, and a queue may be longer than the usual limit.
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
    let opened = Lock::open(&path);
    if let (Some(interval), Ok(_) | Err(LockError::Missing(_))) = (args.watch, &opened)
        && (args.private || opened.is_ok())
    {
        let target = watch::Target { path, private: args.private };
        return Ok(watch::run(&target, interval, inherited)?);
    }
    once(args, &path, opened, &keeping(&environment, &config)).map(Ending::Code)
}

/// Everything but `--watch`.
fn once(args: &WholockArgs, path: &Path, opened: Result<Lock, LockError>, keeping: &Keeping) -> Result<u8, Error> {
    if args.private && matches!(opened, Err(LockError::Missing(_))) {
        // Made by the first job: nobody can have it yet.
        return match (args.quiet, args.json) {
            (true, _) => Ok(0),
            (_, true) => {
                let none = Snapshot::default();
                print(&json::document(&none, None, None, path, &Proc::default(), args.tree)).map(|()| 0)
            }
            (_, false) => print(view::FREE).map(|()| 0),
        };
    }
    let lock = opened.map_err(|error| match error {
        LockError::Missing(_) => Error::NotSetUp(error),
        other => Error::Lock(other),
    })?;
    let proc = Proc::default();
    if let Some(pid) = args.pid {
        let snapshot = Snapshot::take(&lock, &proc, Duration::ZERO, Usage::read).map_err(Error::Lock)?;
        return whose(pid, &snapshot, &proc);
    }
    let sample = args.sample.unwrap_or(SAMPLE);
    let take = |sample, read| Snapshot::take(&lock, &proc, sample, read).map_err(Error::Lock);
    if let Some(which) = &args.job {
        let mut snapshot = take(sample, Usage::read_all)?;
        snapshot.expect_starts(keeping, path);
        let job = snapshot.find(which).ok_or_else(|| Error::NoJob(crate::text::escape(which)))?;
        print(&full::text(job, view::terminal_width(), &proc))?;
        return Ok(0);
    }
    if args.quiet {
        // Whether the machine is free takes no watching.
        return Ok(u8::from(!take(Duration::ZERO, Usage::read)?.free()));
    }
    // Before the jobs: whichever joins from here on is known by its time to be new.
    let before = (!sample.is_zero()).then(|| Ticks::read(&proc).ok()).flatten();
    let mut snapshot = take(sample, if args.json { Usage::read_all } else { Usage::read })?;
    let after = before.is_some().then(|| Ticks::read(&proc).ok()).flatten();
    let load = before.zip(after).map(|(before, after)| load::outside(&before, &after, &[&snapshot], &proc));
    let load = load.as_ref();
    snapshot.expect_starts(keeping, path);
    let cores = CoreMap::of(&snapshot, Path::new("/"));
    let cores = cores.as_ref();
    print(&match args.json {
        true => json::document(&snapshot, load, cores, path, &proc, args.tree),
        false => view::table(&snapshot, load, cores, view::terminal_width(), args.tree.then_some(&proc)),
    })?;
    Ok(0)
}

/// `--history`. The lock need not be there any more.
fn past(args: &WholockArgs, lock: &Path, keeping: &Keeping, say: &Say) -> Result<(), Error> {
    let number = |name: &String| crate::user::user_id(name).ok_or_else(|| Error::NoUser(crate::text::escape(name)));
    let wanted = history::Wanted {
        lock: line::lock_text(&lock.to_string_lossy()),
        uid: args.user.as_ref().map(number).transpose()?,
        ended_after: args.since.and_then(|since| SystemTime::now().checked_sub(since)),
    };
    let past = history::Past::read(keeping, &wanted);
    past.notices().iter().for_each(|notice| say.wrong(notice));
    print(&match args.json {
        true => past.document(&wanted, keeping),
        false => past.text(view::terminal_width()),
    })
}

/// `--pid`.
fn whose(pid: i32, snapshot: &Snapshot, proc: &Proc) -> Result<u8, Error> {
    let stat = proc.stat(pid).map_err(|_| Error::NoProcess(pid))?;
    let name = crate::text::escape(&stat.comm);
    match snapshot.job_of(pid, proc) {
        Some(job) => {
            print(&format!("process {pid} ({name}) belongs to job {}\n", job.number))?;
            print(&view::jobs_table(&[job], view::terminal_width()))?;
        }
        None => print(&format!("process {pid} ({name}) belongs to no job\n"))?,
    }
    Ok(0)
}

fn print(text: &str) -> Result<(), Error> {
    say::print(text).map_err(Error::Write)
}
