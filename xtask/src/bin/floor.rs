//! The least that a program must do to run one command in a cgroup of its own: the floor that `cargo xtask bench`
//! compares perflock with. It makes a cgroup v2 group, has the command born in it, waits, kills the group, waits until
//! it is empty, and removes it.
//!
//! `floor PARENT` runs /bin/true. `floor PARENT REPORT PROGRAM [ARG]...` runs another program and writes the time from
//! the kill to the empty group to the file REPORT, as the bytes of a number of nanoseconds. PARENT is the
//! directory of a group that the caller made. `main` is the C runtime's, nothing is allocated, and
//! with the release profile not even Rust's standard library is linked: its share of a start is a seventh of the floor.
#![no_main]
#![cfg_attr(panic = "abort", no_std)]

use core::ffi::{CStr, c_char, c_int, c_long, c_short, c_uint, c_ulong, c_void};
use core::ptr;

/// x86-64's and aarch64's number; every architecture has this one since calls are numbered alike.
const SYS_CLONE3: c_long = 435;

/// `linux/sched.h`.
const CLONE_PIDFD: u64 = 0x1000;

/// `linux/sched.h`; Linux 5.7.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The path of the group: its parent, and the process number. Only a group of this name is ever killed.
const GROUP_FORMAT: &CStr = c"%s/plbench-floor-%d";

/// The longest path of a group.
const PATH_BYTES: usize = 4096;

/// The first and the longest pause between two looks at a group that is not empty yet.
const PAUSE_USEC: (u32, u32) = (50, 2000);

/// `asm-generic/fcntl.h`: `O_WRONLY`, `O_CREAT`, `O_TRUNC`, `O_CLOEXEC`.
const WRITE: c_int = 0o1;
/// See [`WRITE`].
const CREATE: c_int = 0o100;
/// See [`WRITE`].
const TRUNCATE: c_int = 0o1000;
/// See [`WRITE`].
const CLOSE_ON_EXEC: c_int = 0o2_000_000;

/// `SIGCHLD`.
const SIGCHLD: u64 = 17;

/// `POLLIN`.
const POLLIN: c_short = 1;

/// `CLOCK_MONOTONIC`.
const MONOTONIC: c_int = 1;

/// `struct clone_args` up to its field for a cgroup: clone3(2).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    /// What the child gets.
    flags: u64,
    /// Where its pidfd is stored.
    pidfd: u64,
    /// Not used here.
    child_tid: u64,
    /// Not used here.
    parent_tid: u64,
    /// Sent to us when it ends.
    exit_signal: u64,
    /// Not used here.
    stack: u64,
    /// Not used here.
    stack_size: u64,
    /// Not used here.
    tls: u64,
    /// Not used here.
    set_tid: u64,
    /// Not used here.
    set_tid_size: u64,
    /// The group's directory.
    cgroup: u64,
}

/// `struct pollfd`.
#[repr(C)]
struct PollFd {
    /// The descriptor.
    fd: c_int,
    /// What is waited for.
    events: c_short,
    /// What came.
    revents: c_short,
}

/// `struct timespec` of 64 bits.
#[repr(C)]
struct Time {
    /// Seconds.
    sec: i64,
    /// And nanoseconds.
    nsec: i64,
}

// Declared here and not taken from the libc crate, which brings the standard library where another package of the
// build asks for that.
#[link(name = "c")]
#[cfg_attr(all(panic = "abort", target_feature = "crt-static"), link(name = "gcc_eh"))]
unsafe extern "C" {
    fn snprintf(buffer: *mut c_char, size: usize, format: *const c_char, ...) -> c_int;
    fn mkdir(path: *const c_char, mode: c_uint) -> c_int;
    fn rmdir(path: *const c_char) -> c_int;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn openat(directory: c_int, path: *const c_char, flags: c_int, ...) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn execv(path: *const c_char, arguments: *const *const c_char) -> c_int;
    fn _exit(status: c_int) -> !;
    fn poll(descriptors: *mut PollFd, count: c_ulong, timeout_msec: c_int) -> c_int;
    fn getpid() -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn write(descriptor: c_int, buffer: *const c_void, size: usize) -> isize;
    fn pread(descriptor: c_int, buffer: *mut c_void, size: usize, offset: i64) -> isize;
    fn usleep(usec: c_uint) -> c_int;
    fn clock_gettime(clock: c_int, time: *mut Time) -> c_int;
}

/// Nothing here panics.
#[cfg(panic = "abort")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: ends the process.
    unsafe { _exit(99) }
}

