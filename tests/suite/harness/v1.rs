//! Groups of a test's own in the hierarchies of cgroup v1, below the groups that the tests themselves are in.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::process::Cmd;
use super::{deadline, groups};

/// The group of the tests in the hierarchy of a controller, if groups can be made below.
pub(super) fn own(controller: &str) -> Result<PathBuf, String> {
    let no_hierarchy = || format!("the kernel has no v1 hierarchy with {controller}");
    let own = fs::read_to_string("/proc/self/cgroup").map_err(|e| e.to_string())?;
    let path = own.lines().find_map(|line| {
        let (names, path) = line.split_once(':')?.1.split_once(':')?;
        names.split(',').any(|name| name == controller).then(|| path.to_owned())
    });
    let path = path.ok_or_else(no_hierarchy)?;
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").map_err(|e| e.to_string())?;
    let group = mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let (kind, options) = (filesystem.split(' ').next()?, filesystem.split(' ').nth(2)?);
        if kind != "cgroup" || !options.split(',').any(|option| option == controller) {
            return None;
        }
        let (root, mount) = (mount.split(' ').nth(3)?, mount.split(' ').nth(4)?);
        Some(Path::new(mount).join(Path::new(&path).strip_prefix(root).ok()?))
    });
    let group = group.ok_or_else(|| format!("the hierarchy with {controller} is not mounted"))?;
    let probe = group.join(format!("pltest-probe-{}-{:?}", std::process::id(), std::thread::current().id()));
    fs::create_dir(&probe).map_err(|e| format!("cannot make a group in {}: {e}", group.display()))?;
    fs::remove_dir(&probe).map_err(|e| e.to_string())?;
    Ok(group)
}

/// Such a group. It is removed when it is dropped, with those below.
pub(crate) struct V1Group(PathBuf);

impl V1Group {
    /// A new one, if there is the hierarchy.
    pub(crate) fn new(controller: &str) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let group = own(controller).ok()?.join(format!("pltest-{}-{number}", std::process::id()));
        fs::create_dir(&group).unwrap();
        Some(Self(group))
    }

    /// A new cpuset of these processors, with the memory nodes of the one above.
    pub(crate) fn cpuset(cpus: &str) -> Option<Self> {
        let group = Self::new("cpuset")?;
        let mems = fs::read_to_string(group.0.parent().unwrap().join("cpuset.mems")).unwrap();
        group.set("cpuset.mems", mems.trim());
        group.set("cpuset.cpus", cpus);
        Some(group)
    }

    /// Its directory.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes to one of its files.
    #[track_caller]
    pub(crate) fn set(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).unwrap();
    }

    /// Reads one of its files.
    #[track_caller]
    pub(crate) fn get(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap().trim().to_owned()
    }

    /// A user may make groups in it, and put processes of its own into it.
    pub(crate) fn give(&self, uid: u32) {
        for file in ["", "cgroup.procs", "tasks"] {
            std::os::unix::fs::chown(self.0.join(file), Some(uid), None).unwrap();
        }
    }

    /// Has the command run in it.
    pub(crate) fn enter(&self, cmd: Cmd) -> Cmd {
        let tasks = File::options().write(true).open(self.0.join("tasks")).unwrap();
        cmd.before_exec(move || Ok(nix::unistd::write(&tasks, b"0").map(|_| ())?))
    }

    /// The groups that jobs have in it.
    pub(crate) fn children(&self) -> Vec<PathBuf> {
        groups::children(&self.0)
    }
}

impl Drop for V1Group {
    fn drop(&mut self) {
        // Only ever a group that this test made.
        assert!(self.0.file_name().unwrap().to_str().unwrap().starts_with("pltest-"));
        let end = Instant::now() + deadline();
        while !groups::remove(&self.0) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// What a machine has that was booted with cgroup v1 only: groups of a test's own in some of its hierarchies.
pub(crate) struct V1Only(Vec<(String, V1Group)>);

impl V1Only {
    pub(super) fn new(uid: u32, hierarchies: &[&str]) -> Self {
        let group = |&hierarchy: &&str| {
            let group = match hierarchy {
                "cpuset" => own("cpuset")
                    .ok()
                    .and_then(|above| V1Group::cpuset(fs::read_to_string(above.join("cpuset.cpus")).unwrap().trim())),
                _ => V1Group::new(hierarchy),
            };
            let group = group.unwrap_or_else(|| panic!("no groups can be made in {hierarchy}"));
            group.give(uid);
            (hierarchy.to_owned(), group)
        };
        Self(hierarchies.iter().map(group).collect())
    }

    /// The group that everything runs in, in one of the hierarchies.
    #[track_caller]
    pub(crate) fn group(&self, hierarchy: &str) -> &V1Group {
        &self.0.iter().find(|(name, _)| name == hierarchy).expect("a hierarchy of this world").1
    }

    /// The groups of jobs in all of them.
    pub(super) fn children(&self) -> Vec<PathBuf> {
        self.0.iter().flat_map(|(_, group)| group.children()).collect()
    }

    /// Has a command run in these groups, and see no hierarchy of v2.
    pub(super) fn enter(&self, cmd: Cmd) -> Cmd {
        let inside = self.0.iter().fold(cmd, |cmd, (_, group)| group.enter(cmd));
        let Ok(mount) = groups::mount() else { return inside };
        let mount = CString::new(mount.as_os_str().as_bytes()).unwrap();
        inside.before_exec(move || without(&mount))
    }

    /// Every process that is in these groups, or below.
    pub(super) fn processes(&self) -> Vec<i32> {
        groups::processes(self.0[0].1.path(), &[])
    }

    /// Kills them, once; whether there are none.
    pub(super) fn kill(&self) -> bool {
        let left = self.processes();
        for &pid in &left {
            // SAFETY: only sends a signal, to what a test started: nobody else is in its groups.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        left.is_empty()
    }

    /// What a test left frozen could not be killed.
    pub(super) fn thaw(&self) {
        let frozen = self.0.iter().filter(|(name, _)| name == "freezer");
        for group in frozen.flat_map(|(_, group)| groups::find(group.path(), &[], &|_| true)) {
            for group in groups::find(&group, &[], &|_| true).into_iter().chain([group]) {
                let _ = fs::write(group.join("freezer.state"), "THAWED");
            }
        }
    }
}

/// Takes a mount away from this process and its children. Async-signal-safe.
fn without(mount: &CString) -> std::io::Result<()> {
    let none = std::ptr::null();
    // SAFETY: a new namespace for the mounts, of this process alone.
    let mut done = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    if done == 0 {
        // SAFETY: the strings are valid; nothing is mounted, and what is changed is seen from here alone.
        done = unsafe { libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()) };
    }
    if done == 0 {
        // SAFETY: the path is a valid string.
        done = unsafe { libc::umount2(mount.as_ptr(), libc::MNT_DETACH) };
    }
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
