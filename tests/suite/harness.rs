//! What tests run in: a world with its own lock and cgroup, a command builder, and waiting on conditions.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write as _};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

/// How long any condition may take. Machines are slow at times; a condition that holds is never waited for longer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Taken for writing while a program is written, and for reading while a process is made: a child that is forked
/// meanwhile has the file open for writing until it executes, and nobody can execute the file ("text file busy").
static EXECUTABLES: RwLock<()> = RwLock::new(());

/// A plain user and a second one. They need no entry in /etc/passwd.
pub(crate) const ALICE: u32 = 41_001;
/// The second plain user.
pub(crate) const BOB: u32 = 41_002;

/// What a test needs of the machine. A need that is not met skips the test and prints why; naming it in
/// `PERFLOCK_MUST_RUN` (comma-separated: `root,v2,programs`) makes that a failure.
#[derive(Clone, Copy)]
pub(crate) enum Need {
    /// Root, to become other users.
    Root,
    /// A cgroup v2 hierarchy in which this process may make groups.
    V2,
    /// A program in PATH.
    Program(&'static str),
}

impl Need {
    fn missing(self) -> Option<(&'static str, String)> {
        match self {
            Self::Root if !nix::unistd::geteuid().is_root() => Some(("root", "not root".to_owned())),
            Self::V2 => own_group().err().map(|why| ("v2", why)),
            Self::Program(name) => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                let found = std::env::split_paths(&path).any(|directory| directory.join(name).exists());
                (!found).then(|| ("programs", format!("{name} is not installed")))
            }
            Self::Root => None,
        }
    }
}

/// True if every need is met; else says why the test is skipped, or fails where it must not be.
#[track_caller]
pub(crate) fn able(test: &str, needs: &[Need]) -> bool {
    let must = std::env::var("PERFLOCK_MUST_RUN").unwrap_or_default();
    for need in needs {
        if let Some((kind, why)) = need.missing() {
            assert!(!must.split(',').any(|named| named == kind), "{test} must run, but: {why}");
            // Straight to the descriptor: a skip must be seen although the test passes.
            let _ = std::io::stderr().write_all(format!("SKIP {test}: {why}\n").as_bytes());
            return false;
        }
    }
    true
}

/// Skips the test unless the machine has what it needs: `needs!(Root, V2, Program("make"))`.
#[macro_export]
macro_rules! needs {
    ($($need:expr),* $(,)?) => {{
        #[allow(unused_imports)]
        use $crate::harness::Need::*;
        fn here() {}
        let name = std::any::type_name_of_val(&here).trim_end_matches("::here").trim_start_matches("suite::");
        if !$crate::harness::able(name, &[$($need),*]) {
            return;
        }
    }};
}

/// The directory of our own cgroup in the v2 hierarchy, if groups can be made in it.
fn own_group() -> Result<PathBuf, String> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").map_err(|e| e.to_string())?;
    let mount = mountinfo
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .and_then(|line| line.split(' ').nth(4))
        .ok_or("no cgroup v2 hierarchy is mounted")?;
    let own = fs::read_to_string("/proc/self/cgroup").map_err(|e| e.to_string())?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).ok_or("no cgroup v2 group")?;
    let group = Path::new(mount).join(own);
    let probe = group.join(format!("pltest-probe-{}-{:?}", std::process::id(), std::thread::current().id()));
    fs::create_dir(&probe).map_err(|e| format!("cannot make a group in {}: {e}", group.display()))?;
    fs::remove_dir(&probe).map_err(|e| e.to_string())?;
    Ok(group)
}

/// A lock, a queue, a cgroup and a home directory of a test's own. Everything is gone when it is dropped, and a test
/// that leaves a member, a group or a ticket behind can check that with [`World::assert_clean`].
pub(crate) struct World {
    directory: tempfile::TempDir,
    group: Option<PathBuf>,
    uid: u32,
}

