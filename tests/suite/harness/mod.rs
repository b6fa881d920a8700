//! What tests run in: a world with its own lock and cgroup, a command builder, and waiting on conditions.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{OnceLock, RwLock};
use std::time::{Duration, Instant};

pub(crate) mod groups;
mod kernel;
mod manager;
mod process;
mod session;
mod terminal;
mod v1;
mod world;

pub(crate) use kernel::Kernel;
pub(crate) use manager::{Machine, delegate};
pub(crate) use process::{Cmd, Done, Running};
pub(crate) use terminal::Terminal;
pub(crate) use v1::V1Group;
pub(crate) use world::World;

/// How long any condition may take. Machines are slow at times; a condition that holds is never waited for longer.
pub(crate) fn deadline() -> Duration {
    patient(Duration::from_secs(20))
}

/// A time that a test allows, on this machine: `PERFLOCK_TEST_PATIENCE` says how many times slower it is than most, as
/// a virtual machine without virtualisation in hardware.
pub(crate) fn patient(time: Duration) -> Duration {
    static PATIENCE: OnceLock<u32> = OnceLock::new();
    let patience = std::env::var("PERFLOCK_TEST_PATIENCE").ok();
    time * *PATIENCE
        .get_or_init(|| patience.map_or(1, |text| text.parse().expect("PERFLOCK_TEST_PATIENCE is a number")))
}

/// Whether a process takes longer to start here than tests of pace allow.
pub(crate) fn is_slow() -> bool {
    patient(Duration::from_secs(1)) > Duration::from_secs(1)
}

/// Whether jobs are to get systemd scopes from the session that the tests run in: `PERFLOCK_TEST_BACKEND=scope`. Then no
/// world makes a group of its own.
pub(crate) fn scope_backend() -> bool {
    match std::env::var("PERFLOCK_TEST_BACKEND").as_deref() {
        Ok("scope") => true,
        Ok("" | "v2") | Err(_) => false,
        Ok(other) => panic!("PERFLOCK_TEST_BACKEND is scope or v2, not {other}"),
    }
}

/// Taken for writing while a program is written, and for reading while a process is made: a child that is forked
/// meanwhile has the file open for writing until it executes, and nobody can execute the file ("text file busy").
static EXECUTABLES: RwLock<()> = RwLock::new(());

/// A plain user and a second one. They need no entry in /etc/passwd.
pub(crate) const ALICE: u32 = 41_001;
/// The second plain user.
pub(crate) const BOB: u32 = 41_002;

