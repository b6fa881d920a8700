//! A job group in the cgroup v2 hierarchy, also where v1 hierarchies own the controllers: membership, CPU time, kill
//! and events need none. Kernel side: Documentation/admin-guide/cgroup-v2.rst.

mod location;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub use location::Location;
use rustix::fs::{OFlags, inotify};

use super::door::{self, Door};
use super::{Entry, GroupError, JobGroup, Maker, Population, Usage, freeze, unified, usage};
use crate::error::FileError;
use crate::job::GROUP_PREFIX;
use crate::procfs::{self, Proc};

/// A job group.
#[derive(Debug)]
pub struct Group {
    location: Location,
    door: Door,
    events: File,
}

impl Group {
    /// Makes the group `name` below `parent`.
    ///
    /// # Errors
    /// The name is not one of ours, or the kernel refused.
    pub fn create(parent: &Location, name: &str) -> Result<Self, GroupError> {
        let location = parent.child(name);
        check_name(&location.path)?;
        let path = location.directory();
        fs::create_dir(&path).map_err(FileError::on("create the group", &path))?;
        // Without it nothing could be killed: better none than a group that holds the machine for ever.
        let killable = [KILL, freeze::FILE].iter().any(|file| path.join(file).exists());
        let group = Self::open(location).and_then(|group| match killable {
            true => Ok(group),
            false => Err(GroupError::Refused {
                path: path.clone(),
                why: "it has neither cgroup.kill nor cgroup.freeze (Linux 5.2)",
            }),
        });
        group.inspect_err(|_| {
            let _ = fs::remove_dir(&path);
        })
    }

    /// Opens a group that a dead job left, to look at it or to kill it. `owner` is the user whose ticket named it: a
    /// forged ticket must not make root kill somebody else's group. `None` if the group is gone.
    ///
    /// # Errors
    /// The group is not that user's, or not one of ours.
    pub fn adopt(location: Location, owner: u32) -> Result<Option<Self>, GroupError> {
        check_name(&location.path)?;
        let path = location.directory();
        let refused = |why| GroupError::Refused { path: path.clone(), why };
        if !location.is_plain() {
            return Err(refused("its path is not a plain one"));
        }
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if is_no_place(&error) => return Ok(None),
            Err(error) => return Err(FileError::on("look at the group", &path)(error).into()),
        };
        if metadata.uid() != owner {
            return Err(refused("it belongs to another user than the ticket that names it"));
        }
        let mut opened = Self::open(location.clone());
        if matches!(&opened, Err(GroupError::File(error)) if is_denied(&error.source)) {
            open_up(&path);
            opened = Self::open(location);
        }
        match opened {
            Ok(group) => Ok(Some(group)),
            Err(GroupError::File(error)) if error.source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open(location: Location) -> Result<Self, GroupError> {
        let path = location.directory();
        let door = Door::of(&path)?;
        let magic = rustix::fs::fstatfs(door.directory()).map_err(FileError::on("look at", &path))?.f_type;
        if magic != libc::CGROUP2_SUPER_MAGIC {
            return Err(GroupError::Refused { path, why: "it is not in a cgroup v2 hierarchy" });
        }
        let events = door::open(&path.join("cgroup.events"), OFlags::RDONLY)?;
        Ok(Self { location, door, events })
    }

    /// Where it is in the hierarchy.
    pub fn path(&self) -> &Path {
        &self.location.path
    }

    /// Where it is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// The way into it.
    pub(super) fn entry(&self) -> Entry<'_> {
        self.door.entry()
    }