impl World {
    /// For jobs of the user who runs the tests, in a cgroup of its own if one can be made.
    pub(crate) fn new() -> Self {
        Self::for_uid(nix::unistd::geteuid().as_raw())
    }

    /// For jobs of a plain user who owns the cgroup, as in a delegated one. Others can use the lock as well.
    pub(crate) fn for_uid(uid: u32) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let directory = tempfile::Builder::new().prefix("pltest-").tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let group = own_group().ok().map(|own| {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let group = own.join(format!("pltest-{}-{number}", std::process::id()));
            fs::create_dir(&group).unwrap();
            for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
                std::os::unix::fs::chown(group.join(file), Some(uid), None).unwrap();
            }
            group
        });
        let world = Self { directory, group, uid };
        fs::write(world.lock(), "").unwrap();
        fs::create_dir(world.queue()).unwrap();
        fs::set_permissions(world.lock(), fs::Permissions::from_mode(0o666)).unwrap();
        fs::set_permissions(world.queue(), fs::Permissions::from_mode(0o1777)).unwrap();
        if uid != nix::unistd::geteuid().as_raw() {
            // The build directory may be closed to plain users.
            let _alone = EXECUTABLES.write();
            for name in ["perflock", "pls", "wholock"] {
                fs::copy(built(name), world.path(name)).unwrap();
            }
        }
        world
    }

    /// A file in the world's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The lock file: exists, for everybody.
    pub(crate) fn lock(&self) -> PathBuf {
        self.path("lock")
    }

    /// The queue directory: exists, for everybody.
    pub(crate) fn queue(&self) -> PathBuf {
        self.path("lock.d")
    }

    /// The cgroup that everything runs in.
    pub(crate) fn group(&self) -> &Path {
        self.group.as_deref().expect("this test needs V2")
    }

    /// Writes a file.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Writes a program.
    pub(crate) fn script(&self, name: &str, text: &str) -> PathBuf {
        let _alone = EXECUTABLES.write();
        let path = self.write(name, text);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Reads a file; empty if it does not exist.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The path of `perflock`, `pls` or `wholock` as this world's user can run it.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        if self.path(name).exists() { self.path(name) } else { built(name) }
    }

    /// A command in this world's cgroup, as its user, with the lock named by PERFLOCK_LOCK and the three programs in
    /// PATH. Its words are split at spaces; more are added by [`Cmd::arg`].
    pub(crate) fn cmd(&self, line: &str) -> Cmd {
        let mut words = line.split_whitespace();
        let program = words.next().expect("a command");
        let mut command = match program {
            "perflock" | "pls" | "wholock" => Command::new(self.program(program)),
            other => Command::new(other),
        };
        let bin = self.program("perflock").parent().unwrap().to_owned();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths([bin].into_iter().chain(std::env::split_paths(&path))).unwrap();
        command
            .args(words)
            .current_dir(self.directory.path())
            .env("PATH", path)
            .env("HOME", self.directory.path())
            .env("PERFLOCK_LOCK", self.lock())
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("PERFLOCK_CONFIG")
            .env_remove("PERFLOCK_JOB")
            .env_remove("PERFLOCK_MODE");
        // SAFETY: only system calls on values that exist already.
        unsafe { command.pre_exec(as_from_a_terminal) };
        Cmd { command, uid: self.uid, group: self.group.clone(), stdin: Vec::new() }
    }

    /// A shell command line: `world.sh("perflock true; echo $?")`.
    pub(crate) fn sh(&self, script: &str) -> Cmd {
        self.cmd("sh -c").arg(script)
    }

    /// The tickets in the queue.
    pub(crate) fn tickets(&self) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(self.queue()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The job groups that exist, as directories.
    pub(crate) fn job_groups(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.group()).unwrap().map(|e| e.unwrap().path());
        entries.filter(|path| path.is_dir()).collect()
    }

    /// Every process in the world's cgroup, sub-groups included.
    pub(crate) fn processes(&self) -> Vec<i32> {
        fn below(group: &Path, found: &mut Vec<i32>) {
            let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            found.extend(procs.lines().filter_map(|line| line.parse::<i32>().ok()));
            for entry in fs::read_dir(group).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    below(&entry.path(), found);
                }
            }
        }
        let mut found = Vec::new();
        if let Some(group) = &self.group {
            below(group, &mut found);
        }
        found
    }

    /// No member, no job group, no ticket, and the lock is free. Waits for none of it: a job that ended has left
    /// nothing.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.tickets(), Vec::<String>::new(), "tickets were left");
        if self.group.is_some() {
            assert_eq!(self.job_groups(), Vec::<PathBuf>::new(), "job groups were left");
        }
        assert_eq!(self.processes(), Vec::<i32>::new(), "processes were left");
        assert!(self.lock_is_free(), "the lock is held");
    }

    /// No job group, no ticket, and the lock is free, though processes outside of jobs may be in the world.
    #[track_caller]
    pub(crate) fn assert_no_job(&self) {
        assert_eq!(self.tickets(), Vec::<String>::new(), "tickets were left");
        assert_eq!(self.job_groups(), Vec::<PathBuf>::new(), "job groups were left");
        assert!(self.lock_is_free(), "the lock is held");
    }

    /// Like [`World::assert_clean`], but after a job whose supervisor was killed: its guard needs a moment.
    #[track_caller]
    pub(crate) fn wait_clean(&self) {
        wait_until("everything is gone", || {
            self.tickets().is_empty() && self.processes().is_empty() && self.lock_is_free()
        });
        self.assert_clean();
    }

    /// Nobody holds the lock file, in whatever mode.
    pub(crate) fn lock_is_free(&self) -> bool {
        fs::File::open(self.lock()).unwrap().try_lock().is_ok()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let Some(group) = &self.group else { return };
        // Only ever a group that this test made.
        assert!(group.file_name().unwrap().to_str().unwrap().starts_with("pltest-"));
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            let _ = fs::write(group.join("cgroup.kill"), "1");
            let events = fs::read_to_string(group.join("cgroup.events")).unwrap_or_default();
            if events.contains("populated 0") && remove_groups(group) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn remove_groups(group: &Path) -> bool {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_groups(&entry.path());
        }
    }
    fs::remove_dir(group).is_ok()
}

