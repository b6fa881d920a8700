//! Worlds: a lock, a queue, a home directory and a place for processes, of a test's own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::manager::{Inside, delegate};
use super::process::{Cmd, Running, as_from_a_terminal};
use super::session::Session;
use super::v1::V1Only;
use super::{
    EXECUTABLES, Kernel, built, deadline, groups, kill_pair, own_group, scope_backend, threads_of, wait_until,
};

/// Where a world's processes and job groups are.
enum Home {
    /// In a group that the test made; job groups are directly below it, and nothing else is.
    Own(PathBuf),
    /// In a group that the test made, with a tree and a systemd as on a whole machine: [`super::manager`].
    Machine(PathBuf, Option<Inside>),
    /// In the session that the tests run in.
    Session(Session),
    /// Wherever the tests are; no group can be made.
    Unknown,
}

/// A lock, a queue, a cgroup and a home directory of a test's own. Everything is gone when it is dropped, and a test
/// that leaves a member, a group or a ticket behind can check that with [`World::assert_clean`].
pub(crate) struct World {
    directory: tempfile::TempDir,
    home: Home,
    uid: u32,
    /// What is there of cgroup v1, where there is nothing of v2.
    v1: Option<V1Only>,
}

/// A `quiet-limit` that no machine comes to.
pub(crate) const ANY: &str = "100000%";

/// Groups of a machine's own systemd.
const MANAGERS: [&str; 2] = ["init.scope", "dbus.service"];

impl World {
    /// For jobs of the user who runs the tests, in a cgroup of its own if one can be made.
    pub(crate) fn new() -> Self {
        Self::for_uid(nix::unistd::geteuid().as_raw())
    }

