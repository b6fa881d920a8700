//! The command of a job of `cargo xtask soak`: it says in the log when it starts and when it stops, and before that
//! finds out whether it runs beside a job that it conflicts with, where it was told to, and which tickets it overtook.
//!
//! `stress_job LOG PRESENCE QUEUE JOB MODE free|pinned|leased sleep|burn USEC LEFTOVER_MSEC` works for USEC microseconds. With a
//! LEFTOVER_MSEC above 0 it leaves a daemon behind that ignores TERM and ends by itself after that time.
//!
//! PRESENCE is locked from before the first line until the last process of the job is dead, since they all share its
//! open file description: shared for a shared job, exclusive for an exclusive one. So it is held by whoever lives. A job that
//! is leased its processors holds PRESENCE.CPU in the same way for each of them, exclusive.
// A helper of the soak: its messages go to whoever started it.
#![allow(clippy::print_stderr)]

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use perflock::pin::CpuList;

/// Exit code where a presence lock was not free, or the job is not where it was told to be.
const OVERLAPPED: u8 = 97;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match work(&arguments) {
        Ok(code) => code,
        Err(message) => {
            eprintln!("stress_job: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Does what the arguments say.
fn work(arguments: &[String]) -> Result<ExitCode, String> {
    let [log, presence, queue, job, mode, pin, how, usec, leftover_msec] = arguments else {
        return Err("usage: stress_job LOG PRESENCE QUEUE JOB MODE PIN sleep|burn USEC LEFTOVER_MSEC".to_owned());
    };
    let exclusive = mode == "exclusive";
    let duration = Duration::from_micros(number(usec)?);
    let leftover = Duration::from_millis(number(leftover_msec)?);
    let operation = if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
    let alone = lock(presence, operation)?;
    let log = Log { file: OpenOptions::new().append(true).open(log).map_err(|e| format!("{log}: {e}"))?, job };
    if alone.is_none() {
        log.say("overlap")?;
        return Ok(ExitCode::from(OVERLAPPED));
    }
    let told = std::env::var("PERFLOCK_CPUS").ok();
    let cpus = told.as_deref().map(str::parse::<CpuList>).transpose().map_err(|e| format!("PERFLOCK_CPUS: {e}"))?;
    if let Some(how) = strayed(cpus.as_ref(), pin != "free")? {
        log.say(&format!("strayed {how}"))?;
        return Ok(ExitCode::from(OVERLAPPED));
    }
    let mut own = Vec::new();
    for cpu in cpus.iter().filter(|_| pin == "leased").flat_map(CpuList::iter) {
        match lock(&format!("{presence}.{cpu}"), libc::LOCK_EX)? {
            Some(file) => own.push(file),
            None => {
                log.say(&format!("taken {cpu}"))?;
                return Ok(ExitCode::from(OVERLAPPED));
            }
        }
    }
    let ticket = std::env::var("PERFLOCK_JOB").unwrap_or_else(|_| "-".to_owned());
    let overtook = match ticket.split_once('-') {
        Some((own, rest)) if !rest.is_empty() => {
            overtaken(Path::new(queue), number(own)?, exclusive, pin == "leased")?.join(",")
        }
        _ => String::new(),
    };
    let overtook = if overtook.is_empty() { "-" } else { &overtook };
    log.say(&format!("start {ticket} {overtook} {}", told.as_deref().unwrap_or("-")))?;
    if !leftover.is_zero() {
        leave(&log, leftover)?;
    }
    if how == "burn" {
        let end = Instant::now() + duration;
        while Instant::now() < end {
            std::hint::spin_loop();
        }
    } else {
        std::thread::sleep(duration);
    }
    log.say("stop")?;
    Ok(ExitCode::SUCCESS)
}

/// Locks a presence file until the last process of the job is dead. `None` if it is not free.
fn lock(path: &str, operation: libc::c_int) -> Result<Option<File>, String> {
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(|e| format!("{path}: {e}"))?;
    // SAFETY: a lock on an open descriptor.
    let got = unsafe { libc::flock(file.as_raw_fd(), operation | libc::LOCK_NB) } == 0;
    Ok(got.then_some(file))
}

/// What is wrong with where this process may run, in one word.
fn strayed(told: Option<&CpuList>, asked: bool) -> Result<Option<String>, String> {
    let mut words = [0_u64; 128];
    // SAFETY: a place for the answer, as long as it says.
    let got = unsafe { libc::sched_getaffinity(0, size_of_val(&words), words.as_mut_ptr().cast()) };
    if got != 0 {
        return Err(format!("where this process may run is unknown: {}", std::io::Error::last_os_error()));
    }
    let may = CpuList::from_words(&words);
    Ok(match told {
        Some(told) if *told != may => Some(format!("{may},not-{told}")),
        None if asked => Some("not-told".to_owned()),
        _ => None,
    })
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text} is not a number"))
}

/// The log, to which many processes append at the same time.
struct Log<'a> {
    file: File,
    job: &'a str,
}

impl Log<'_> {
    /// Appends one line by one system call.
    fn say(&self, words: &str) -> Result<(), String> {
        let line = format!("{} {words} .\n", self.job);
        match (&self.file).write(line.as_bytes()) {
            Ok(length) if length == line.len() => Ok(()),
            Ok(_) => Err("the log took a part of a line".to_owned()),
            Err(error) => Err(format!("the log: {error}")),
        }
    }
}

