//! Making the command's first process, born in the job group.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags};
use rustix::process::{Signal, pidfd_send_signal};

use super::birth::{self, ALWAYS_COPIES};
use super::command::Command;
use super::inherit::Inherited;
use super::placement::Placement;
use super::shared::SharedWord;
use super::signals::Signals;
use crate::cgroup::{Entry, Maker};
use crate::child;
use crate::error::last_errno;
use crate::fork;
use crate::kernel;
use crate::mask::{self, BlockedSignals};
use crate::step::Step;

/// The command's first process.
#[derive(Debug)]
pub struct Main {
    /// Its pid: ours to reap, so the number stays its own until we do.
    pub pid: i32,
    /// Readable once it ended.
    pub pidfd: OwnedFd,
    /// When it was about to be made, or let in: the CPU time of its group is counted from then on.
    pub started: Instant,
}

impl Main {
    /// Whether it has ended, reaped or not. If that cannot be asked it is taken to have: nothing is done for it then that takes
    /// time.
    pub fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        crate::poll::until(&mut fds, Some(Instant::now())).is_err() || fds[0].any() == Some(true)
    }
}

/// Why there is no first process.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The process could not be made.
    #[error("cannot start a process for the command: {}", crate::error::reason(.0))]
    Fork(#[source] io::Error),
    /// The process was made, but could not join the job's groups.
    #[error("cannot put the command into its groups: {}", crate::error::reason(.0))]
    NotJoined(#[source] io::Error),
    /// The process was made, but could not be put where the command was to run.
    #[error("cannot pin the command to its processors: {}", crate::error::reason(.0))]
    NotPlaced(#[source] io::Error),
    /// A signal came first: the command was not executed.
    #[error("a signal came before the command was started")]
    Signalled,
    /// The process was made, but the command could not be executed.
    #[error("cannot run {name}: {}", crate::error::reason(.source))]
    Exec {
        /// As typed.
        name: String,
        /// execve(2)'s answer.
        #[source]
        source: io::Error,
    },
}

impl SpawnError {
    /// Why nothing was executed, by what the process left: see [`Child::failure`].
    pub(super) fn of_failure(command: &Command, failure: i32) -> Self {
        match failure {
            SIGNALLED => Self::Signalled,
            NOT_JOINED.. => Self::NotJoined(io::Error::from_raw_os_error(failure - NOT_JOINED)),
            NOT_PLACED.. => Self::NotPlaced(io::Error::from_raw_os_error(failure - NOT_PLACED)),
            errno => Self::exec(command, errno),
        }
    }

    /// execve(2) failed with `errno`.
    fn exec(command: &Command, errno: i32) -> Self {
        let name = command.argv.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Self::Exec { name: crate::text::escape(&name), source: io::Error::from_raw_os_error(errno) }
    }
}

/// Pointers into strings, ended by a null pointer, as execve(2) takes them.
struct Pointers(Vec<*const libc::c_char>);

impl Pointers {
    fn to<'a>(strings: impl Iterator<Item = &'a CString>) -> Self {
        Self(strings.map(|string| string.as_ptr()).chain([ptr::null()]).collect())
    }
}

/// What the child needs, made before it exists: it may only make system calls.
struct Child<'a> {
    command: &'a Command,
    inherited: &'a Inherited,
    /// The way into its group, if it is not born there.
    joins: Option<Joins<'a>>,
    placement: Placement<'a>,
    argv: Pointers,
    envp: Pointers,
    /// For a script without `#!`: `/bin/sh FILE ARG…`, with room for the file's name.
    script_argv: Pointers,
    /// Signals for the supervisor.
    signals: &'a Signals,
    /// Why nothing was executed: an errno, [`SIGNALLED`], or [`NOT_PLACED`] or [`NOT_JOINED`] and an errno; 0 otherwise. In
    /// memory that both processes share.
    failure: &'a AtomicI32,
}

/// A group to be joined.
#[derive(Clone, Copy)]
struct Joins<'a> {
    procs: BorrowedFd<'a>,
    /// Whose child it is that joins.
    supervisor: libc::pid_t,
}

