//! What `cargo xtask study` runs: quiet workloads, which disturb nobody but themselves, and culprits, which disturb others.
//!
//! A workload goes on for so many milliseconds: `studyload idle|forks|pingpong|loopback MSEC`, `studyload fsync MSEC FILE`. `forks`
//! runs one short process after the other, `pingpong` makes two processes switch all the time, `fsync` writes to FILE and waits
//! for the disk, `loopback` talks to itself by TCP.
//!
//! A culprit calls itself NAME, becomes the user UID, and goes on until it is killed: `studyload burn|storm|contain NAME UID`.
//! `burn` wants a processor all the time; `storm` forks one process after the other that wants one for 5 ms; `contain` burns in
//! process, mount and cgroup namespaces of its own.
// A helper of the study: its messages go to the study's log.
#![allow(clippy::print_stderr)]

use std::ffi::CString;
use std::fs::File;
use std::hint::black_box;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// How long a process of a storm lives.
const SHORT: Duration = Duration::from_millis(5);

/// What is sent to and fro at a time.
const CHUNK: usize = 16 << 10;

fn main() -> ExitCode {
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("studyload: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Does what the arguments say.
fn work() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        // What `forks` runs.
        ["nothing"] => Ok(()),
        ["burn", name, uid] => {
            become_culprit(name, uid)?;
            burn(None);
            Ok(())
        }
        ["storm", name, uid] => {
            become_culprit(name, uid)?;
            storm().map_err(|error| format!("storm: {error}"))
        }
        ["contain", name, uid] => contain(name, uid),
        [workload, msec] | [workload, msec, _] => {
            let msec: u64 = msec.parse().map_err(|_| format!("{msec} is not a time"))?;
            let until = Instant::now() + Duration::from_millis(msec);
            let result = match (workload, arguments.get(2)) {
                ("idle", None) => {
                    std::thread::sleep(Duration::from_millis(msec));
                    Ok(())
                }
                ("forks", None) => forks(until),
                ("pingpong", None) => pingpong(until),
                ("loopback", None) => loopback(until),
                ("fsync", Some(file)) => fsync(until, file),
                _ => return Err(format!("{workload} is no workload")),
            };
            result.map_err(|error| format!("{workload}: {error}"))
        }
        _ => Err("usage: studyload WORKLOAD MSEC [FILE] | CULPRIT NAME UID".to_owned()),
    }
}

/// One short process after the other, each a program of its own.
fn forks(until: Instant) -> io::Result<()> {
    let own = std::env::current_exe()?;
    while Instant::now() < until {
        let status = Command::new(&own).arg("nothing").status()?;
        if !status.success() {
            return Err(io::Error::other(format!("a short process failed ({status})")));
        }
    }
    Ok(())
}

/// Two processes that wake each other, and never run at the same time.
fn pingpong(until: Instant) -> io::Result<()> {
    let (mut from_child, mut to_parent) = io::pipe()?;
    let (mut from_parent, mut to_child) = io::pipe()?;
    if fork()? == 0 {
        drop((from_child, to_child));
        let mut byte = [0];
        // Until the other closes its end.
        while from_parent.read_exact(&mut byte).and_then(|()| to_parent.write_all(&byte)).is_ok() {}
        exit_child();
    }
    drop((from_parent, to_parent));
    let mut byte = [0];
    while Instant::now() < until {
        to_child.write_all(&byte)?;
        from_child.read_exact(&mut byte)?;
    }
    drop(to_child);
    wait_for_child()
}

/// A block after the other, each on the disk before the next.
fn fsync(until: Instant, path: &str) -> io::Result<()> {
    let file = File::create(path)?;
    let mut block = [0_u8; 4096];
    while Instant::now() < until {
        block[0] = block[0].wrapping_add(1);
        file.write_all_at(&block, 0)?;
        file.sync_all()?;
    }
    Ok(())
}

/// Sends and receives, as fast as one connection does.
fn loopback(until: Instant) -> io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let mut sender = TcpStream::connect(listener.local_addr()?)?;
    let (mut receiver, _) = listener.accept()?;
    let echo = std::thread::spawn(move || {
        let mut chunk = [0; CHUNK];
        while receiver.read_exact(&mut chunk).and_then(|()| receiver.write_all(&chunk)).is_ok() {}
    });
    let mut chunk = [7; CHUNK];
    while Instant::now() < until {
        sender.write_all(&chunk)?;
        sender.read_exact(&mut chunk)?;
    }
    drop(sender);
    echo.join().map_err(|_| io::Error::other("the other end panicked"))
}

/// Wants a processor until then.
fn burn(until: Option<Instant>) {
    let mut value = 1_u64;
    while until.is_none_or(|until| Instant::now() < until) {
        for _ in 0..1000 {
            value = black_box(value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
}

/// One process after the other, each as short as those that no look at /proc catches.
fn storm() -> io::Result<()> {
    loop {
        if fork()? == 0 {
            burn(Some(Instant::now() + SHORT));
            exit_child();
        }
        wait_for_child()?;
    }
}

/// Burns as a container does: the first process of its own process namespace, with mounts and groups of its own.
fn contain(name: &str, uid: &str) -> Result<(), String> {
    let namespaces = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP;
    // SAFETY: this process has one thread, and shares nothing with another.
    check("make namespaces", unsafe { libc::unshare(namespaces) })?;
    let failed = |error: io::Error| format!("contain: {error}");
    let child = fork().map_err(failed)?;
    if child == 0 {
        // Who kills the one outside kills the container. Asked for last: a change of user forgets it.
        // SAFETY: asks for a signal.
        let die_with_us = || check("ask for a signal", unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) });
        match become_culprit(name, uid).and_then(|()| die_with_us()) {
            Ok(()) => burn(None),
            Err(message) => eprintln!("studyload: contain: {message}"),
        }
        exit_child();
    }
    // From now on it is one to whom the study looks.
    called(name)?;
    wait_for_child().map_err(failed)?;
    Err("contain: the container ended".to_owned())
}

/// Takes a name, and then a user that nobody is.
fn become_culprit(name: &str, uid: &str) -> Result<(), String> {
    let uid: libc::uid_t = uid.parse().map_err(|_| format!("{uid} is no user's number"))?;
    // SAFETY: a valid empty list of groups; this process has one thread.
    check("leave groups", unsafe { libc::setgroups(0, std::ptr::null()) })?;
    // SAFETY: this process has one thread.
    check("become another group", unsafe { libc::setgid(uid) })?;
    // SAFETY: as above.
    check("become another user", unsafe { libc::setuid(uid) })?;
    called(name)
}

/// Takes a name: the last thing before it disturbs, so that the study sees that it does.
fn called(name: &str) -> Result<(), String> {
    let text = CString::new(name).map_err(|_| format!("{name:?} is no name"))?;
    // SAFETY: a string.
    check("take a name", unsafe { libc::prctl(libc::PR_SET_NAME, text.as_ptr()) })
}

/// A copy of this process: 0 in the copy.
fn fork() -> io::Result<libc::pid_t> {
    // SAFETY: this process has one thread.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid),
    }
}

/// The end of a copy: nothing that is the other's is cleared away.
fn exit_child() -> ! {
    // SAFETY: ends this process.
    unsafe { libc::_exit(0) }
}

/// Waits for the one child.
fn wait_for_child() -> io::Result<()> {
    // SAFETY: the status is not asked for.
    match unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The error of a call, if there was one.
fn check(what: &str, result: libc::c_int) -> Result<(), String> {
    if result == -1 { Err(format!("cannot {what}: {}", io::Error::last_os_error())) } else { Ok(()) }
}