    /// Whether there is the file that kills it: the kernel may be too old. One that cannot be seen is there.
    fn has_kill(&self) -> bool {
        let file = fs::symlink_metadata(self.location.directory().join(KILL));
        !file.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    fn read_events(&self) -> io::Result<String> {
        let mut text = [0; 128];
        let length = self.events.read_at(&mut text, 0)?;
        Ok(String::from_utf8_lossy(&text[..length]).into_owned())
    }

    /// Kills every member once, by what the kernel has for it.
    fn kill_once(&self) -> Result<(), String> {
        let directory = self.location.directory();
        if self.has_kill() {
            return unified::kill(&self.location.mount, &self.location.relative).map_err(|error| error.to_string());
        }
        let killed = freeze::kill(self, &directory, || self.read_events().unwrap_or_default());
        killed.map_err(|error| format!("it cannot be frozen: {}", crate::error::reason(&error)))
    }

    /// Refuses to touch a group that contains ourselves. Its name was checked when it was opened.
    fn check_not_ours(&self) -> Result<(), GroupError> {
        let refused = |why| GroupError::Refused { path: self.location.directory(), why };
        match Proc::default().own_cgroup_v2() {
            Ok(own) if own.starts_with(&self.location.path) => Err(refused("this process is a member of it")),
            Ok(_) => Ok(()),
            Err(_) => Err(refused("it cannot be told whether this process is a member of it")),
        }
    }
}

/// The file in a group's directory that kills it, and everything below: Linux 5.14.
const KILL: &str = "cgroup.kill";

/// A job group's own component begins with our prefix, and it is never the root.
pub(super) fn check_name(path: &Path) -> Result<(), GroupError> {
    match path.file_name().and_then(OsStr::to_str) {
        Some(name) if name.starts_with(GROUP_PREFIX) => Ok(()),
        _ => Err(GroupError::Refused { path: path.to_owned(), why: "its name is not a job group's" }),
    }
}

/// Whether there is no group at a path, and none can be: it is free, leads through a file, is longer than the kernel takes,
/// or has a NUL byte, of which the kernel is not asked. A ticket with such a path must not keep the machine from everybody.
pub(super) fn is_no_place(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound};
    match error.kind() {
        NotFound | NotADirectory | InvalidFilename => true,
        InvalidInput => error.raw_os_error().is_none(),
        _ => false,
    }
}

/// The processes in the group at `directory` and in every group below it, and these groups. A threaded sub-group refuses; its
/// processes are listed by the group above it.
pub(crate) fn processes_and_groups_below(directory: &Path) -> (Vec<i32>, Vec<PathBuf>) {
    let Walk { pids, groups, .. } = walk(directory);
    (pids, groups)
}

pub(super) struct Walk {
    pub(super) pids: Vec<i32>,
    groups: Vec<PathBuf>,
    /// Not all of it could be seen, for want of permission.
    pub(super) denied: bool,
}

pub(super) fn walk(directory: &Path) -> Walk {
    let (groups, mut denied) = tree_or_denied(directory);
    let mut pids = Vec::new();
    for group in &groups {
        let text = procfs::read(&group.join("cgroup.procs"));
        denied |= text.as_ref().is_err_and(is_denied);
        let text = text.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        // 0 stands for a process of another pid namespace, or one in its last exit.
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|&pid| pid > 0));
    }
    Walk { pids, groups, denied }
}

pub(super) fn is_denied(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// Gives the owner's own rights back to the owner, in the group and everywhere below: a job may have taken them away, so that
/// nobody sees or removes what it made there. Others' groups are left as they are.
pub(super) fn open_up(directory: &Path) {
    let mut pending = vec![directory.to_owned()];
    while let Some(group) = pending.pop() {
        let own = [
            ("", 0o700),
            ("cgroup.procs", 0o600),
            (KILL, 0o200),
            (freeze::FILE, 0o600),
            ("cgroup.events", 0o400),
            // Those of v1.
            ("tasks", 0o600),
            ("freezer.state", 0o600),
        ];
        for (file, rights) in own {
            let path = group.join(file);
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let mode = metadata.mode() & 0o7777;
            if mode & rights != rights {
                let _ = fs::set_permissions(&path, fs::Permissions::from_mode(mode | rights));
            }
        }
        pending.extend(subgroups(&group).unwrap_or_default());
    }
}

/// The groups directly below.
pub(super) fn subgroups(group: &Path) -> io::Result<Vec<PathBuf>> {
    let mut below = Vec::new();
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            below.push(entry.path());
        }
    }
    Ok(below)
}

