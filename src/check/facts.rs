//! What is looked at: all the I/O of a check. Everything but the lock is found below a root, so that tests feed captured
//! machines.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::StatFs;

use super::groups::Groups;
use super::{boot, trial};
use crate::config::{ConfigError, SYSTEM_FILE};
use crate::kernel::{self, Unfit};
use crate::lock::record::FORMAT;
use crate::lock::{Joined, LockError, LockFile, Queue, outsiders, queue_directory, setup};
use crate::machine::Machine;
use crate::nested::{self, Outer};
use crate::procfs::Proc;
use crate::settings::{Environment, Settings};

/// Filesystems in memory: statfs(2).
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// Who asks, and by what means where a captured machine has none.
#[derive(Clone, Debug)]
pub struct Asker {
    /// The effective user.
    pub uid: u32,
    /// Their name.
    pub user: String,
    /// `DBUS_SESSION_BUS_ADDRESS`.
    pub bus_address: Option<OsString>,
    /// Whether a guard can do its work.
    pub try_guard: fn() -> io::Result<()>,
    /// What the kernel can do. Asked after the guard was tried.
    pub ask_kernel: fn() -> Kernel,
}

impl Asker {
    /// This process, which has one thread.
    pub(super) fn ourselves() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let try_guard = || {
            // SAFETY: perflock has one thread until it runs a job, and here none is run.
            unsafe { trial::guard() }
        };
        let bus_address = std::env::var_os("DBUS_SESSION_BUS_ADDRESS");
        Self { uid, user: crate::user::name(uid), bus_address, try_guard, ask_kernel: Kernel::ask }
    }
}

/// What the kernel, or the filter of a container, lets a program do.
#[derive(Debug)]
pub struct Kernel {
    /// As uname(2) tells it.
    pub release: String,
    /// Whether jobs can be run at all.
    pub fits: Result<(), Unfit>,
    /// A command can be born in its group.
    pub gives_birth: bool,
    /// A program can have threads. Whoever waits for the lock has one.
    pub has_threads: bool,
}

impl Kernel {
    /// This one. Makes a thread, which ends at once.
    fn ask() -> Self {
        let thread = std::thread::Builder::new().spawn(|| ());
        Self {
            release: kernel::release(),
            fits: kernel::check(),
            gives_birth: kernel::gives_birth_in_groups(),
            has_threads: thread.is_ok_and(|thread| thread.join().is_ok()),
        }
    }
}

/// Owner, group and mode of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// Its mode, the lowest twelve bits.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

impl Permissions {
    fn of(file: impl AsFd) -> Option<Self> {
        rustix::fs::fstat(file).ok().map(|stat| Self {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
        })
    }

    fn named(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = fs::symlink_metadata(path).ok()?;
        Some(Self { mode: metadata.mode() & 0o7777, uid: metadata.uid(), gid: metadata.gid() })
    }
}

/// The lock file and its queue.
#[derive(Debug)]
pub struct LockFacts {
    /// The lock file.
    pub path: PathBuf,
    /// It is this user's own, `--private`.
    pub private: bool,
    /// Whether it can be opened; `None` where its permissions cannot be had.
    pub file: Result<Option<Permissions>, LockError>,
    /// What its name says, also where it cannot be opened.
    pub named: Option<Permissions>,
    /// Whether the queue can be opened.
    pub queue: Result<Option<Permissions>, LockError>,
    /// Whether a ticket can be made there; `None` without a queue.
    pub ticket: Option<Result<(), LockError>>,
    /// How many tickets there are, and who has the lock file without one.
    pub jobs: usize,
    /// The job that this is a part of.
    pub inside: Result<Option<Outer>, String>,
    /// We are in a container.
    pub in_container: bool,
    /// The lock is gone after a boot; `None` if that cannot be known.
    pub is_in_memory: Option<bool>,
    /// It is made again at each boot; `None` where nothing makes files then.
    pub made_at_boot: Option<bool>,
    /// The command that sets it up, without sudo.
    pub set_up: String,
}

/// A configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFile {
    /// Where.
    pub path: PathBuf,
    /// What became of reading it.
    pub found: Found,
}

/// What became of reading a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It can be read.
    Read,
    /// There is none.
    None,
    /// It cannot be read, for this reason.
    Closed(String),
    /// Whether there is one cannot be seen, for this reason.
    Hidden(String),
}

/// Everything that is known of this machine, this user and this process.
#[derive(Debug)]
pub struct Facts {
    /// The effective user.
    pub uid: u32,
    /// Their name.
    pub user: String,
    /// The lock.
    pub lock: LockFacts,
    /// The configuration files.
    pub files: Vec<ConfigFile>,
    /// What is wrong with what they say: an error, or warnings.
    pub configuration: Result<Vec<String>, ConfigError>,
    /// Job groups.
    pub groups: Groups,
    /// Whether a guard can do its work.
    pub guard: io::Result<()>,
    /// The kernel.
    pub kernel: Kernel,
    /// Processes of other users can be seen.
    pub sees_others: bool,
    /// Who uses flock(2) can be seen.
    pub sees_locks: bool,
    /// How the machine is set.
    pub machine: Machine,
    /// The switch of the turbo is that of intel_pstate.
    pub is_intel_pstate: bool,
}