/// What a test needs of the machine. A need that is not met skips the test and prints why; naming it in
/// `PERFLOCK_MUST_RUN` (comma-separated: `root,v2,group,scope,programs,v1,cores,kernel,filter,userns`) makes that a failure.
#[derive(Clone, Copy)]
pub(crate) enum Need {
    /// Root, to become other users.
    Root,
    /// A machine on which a process starts within milliseconds.
    Speed,
    /// Job groups: a cgroup v2 hierarchy in which this process may make groups, or a systemd that makes scopes.
    V2,
    /// A cgroup of the test's own, to do with as it likes.
    OwnGroup,
    /// What [`Machine`] is made of.
    Manager,
    /// A kernel that lets root say who logged in.
    LoginUid,
    /// A v1 hierarchy with this controller, in which groups can be made.
    V1(&'static str),
    /// Worlds with cgroup v1 only.
    V1Worlds,
    /// Processors 0 and 1 are for this process, and each is a core.
    TwoCores,
    /// A kernel with `cgroup.kill`.
    CgroupKill,
    /// A kernel that lets a test refuse system calls, and answer for some.
    Filter,
    /// A plain user may make a user namespace, and mount a /proc in it.
    UserNamespace,
    /// A program in PATH.
    Program(&'static str),
}

impl Need {
    fn missing(self) -> Option<(&'static str, String)> {
        match self {
            Self::Root if !nix::unistd::geteuid().is_root() => Some(("root", "not root".to_owned())),
            Self::V2 if scope_backend() => groups::mount().err().map(|why| ("v2", why)),
            Self::V1Worlds if !nix::unistd::geteuid().is_root() => Some(("root", "not root".to_owned())),
            Self::OwnGroup | Self::V1Worlds if scope_backend() => {
                Some(("group", "jobs are in scopes that systemd makes".to_owned()))
            }
            Self::V2 | Self::OwnGroup => own_group().err().map(|why| ("v2", why)),
            Self::Manager => manager::missing().map(|why| ("scope", why)),
            Self::Program(name) => (!installed(name)).then(|| ("programs", format!("{name} is not installed"))),
            Self::CgroupKill => {
                (!kernel::has_kill()).then(|| ("kernel", "the kernel has no cgroup.kill (Linux 5.14)".to_owned()))
            }
            Self::Filter => kernel::missing().map(|why| ("filter", why)),
            Self::LoginUid => {
                let written =
                    Command::new("sh").args(["-c", "echo 0 > /proc/self/loginuid"]).stderr(Stdio::null()).status();
                (!written.is_ok_and(|status| status.success()))
                    .then(|| ("root", "cannot set a login's user".to_owned()))
            }
            Self::UserNamespace => {
                let made = Command::new("setpriv")
                    .args(["--reuid", "41001", "--regid", "41001", "--clear-groups"])
                    .args(["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "true"])
                    .current_dir("/")
                    .stderr(Stdio::null())
                    .status();
                (!made.is_ok_and(|status| status.success()))
                    .then(|| ("userns", "a plain user cannot make a container here".to_owned()))
            }
            Self::V1(controller) => v1::own(controller).err().map(|why| ("v1", why)),
            Self::TwoCores => {
                let whole = (0..2).all(|cpu| is_a_core(cpu) && is_allowed(cpu));
                (!whole).then(|| ("cores", "cpus 0 and 1 are not two cores that this process may use".to_owned()))
            }
            Self::Speed if is_slow() => Some(("speed", "this machine is slow (PERFLOCK_TEST_PATIENCE)".to_owned())),
            Self::Root | Self::Speed | Self::V1Worlds => None,
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

/// The name of the user who runs the tests, as perflock says it.
pub(crate) fn me() -> String {
    let uid = nix::unistd::geteuid();
    nix::unistd::User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

/// Whether a program is in PATH.
fn installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(name).exists())
}

/// Whether a processor is online and alone on its core.
fn is_a_core(cpu: usize) -> bool {
    let topology = PathBuf::from(format!("/sys/devices/system/cpu/cpu{cpu}/topology"));
    let read = |name: &str| fs::read_to_string(topology.join(name)).ok();
    // The second is its name before Linux 5.4.
    let siblings = read("core_cpus_list").or_else(|| read("thread_siblings_list"));
    siblings.is_some_and(|list| list.trim() == cpu.to_string())
}

/// Whether this process may run on a processor.
fn is_allowed(cpu: usize) -> bool {
    // SAFETY: a zeroed set is a set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes as many bytes as it is told there are.
    let got = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    // SAFETY: the number is small.
    got == 0 && unsafe { libc::CPU_ISSET(cpu, &set) }
}

/// The directory of our own cgroup in the v2 hierarchy, if groups can be made in it.
fn own_group() -> Result<PathBuf, String> {
    let own = groups::path_of(std::process::id().cast_signed());
    let own = own.strip_prefix('/').ok_or("the kernel has no cgroup v2 hierarchy")?;
    let group = groups::mount()?.join(own);
    let probe = group.join(format!("pltest-probe-{}-{:?}", std::process::id(), std::thread::current().id()));
    fs::create_dir(&probe).map_err(|e| format!("cannot make a group in {}: {e}", group.display()))?;
    fs::remove_dir(&probe).map_err(|e| e.to_string())?;
    Ok(group)
}

/// The path of `perflock`, `pls` or `wholock` as it was built, or in the directory that `PERFLOCK_TEST_BIN` names.
fn built(name: &str) -> PathBuf {
    if let Some(directory) = std::env::var_os("PERFLOCK_TEST_BIN") {
        return Path::new(&directory).join(name);
    }
    match name {
        "perflock" => env!("CARGO_BIN_EXE_perflock").into(),
        "pls" => env!("CARGO_BIN_EXE_pls").into(),
        _ => env!("CARGO_BIN_EXE_wholock").into(),
    }
}

/// Copies a program into a world, so that its user can run it.
pub(crate) fn installed_as(world: &World, name: &str, program: &Path) -> PathBuf {
    let _alone = EXECUTABLES.write();
    let path = world.path(name);
    if path != program {
        fs::copy(program, &path).unwrap();
    }
    path
}

/// A file of the repository; `PERFLOCK_TEST_SOURCE` says where that is when the tests were built elsewhere.
#[track_caller]
pub(crate) fn source(path: &str) -> String {
    let root = std::env::var("PERFLOCK_TEST_SOURCE").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
    let path = Path::new(&root).join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Waits until a condition holds, and fails with its name when it does not in time.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + deadline();
    while !condition() {
        assert!(Instant::now() < end, "did not come true in {:?}: {what}", deadline());
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
