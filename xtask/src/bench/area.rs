//! Where a bench happens: a group and a directory of its own, made by an outer process that also clears them away.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};

use super::INSIDE;
use super::group::{Group, PREFIX};
use crate::{Failure, top, v1};

/// The hierarchies of v1 in which the bench has a group too, named like the one in v2, where there are such hierarchies.
const V1: [&str; 3] = ["cpuset", "cpuacct", "freezer"];

/// The file that kills the bench's group, for the signal handler.
static KILL: AtomicI32 = AtomicI32::new(-1);

/// A directory that is removed when dropped.
struct Directory(PathBuf);

impl Directory {
    /// Makes it, in memory if possible, as /run is where the lock usually lives.
    fn create() -> Result<Self, Failure> {
        let name = format!("{PREFIX}{}", std::process::id());
        let mut candidates = [PathBuf::from("/run"), PathBuf::from("/dev/shm"), std::env::temp_dir()];
        candidates.sort_by_key(|parent| !in_memory(parent));
        let made = candidates.iter().map(|parent| parent.join(&name)).find(|path| fs::create_dir(path).is_ok());
        made.map(Self).ok_or_else(|| "cannot make a directory in /run, /dev/shm or TMPDIR".to_owned())
    }
}

/// Whether this directory is on a tmpfs.
fn in_memory(directory: &Path) -> bool {
    let Ok(path) = std::ffi::CString::new(directory.as_os_str().as_encoded_bytes()) else { return false };
    // SAFETY: an all-zero statfs is valid, and it is only written to.
    let mut answer: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a string, and a valid place for the answer.
    let result = unsafe { libc::statfs(path.as_ptr(), &raw mut answer) };
    result == 0 && answer.f_type == libc::TMPFS_MAGIC
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("xtask: cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Runs this command of xtask once more with `arguments`, as a member of a new group, and clears up after it.
///
/// # Errors
/// The group, the directory or the process could not be made.
pub(crate) fn run_inside(what: &str, arguments: &[String]) -> Result<ExitCode, Failure> {
    // Dropped last first: the processes go before their files, and before what they were in besides.
    let directory = Directory::create()?;
    let name = format!("{PREFIX}{}", std::process::id());
    let v1 = V1.map(|controller| v1::Group::create(controller, &name));
    let group = Group::create()?;
    kill_on_signals(group.kill_file()?.into());
    let members = group.members_file()?;
    let own = std::env::current_exe().map_err(|error| format!("cannot find xtask itself: {error}"))?;
    let mut command = Command::new(own);
    command.args([what, INSIDE]).arg(&directory.0).arg(group.directory()).args(arguments);
    // SAFETY: the closure makes one async-signal-safe call on an open descriptor and allocates nothing.
    unsafe { command.pre_exec(move || join(&members)) };
    // Whoever shares the machine is told nothing about a job by these, nor is the configuration of this user used, nor the history.
    for name in ["PERFLOCK_JOB", "PERFLOCK_MODE", "PERFLOCK_LOCK", "PERFLOCK_CONFIG"] {
        command.env_remove(name);
    }
    command.env("XDG_CONFIG_HOME", &directory.0).env("XDG_STATE_HOME", &directory.0);
    // cargo's, for its own programs: it makes the loader look for every library in four directories more.
    command.env_remove("LD_LIBRARY_PATH");
    let status = command.status().map_err(|error| format!("cannot start the {what} in its group: {error}"));
    // A bench that is ended early may leave frozen processes, which do not die.
    v1.iter().flatten().for_each(|group| v1::thaw_tree(group.directory()));
    let status = status?;
    match status.code() {
        Some(0) => Ok(ExitCode::SUCCESS),
        Some(_) => Ok(ExitCode::FAILURE),
        None => Err(format!("the {what} was ended ({status})")),
    }
}

/// Moves this process to the group. Never while something is measured, since it stalls every fork of the machine.
pub(crate) fn join(members: &File) -> std::io::Result<()> {
    // SAFETY: one byte is read from a static string.
    match unsafe { libc::write(members.as_raw_fd(), c"0".as_ptr().cast(), 1) } {
        1 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// On ^C and the like the group is killed; this process stays, to clear up.
fn kill_on_signals(kill_file: OwnedFd) {
    KILL.store(kill_file.into_raw_fd(), Ordering::Relaxed);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only loads a number and writes to a descriptor: async-signal-safe.
        unsafe { libc::signal(signal, kill as *const () as libc::sighandler_t) };
    }
}

/// The signal handler.
extern "C" fn kill(_: libc::c_int) {
    // SAFETY: one byte is read from a static string, and the descriptor is never closed.
    unsafe { libc::write(KILL.load(Ordering::Relaxed), c"1".as_ptr().cast(), 1) };
}

/// Copies the programs, as any installation does. What a linker has just written through a mapping lies in the page cache
/// in single pages, and each start maps those one by one: 5 % of a cold start, which nobody has who installed the program.
fn install(built: &Path, installed: &Path) -> Result<(), Failure> {
    let copy = || {
        fs::create_dir_all(installed)?;
        for entry in fs::read_dir(built)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
                // A new file: one that is overwritten keeps its pages, and one that runs cannot be.
                let new = installed.join(entry.file_name()).with_extension("new");
                fs::copy(entry.path(), &new)?;
                fs::rename(new, installed.join(entry.file_name()))?;
            }
        }
        Ok(())
    };
    copy().map_err(|error: std::io::Error| format!("cannot copy the programs to {}: {error}", installed.display()))
}

/// What the inner process was given.
#[derive(Debug)]
pub(crate) struct Inside {
    /// Its directory for files.
    directory: PathBuf,
    /// The directory of its group.
    group: PathBuf,
    /// Where the programs are, as an installation leaves them.
    binaries: PathBuf,
}

impl Inside {
    /// Makes the lock and its queue in `directory`.
    ///
    /// # Errors
    /// They cannot be made.
    pub(crate) fn new(directory: &str, group: &str) -> Result<Self, Failure> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top().join("target"), |dir| top().join(dir));
        let binaries = target.join("bench");
        install(&target.join("release"), &binaries)?;
        let place = Self { directory: directory.into(), group: group.into(), binaries };
        let failed = |error| format!("cannot make a lock in {directory}: {error}");
        let lock = place.lock();
        File::create(&lock).map_err(failed)?;
        let queue = place.file("lock.d");
        fs::create_dir(&queue).map_err(failed)?;
        fs::set_permissions(&lock, fs::Permissions::from_mode(0o666)).map_err(failed)?;
        fs::set_permissions(&queue, fs::Permissions::from_mode(0o1777)).map_err(failed)?;
        Ok(place)
    }

    /// The lock file.
    pub(crate) fn lock(&self) -> PathBuf {
        self.file("lock")
    }

    /// A file of the bench.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The directory of the bench's group.
    pub(crate) fn group(&self) -> &Path {
        &self.group
    }

    /// The directory of the bench's group in a hierarchy of v1, where there is one. Asked before anybody enters it.
    pub(crate) fn v1_group(&self, controller: &str) -> Option<PathBuf> {
        let directory = v1::own_directory(controller)?.join(self.group.file_name()?);
        directory.exists().then_some(directory)
    }

    /// A program that the bench built, silent on stdout; what it says on stderr goes to the bench's log.
    ///
    /// # Errors
    /// The log cannot be opened.
    pub(crate) fn program(&self, name: &str) -> Result<Command, Failure> {
        self.silent(self.binaries.join(name))
    }

    /// The path of a program that the bench built.
    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        self.binaries.join(name)
    }

    /// Where lock and queue are, in words.
    pub(crate) fn lock_place(&self) -> String {
        let kind = if in_memory(&self.directory) { "in memory" } else { "on disk" };
        format!("lock {kind} ({})", self.directory.display())
    }

    /// Any program, with the same descriptors.
    ///
    /// # Errors
    /// The log cannot be opened.
    pub(crate) fn silent(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command, Failure> {
        let log = File::options().create(true).append(true).open(self.log());
        let log = log.map_err(|error| format!("cannot open {}: {error}", self.log().display()))?;
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Ok(command)
    }

    /// `perflock` with the bench's lock; the command and its arguments are still to be added.
    ///
    /// # Errors
    /// The log cannot be opened.
    pub(crate) fn perflock(&self) -> Result<Command, Failure> {
        let mut command = self.program("perflock")?;
        command.arg("--lock").arg(self.lock());
        Ok(command)
    }

    /// Where programs under test say what is wrong.
    fn log(&self) -> PathBuf {
        self.file("log")
    }

    /// A failure of a program under test, with the last thing it said.
    pub(crate) fn failed(&self, what: &str) -> Failure {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(3).collect();
        format!("{what}; its last words: {}", last.into_iter().rev().collect::<Vec<_>>().join(" / "))
    }
}
