//! Making the command's first process, born in the job group.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Instant;

use rustix::process::{Signal, pidfd_send_signal};

use super::command::Command;
use super::inherit::Inherited;
use super::placement::Placement;
use super::shared::SharedWord;
use super::signals::Signals;
use crate::cgroup::Maker;
use crate::child;
use crate::error::last_errno;
use crate::fork::{CLONE_CLEAR_SIGHAND, CLONE_INTO_CGROUP};
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

/// Why there is no first process.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The process could not be made.
    #[error("cannot start a process for the command: {}", crate::error::reason(.0))]
    Fork(#[source] io::Error),
    /// The process was made, but could not join the job's groups.
    #[error("cannot put the command into its groups in cgroup v1: {}", crate::error::reason(.0))]
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
        Maker::Into(directory) => Some(directory),
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
    // A child that is born in a group shares our memory, where that is done; one that is not may be a copy.
    let own = AtomicI32::new(0);
    let copied = cfg!(not(target_arch = "x86_64")) || into.is_none();
    let shared = copied.then(SharedWord::new).transpose().map_err(SpawnError::Fork)?;
    let failure = shared.as_ref().map_or(&own, SharedWord::word);
    let envp = Pointers::to(environment.iter());
    let mut child = Child { command, inherited, placement, argv, envp, script_argv, signals, failure };
    // ^Z while we sleep in the clone would stop the child and not us, and nobody would get the prompt back: it waits
    // until the child has executed the command. If the child took it before that, it has gone on: it is told again. All
    // other signals stay open, so that none is lost. One that comes before the child is born makes the kernel run our handler first, and the child sees that and goes no further; a
    // later one for the whole process group reaches the child too (fork.c, copy_process).
    let blocked = BlockedSignals::stopping().map_err(SpawnError::Fork)?;
    let started = Instant::now();
    let (pid, pidfd) = clone(into, &mut child).map_err(SpawnError::Fork)?;
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
    // SAFETY: `clone` gives a valid pointer, and the parent sleeps until this process has executed or ended.
    let child = unsafe { &mut *child };
    // A ^Z would stop this process before it executes.
    let failure = if child.signals.pending() || mask::stop_waits() {
        SIGNALLED
    } else {
        Step::CommandBorn.reached();
        continue_soon();
        match take_place(&child.placement) {
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

/// clone3(2), into a group if one is given; the child runs [`child_main`]. The kernel puts handled signals back to
/// their default in the child (Linux 5.5) and lets it be born in the group (5.7). We sleep until the child has executed
/// the command or ended, as with vfork(2).
fn clone(into: Option<BorrowedFd<'_>>, child: &mut Child<'_>) -> io::Result<(i32, OwnedFd)> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone_args is plain integers; zero means "not used" for each.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (libc::CLONE_PIDFD | libc::CLONE_VFORK) as u64 | CLONE_CLEAR_SIGHAND;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(directory) = into {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = directory.as_raw_fd() as u64;
    }
    // SAFETY: both kinds of child run `child_main` alone, which is async-signal-safe, and have no handlers; with
    // CLONE_VFORK we sleep until it has left, so it does not outlive what it borrows.
    #[cfg(target_arch = "x86_64")]
    let pid = unsafe { clone_sharing(&mut args, child) };
    // SAFETY: as above.
    #[cfg(not(target_arch = "x86_64"))]
    let pid = unsafe { clone_copying(&mut args, child) };
    // Container engines refuse clone3 like this, since its flags lie in memory that their filter cannot see. Without a
    // group to be born in, clone(2) does as well.
    let pid = if pid == -i64::from(libc::ENOSYS) && into.is_none() {
        // SAFETY: as above.
        unsafe { clone_by_the_old_call(&mut pidfd, child) }
    } else {
        pid
    };
    if pid < 0 {
        return Err(io::Error::from_raw_os_error(i32::try_from(-pid).unwrap_or(libc::EIO)));
    }
    // SAFETY: the kernel stored a new descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((i32::try_from(pid).map_err(io::Error::other)?, pidfd))
}

/// Makes a child in our memory (`CLONE_VM`), on a stack of its own: copying page tables and pages would cost as much
/// again as everything else that is done for it. Returns its pid, or a negated errno.
///
/// # Safety
/// `args` asks for `CLONE_VFORK` and `CLONE_CLEAR_SIGHAND`: handlers must not run in our memory beside us.
#[cfg(target_arch = "x86_64")]
unsafe fn clone_sharing(args: &mut libc::clone_args, child: &mut Child<'_>) -> i64 {
    // `u128` for the alignment that the ABI asks of a stack. The child needs little: it calls the C library's thinnest
    // wrappers only.
    let mut stack = Box::<[u128; 2048]>::new_uninit();
    args.flags |= libc::CLONE_VM as u64;
    args.stack = stack.as_mut_ptr() as u64;
    args.stack_size = size_of::<[u128; 2048]>() as u64;
    let mut result = libc::SYS_clone3;
    // SAFETY: in the parent this is one system call, with the registers that syscall(2) names. The child begins behind
    // it on its own empty stack, calls `child_main`, which does not return, and so never leaves this block.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") result,
            in("rdi") args,
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") child,
            in("r13") child_main as extern "C" fn(*mut Child<'_>) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// Makes a child in a copy of our memory, on the copy of our stack. Returns its pid, or a negated errno.
///
/// # Safety
/// `args` asks for `CLONE_VFORK`: the child uses what `child` borrows.
#[cfg(any(test, not(target_arch = "x86_64")))]
unsafe fn clone_copying(args: &mut libc::clone_args, child: &mut Child<'_>) -> i64 {
    // SAFETY: without CLONE_VM this is a fork, in which `child_main` does not return.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut *args, size_of::<libc::clone_args>()) } {
        -1 => -i64::from(last_errno()),
        0 => child_main(child),
        pid => pid,
    }
}

/// The same by clone(2), in a copy of our memory. Handlers stay until the child executes the command; one that runs
/// before that tells the supervisor of a signal, which it was sent as well.
///
/// # Safety
/// As for [`clone_copying`]; `CLONE_VFORK` is asked for here.
unsafe fn clone_by_the_old_call(pidfd: &mut libc::c_int, child: &mut Child<'_>) -> i64 {
    let flags = libc::CLONE_PIDFD | libc::CLONE_VFORK | libc::SIGCHLD;
    let none = ptr::null_mut::<libc::c_void>();
    // SAFETY: without CLONE_VM this is a fork, in which `child_main` does not return.
    match unsafe { libc::syscall(libc::SYS_clone, flags, none, &raw mut *pidfd, none, none) } {
        -1 => -i64::from(last_errno()),
        0 => child_main(child),
        pid => pid,
    }
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
                placement: Placement::default(),
                argv: Pointers::to(command.argv.iter()),
                envp: Pointers::to(environment.iter()),
                script_argv: Pointers(vec![SHELL.as_ptr(), ptr::null(), ptr::null()]),
                signals: &signals,
                failure: shared.word(),
            };
            // SAFETY: clone_args is plain integers; zero means "not used" for each.
            let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
            args.flags = libc::CLONE_VFORK as u64 | CLONE_CLEAR_SIGHAND;
            args.exit_signal = libc::SIGCHLD as u64;
            // SAFETY: CLONE_VFORK is asked for.
            let pid = unsafe { clone_copying(&mut args, &mut child) };
            let exit = if failure == 0 { Exit::Code(0) } else { Exit::Code(127) };
            assert_eq!(wait_for(i32::try_from(pid).unwrap()).unwrap().0, exit);
            assert_eq!(shared.word().load(Ordering::SeqCst), failure);
        }
    }
}
