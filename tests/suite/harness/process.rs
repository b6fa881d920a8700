//! Commands: building them, running them, and what they printed and how they ended.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io::{Read, Write as _};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::kernel::{Filter, Kernel};
use super::manager::Namespaces;
use super::terminal::Terminal;
use super::{EXECUTABLES, deadline, wait_until};

/// Every signal as a terminal's shell gives it to a program: the tests may themselves be run in the background, or under
/// nohup.
pub(super) fn as_from_a_terminal() -> std::io::Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator().filter(|signal| !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the default action is no function of ours.
        unsafe { sigaction(signal, &default) }?;
    }
    SigSet::empty().thread_set_mask()?;
    Ok(())
}

/// A command to be run in a world.
#[must_use]
pub(crate) struct Cmd {
    pub(super) command: Command,
    pub(super) uid: u32,
    pub(super) group: Option<PathBuf>,
    pub(super) namespaces: Option<Arc<Namespaces>>,
    pub(super) stdin: Vec<u8>,
    pub(super) kernel: Option<Kernel>,
}

impl Cmd {
    /// One more argument, as it is.
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// More arguments.
    pub(crate) fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.command.args(args);
        self
    }

    /// An environment variable.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Without an environment variable.
    pub(crate) fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// What the command reads on stdin; nothing by default.
    pub(crate) fn stdin(mut self, text: &str) -> Self {
        self.stdin = text.into();
        self
    }

    /// As another user than the world's.
    pub(crate) fn uid(mut self, uid: u32) -> Self {
        self.uid = uid;
        self
    }

    /// In another cgroup.
    pub(crate) fn in_group(mut self, group: &Path) -> Self {
        self.group = Some(group.to_owned());
        self
    }

    /// On an older kernel.
    pub(crate) fn on(mut self, kernel: &str) -> Self {
        self.kernel = Some(Kernel::named(kernel));
        self
    }

    /// Something to do in the new process before the program is executed. Must be async-signal-safe.
    pub(crate) fn before_exec(mut self, action: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        // SAFETY: the caller promises that the action is async-signal-safe.
        unsafe { self.command.pre_exec(action) };
        self
    }

    pub(super) fn prepared(mut self) -> (Command, Vec<u8>) {
        let procs = self.group.map(|group| {
            let path = group.join("cgroup.procs");
            fs::File::options().write(true).open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        });
        let uid = self.uid;
        let change_user = uid != nix::unistd::geteuid().as_raw();
        let namespaces = self.namespaces;
        let directory = self.command.get_current_dir().map(Path::to_owned).unwrap_or_default();
        let directory = CString::new(directory.into_os_string().into_vec()).unwrap();
        let filter = self.kernel.map(Filter::of);
        let act = move || {
            if let Some(filter) = &filter {
                filter.install()?;
            }
            if let Some(procs) = &procs {
                nix::unistd::write(procs, b"0")?;
            }
            if let Some(namespaces) = &namespaces {
                namespaces.enter()?;
                nix::unistd::chdir(&*directory)?;
            }
            if change_user {
                nix::unistd::setgroups(&[])?;
                nix::unistd::setgid(uid.into())?;
                nix::unistd::setuid(uid.into())?;
            }
            Ok(())
        };
        // SAFETY: only system calls on values that exist already.
        unsafe { self.command.pre_exec(act) };
        (self.command, self.stdin)
    }

    /// Starts the command, its output collected.
    #[track_caller]
    pub(crate) fn spawn(self) -> Running {
        let (mut command, stdin) = self.prepared();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own, as a shell gives to a job: ^Z does nothing to one whose parents are all in it or in another
        // session, and the tests may be run like that.
        command.process_group(0);
        let start = Instant::now();
        let mut child = {
            let _no_writer = EXECUTABLES.read();
            command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"))
        };
        let mut input = child.stdin.take().unwrap();
        std::thread::spawn(move || input.write_all(&stdin));
        let stdout = Collected::from(child.stdout.take().unwrap());
        let stderr = Collected::from(child.stderr.take().unwrap());
        Running { child, stdout, stderr, start, what: format!("{command:?}") }
    }

    /// Runs the command to its end.
    #[track_caller]
    pub(crate) fn run(self) -> Done {
        self.spawn().wait()
    }

    /// Runs the command on a terminal of its own, in a session of its own, as in a terminal window.
    pub(crate) fn on_terminal(self) -> Terminal {
        Terminal::start(self, (0, 0))
    }

    /// The same on one of so many columns and rows.
    pub(crate) fn on_terminal_of(self, size: (u16, u16)) -> Terminal {
        Terminal::start(self, size)
    }
}

