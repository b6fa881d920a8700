//! The least that a program must do to run one command in its turn: the floor that `cargo xtask bench queue` compares
//! hand-overs with. It makes the system calls of a `perflock` that waits, runs and gives back, in the same order, and
//! nothing else: no arguments to understand, no messages, no care for signals, leftovers or crashes.
//!
//! `queuefloor LOCK PARENT PROGRAM [ARG]...` queues in `LOCK.d`, and makes the command's group in PARENT, which is the
//! directory of a group that the caller made. With `--planted` before LOCK, tickets are locked by flock(2), and every
//! ticket in the queue is opened and read at each look: what perflock does not do, to show what that would cost.
// A helper of the bench: its messages go to the bench's log.
#![allow(clippy::print_stderr)]

use std::ffi::{CString, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use std::{ptr, thread};

/// `linux/sched.h`; libc's constants of these names are 32 bits wide and overflow.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// See [`CLONE_CLEAR_SIGHAND`].
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The first and the longest pause between two looks at a group that is not empty yet.
const PAUSES: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(2));

/// The size of a ticket's first line: that of perflock's.
const JOINED: &[u8; 230] = &[b'j'; 230];

fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let planted = arguments.first().is_some_and(|first| first == "--planted");
    if planted {
        arguments.remove(0);
    }
    let result = match &arguments[..] {
        [lock, parent, command @ ..] if !command.is_empty() => {
            Queue::open(Path::new(lock), planted).and_then(|queue| queue.run(Path::new(parent), command))
        }
        _ => Err(io::Error::other("usage: queuefloor [--planted] LOCK PARENT PROGRAM [ARG]...")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("queuefloor: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Lock file and queue.
struct Queue {
    /// Where the lock file is.
    path: PathBuf,
    /// The lock file.
    lock: File,
    /// Where the queue is.
    directory: PathBuf,
    /// See the crate's documentation.
    planted: bool,
}

impl Queue {
    /// Opens both.
    fn open(path: &Path, planted: bool) -> io::Result<Self> {
        let mut directory = path.as_os_str().to_owned();
        directory.push(".d");
        Ok(Self { path: path.to_owned(), lock: File::open(path)?, directory: directory.into(), planted })
    }

    /// Waits for its turn, runs the command, and gives back.
    fn run(&self, parent: &Path, command: &[OsString]) -> io::Result<()> {
        let command = Command::new(command)?;
        let mut ticket = self.draft()?;
        let own = self.publish(&ticket)?;
        self.wait(own)?;
        fs::metadata(&self.path)?;
        ticket.write_all(b"{\"event\":\"granted\",\"at_usec\":12345678901}\n")?;
        let group = parent.join(format!("plbench-floor-{}", std::process::id()));
        ticket.write_all(format!("{{\"event\":\"group\",\"path\":\"{}\"}}\n", group.display()).as_bytes())?;
        let guard = run_in_group(&group, &command)?;
        self.lock.unlock()?;
        fs::remove_file(self.ticket(own))?;
        // Shared with the guard, which may still have it open.
        self.mark(&ticket, libc::F_UNLCK)?;
        drop(ticket);
        reap(guard)
    }

    /// A ticket that has no name yet.
    fn draft(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).append(true).mode(0o600).custom_flags(libc::O_TMPFILE);
        let mut ticket = options.open(&self.directory)?;
        ticket.write_all(JOINED)?;
        ticket.write_all(b"\n")?;
        ticket.set_permissions(fs::Permissions::from_mode(0o644))?;
        self.mark(&ticket, libc::F_WRLCK)?;
        Ok(ticket)
    }

    /// Locks or unlocks our ticket.
    fn mark(&self, ticket: &File, kind: libc::c_int) -> io::Result<()> {
        match kind {
            libc::F_WRLCK if self.planted => ticket.lock(),
            _ if self.planted => ticket.unlock(),
            _ => ofd_lock(ticket, libc::F_OFD_SETLK, kind).map(drop),
        }
    }

    /// Gives it the next number and a name.
    fn publish(&self, ticket: &File) -> io::Result<u64> {
        let directory = File::open(&self.directory)?;
        directory.lock()?;
        let own = self.numbers()?.last().map_or(1, |last| last + 1);
        let from = CString::new(format!("/proc/self/fd/{}", ticket.as_raw_fd()))?;
        let to = CString::new(self.ticket(own).into_os_string().into_vec())?;
        let (here, follow) = (libc::AT_FDCWD, libc::AT_SYMLINK_FOLLOW);
        // SAFETY: both are strings.
        check(unsafe { libc::linkat(here, from.as_ptr(), here, to.as_ptr(), follow) })?;
        directory.unlock()?;
        Ok(own)
    }

    /// The tickets in the queue, earliest first.
    fn numbers(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            numbers.extend(name.to_str().and_then(|name| name.strip_suffix(".x")?.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Where the ticket is.
    fn ticket(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number}.x"))
    }

    /// Waits until the lock file is ours.
    fn wait(&self, own: u64) -> io::Result<()> {
        loop {
            match self.nearest_waiting(own)? {
                Some(ticket) if self.planted => sleep_in(|| {
                    ticket.lock_shared()?;
                    ticket.unlock()
                })?,
                Some(ticket) => sleep_in(|| {
                    ofd_lock(&ticket, libc::F_OFD_SETLKW, libc::F_RDLCK)?;
                    ofd_lock(&ticket, libc::F_OFD_SETLK, libc::F_UNLCK).map(drop)
                })?,
                None if self.lock.try_lock().is_ok() => return Ok(()),
                None => {
                    sleep_in(|| self.lock.lock())?;
                    self.nearest_waiting(own)?;
                    return Ok(());
                }
            }
        }
    }

    /// The nearest ticket ahead whose job waits.
    fn nearest_waiting(&self, own: u64) -> io::Result<Option<File>> {
        let mut numbers = self.numbers()?;
        if !self.planted {
            numbers.retain(|&number| number < own);
        }
        let mut nearest = None;
        for number in numbers.into_iter().rev().filter(|&number| number != own) {
            let Some(waiting) = self.waiting(number)?.filter(|_| number < own) else { continue };
            nearest.get_or_insert(waiting);
            if !self.planted {
                break;
            }
        }
        Ok(nearest)
    }

    /// Opens, probes and reads one ticket: `None` if its job does not wait.
    fn waiting(&self, number: u64) -> io::Result<Option<File>> {
        let Ok(ticket) = File::open(self.ticket(number)) else { return Ok(None) };
        let live = if self.planted {
            let live = ticket.try_lock_shared().is_err();
            ticket.unlock()?;
            live
        } else {
            ofd_lock(&ticket, libc::F_OFD_GETLK, libc::F_RDLCK)? != libc::F_UNLCK
        };
        let mut text = [0; 1024];
        let length = if live { ticket.read_at(&mut text, 0)? } else { 0 };
        let granted = text[..length].windows(9).any(|part| part == b"\"granted\"");
        Ok((live && !granted).then_some(ticket))
    }
}

/// Makes a blocking call in a thread of its own, while this one sleeps in poll(2).
fn sleep_in(call: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
    let (reader, writer) = io::pipe()?;
    thread::scope(|scope| {
        let helper = move || {
            let result = call();
            drop(writer);
            result
        };
        let helper = thread::Builder::new().stack_size(64 * 1024).spawn_scoped(scope, helper)?;
        until_readable(reader.as_raw_fd())?;
        helper.join().unwrap_or_else(|_| Err(io::Error::other("the helper failed")))
    })
}

/// An OFD lock call for the whole file; returns the kind of lock that the kernel answers with.
fn ofd_lock(file: &File, call: libc::c_int, kind: libc::c_int) -> io::Result<libc::c_int> {
    // SAFETY: an all-zero flock is valid: from the start to the end of the file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    // SAFETY: an open descriptor, and a valid place for request and answer.
    check(unsafe { libc::fcntl(file.as_raw_fd(), call, &raw mut lock) })?;
    Ok(libc::c_int::from(lock.l_type))
}

/// Runs the command in the new group `path`, until the group is empty and removed. Returns the guard, told to end.
fn run_in_group(path: &Path, command: &Command) -> io::Result<libc::pid_t> {
    fs::create_dir(path)?;
    let directory = File::open(path)?;
    let events = File::open(path.join("cgroup.events"))?;
    let (guard, guard_pidfd) = start_guard()?;
    let (pid, pidfd) = command.start(&directory)?;
    until_readable(pidfd.as_raw_fd())?;
    reap(pid)?;
    let mut pause = PAUSES.0;
    let mut text = [0; 128];
    while !events.read_at(&mut text, 0).map(|length| text[..length].starts_with(b"populated 0"))? {
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSES.1);
    }
    let (target, none) = (guard_pidfd.as_raw_fd(), ptr::null_mut::<libc::siginfo_t>());
    // SAFETY: an open pidfd, and no details.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, target, libc::SIGKILL, none, 0) } as i32)?;
    File::open(path.join("cpu.stat"))?.read_at(&mut text, 0)?;
    fs::remove_dir(path)?;
    Ok(guard)
}

/// Forks a process that shares our descriptors and sleeps until we end.
fn start_guard() -> io::Result<(libc::pid_t, OwnedFd)> {
    // SAFETY: asks for a number.
    let own = unsafe { libc::getpid() };
    // SAFETY: our own number, which is nobody else's.
    let supervisor = check(unsafe { libc::syscall(libc::SYS_pidfd_open, own, 0) } as i32)?;
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain integers; zero means "not used" for each.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    // SAFETY: a fork: this process has one thread, since helpers are joined.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    if pid == 0 {
        let ended = until_readable(supervisor);
        // SAFETY: ends the guard; nothing is flushed.
        unsafe { libc::_exit(i32::from(ended.is_err())) };
    }
    let pid = check(pid as i32)?;
    // SAFETY: opened above, and nobody else's.
    drop(unsafe { OwnedFd::from_raw_fd(supervisor) });
    // SAFETY: the kernel stored a new descriptor that nobody else owns.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// What to execute, as execve(2) takes it.
struct Command {
    /// The strings.
    _arguments: Vec<CString>,
    /// Pointers to them, and a null pointer.
    pointers: Vec<*const libc::c_char>,
}

impl Command {
    /// `command` is the program's path, and its arguments.
    fn new(command: &[OsString]) -> io::Result<Self> {
        let arguments: Result<Vec<_>, _> = command.iter().map(|word| CString::new(word.clone().into_vec())).collect();
        let arguments = arguments?;
        let pointers = arguments.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect();
        Ok(Self { _arguments: arguments, pointers })
    }

    /// Executes it in a child that is born in the group. Sleeps until it is executed.
    fn start(&self, group: &File) -> io::Result<(libc::pid_t, OwnedFd)> {
        let mut pidfd: RawFd = -1;
        // SAFETY: clone_args is plain integers; zero means "not used" for each.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = (libc::CLONE_PIDFD | libc::CLONE_VFORK) as u64 | CLONE_CLEAR_SIGHAND | CLONE_INTO_CGROUP;
        args.pidfd = (&raw mut pidfd) as u64;
        args.exit_signal = libc::SIGCHLD as u64;
        args.cgroup = group.as_raw_fd() as u64;
        // SAFETY: the child makes two system calls and does not return; we sleep meanwhile.
        let pid = unsafe { clone_child(&mut args, &self.pointers) };
        if pid < 0 {
            return Err(io::Error::from_raw_os_error(-pid as i32));
        }
        // SAFETY: the kernel stored a new descriptor that nobody else owns.
        Ok((pid as libc::pid_t, unsafe { OwnedFd::from_raw_fd(pidfd) }))
    }
}

/// The child's life. `pointers` are those of a [`Command`].
extern "C" fn execute(pointers: *const *const libc::c_char) -> ! {
    // SAFETY: there is a first one.
    let program = unsafe { *pointers };
    // SAFETY: strings, and a null pointer behind them. No environment is a valid one for Linux.
    unsafe { libc::execve(program, pointers, ptr::null()) };
    // SAFETY: ends the child; nothing of ours is flushed.
    unsafe { libc::_exit(127) }
}

/// clone3(2) with a child in our memory, as perflock makes it; returns its pid, or a negated errno.
///
/// # Safety
/// `args` asks for `CLONE_VFORK` and `CLONE_CLEAR_SIGHAND`.
#[cfg(target_arch = "x86_64")]
unsafe fn clone_child(args: &mut libc::clone_args, pointers: &[*const libc::c_char]) -> i64 {
    let mut stack = Box::<[u128; 1024]>::new_uninit();
    args.flags |= libc::CLONE_VM as u64;
    args.stack = stack.as_mut_ptr() as u64;
    args.stack_size = size_of::<[u128; 1024]>() as u64;
    let mut result = libc::SYS_clone3;
    // SAFETY: in the parent this is one system call, with the registers that syscall(2) names. The child begins behind
    // it on its own empty stack, calls `execute`, which does not return, and so never leaves this block.
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
            in("r12") pointers.as_ptr(),
            in("r13") execute as extern "C" fn(*const *const libc::c_char) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// The same with a child in a copy of our memory, as perflock makes it here.
///
/// # Safety
/// `args` asks for `CLONE_VFORK`.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn clone_child(args: &mut libc::clone_args, pointers: &[*const libc::c_char]) -> i64 {
    // SAFETY: without CLONE_VM this is a fork, in which `execute` does not return.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut *args, size_of::<libc::clone_args>()) } {
        0 => execute(pointers.as_ptr()),
        -1 => -i64::from(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)),
        pid => pid,
    }
}

/// Sleeps until poll(2) says that something came, or that the other side is gone.
fn until_readable(descriptor: RawFd) -> io::Result<()> {
    let mut sleeper = libc::pollfd { fd: descriptor, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    check(unsafe { libc::poll(&raw mut sleeper, 1, -1) }).map(drop)
}

/// Waits for a child's end.
fn reap(pid: libc::pid_t) -> io::Result<()> {
    // SAFETY: a child of ours; its status is not asked for.
    check(unsafe { libc::waitpid(pid, ptr::null_mut(), libc::__WALL) }).map(drop)
}

/// The result of a call.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