/// The group and every group below, each before its own sub-groups.
pub(super) fn tree(directory: &Path) -> Vec<PathBuf> {
    tree_or_denied(directory).0
}

/// The same, and whether there may be more, for want of permission.
fn tree_or_denied(directory: &Path) -> (Vec<PathBuf>, bool) {
    let mut groups = vec![directory.to_owned()];
    let mut denied = false;
    let mut next = 0;
    while let Some(group) = groups.get(next) {
        next += 1;
        // kernfs counts a directory's links: its own two, and one for each directory in it. Most groups have none, and reading
        // the names of all their files is what takes longest.
        if fs::metadata(group).is_ok_and(|metadata| metadata.nlink() == 2) {
            continue;
        }
        match subgroups(group) {
            Ok(below) => groups.extend(below),
            Err(error) => denied |= is_denied(&error),
        }
    }
    (groups, denied)
}

pub(crate) fn parse_population(events: &str) -> Population {
    // What cannot be read as empty is not taken for empty.
    match usage::keyed(events, "populated") {
        Some(0) => Population::Empty,
        _ => Population::Populated,
    }
}

impl JobGroup for Group {
    fn maker(&self) -> Maker<'_> {
        Maker::Into(self.entry())
    }

    fn exclude(&mut self, _: i32) {}

    fn population(&self) -> Population {
        match self.read_events() {
            Ok(events) => parse_population(&events),
            // The open file of a group that was removed.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Population::Empty,
            Err(_) => Population::Populated,
        }
    }

    fn changes(&self) -> Option<BorrowedFd<'_>> {
        Some(self.events.as_fd())
    }

    fn removal(&self) -> Option<OwnedFd> {
        // The group's own directory tells nothing of its end; the one above it does.
        let above = self.location.directory().parent()?.to_owned();
        let watcher = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
        inotify::add_watch(&watcher, &above, inotify::WatchFlags::DELETE | inotify::WatchFlags::ONLYDIR).ok()?;
        Some(watcher)
    }

    fn members(&self) -> Vec<i32> {
        let directory = self.location.directory();
        let mut found = walk(&directory);
        if found.denied {
            open_up(&directory);
            found = walk(&directory);
        }
        found.pids
    }

    fn contains(&self, pid: i32) -> bool {
        Proc::default().cgroup_v2(pid).is_ok_and(|path| path.starts_with(&self.location.path))
    }

    fn kill(&self) -> Result<(), GroupError> {
        self.check_not_ours()?;
        let killed = self.kill_once().or_else(|_| {
            open_up(&self.location.directory());
            self.kill_once()
        });
        match killed {
            Ok(()) => Ok(()),
            Err(_) if self.population() == Population::Empty => Ok(()),
            Err(why) => Err(GroupError::Kill { path: self.location.directory(), why }),
        }
    }

    fn usage(&self, read: fn(&Path) -> Usage) -> Usage {
        read(&self.location.directory())
    }

    fn remove(&self) -> Result<(), GroupError> {
        let path = self.location.directory();
        match fs::remove_dir(&path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // The job made sub-groups of its own.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(FileError::on("remove the group", &path)(error).into()),
        }
        remove_tree(&path).or_else(|_| {
            open_up(&path);
            remove_tree(&path)
        })
    }

    fn inode(&self) -> Option<u64> {
        rustix::fs::fstat(self.door.directory()).ok().map(|it| it.st_ino)
    }

    fn v2_location(&self) -> Option<&Location> {
        Some(&self.location)
    }

    fn kills_by_signals(&self) -> bool {
        !self.has_kill()
    }

    fn ways(&self) -> String {
        let enters = match self.entry() {
            Entry::Born(_) => "the command is born in it",
            Entry::Joins(_) => "the command joins it (no clone3(2) with CLONE_INTO_CGROUP here)",
        };
        let dies = if self.has_kill() {
            "it is killed by cgroup.kill"
        } else {
            "it is frozen to be killed (no cgroup.kill here)"
        };
        format!("{enters}, and {dies}")
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.door.directory(), self.events.as_fd()]
    }
}