impl Joins<'_> {
    /// Joins the group, unless the supervisor is dead: whoever looked into the group before would not know of this process.
    /// Returns an errno, or 0. Async-signal-safe.
    fn join(&self) -> i32 {
        // SAFETY: sets a number of this process.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // It may have died before that was set.
        // SAFETY: takes nothing and always succeeds.
        if unsafe { libc::getppid() } != self.supervisor {
            return libc::ESRCH;
        }
        let errno = fork::join(self.procs);
        // The command is not to die with its parent. In the group it is known to the guard, and to the next perflock.
        // SAFETY: as above.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) };
        errno
    }
}

const SHELL: &CStr = c"/bin/sh";

/// No errno: a signal came before the child was born.
const SIGNALLED: i32 = -1;

/// Higher than any errno: added to that of a call that was to pin the process.
const NOT_PLACED: i32 = 0x1_0000;

/// The same for one that was to put it into a group.
const NOT_JOINED: i32 = 0x2_0000;

/// What a command is started with, besides what it is.
#[derive(Clone, Copy)]
pub struct Start<'a> {
    /// Signals, descriptors, mask.
    pub inherited: &'a Inherited,
    /// Changes to its environment.
    pub variables: &'a [(&'a str, String)],
    /// Where it is put before it executes.
    pub placement: Placement<'a>,
}

/// Makes the command's first process and waits until it has executed the command, or could not.
///
/// # Errors
/// See [`SpawnError`].
pub fn spawn(command: &Command, start: Start<'_>, signals: &Signals, maker: Maker<'_>) -> Result<Main, SpawnError> {
    let Start { inherited, variables, mut placement } = start;
    let mut changes = variables.to_vec();
    let into = match maker {
        Maker::Into(entry) => Some(entry),
        Maker::Joining(tracking) => {
            placement.tracking = tracking;
            None
        }
        Maker::Marked(name, value) => {
            changes.push((name, value.to_owned()));
            None
        }
    };
    let environment = super::command::environment(&changes);
    let (argv, script_argv) = arguments(command);
    let (born, joins) = match into {
        Some(Entry::Born(directory)) => (Some(directory), None),
        // SAFETY: takes nothing and always succeeds.
        Some(Entry::Joins(procs)) => (None, Some(Joins { procs, supervisor: unsafe { libc::getpid() } })),
        None => (None, None),
    };
    // By the newer call the child shares our memory, where that is done; by the older one it has a copy.
    let own = AtomicI32::new(0);
    let copied = ALWAYS_COPIES || !kernel::gives_birth_in_groups();
    let shared = copied.then(SharedWord::new).transpose().map_err(SpawnError::Fork)?;
    let failure = shared.as_ref().map_or(&own, SharedWord::word);
    let envp = Pointers::to(environment.iter());
    let mut child = Child { command, inherited, joins, placement, argv, envp, script_argv, signals, failure };
    // ^Z while we sleep in the clone would stop the child and not us, and nobody would get the prompt back: it waits
    // until the child has executed the command. If the child took it before that, it has gone on: it is told again. All
    // other signals stay open, so that none is lost. One that comes before the child is born makes the kernel run our handler first, and the child sees that and goes no further; a
    // later one for the whole process group reaches the child too (fork.c, copy_process).
    let blocked = BlockedSignals::stopping().map_err(SpawnError::Fork)?;
    let started = Instant::now();
    let (pid, pidfd) = birth::give(born, &mut child, child_main).map_err(SpawnError::Fork)?;
    let failure = failure.load(Ordering::SeqCst);
    if failure == 0 && mask::stop_waits() {
        let _ = pidfd_send_signal(&pidfd, Signal::TSTP);
    }
    drop(blocked);
    match failure {
        0 => Ok(Main { pid, pidfd, started }),
        failure => {
            child::reap(pid);
            Err(SpawnError::of_failure(command, failure))
        }
    }
}

/// Executes the command in a process that has no other work, a fork with memory and handlers of its own. Returns why it
/// could not: see [`Child::failure`].
pub(super) fn execute(command: &Command, start: Start<'_>) -> i32 {
    let environment = super::command::environment(start.variables);
    let (argv, mut script_argv) = arguments(command);
    let failure = take_place(&start.placement);
    if failure != 0 {
        return failure;
    }
    start.inherited.restore();
    exec(&command.candidates, &argv, &Pointers::to(environment.iter()), &mut script_argv)
}

/// The same, with its group joined first. Async-signal-safe.
fn enter(joins: Option<Joins<'_>>, placement: &Placement<'_>) -> i32 {
    match joins.map_or(0, |joins| joins.join()) {
        0 => take_place(placement),
        errno => NOT_JOINED + errno,
    }
}