fn built(name: &str) -> PathBuf {
    match name {
        "perflock" => env!("CARGO_BIN_EXE_perflock").into(),
        "pls" => env!("CARGO_BIN_EXE_pls").into(),
        _ => env!("CARGO_BIN_EXE_wholock").into(),
    }
}

/// Every signal as a terminal's shell gives it to a program: the tests may themselves be run in the background, or under
/// nohup.
fn as_from_a_terminal() -> std::io::Result<()> {
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
    command: Command,
    uid: u32,
    group: Option<PathBuf>,
    stdin: Vec<u8>,
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

    /// Something to do in the new process before the program is executed. Must be async-signal-safe.
    pub(crate) fn before_exec(mut self, action: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        // SAFETY: the caller promises that the action is async-signal-safe.
        unsafe { self.command.pre_exec(action) };
        self
    }

    fn prepared(mut self) -> (Command, Vec<u8>) {
        let procs = self.group.map(|group| {
            let path = group.join("cgroup.procs");
            fs::File::options().write(true).open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        });
        let uid = self.uid;
        let change_user = uid != nix::unistd::geteuid().as_raw();
        let act = move || {
            if let Some(procs) = &procs {
                nix::unistd::write(procs, b"0")?;
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
        let mut child = {
            let _no_writer = EXECUTABLES.read();
            command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"))
        };
        let mut input = child.stdin.take().unwrap();
        std::thread::spawn(move || input.write_all(&stdin));
        let stdout = Collected::from(child.stdout.take().unwrap());
        let stderr = Collected::from(child.stderr.take().unwrap());
        Running { child, stdout, stderr, what: format!("{command:?}") }
    }

    /// Runs the command to its end.
    #[track_caller]
    pub(crate) fn run(self) -> Done {
        self.spawn().wait()
    }

    /// Runs the command on a terminal of its own, in a session of its own, as in a terminal window.
    pub(crate) fn on_terminal(self) -> Terminal {
        Terminal::start(self)
    }
}

/// Text that a thread collects from a pipe.
#[derive(Clone)]
struct Collected(Arc<Mutex<(Vec<u8>, bool)>>);

impl Collected {
    fn from(mut pipe: impl Read + Send + 'static) -> Self {
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

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap().0).into_owned()
    }

    fn ended(&self) -> bool {
        self.0.lock().unwrap().1
    }
}

/// A command that runs.
pub(crate) struct Running {
    child: Child,
    stdout: Collected,
    stderr: Collected,
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
        let end = Instant::now() + DEADLINE;
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
        Done { status, stdout: self.stdout.text(), stderr: self.stderr.text(), what: self.what.clone() }
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
    what: String,
}

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

    /// It printed exactly this on stderr.
    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Self {
        assert_eq!(self.stderr, text, "{}", self.context());
        self
    }

    /// Its stderr contains this.
    #[track_caller]
    pub(crate) fn mentions(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "no {text:?}: {}", self.context());
        self
    }
}