fn remove_tree(directory: &Path) -> Result<(), GroupError> {
    for group in tree(directory).into_iter().rev() {
        match fs::remove_dir(&group) {
            // systemd tidies up a scope that it saw empty.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done.map_err(FileError::on("remove the group", &group))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Component;

    fn location(relative: &str) -> Location {
        Location {
            mount: PathBuf::from("/nonexistent"),
            relative: PathBuf::from(relative),
            path: Path::new("/").join(relative),
        }
    }

    #[test]
    fn only_groups_of_our_naming_are_made_or_adopted() {
        for name in ["", "ssh.service", "a/perflock", "perflock"] {
            assert!(matches!(Group::adopt(location(name), 0), Err(GroupError::Refused { .. })), "{name}");
        }
        assert!(matches!(Group::create(&location("a"), "system.slice"), Err(GroupError::Refused { .. })));
        assert!(matches!(Group::adopt(location("../perflock-1"), 0), Err(GroupError::Refused { .. })));
        assert!(Group::adopt(location("a/perflock-1"), 0).unwrap().is_none());
    }

    #[test]
    fn a_path_that_no_group_can_have_names_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let through_a_file = Location { mount: file.path().to_owned(), ..location("a/perflock-1") };
        let (long, longer) = (format!("{}/perflock-1", "a".repeat(300)), format!("{}perflock-1", "a/".repeat(2500)));
        for place in [through_a_file, location("a\0b/perflock-1"), location(&long), location(&longer)] {
            assert!(matches!(Group::adopt(place.clone(), 0), Ok(None)), "{place:?}");
        }
    }

    #[test]
    fn a_directory_elsewhere_is_not_a_group() {
        let directory = tempfile::tempdir().unwrap();
        let parent = Location { mount: directory.path().to_owned(), relative: PathBuf::new(), path: "/".into() };
        assert!(matches!(Group::create(&parent, "perflock-1"), Err(GroupError::Refused { .. })));
        assert!(!directory.path().join("perflock-1").exists());
    }

    #[test]
    fn only_a_clear_zero_is_empty() {
        assert_eq!(parse_population("populated 0\nfrozen 0\n"), Population::Empty);
        for events in ["populated 1\nfrozen 0\n", "", "frozen 0\n", "populated x\n"] {
            assert_eq!(parse_population(events), Population::Populated, "{events}");
        }
    }

    proptest! {
        /// Taken for empty, members would be left to run beside the next job.
        #[test]
        fn any_events_but_a_clear_zero_are_populated(
            events in "(populated|frozen|pop|\\PC{0,5})? ?[01x]{0,3}\n?(frozen 0\n)?(populated [01]\n)?",
        ) {
            let says_zero = |line: &str| line.strip_prefix("populated ").is_some_and(|value| value.parse() == Ok(0));
            if parse_population(&events) == Population::Empty {
                prop_assert!(events.lines().any(says_zero), "{:?}", events);
            }
        }

        /// A path that a ticket names: below the mount, by its own name, or not touched.
        #[test]
        fn no_path_is_adopted_that_leads_elsewhere(path in "(/|[.]{1,2}|perflock-|a){0,8}") {
            let adopted = Group::adopt(location(path.trim_start_matches('/')), 0);
            let plain = Path::new(path.trim_start_matches('/'));
            let named = plain.file_name().is_some_and(|name| name.to_str().unwrap().starts_with(GROUP_PREFIX));
            if !named || plain.components().any(|part| !matches!(part, Component::Normal(_))) {
                prop_assert!(matches!(adopted, Err(GroupError::Refused { .. })), "{:?}", path);
            }
        }
    }
}