/// Puts this process where the command is to run. Returns why it could not, or 0. Async-signal-safe.
fn take_place(placement: &Placement<'_>) -> i32 {
    match placement.join() {
        0 => match placement.take() {
            0 => 0,
            errno => NOT_PLACED + errno,
        },
        errno => NOT_JOINED + errno,
    }
}

/// The command's arguments, and those of a shell that runs it as a script.
fn arguments(command: &Command) -> (Pointers, Pointers) {
    let argv = Pointers::to(command.argv.iter());
    let mut script_argv = Pointers(vec![SHELL.as_ptr(), ptr::null()]);
    script_argv.0.extend(&argv.0[1.min(argv.0.len() - 1)..]);
    (argv, script_argv)
}

/// The child's life between clone and exec. Async-signal-safe: only system calls, and it allocates nothing.
extern "C" fn child_main(child: *mut Child<'_>) -> ! {
    // SAFETY: `birth::give` gives a valid pointer, and the parent sleeps until this process has executed or ended.
    let child = unsafe { &mut *child };
    // A ^Z would stop this process before it executes.
    let failure = if child.signals.pending() || mask::stop_waits() {
        SIGNALLED
    } else {
        Step::CommandBorn.reached();
        continue_soon();
        match enter(child.joins, &child.placement) {
            0 => {
                child.inherited.restore();
                exec(&child.command.candidates, &child.argv, &child.envp, &mut child.script_argv)
            }
            failure => failure,
        }
    };
    child.failure.store(failure, Ordering::SeqCst);
    // SAFETY: ends the child at once; nothing of the supervisor's is flushed or dropped.
    unsafe { libc::_exit(127) }
}

/// How long a ^Z may stop a child that has not executed the command.
const CONTINUED_AFTER_NSEC: i64 = 10_000_000;

/// A ^Z that comes after that was asked for stops this process when it opens its mask, and the supervisor sleeps in
/// the clone until it has executed the command: neither is to be woken by anybody at the terminal. So a timer
/// continues it, which execve(2) takes away. Async-signal-safe.
fn continue_soon() {
    // SAFETY: a zeroed sigevent is valid: plain integers.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = libc::SIGCONT;
    let mut timer: libc::c_int = 0;
    // SAFETY: zero is a value for both of its times.
    let mut after: libc::itimerspec = unsafe { std::mem::zeroed() };
    after.it_value.tv_nsec = CONTINUED_AFTER_NSEC;
    // By the kernel's own calls: the C library may allocate for these.
    // SAFETY: `event` and `timer` are valid for the call; the kernel's number of a timer is an int.
    if unsafe { libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, &raw const event, &raw mut timer) } == 0 {
        let no_old = ptr::null_mut::<libc::itimerspec>();
        // SAFETY: `after` is valid for the call, and the old time is not asked for.
        unsafe { libc::syscall(libc::SYS_timer_settime, timer, 0, &raw const after, no_old) };
    }
}

