//! What tests run in: a world with its own lock and cgroup, a command builder, and waiting on conditions.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

mod process;
mod terminal;

use process::as_from_a_terminal;
pub(crate) use process::{Cmd, Running};
pub(crate) use terminal::Terminal;

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
            // Once it has its name it has left our process group, session and everything else that it must leave.
            let name = |pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            pid.is_some_and(|pid| name(pid) == "perflock-guard\n")
        });
        pid.unwrap()
    }

    /// Kills supervisor and guard of a job so that neither can act for the other: what is left is an orphan.
    #[track_caller]
    pub(crate) fn kill_both(&self, supervisor: Running, ticket: &str) {
        kill_pair(supervisor, self.guard_of(ticket));
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

/// Kills a supervisor and its guard so that neither can act for the other.
#[track_caller]
pub(crate) fn kill_pair(mut supervisor: Running, guard: i32) {
    supervisor.signal(libc::SIGSTOP);
    wait_until("the supervisor is stopped", || state_of(supervisor.pid()) == 'T');
    signal(guard, libc::SIGKILL);
    wait_until("the guard is dead", || !alive(guard));
    supervisor.signal(libc::SIGKILL);
    // Not the end of its output: the orphan may have that.
    wait_until("the supervisor is dead", || supervisor.ended());
}

/// Sends a signal to a process that a test's job started and that it knows to be alive.
pub(crate) fn signal(pid: i32, signal: i32) {
    assert!(pid > 1);
    // SAFETY: only sends a signal.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}