/// The configuration files that are read, and whether they can be.
pub fn config_files(environment: &Environment, flag: Option<&PathBuf>) -> Vec<ConfigFile> {
    let paths = match flag.or(environment.config.as_ref()) {
        Some(named) => vec![named.clone()],
        None => [PathBuf::from(SYSTEM_FILE)].into_iter().chain(environment.user_config.clone()).collect(),
    };
    let found = |path: &Path| match fs::File::open(path) {
        Ok(_) => Found::Read,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Found::None,
        Err(error) if path.symlink_metadata().is_ok() => Found::Closed(crate::error::reason(&error)),
        Err(error) => Found::Hidden(crate::error::reason(&error)),
    };
    paths.into_iter().map(|path| ConfigFile { found: found(&path), path }).collect()
}

impl Facts {
    /// Looks at the machine whose `/proc`, `/sys`, `/run`, `/etc`, `/usr` and `/var` are below `root`.
    ///
    /// # Errors
    /// There is no `/proc`.
    pub fn gather(
        root: &Path,
        asker: &Asker,
        settings: &Settings,
        files: Vec<ConfigFile>,
        configuration: Result<Vec<String>, ConfigError>,
    ) -> io::Result<Self> {
        let proc = Proc::at(root.join("proc"));
        // Before anything is opened: whoever has no /proc gets an answer to that, and not to what follows from it.
        let boot = proc.boot_id()?;
        let guard = (asker.try_guard)();
        let kernel = (asker.ask_kernel)();
        let lock = look_at_lock(root, &proc, &boot, settings);
        let is_free = lock.jobs == 0;
        let inside = matches!(lock.inside, Ok(Some(_)));
        Ok(Self {
            uid: asker.uid,
            user: asker.user.clone(),
            groups: Groups::look(root, &proc, asker, settings.cgroup, inside, is_free),
            lock,
            files,
            configuration,
            guard,
            kernel,
            // The first process is another user's, but root's own; root sees all.
            sees_others: proc.stat(1).is_ok(),
            sees_locks: proc.flocks(0, 0).is_ok(),
            machine: Machine::read(root),
            is_intel_pstate: root.join("sys/devices/system/cpu/intel_pstate/no_turbo").exists(),
        })
    }
}

fn look_at_lock(root: &Path, proc: &Proc, boot: &str, settings: &Settings) -> LockFacts {
    let path = if settings.private { setup::private_path() } else { settings.lock.clone() };
    let (file, queue) = (LockFile::open(&path), Queue::open(&queue_directory(&path)));
    let pid_namespace = proc.own_namespace("pid").unwrap_or(0);
    let inside = queue.as_ref().map_or(Ok(None), |queue| nested::find(proc, queue, boot, pid_namespace));
    let ticket = queue.as_ref().ok().map(|queue| queue.try_ticket(&nobody(boot)));
    let (file, queue, jobs) = match (file, queue) {
        (Ok(file), Ok(queue)) => {
            let jobs = users(proc, &file, &queue);
            (Ok(Permissions::of(&file)), Ok(Permissions::of(&queue)), jobs)
        }
        (file, queue) => (file.map(Permissions::of), queue.map(Permissions::of), 0),
    };
    let in_memory = |statfs: StatFs| IN_MEMORY.contains(&statfs.f_type.cast_unsigned());
    let directory = path.parent().unwrap_or(&path);
    let is_in_memory = rustix::fs::statfs(&path).or_else(|_| rustix::fs::statfs(directory)).ok().map(in_memory);
    LockFacts {
        private: settings.private,
        file,
        named: Permissions::named(&path),
        queue,
        ticket,
        jobs,
        inside,
        in_container: ["run/.containerenv", ".dockerenv"].iter().any(|mark| root.join(mark).exists()),
        is_in_memory,
        made_at_boot: boot::makes(root, &path),
        set_up: crate::settings::setup_command(&path),
        path,
    }
}

/// How many have the lock or wait for it. What is dead counts as well: its job may not be.
fn users(proc: &Proc, file: &LockFile, queue: &Queue) -> usize {
    let tickets = queue.entries().map_or(0, |entries| entries.len());
    // Everybody's: those with a ticket are in the queue in any case.
    let locks = if tickets > 0 { 0 } else { outsiders::outsiders(proc, file, &[]).map_or(0, |others| others.len()) };
    tickets.max(locks)
}

/// What a ticket says of nobody.
fn nobody(boot: &str) -> Joined {
    Joined {
        format: FORMAT,
        boot: boot.to_owned(),
        joined_usec: crate::clock::boottime_usec(),
        pid: std::process::id().cast_signed(),
        start_ticks: 0,
        pid_namespace: 0,
        cgroup_namespace: 0,
        mode: crate::job::Mode::Shared,
        command: Vec::new(),
        message: None,
        cores: None,
    }
}