/// The tickets ahead of number `own` that conflict with it, are alive, and were never granted nor stopped, and for a job that
/// asked for cores those that asked, too, and have none. Each of them should have had the machine, or cores, first.
fn overtaken(queue: &Path, own: u64, exclusive: bool, leased: bool) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(queue).map_err(|e| format!("{}: {e}", queue.display()))? {
        let name = entry.map_err(|e| format!("{}: {e}", queue.display()))?.file_name().to_string_lossy().into_owned();
        let Some((number, letter)) = name.split_once('.') else { continue };
        let conflicts = exclusive || letter == "x";
        let ahead = number.parse::<u64>().is_ok_and(|number| number < own);
        if ahead && (conflicts || leased) && waits(&queue.join(&name), conflicts) {
            found.push(name);
        }
    }
    Ok(found)
}

/// Whether the job of this ticket waits, and has done nothing else since it joined: for the machine, or else for cores.
fn waits(ticket: &Path, for_machine: bool) -> bool {
    let Ok(mut file) = File::open(ticket) else { return false };
    // SAFETY: a flock is plain integers.
    let mut probe: libc::flock = unsafe { std::mem::zeroed() };
    probe.l_type = libc::F_RDLCK as libc::c_short;
    probe.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: asks about an open descriptor, and answers in `probe`.
    let asked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut probe) };
    let live = asked == 0 && libc::c_int::from(probe.l_type) != libc::F_UNLCK;
    let mut text = String::new();
    // Read after it was seen alive: what it says of itself is then no older.
    let read = file.read_to_string(&mut text).is_ok();
    let says = |event: &str| text.lines().any(|line| line.starts_with(&format!("{{\"event\":\"{event}\"")));
    // In no other place of that line is there such a word between quotes that are not escaped.
    let asks = text.lines().next().is_some_and(|joined| joined.contains("\"cores\":"));
    let for_cores = asks && !says("cores");
    live && read && (for_machine || for_cores) && !says("granted") && !says("stopped")
}

/// Leaves a process behind as a daemon does: two forks, and a session of its own. It keeps the presence lock.
fn leave(log: &Log<'_>, time: Duration) -> Result<(), String> {
    // SAFETY: this process has one thread.
    match unsafe { libc::fork() } {
        -1 => return Err(format!("cannot fork: {}", std::io::Error::last_os_error())),
        0 => {}
        child => {
            // SAFETY: waits for our own child, and asks for no status.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
            return Ok(());
        }
    }
    // SAFETY: makes a session of this process's own.
    unsafe { libc::setsid() };
    // SAFETY: sets a signal to be ignored.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    // SAFETY: this process has one thread.
    if unsafe { libc::fork() } == 0 {
        std::thread::sleep(time);
        let _ = log.say("leftover-stop");
    }
    std::process::exit(0)
}