/// Text that a thread collects from a pipe.
#[derive(Clone)]
pub(super) struct Collected(Arc<Mutex<(Vec<u8>, bool)>>);

impl Collected {
    pub(super) fn from(mut pipe: impl Read + Send + 'static) -> Self {
        let collected = Self(Arc::new(Mutex::new((Vec::new(), false))));
        let sink = collected.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // A terminal whose last user closed it reads as an error.
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                sink.0.lock().unwrap().0.extend_from_slice(&buffer[..length]);
            }
            sink.0.lock().unwrap().1 = true;
        });
        collected
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().0.clone()
    }

    pub(super) fn ended(&self) -> bool {
        self.0.lock().unwrap().1
    }
}

/// A command that runs.
pub(crate) struct Running {
    child: Child,
    stdout: Collected,
    stderr: Collected,
    start: Instant,
    what: String,
}

impl Running {
    /// Its process.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: the child is ours and not reaped, so its number is its own.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }

    /// What it has printed on stdout so far.
    pub(crate) fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has printed on stderr so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits until its stderr contains a text.
    #[track_caller]
    pub(crate) fn wait_stderr(&self, text: &str) {
        wait_until(&format!("{text:?} in {:?} of {}", self.stderr(), self.what), || self.stderr().contains(text));
    }

    /// Waits until its stdout contains a text.
    #[track_caller]
    pub(crate) fn wait_stdout(&self, text: &str) {
        wait_until(&format!("{text:?} in the output of {}", self.what), || self.stdout().contains(text));
    }

    /// Whether it has ended.
    pub(crate) fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end, and for everything that was printed.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Done {
        let end = Instant::now() + deadline();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > end {
                let _ = self.child.kill();
                panic!("{} did not end\nstdout: {}\nstderr: {}", self.what, self.stdout(), self.stderr());
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        wait_until(&format!("the output of {} ends", self.what), || self.stdout.ended() && self.stderr.ended());
        let mut stderr = self.stderr.text();
        if super::is_slow() {
            // A child that a shell left may not have executed its program when it is named: milliseconds elsewhere.
            stderr = stderr.replace(" sh (", " sleep (");
        }
        Done { status, stdout: self.stdout.text(), stderr, took: self.start.elapsed(), what: self.what.clone() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A test that failed half-way; after `wait` the child is reaped and this does nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that ended.
pub(crate) struct Done {
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// Everything it printed on stdout.
    pub(crate) stdout: String,
    /// Everything it printed on stderr.
    pub(crate) stderr: String,
    /// From its start until that was seen.
    took: Duration,
    what: String,
}

/// How long leftovers may take to end before it is said who is waited for.
const WAIT_IS_TOLD: Duration = Duration::from_secs(1);

impl Done {
    fn context(&self) -> String {
        format!("{}\nstatus: {}\nstdout: {}\nstderr: {}", self.what, self.status, self.stdout, self.stderr)
    }

    /// It exited with this code.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{}", self.context());
        self
    }

    /// It died of this signal.
    #[track_caller]
    pub(crate) fn dies_of(self, signal: i32) -> Self {
        assert_eq!(self.status.signal(), Some(signal), "{}", self.context());
        self
    }

    /// It printed exactly this on stdout.
    #[track_caller]
    pub(crate) fn prints(self, text: &str) -> Self {
        assert_eq!(self.stdout, text, "{}", self.context());
        self
    }

    /// It printed exactly this on stderr. On a busy machine the line of [`Done::stderr_but_for_waits`] may be there as well.
    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Self {
        let stderr = if self.stderr == text { text.to_owned() } else { self.stderr_but_for_waits() };
        assert_eq!(stderr, text, "{}", self.context());
        self
    }

    /// Stderr without the line that says who is waited for until they are killed. Leftovers that end by TERM are gone before it
    /// is due, except on a busy machine. In a run that was over sooner it is a mistake, and stays.
    pub(crate) fn stderr_but_for_waits(&self) -> String {
        if self.took < WAIT_IS_TOLD {
            return self.stderr.clone();
        }
        let is_wait = |line: &&str| {
            line.contains(": waiting for ") && line.contains(" to end: ") && line.ends_with(" (^C kills now)\n")
        };
        self.stderr.split_inclusive('\n').filter(|line| !is_wait(line)).collect()
    }

    /// Its stderr contains this.
    #[track_caller]
    pub(crate) fn mentions(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "no {text:?}: {}", self.context());
        self
    }
}