/// A command on a terminal of its own.
pub(crate) struct Terminal {
    child: Child,
    master: fs::File,
    screen: Collected,
}

impl Terminal {
    fn start(cmd: Cmd) -> Self {
        let pty = nix::pty::openpty(None, None).unwrap();
        let (mut command, _) = cmd.prepared();
        let slave: OwnedFd = pty.slave;
        let end = || Stdio::from(slave.try_clone().unwrap());
        command.stdin(end()).stdout(end()).stderr(end());
        let take_terminal = || {
            nix::unistd::setsid()?;
            // SAFETY: only a system call; descriptor 0 is the terminal by then.
            match unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } {
                -1 => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            }
        };
        // SAFETY: the closure makes system calls only.
        unsafe { command.pre_exec(take_terminal) };
        let child = {
            let _no_writer = EXECUTABLES.read();
            command.spawn().unwrap()
        };
        let master = fs::File::from(pty.master);
        let screen = Collected::from(master.try_clone().unwrap());
        Self { child, master, screen }
    }

    /// Types some text; `\x03` is ^C, `\x1a` is ^Z, `\x1c` is ^\, `\x04` is ^D.
    pub(crate) fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Everything that was printed so far.
    pub(crate) fn screen(&self) -> String {
        self.screen.text()
    }

    /// Waits until the screen has shown a text.
    #[track_caller]
    pub(crate) fn wait_screen(&self, text: &str) {
        wait_until(&format!("{text:?} on the screen:\n{}", self.screen()), || self.screen().contains(text));
    }

    /// The terminal's foreground process group.
    pub(crate) fn foreground(&self) -> i32 {
        // SAFETY: asks a terminal that is open.
        unsafe { libc::tcgetpgrp(self.master.as_raw_fd()) }
    }

    /// The process that was started.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Hangs the terminal up, as when its window is closed or its line breaks. Only root may.
    pub(crate) fn hang_up(&mut self) {
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        // SAFETY: opens the other side of the terminal that this test made.
        let side = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
        assert!(side >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the kernel just made this descriptor, and nobody else owns it.
        let side = unsafe { OwnedFd::from_raw_fd(side) };
        // SAFETY: hangs up the terminal that this test made.
        let hung_up = unsafe { libc::ioctl(side.as_raw_fd(), libc::TIOCVHANGUP) };
        assert_eq!(hung_up, 0, "{}", std::io::Error::last_os_error());
    }

    /// Waits for the end of the process that was started.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the program on the terminal ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a condition holds, and fails with its name when it does not in time.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "did not come true in {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether a process exists and is no zombie.
pub(crate) fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}