    /// For jobs of a plain user who owns the cgroup, as in a delegated one. Others can use the lock as well.
    pub(crate) fn for_uid(uid: u32) -> Self {
        if scope_backend() {
            return Self::furnished(uid, |world| {
                world.home = Home::Session(Session::new(&world.lock(), world.queue()));
            });
        }
        Self::furnished(uid, |world| {
            let Some(group) = new_group() else { return };
            for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
                std::os::unix::fs::chown(group.join(file), Some(uid), None).unwrap();
            }
            world.home = Home::Own(group);
        })
    }

    /// On a machine that has cgroup v1 only, with groups of the test's own in these hierarchies, which belong to the user. The
    /// world's cgroup is there all the same, where there is v2: everything that runs is in it, and cannot see it.
    pub(crate) fn on_v1(uid: u32, hierarchies: &[&str]) -> Self {
        let mut world = Self::for_uid(uid);
        world.v1 = Some(V1Only::new(uid, hierarchies));
        world
    }

    /// A command in this world that sees the hierarchy of v2, too.
    pub(crate) fn with_v2(&self, line: &str) -> Cmd {
        self.outside(line)
    }

    /// What it has of cgroup v1.
    pub(crate) fn v1(&self) -> &V1Only {
        self.v1.as_ref().expect("a world on v1")
    }

    /// For a machine with a systemd of its own. The group is root's, as the root of a real machine.
    pub(super) fn for_machine(uid: u32) -> Self {
        Self::furnished(uid, |world| world.home = Home::Machine(new_group().expect("this test needs V2"), None))
    }

    /// From now on every command is run in a session on the machine that was built here.
    pub(super) fn settle(&mut self, inside: Inside) {
        self.home = Home::Machine(self.group().to_owned(), Some(inside));
    }

    fn furnished(uid: u32, settle: impl FnOnce(&mut Self)) -> Self {
        let directory = tempfile::Builder::new().prefix("pltest-").tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let mut world = Self { directory, home: Home::Unknown, uid, v1: None };
        fs::write(world.lock(), "").unwrap();
        fs::create_dir(world.queue()).unwrap();
        fs::set_permissions(world.lock(), fs::Permissions::from_mode(0o666)).unwrap();
        fs::set_permissions(world.queue(), fs::Permissions::from_mode(0o1777)).unwrap();
        // As --setup makes it: whatever is run here, nothing of it is in the history of who runs the tests.
        fs::create_dir(world.histories()).unwrap();
        fs::set_permissions(world.histories(), fs::Permissions::from_mode(0o1777)).unwrap();
        world.install(uid);
        // Tests that run beside each other are no quiet machine: jobs are judged as everywhere, but nothing disturbs them.
        world.judge_quiet(ANY);
        settle(&mut world);
        world
    }

    /// Lets another user run the programs: the build directory may be closed to plain users.
    pub(crate) fn install(&self, uid: u32) {
        if uid != nix::unistd::geteuid().as_raw() {
            let _alone = EXECUTABLES.write();
            for name in ["perflock", "pls", "wholock"] {
                fs::copy(built(name), self.path(name)).unwrap();
            }
        }
    }

    /// Sets how much others may use while a job of this world has the machine (`quiet-limit`); with `none` no job is judged.
    pub(crate) fn judge_quiet(&self, limit: &str) {
        let file = self.path(".config/perflock/config.toml");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        let histories = self.histories();
        fs::write(file, format!("quiet-limit = '{limit}'\nhistory.directory = '{}'\n", histories.display())).unwrap();
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

    /// The directory of histories: exists, for everybody.
    pub(crate) fn histories(&self) -> PathBuf {
        self.path("histories")
    }

    fn own(&self) -> Option<&Path> {
        match &self.home {
            Home::Own(group) | Home::Machine(group, _) => Some(group),
            Home::Session(_) | Home::Unknown => None,
        }
    }

    /// The cgroup that everything runs in.
    pub(crate) fn group(&self) -> &Path {
        self.own().expect("this test needs OwnGroup")
    }

    /// The user whose commands these are.
    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    /// Writes a file.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Writes a program.
    pub(crate) fn script(&self, name: &str, text: &str) -> PathBuf {
        self.executable(name, text.as_bytes())
    }

    /// The same, of any kind.
    pub(crate) fn executable(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let _alone = EXECUTABLES.write();
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
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
        let cmd = self.outside(line);
        match (&self.home, &self.v1) {
            (Home::Machine(_, Some(inside)), _) => inside.enter(cmd),
            (_, Some(v1)) => v1.enter(cmd),
            _ => cmd,
        }
    }

    /// The same, not yet on the machine that the world has made.
    fn outside(&self, line: &str) -> Cmd {
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
            .env("XDG_STATE_HOME", self.path("state"))
            .env("PERFLOCK_LOCK", self.lock())
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("PERFLOCK_CONFIG")
            .env_remove("PERFLOCK_JOB")
            .env_remove("PERFLOCK_MODE")
            .env_remove("PERFLOCK_CPUS");
        // SAFETY: only system calls on values that exist already.
        unsafe { command.pre_exec(as_from_a_terminal) };
        let (group, kernel) = (self.own().map(Path::to_owned), Kernel::of_all());
        Cmd { command, uid: self.uid, group, namespaces: None, stdin: Vec::new(), kernel }
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

    /// The job groups that exist, as directories; without those of jobs inside jobs.
    pub(crate) fn job_groups(&self) -> Vec<PathBuf> {
        let own = |group: &Path| {
            let of_v1 = self.v1.iter().flat_map(V1Only::children);
            groups::children(group).into_iter().chain(of_v1).collect()
        };
        match &self.home {
            Home::Own(group) => own(group),
            Home::Machine(group, _) => groups::find(group, &MANAGERS, &groups::is_job),
            Home::Session(session) => session.groups(&groups::is_job),
            Home::Unknown => self.v1.iter().flat_map(V1Only::children).collect(),
        }
    }

    /// The scopes that systemd made for jobs. They go a moment later than the jobs.
    pub(crate) fn scopes(&self) -> Vec<PathBuf> {
        match &self.home {
            Home::Machine(group, _) => groups::find(group, &MANAGERS, &groups::is_scope),
            Home::Session(session) => session.groups(&groups::is_scope),
            Home::Own(_) | Home::Unknown => Vec::new(),
        }
    }

    /// Every process of the world, those in the groups of jobs included.
    pub(crate) fn processes(&self) -> Vec<i32> {
        match &self.home {
            Home::Own(group) => groups::processes(group, &[]),
            Home::Machine(group, _) => groups::processes(group, &MANAGERS),
            Home::Session(session) => session.processes(),
            Home::Unknown => self.v1.as_ref().map(V1Only::processes).unwrap_or_default(),
        }
    }

    /// No member, no job group, no ticket, and the lock is free. Waits for none of it: a job that ended has left
    /// nothing, its guard least of all, which a supervisor waits for. Only systemd may take its time with the empty scope.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        self.assert_no_job();
        let left = self.processes();
        let names: Vec<String> = left.iter().map(|&pid| describe(pid)).collect();
        assert_eq!(left, Vec::<i32>::new(), "processes were left: {names:?}");
        let scopes = self.scopes();
        wait_until(&format!("the jobs' scopes are gone: {scopes:?}"), || self.scopes().is_empty());
    }

    /// No job group, no ticket, and the lock is free, though processes outside of jobs may be in the world.
    #[track_caller]
    pub(crate) fn assert_no_job(&self) {
        assert_eq!(self.tickets(), Vec::<String>::new(), "tickets were left");
        assert_eq!(self.job_groups(), Vec::<PathBuf>::new(), "job groups were left");
        assert!(self.lock_is_free(), "the lock is held");
    }

    /// Like [`World::assert_clean`], but after a job whose supervisor was killed: nobody waits for its guard, which lets the lock
    /// go before it has exited. One that stays is a failure here as well.
    #[track_caller]
    pub(crate) fn wait_clean(&self) {
        wait_until("everything is gone", || {
            self.tickets().is_empty() && self.processes().is_empty() && self.lock_is_free()
        });
        self.assert_clean();
    }

    /// Nobody holds the lock file, in whatever mode.
    pub(crate) fn lock_is_free(&self) -> bool {
        let lock = fs::File::open(self.lock()).unwrap();
        // Let go by more than closing it: a child that another thread makes just now has it too, until it executes.
        lock.try_lock().is_ok() && lock.unlock().is_ok()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.v1.iter().for_each(V1Only::thaw);
        let end = Instant::now() + deadline();
        let gone = || match &self.home {
            Home::Own(group) | Home::Machine(group, _) => {
                // Only ever a group that this test made.
                assert!(group.file_name().unwrap().to_str().unwrap().starts_with("pltest-"));
                groups::kill(group) && groups::remove(group)
            }
            Home::Session(session) => session.end(),
            Home::Unknown => self.v1.as_ref().is_none_or(V1Only::kill),
        };
        while !gone() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A process in a message of a test that failed.
fn describe(pid: i32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("gone").trim();
    format!("{pid} ({}), {}, child of {}", field("Name:"), field("State:"), field("PPid:"))
}

/// A group of a test's own below ours. To perflock it is a unit that was delegated to it, also where the tests run
/// below a systemd: where they do not, nobody looks.
fn new_group() -> Option<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let group = own_group().ok()?.join(format!("pltest-{}-{number}.scope", std::process::id()));
    fs::create_dir(&group).unwrap();
    delegate(&group);
    Some(group)
}

/// What tests of several jobs have in common.
impl World {
    /// Starts a job that has the machine until it gets a signal: `world.holder("pls -q")`. Returns once it runs.
    #[track_caller]
    pub(crate) fn holder(&self, program: &str) -> Running {
        let holder = self.cmd(program).args(["sh", "-c", "echo running; exec sleep 600"]).spawn();
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
        let relative = groups::path_of(std::process::id().cast_signed());
        let depth = Path::new(&relative).components().count();
        self.group().ancestors().nth(depth).unwrap().to_owned()
    }
}