/// Tries every candidate like execvp(3); returns the errno to report. Async-signal-safe: allocates nothing.
fn exec(candidates: &[CString], argv: &Pointers, envp: &Pointers, script_argv: &mut Pointers) -> i32 {
    let mut reported = libc::ENOENT;
    for file in candidates {
        // SAFETY: all three point to strings and null-ended arrays that outlive the call, which does not return on
        // success.
        unsafe { libc::execve(file.as_ptr(), argv.0.as_ptr(), envp.0.as_ptr()) };
        let mut errno = last_errno();
        if errno == libc::ENOEXEC {
            script_argv.0[1] = file.as_ptr();
            // SAFETY: as above.
            unsafe { libc::execve(SHELL.as_ptr(), script_argv.0.as_ptr(), envp.0.as_ptr()) };
            errno = last_errno();
        }
        match errno {
            libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
            libc::EACCES => reported = errno,
            _ => return errno,
        }
    }
    reported
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::child::{Exit, wait_for};
    use crate::pin::CpuList;
    use std::ffi::OsString;

    fn command(argv: &[&str]) -> Command {
        let argv: Vec<OsString> = argv.iter().map(OsString::from).collect();
        Command::look_up(&argv, Some("/usr/bin:/bin".as_ref())).unwrap()
    }

    #[test]
    fn a_child_that_was_stopped_before_it_executed_goes_on() {
        // SAFETY: the child makes system calls only.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            continue_soon();
            // SAFETY: stops this process.
            unsafe { libc::raise(libc::SIGSTOP) };
            // SAFETY: ends this process.
            unsafe { libc::_exit(7) }
        }
        assert_eq!(wait_for(pid).unwrap().0, Exit::Code(7));
    }

    /// Handlers for signals that nobody sends here.
    fn signals() -> Signals {
        Signals::install(&inherited(), false).unwrap()
    }

    fn inherited() -> Inherited {
        Inherited::capture()
    }

    fn run(argv: &[&str], variables: &[(&str, String)], placement: Placement<'_>) -> Result<Main, SpawnError> {
        let start = Start { inherited: &inherited(), variables, placement };
        spawn(&command(argv), start, &signals(), Maker::Marked("M", "1"))
    }

    #[test]
    fn a_command_runs_with_its_arguments_and_variables() {
        let argv = ["sh", "-c", r#"test "$A" = b && test "$0" = x && exit 7"#, "x"];
        let main = run(&argv, &[("A", "b".to_owned())], Placement::default()).unwrap();
        assert_eq!(wait_for(main.pid).unwrap().0, Exit::Code(7));
    }

    #[test]
    fn what_cannot_be_executed_comes_back_with_its_reason() {
        match run(&["/nonexistent/program"], &[], Placement::default()) {
            Err(SpawnError::Exec { name, source }) => {
                assert_eq!((&*name, source.raw_os_error()), ("/nonexistent/program", Some(libc::ENOENT)));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_command_takes_its_place_or_is_not_executed() {
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        let allowed = own.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
        let first: CpuList = allowed.parse::<CpuList>().unwrap().first().into_iter().collect();
        let script = format!("grep -qx 'Cpus_allowed_list:.{first}' /proc/self/status");
        let main = run(&["sh", "-c", &script], &[], Placement { cpus: Some(&first), ..Placement::default() }).unwrap();
        assert_eq!(wait_for(main.pid).unwrap().0, Exit::Code(0));
        let nowhere: CpuList = [crate::pin::cpulist::MOST - 1].into_iter().collect();
        let placement = Placement { cpus: Some(&nowhere), ..Placement::default() };
        match run(&["/bin/true"], &[], placement) {
            Err(SpawnError::NotPlaced(source)) => assert_eq!(source.raw_os_error(), Some(libc::EINVAL)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_command_that_cannot_join_its_group_is_not_executed() {
        let (read_only, full) = (
            std::fs::File::open("/dev/null").unwrap(),
            std::fs::File::options().write(true).open("/dev/full").unwrap(),
        );
        for (group, errno) in [(&read_only, libc::EBADF), (&full, libc::ENOSPC)] {
            let groups = [None, Some(std::os::fd::AsFd::as_fd(group)), None];
            match run(&["/bin/true"], &[], Placement { groups, ..Placement::default() }) {
                Err(SpawnError::NotJoined(source)) => assert_eq!(source.raw_os_error(), Some(errno)),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_child_in_a_copy_of_our_memory_reports_as_well() {
        let (inherited, signals) = (inherited(), signals());
        for (argv, failure) in [(["/bin/true"], 0), (["/nonexistent/program"], libc::ENOENT)] {
            let command = command(&argv);
            let shared = SharedWord::new().unwrap();
            let environment = super::super::command::environment(&[]);
            let mut child = Child {
                command: &command,
                inherited: &inherited,
                joins: None,
                placement: Placement::default(),
                argv: Pointers::to(command.argv.iter()),
                envp: Pointers::to(environment.iter()),
                script_argv: Pointers(vec![SHELL.as_ptr(), ptr::null(), ptr::null()]),
                signals: &signals,
                failure: shared.word(),
            };
            // SAFETY: clone_args is plain integers; zero means "not used" for each.
            let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
            args.flags = libc::CLONE_VFORK as u64 | fork::CLONE_CLEAR_SIGHAND;
            args.exit_signal = libc::SIGCHLD as u64;
            // SAFETY: CLONE_VFORK is asked for.
            let pid = unsafe { birth::clone_copying(&mut args, &mut child, child_main) };
            let exit = if failure == 0 { Exit::Code(0) } else { Exit::Code(127) };
            assert_eq!(wait_for(i32::try_from(pid).unwrap()).unwrap().0, exit);
            assert_eq!(shared.word().load(Ordering::SeqCst), failure);
        }
    }
}