/// The state letter of a process, `?` if it is gone.
pub(crate) fn state_of(pid: i32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or('?')
}

/// The pid in a file that a test's job writes, once it is there.
#[track_caller]
pub(crate) fn pid_in(path: &Path) -> i32 {
    let mut pid = None;
    wait_until(&format!("a pid in {}", path.display()), || {
        let text = fs::read_to_string(path).unwrap_or_default();
        pid = text.strip_suffix('\n').and_then(|text| text.trim().parse().ok());
        pid.is_some()
    });
    pid.unwrap()
}

/// What tests of several jobs have in common.
impl World {
    /// Starts a job that has the machine until it gets a signal: `world.holder("pls -q")`. Returns once it runs.
    #[track_caller]
    pub(crate) fn holder(&self, program: &str) -> Running {
        let holder = self.cmd(program).args(["sh", "-c", "echo running; exec sleep 60"]).spawn();
        holder.wait_stdout("running\n");
        holder
    }

    /// Starts a job that has to wait, and returns once its ticket has this name and it sleeps.
    #[track_caller]
    pub(crate) fn waiter(&self, ticket: &str, cmd: Cmd) -> Running {
        let waiter = cmd.spawn();
        wait_until(&format!("the ticket {ticket}"), || self.tickets().iter().any(|name| name == ticket));
        // The second thread sleeps in the lock call.
        wait_until("the waiter sleeps", || threads_of(waiter.pid()).len() == 2);
        waiter
    }

    /// The lines of a ticket.
    pub(crate) fn ticket(&self, name: &str) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.queue().join(name)).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The guard that a ticket names.
    #[track_caller]
    pub(crate) fn guard_of(&self, ticket: &str) -> i32 {
        let mut pid = None;
        wait_until(&format!("a guard in {ticket}"), || {
            let lines = self.ticket(ticket);
            let guard = lines.iter().rev().find(|line| line["event"] == "guard");
            pid = guard.and_then(|line| i32::try_from(line["pid"].as_i64()?).ok());
            pid.is_some()
        });
        pid.unwrap()
    }

    /// Kills supervisor and guard of a job so that neither can act for the other: what is left is an orphan.
    #[track_caller]
    pub(crate) fn kill_both(&self, mut supervisor: Running, ticket: &str) {
        let guard = self.guard_of(ticket);
        supervisor.signal(libc::SIGSTOP);
        wait_until("the supervisor is stopped", || state_of(supervisor.pid()) == 'T');
        // SAFETY: a child of the stopped supervisor, so not reaped: the number is its own.
        assert_eq!(unsafe { libc::kill(guard, libc::SIGKILL) }, 0);
        wait_until("the guard is dead", || !alive(guard));
        supervisor.signal(libc::SIGKILL);
        // Not the end of its output: the orphan may have that.
        wait_until("the supervisor is dead", || supervisor.ended());
    }

    /// A shell script, run by root in a mount namespace of its own: what it mounts, nobody else sees.
    pub(crate) fn in_mount_namespace(&self, script: &str) -> Cmd {
        self.cmd("unshare --mount --propagation private sh -ec").arg(script).uid(0)
    }

    /// The mount point of the hierarchy that [`World::group`] is in.
    pub(crate) fn cgroup_mount(&self) -> PathBuf {
        let relative = fs::read_to_string("/proc/self/cgroup").unwrap();
        let relative = relative.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
        let depth = Path::new(relative).components().count() + 1;
        self.group().ancestors().nth(depth).unwrap().to_owned()
    }
}

/// The threads of a process.
pub(crate) fn threads_of(pid: i32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.map(|task| task.file_name().into_string().unwrap()).collect()
}

/// Sends a signal to a process that a test's job started and that it knows to be alive.
pub(crate) fn signal(pid: i32, signal: i32) {
    assert!(pid > 1);
    // SAFETY: only sends a signal.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}
