//! `cargo xtask capture`: puts what the programs show of a real run into the README.
//!
//! Everything happens in namespaces of its own: the machine is called `atlas`, its `/run` is empty, and no process of anybody
//! else is seen. So the lock is the usual one, no name of the real machine gets in, and nothing that is shown is made up
//! or replaced, but for the local part of the kernel's version, which is left out. Only the CPU time of the whole machine is the
//! real one: others' use counts as outside.

use std::fs::{self, File};
use std::io::Read as _;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::soak::debug_binaries;
use crate::{Failure, cargo, top};

/// A place in the README and how what stands there comes about.
type Capture = (&'static str, fn(&mut Stage) -> Result<String, Failure>);

/// Every capture, in the order in which they are made.
const CAPTURES: [Capture; 3] = [("watch", watch), ("table", table), ("report", report)];

/// The argument of the process in the namespaces; the directory of the programs follows.
const INSIDE: &str = "--inside";

/// The name of the machine that is shown.
const HOST: &str = "atlas";

/// Of the terminal.
const SIZE: (u16, u16) = (100, 16);

/// How long the live view runs before it is captured: its graph fills.
const WATCHED: Duration = Duration::from_secs(16);

/// How long a job may take to begin.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the jobs make: two that compute and rest by turns.
const MAKEFILE: &str = "\
nightly: one two
one two:
\t@while :; do i=0; while [ $$i -lt 400000 ]; do i=$$((i+1)); done; sleep 1; done
bench:
\t@head -c 200M /dev/zero > data; gzip -c data | sha256sum; sleep 600 &
";

/// Makes every capture, and puts them into the README.
///
/// # Errors
/// Not root, a namespace could not be made, a program failed, or the README has no place for a capture.
pub(crate) fn capture(arguments: &[String]) -> Result<ExitCode, Failure> {
    if let [inside, programs] = arguments
        && inside == INSIDE
    {
        return inside_namespaces(Path::new(programs));
    }
    if !arguments.is_empty() {
        return Err("capture takes no arguments".to_owned());
    }
    let built = cargo().args(["build", "--quiet", "--locked", "--bins"]).status();
    if !built.is_ok_and(|status| status.success()) {
        return Err("perflock does not build".to_owned());
    }
    let own = std::env::current_exe().map_err(|error| format!("cannot find xtask itself: {error}"))?;
    let script = format!(
        "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && echo {HOST} > /proc/sys/kernel/hostname && uname -r | cut -d- -f1 > /run/osrelease && \
         mount --bind /run/osrelease /proc/sys/kernel/osrelease && exec \"$@\""
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", &script, "sh"]);
    command.arg(own).args(["capture", INSIDE]).arg(debug_binaries());
    // As on anybody's machine.
    for name in ["PERFLOCK_JOB", "PERFLOCK_MODE", "PERFLOCK_LOCK", "PERFLOCK_CONFIG", "NO_COLOR"] {
        command.env_remove(name);
    }
    // What is mounted there goes with the namespace.
    command.env("XDG_STATE_HOME", "/run");
    match command.status() {
        Ok(status) if status.success() => Ok(ExitCode::SUCCESS),
        Ok(_) => Ok(ExitCode::FAILURE),
        Err(error) => Err(format!("cannot start unshare: {error}")),
    }
}

fn inside_namespaces(programs: &Path) -> Result<ExitCode, Failure> {
    let mut stage = Stage::set(programs)?;
    let readme = top().join("README.md");
    let failed = |error| format!("{}: {error}", readme.display());
    let mut text = fs::read_to_string(&readme).map_err(failed)?;
    for (name, make) in CAPTURES {
        text = replaced(&text, name, &make(&mut stage)?)?;
    }
    fs::write(&readme, text).map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}

/// The text with a capture in its place: between `<!-- capture: NAME -->` and the next `<!-- end -->`.
fn replaced(text: &str, name: &str, capture: &str) -> Result<String, Failure> {
    let begin = format!("<!-- capture: {name} -->\n");
    let parts = text.split_once(&begin).and_then(|(before, rest)| {
        let (_, after) = rest.split_once("<!-- end -->")?;
        Some((before, after))
    });
    let (before, after) = parts.ok_or_else(|| format!("the README has no place for the capture {name}"))?;
    Ok(format!("{before}{begin}```text\n{}\n```\n<!-- end -->{after}", capture.trim_end()))
}

/// A process that is ended with what it started when it is dropped.
struct Actor(Child);

impl Drop for Actor {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.0.id()) {
            // SAFETY: sends a signal to a child that was not reaped.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        let _ = self.0.wait();
    }
}

/// A machine in use: two shared jobs, one that waits, and somebody who uses it without asking.
struct Stage {
    programs: PathBuf,
    actors: Vec<Actor>,
    /// Last, so that it outlives them.
    directory: tempfile::TempDir,
}

impl Stage {
    fn set(programs: &Path) -> Result<Self, Failure> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut stage = Self { programs: programs.to_owned(), actors: Vec::new(), directory };
        let failed = |error| format!("cannot write a Makefile: {error}");
        fs::write(stage.directory.path().join("Makefile"), MAKEFILE).map_err(failed)?;
        let set_up = stage.command("perflock").args(["--setup", "--quiet"]).status();
        if !set_up.is_ok_and(|status| status.success()) {
            return Err("perflock --setup failed".to_owned());
        }
        let lines: [&[&str]; 4] = [
            &["pls", "-m", "nightly tests", "make", "-j2", "nightly"],
            &["pls", "gzip", "-c", "/dev/zero"],
            &["perflock", "./measure", "--rounds", "100"],
            &["sha256sum", "/dev/zero"],
        ];
        for (index, line) in lines.into_iter().enumerate() {
            let mut command = stage.command(line[0]);
            command.args(&line[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let child = command.spawn().map_err(|error| format!("cannot start {}: {error}", line[0]))?;
            stage.actors.push(Actor(child));
            stage.wait_for_jobs((index + 1).min(3))?;
        }
        Ok(stage)
    }

    /// A program, ours if it has the name of one.
    fn command(&self, name: &str) -> Command {
        let own = self.programs.join(name);
        let mut command = Command::new(if own.exists() { own } else { name.into() });
        command.current_dir(self.directory.path());
        command
    }

    fn wait_for_jobs(&self, count: usize) -> Result<(), Failure> {
        let end = Instant::now() + PATIENCE;
        while fs::read_dir("/run/perflock.d").map_or(0, Iterator::count) < count {
            if Instant::now() > end {
                return Err("a job does not begin".to_owned());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

/// `wholock --watch`, with the processes of the first job.
fn watch(stage: &mut Stage) -> Result<String, Failure> {
    let mut terminal = Terminal::open()?;
    let mut command = stage.command("wholock");
    command.args(["--watch", "1"]).env("TERM", "xterm");
    let actor = terminal.start(command)?;
    let begin = Instant::now();
    terminal.read_until(begin + WATCHED - Duration::from_secs(2))?;
    terminal.type_in(b"\r")?;
    terminal.read_until(begin + WATCHED)?;
    let screen = terminal.screen();
    drop(actor);
    Ok(screen)
}

/// `wholock`.
fn table(stage: &mut Stage) -> Result<String, Failure> {
    let output = stage.command("wholock").output().map_err(|error| format!("cannot start wholock: {error}"))?;
    Ok(format!("$ wholock\n{}", String::from_utf8_lossy(&output.stdout)))
}

/// `perflock --report`, of a job that waited for another, and left a process behind.
fn report(stage: &mut Stage) -> Result<String, Failure> {
    const LINE: &str = "perflock --report make bench";
    stage.actors.clear();
    let failed = |error: std::io::Error| format!("cannot start perflock: {error}");
    let mut holder = stage.command("pls");
    holder
        .args(["--quiet", "--time-limit", "3", "gzip", "-c", "/dev/zero"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let holder = holder.spawn().map(Actor).map_err(failed)?;
    stage.wait_for_jobs(1)?;
    let mut words = LINE.split(' ');
    let output = stage.command(words.next().unwrap_or_default()).args(words).output().map_err(failed)?;
    drop(holder);
    Ok(format!("$ {LINE}\n{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

/// A terminal, and what was written to it.
struct Terminal {
    master: File,
    written: Vec<u8>,
}

impl Terminal {
    fn open() -> Result<Self, Failure> {
        let open = || {
            let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
            grantpt(&master)?;
            unlockpt(&master)?;
            tcsetwinsize(&master, Winsize { ws_col: SIZE.0, ws_row: SIZE.1, ws_xpixel: 0, ws_ypixel: 0 })?;
            rustix::io::Result::Ok(master)
        };
        let master = open().map_err(|errno| format!("cannot make a terminal: {errno}"))?;
        Ok(Self { master: master.into(), written: Vec::new() })
    }

    fn start(&self, mut command: Command) -> Result<Actor, Failure> {
        let failed = |error: std::io::Error| format!("cannot start a program on a terminal: {error}");
        let name = ptsname(&self.master, Vec::new()).map_err(|errno| failed(errno.into()))?;
        let name = name.to_string_lossy().into_owned();
        let side: OwnedFd = File::options().read(true).write(true).open(name).map_err(failed)?.into();
        let end = || side.try_clone().map(Stdio::from).map_err(failed);
        command.stdin(end()?).stdout(end()?).stderr(end()?);
        let take_terminal = || {
            rustix::process::setsid()?;
            Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?)
        };
        // SAFETY: the closure makes system calls only.
        unsafe { command.pre_exec(take_terminal) };
        command.spawn().map(Actor).map_err(failed)
    }

    fn type_in(&mut self, keys: &[u8]) -> Result<(), Failure> {
        std::io::Write::write_all(&mut self.master, keys).map_err(|error| format!("cannot type: {error}"))
    }

    fn read_until(&mut self, end: Instant) -> Result<(), Failure> {
        let failed = |error: std::io::Error| format!("cannot read from a terminal: {error}");
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let left = Timespec::try_from(left).map_err(|error| error.to_string())?;
            let mut fds = [PollFd::new(&self.master, PollFlags::IN)];
            poll(&mut fds, Some(&left)).map_err(|errno| failed(errno.into()))?;
            if !fds[0].revents().is_empty() {
                let mut bytes = [0; 4096];
                let length = self.master.read(&mut bytes).map_err(failed)?;
                self.written.extend_from_slice(&bytes[..length]);
            }
        }
    }

    /// What it shows, as plain text.
    fn screen(&self) -> String {
        let size = |cells| NonZero::new(cells).unwrap_or(NonZero::<u16>::MIN);
        let mut parser = vt100::Parser::new(size(SIZE.1), size(SIZE.0), 0);
        parser.process(&self.written);
        parser.screen().rows(0, SIZE.0).map(|line| format!("{}\n", line.trim_end())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_replaces_the_one_before() {
        let text = "a\n<!-- capture: x -->\nold\n<!-- end -->\nb <!-- capture: y -->\n<!-- end -->\n";
        let once = replaced(text, "x", "new\n\n").unwrap();
        assert!(once.starts_with("a\n<!-- capture: x -->\n```text\nnew\n```\n<!-- end -->\nb "), "{once}");
        assert_eq!(replaced(&once, "x", "new").unwrap(), once);
        assert!(replaced(text, "z", "new").is_err());
    }

    #[test]
    fn the_readme_has_a_place_for_every_capture() {
        let readme = fs::read_to_string(top().join("README.md")).unwrap();
        for (name, _) in CAPTURES {
            assert!(replaced(&readme, name, "").is_ok(), "{name}");
        }
    }
}
