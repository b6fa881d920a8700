//! Worlds in the very session that the tests run in, `PERFLOCK_TEST_BACKEND=scope`: no group is made for a world, and
//! systemd makes a scope for every job, somewhere in the tree of the machine.
//!
//! # Whose is a group?
//!
//! A world knows its processes by their environment, which names its lock, and its groups by the tickets that it saw in
//! its queue, or by a member that is its own. A group that nobody is in and whose ticket was gone before the world looked
//! is taken for its own if the job joined within the world's life and no other world of this process lives: run the tests
//! with `--test-threads 1`, on a machine where nobody else uses perflock. A process that empties its environment is seen
//! only in its job's group.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::groups;

/// How many worlds of this process live.
static LIVING: AtomicU32 = AtomicU32::new(0);

/// What a world in a session knows.
pub(super) struct Session {
    mount: PathBuf,
    queue: PathBuf,
    marker: String,
    born_usec: u64,
    /// The jobs that were seen in the queue, by the name of their group.
    seen: Mutex<BTreeSet<String>>,
}

/// Microseconds since boot, on the clock that tickets use.
fn boottime_usec() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000 + u64::try_from(now.tv_nsec).unwrap() / 1000
}

impl Session {
    pub(super) fn new(lock: &Path, queue: PathBuf) -> Self {
        LIVING.fetch_add(1, Ordering::SeqCst);
        Self {
            mount: groups::mount().expect("this backend needs cgroup v2"),
            queue,
            marker: format!("PERFLOCK_LOCK={}", lock.display()),
            born_usec: boottime_usec(),
            seen: Mutex::default(),
        }
    }

    /// Whether the process was started with this world's lock in its environment; `None` if that cannot be read.
    fn owns(&self, pid: i32) -> Option<bool> {
        let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
        Some(environ.split(|&byte| byte == 0).any(|entry| entry == self.marker.as_bytes()))
    }

    /// The names of this world's jobs, with those that are in the queue now.
    fn jobs(&self) -> BTreeSet<String> {
        let mut seen = self.seen.lock().unwrap();
        for entry in fs::read_dir(&self.queue).into_iter().flatten().flatten() {
            let name = |entry: &fs::DirEntry| {
                // Tests put other things there than tickets.
                entry.metadata().ok().filter(|metadata| metadata.is_file() && metadata.len() < 1 << 16)?;
                let number = entry.file_name().into_string().ok()?.split_once('.')?.0.to_owned();
                let text = fs::read_to_string(entry.path()).ok()?;
                let joined: serde_json::Value = serde_json::from_str(text.lines().next()?).ok()?;
                let boot: String = joined["boot"].as_str()?.split('-').next()?.to_owned();
                let inode = entry.metadata().ok()?.ino();
                Some(format!("perflock-{number}-{inode:x}-{boot}-{:x}", joined["joined_usec"].as_u64()?))
            };
            seen.extend(name(&entry));
        }
        seen.clone()
    }

    /// The groups of the world's jobs, or the scopes around them.
    pub(super) fn groups(&self, kind: &dyn Fn(&str) -> bool) -> Vec<PathBuf> {
        let jobs = self.jobs();
        let ours = |group: &PathBuf| {
            let name = group.file_name().unwrap().to_string_lossy().into_owned();
            let name = name.strip_suffix(".scope").unwrap_or(&name);
            let members = groups::processes(group, &[]);
            if jobs.contains(name) || members.iter().any(|&pid| self.owns(pid) == Some(true)) {
                return true;
            }
            let joined = name.rsplit('-').next().and_then(|usec| u64::from_str_radix(usec, 16).ok());
            members.is_empty() && joined >= Some(self.born_usec) && LIVING.load(Ordering::SeqCst) == 1
        };
        groups::find(&self.mount, &[], kind).into_iter().filter(ours).collect()
    }

    /// The processes of the world, those of its jobs included.
    pub(super) fn processes(&self) -> Vec<i32> {
        let mut found: BTreeSet<i32> = BTreeSet::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            found.extend(pid.filter(|&pid| self.owns(pid) == Some(true)));
        }
        for scope in self.groups(&groups::is_scope) {
            found.extend(groups::processes(&scope, &[]));
        }
        found.into_iter().collect()
    }

    /// Kills what a test that failed left. Each process is told by its environment, before and after it is pinned.
    pub(super) fn end(&self) -> bool {
        use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
        for group in self.groups(&groups::is_job) {
            groups::kill(&group);
        }
        for pid in self.processes() {
            let pinned = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
            if let Some(pinned) = pinned.filter(|_| self.owns(pid) == Some(true)) {
                let _ = pidfd_send_signal(&pinned, Signal::KILL);
            }
        }
        self.processes().is_empty()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        LIVING.fetch_sub(1, Ordering::SeqCst);
    }
}