/// See the crate's documentation. Exits with a number that tells which call failed, else 0.
///
/// # Safety
/// Called by the C runtime with `argc` pointers to strings in `argv`, and a null pointer behind them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    if argc < 2 {
        return 10;
    }
    // SAFETY: `argc` says that there is a second pointer.
    let parent = unsafe { argv.add(1) };
    // SAFETY: as above.
    let parent = unsafe { *parent };
    let mut report = ptr::null();
    let default_arguments = [c"/bin/true".as_ptr(), ptr::null()];
    let mut arguments = default_arguments.as_ptr();
    if argc > 3 {
        // SAFETY: `argc` says that there is a third pointer.
        let at = unsafe { argv.add(2) };
        // SAFETY: as above.
        report = unsafe { *at };
        // SAFETY: `argc` says that there is a fourth pointer; the last one is followed by a null pointer.
        arguments = unsafe { argv.add(3) };
    }
    let mut path = [0; PATH_BYTES];
    // SAFETY: asks for a number.
    let own = unsafe { getpid() };
    // SAFETY: the buffer is as long as it says, and the format fits its arguments.
    let length = unsafe { snprintf(path.as_mut_ptr(), path.len(), GROUP_FORMAT.as_ptr(), parent, own) };
    if length < 0 || length as usize >= PATH_BYTES {
        return 11;
    }
    match run(path.as_ptr(), arguments, report) {
        Ok(()) => 0,
        Err(step) => step,
    }
}

/// Runs the program in the group `path`, which is made and removed.
fn run(path: *const c_char, arguments: *const *const c_char, report: *const c_char) -> Result<(), c_int> {
    // SAFETY: `path` is a string.
    check(unsafe { mkdir(path, 0o755) }, 1)?;
    let result = run_in(path, arguments, report);
    // SAFETY: as above. Only the group that was just made.
    let removed = unsafe { rmdir(path) };
    result.and_then(|()| check(removed, 9).map(drop))
}

/// Runs the program in the group `path`, and kills what it leaves there.
fn run_in(path: *const c_char, arguments: *const *const c_char, report: *const c_char) -> Result<(), c_int> {
    // SAFETY: `path` is a string.
    let group = check(unsafe { open(path, CLOSE_ON_EXEC) }, 2)?;
    let mut pidfd: c_int = -1;
    let mut args = CloneArgs {
        flags: CLONE_PIDFD | CLONE_INTO_CGROUP,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: SIGCHLD,
        cgroup: group as u64,
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM the child gets a copy of the address space of this process of one thread.
    let pid = unsafe { syscall(SYS_CLONE3, &raw mut args, size_of::<CloneArgs>()) };
    if pid == 0 {
        // SAFETY: there is a first string.
        let program = unsafe { *arguments };
        // SAFETY: strings, and an array with a null pointer at its end.
        unsafe { execv(program, arguments) };
        // SAFETY: ends the child.
        unsafe { _exit(127) };
    }
    if pid == -1 {
        return Err(3);
    }
    let mut sleeper = PollFd { fd: pidfd, events: POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    check(unsafe { poll(&raw mut sleeper, 1, -1) }, 4)?;
    let mut status = 0;
    // SAFETY: a child of this process, and a valid place for its status.
    check(unsafe { waitpid(pid as c_int, &raw mut status, 0) }, 5)?;
    let start_nsec = now_nsec();
    // SAFETY: `group` is open, and the path is a string.
    let kill = check(unsafe { openat(group, c"cgroup.kill".as_ptr(), WRITE | CLOSE_ON_EXEC) }, 6)?;
    // SAFETY: one byte is read from a string. The group's name begins with our prefix: GROUP_FORMAT.
    check(unsafe { write(kill, c"1".as_ptr().cast(), 1) } as c_int, 6)?;
    wait_until_empty(group)?;
    if !report.is_null() {
        write_report(report, now_nsec() - start_nsec)?;
    }
    if status == 0 { Ok(()) } else { Err(8) }
}

/// Looks at the group until it says `populated 0`.
fn wait_until_empty(group: c_int) -> Result<(), c_int> {
    // SAFETY: `group` is open, and the path is a string.
    let events = check(unsafe { openat(group, c"cgroup.events".as_ptr(), CLOSE_ON_EXEC) }, 7)?;
    let mut pause_usec = PAUSE_USEC.0;
    loop {
        let mut text = [0_u8; 64];
        // SAFETY: the buffer is as long as it says.
        let length = unsafe { pread(events, text.as_mut_ptr().cast(), text.len(), 0) };
        check(length as c_int, 7)?;
        if text.starts_with(b"populated 0") {
            return Ok(());
        }
        // SAFETY: sleeps.
        unsafe { usleep(pause_usec) };
        pause_usec = (pause_usec * 2).min(PAUSE_USEC.1);
    }
}

/// Writes a number, as its bytes, to a new file.
fn write_report(path: *const c_char, nsec: i64) -> Result<(), c_int> {
    let flags = WRITE | CREATE | TRUNCATE | CLOSE_ON_EXEC;
    // SAFETY: `path` is a string.
    let file = check(unsafe { open(path, flags, 0o644) }, 12)?;
    // SAFETY: eight bytes are read from a number of eight bytes.
    check(unsafe { write(file, (&raw const nsec).cast(), size_of_val(&nsec)) } as c_int, 12).map(drop)
}

/// `CLOCK_MONOTONIC`.
fn now_nsec() -> i64 {
    let mut now = Time { sec: 0, nsec: 0 };
    // SAFETY: a valid place for the time.
    unsafe { clock_gettime(MONOTONIC, &raw mut now) };
    now.sec * 1_000_000_000 + now.nsec
}

/// The result of a call, or `step` if it failed.
fn check(result: c_int, step: c_int) -> Result<c_int, c_int> {
    if result == -1 { Err(step) } else { Ok(result) }
}
