//! Which backends this machine offers to this process.
//!
//! They are tried from the strongest down; each one that is refused says why. On a machine that systemd runs, groups are
//! systemd's: below a unit that it delegated, one is made directly (v2), elsewhere it is asked for a scope. Where no v2
//! hierarchy is mounted, those of v1 are looked at. A candidate is a function from the machine to a [`Place`] or a
//! [`Refusal`].

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags};

use super::Backend;
use super::legacy::{self, Site};
use super::systemd::Manager;
use super::v2::Location;
use crate::job::GROUP_PREFIX;
use crate::kernel;
use crate::procfs::{self, Proc};

/// Where a job group will be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a scope of this service manager's.
    Scope(Manager),
    /// Directly below this group.
    V2(Location),
    /// Below groups in hierarchies of cgroup v1.
    V1(Site),
    /// Nowhere: the fallback.
    Subreaper,
}

impl Place {
    /// The backend that makes it.
    pub fn backend(&self) -> Backend {
        match self {
            Self::Scope(_) => Backend::Scope,
            Self::V2(_) => Backend::V2,
            Self::V1(_) => Backend::V1,
            Self::Subreaper => Backend::Subreaper,
        }
    }
}

/// A backend that cannot be used here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which.
    pub backend: Backend,
    /// Why, as a sentence fragment.
    pub why: String,
    /// What mends it, if that is known.
    pub cure: Option<String>,
}

impl Refusal {
    pub(super) fn new(backend: Backend, why: String) -> Self {
        Self { backend, why, cure: None }
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detected {
    /// What can be had, the strongest first. The last is the fallback, unless it was refused.
    pub places: Vec<Place>,
    /// What cannot, and why not.
    pub refused: Vec<Refusal>,
}

impl Detected {
    /// Why not stronger, in one line.
    pub fn reasons(&self) -> String {
        let reasons = self.refused.iter().map(|refusal| format!("{}: {}", refusal.backend, refusal.why));
        reasons.collect::<Vec<_>>().join("; ")
    }

    /// The one command that mends it, or what else does.
    pub fn cure(&self) -> String {
        let cure = self.refused.iter().find_map(|refusal| refusal.cure.clone());
        cure.unwrap_or_else(|| "run perflock as root or in a delegated cgroup".to_owned())
    }
}

/// What is looked at besides `/proc`.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// `/`, but in tests.
    pub root: &'a Path,
    /// `/proc/self/mountinfo`.
    pub mountinfo: &'a str,
    /// Our effective user.
    pub uid: u32,
    /// `DBUS_SESSION_BUS_ADDRESS`.
    pub bus_address: Option<&'a OsStr>,
}

/// Looks for backends. Nobody is asked anything yet: that is done when the machine is ours.
pub fn detect(proc: &Proc, machine: &Machine<'_>) -> Detected {
    let mut found = Detected { places: Vec::new(), refused: Vec::new() };
    let own = own_location(proc, machine.mountinfo);
    let ours = own.as_ref().is_ok_and(is_delegated);
    let usable = own.and_then(|own| kernel_can(&own).map(|()| own));
    let mut candidates = [scope_candidate(usable.as_ref(), machine), Some(v2_candidate(usable.clone()))];
    if ours {
        candidates.reverse();
    }
    let v1 = if is_mounted(machine.mountinfo) { None } else { legacy::candidate(proc, machine) };
    for candidate in candidates.into_iter().flatten().chain(v1) {
        match candidate {
            Ok(place) => found.places.push(place),
            Err(refusal) => found.refused.push(refusal),
        }
    }
    found.places.push(Place::Subreaper);
    found
}

/// Whether our own group is in a unit that systemd has delegated. The machine's service manager marks the directories of
/// such units, a user's does not (systemd 252): a job's own group is known by its name.
fn is_delegated(own: &Location) -> bool {
    let mut group = Some(own.clone());
    while let Some(at) = group {
        let name = at.path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if name.starts_with(GROUP_PREFIX) {
            return is_our_own(&at.directory());
        }
        if name.ends_with(".service") || name.ends_with(".scope") {
            // All of a user's units are in one that is delegated to their service manager, not to us.
            return !name.starts_with("user@") && is_marked(&at.directory()) && is_our_own(&at.directory());
        }
        group = at.parent();
    }
    false
}

/// Only of our own groups are name and mark to be trusted: in another user's, root's job could be killed, or taken out, by
/// that user.
fn is_our_own(directory: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    fs::metadata(directory).is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == own)
}

fn is_marked(directory: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        let mut value = [0; 1];
        rustix::fs::getxattr(directory, *name, &mut value[..]).is_ok() && value == *b"1"
    })
}

/// A scope can be asked for where systemd runs. `None` without systemd: nothing is missing.
fn scope_candidate(own: Result<&Location, &String>, machine: &Machine<'_>) -> Option<Result<Place, Refusal>> {
    let refused = |why| Some(Err(Refusal::new(Backend::Scope, why)));
    let manager = match Manager::find(machine.root, machine.uid, machine.bus_address) {
        Ok(manager) => manager?,
        Err(missing) => {
            return Some(Err(Refusal { backend: Backend::Scope, why: missing.why, cure: missing.cure }));
        }
    };
    let own = match own {
        Ok(own) => own,
        Err(why) => return refused(why.clone()),
    };
    match rustix::fs::statvfs(&own.mount) {
        Ok(mount) if mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) => {
            refused(format!("{} is mounted read-only", own.mount.display()))
        }
        _ => Some(Ok(Place::Scope(manager))),
    }
}

/// Whether groups below this one can be killed as a whole, by `cgroup.kill` (Linux 5.14).
pub(crate) fn can_kill(own: &Location) -> bool {
    has(own, &["cgroup.kill"], (5, 14))
}

/// Whether groups have one of these files, the first of which is there from this version on.
fn has(own: &Location, files: &[&str], since: (u32, u32)) -> bool {
    // The root group has none of them, on any kernel.
    if own.path == Path::new("/") {
        return kernel::is_at_least(&kernel::release(), since);
    }
    files.iter().any(|file| own.directory().join(file).exists())
}

/// What every group needs of the kernel: to be killed.
fn kernel_can(own: &Location) -> Result<(), String> {
    let killable = has(own, &["cgroup.kill", "cgroup.freeze"], FREEZES);
    if killable { Ok(()) } else { Err("the kernel has neither cgroup.kill nor cgroup.freeze (Linux 5.2)".to_owned()) }
}

/// The first Linux with `cgroup.freeze`.
const FREEZES: (u32, u32) = (5, 2);

/// A group of ours can be made, and a child be born in it or join it, when our own group's directory and its `cgroup.procs` are
/// writable: cgroups(7), and for `CLONE_INTO_CGROUP` the common ancestor rule of cgroup-v2.rst.
fn v2_candidate(own: Result<Location, String>) -> Result<Place, Refusal> {
    let writable = |own: Location| {
        let directory = own.directory();
        for (file, needed) in [
            (directory.clone(), Access::WRITE_OK | Access::EXEC_OK),
            (directory.join("cgroup.procs"), Access::WRITE_OK),
        ] {
            rustix::fs::accessat(rustix::fs::CWD, &file, needed, AtFlags::EACCESS).map_err(|errno| {
                format!("no write access to {}: {}", file.display(), crate::error::reason(&errno.into()))
            })?;
        }
        let kind = fs::read_to_string(directory.join("cgroup.type")).unwrap_or_default();
        match kind.trim() {
            "" | "domain" => Ok(Place::V2(own)),
            other => Err(format!("{} is a {other} group, which cannot hold a job group", directory.display())),
        }
    };
    own.and_then(writable).map_err(|why| Refusal::new(Backend::V2, why))
}

/// Whether a v2 hierarchy is mounted here, or a part of one.
fn is_mounted(mountinfo: &str) -> bool {
    mountinfo.lines().any(|line| parse_cgroup2_mount(line).is_some())
}

/// `/proc/self/mountinfo`; empty where it cannot be read, which finds nothing.
pub fn own_mountinfo() -> String {
    String::from_utf8_lossy(&procfs::read(Path::new("/proc/self/mountinfo")).unwrap_or_default()).into_owned()
}

/// Our own group in the v2 hierarchy.
///
/// # Errors
/// A sentence fragment: no hierarchy, or our group cannot be seen in it.
pub fn own_location(proc: &Proc, mountinfo: &str) -> Result<Location, String> {
    let path = proc.own_cgroup_v2().map_err(|_| "the kernel has no cgroup v2 hierarchy".to_owned())?;
    locate(mountinfo, &path)
}

/// Where the group with this path in the hierarchy can be found.
///
/// # Errors
/// A sentence fragment: no mount shows it.
pub fn locate(mountinfo: &str, path: &Path) -> Result<Location, String> {
    let mounts: Vec<(PathBuf, PathBuf)> = mountinfo.lines().filter_map(parse_cgroup2_mount).collect();
    if mounts.is_empty() {
        return Err("no cgroup v2 hierarchy is mounted".to_owned());
    }
    let found = mounts.into_iter().find_map(|(root, mount)| {
        let relative = path.strip_prefix(root).ok()?.to_owned();
        Some(Location { mount, relative, path: path.to_owned() })
    });
    // A ticket's path is its owner's text, and must not lead out of the hierarchy; ours may begin outside of its namespace.
    found.filter(Location::is_plain).ok_or_else(|| {
        format!("the group {} is not in the part of the cgroup v2 hierarchy that is mounted here", path.display())
    })
}

/// Root and mount point, if the line is a cgroup2 mount: proc_pid_mountinfo(5).
fn parse_cgroup2_mount(line: &str) -> Option<(PathBuf, PathBuf)> {
    let (mount, filesystem) = line.split_once(" - ")?;
    if filesystem.split(' ').next()? != "cgroup2" {
        return None;
    }
    let mut fields = mount.split(' ').skip(3);
    Some((unescape(fields.next()?), unescape(fields.next()?)))
}

/// Space, tab, newline and backslash are written as three octal digits.
pub(super) fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HYBRID: &str = "20 1 0:20 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
        21 20 0:21 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
        22 20 0:22 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_hybrid_mount_is_found() {
        let found = locate(HYBRID, Path::new("/a/b")).unwrap();
        assert_eq!(found.directory(), Path::new("/sys/fs/cgroup/unified/a/b"));
        assert_eq!(found.path, Path::new("/a/b"));
    }

    #[test]
    fn a_mount_of_a_part_of_the_hierarchy_is_stripped() {
        let line = r"22 20 0:22 /docker/7 /my\040cgroup rw - cgroup2 cgroup2 rw";
        assert_eq!(locate(line, Path::new("/docker/7/x")).unwrap().directory(), Path::new("/my cgroup/x"));
        assert!(locate(line, Path::new("/elsewhere")).unwrap_err().contains("not in the part"));
    }

    #[test]
    fn a_group_outside_our_namespace_is_refused() {
        assert!(locate(HYBRID, Path::new("/../other")).is_err());
        assert_eq!(locate("", Path::new("/")).unwrap_err(), "no cgroup v2 hierarchy is mounted");
    }

    /// A captured `/proc` and cgroup tree: our group is `/ci`, mounted at the returned path.
    fn captured(kind: &str) -> (tempfile::TempDir, Proc, String) {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("cgroup/ci");
        fs::create_dir_all(root.path().join("proc/self")).unwrap();
        fs::create_dir_all(&group).unwrap();
        fs::write(root.path().join("proc/self/cgroup"), "1:cpu:/\n0::/ci\n").unwrap();
        fs::write(group.join("cgroup.procs"), "").unwrap();
        fs::write(group.join("cgroup.type"), kind).unwrap();
        fs::write(group.join("cgroup.kill"), "").unwrap();
        let mountinfo = format!("22 20 0:22 / {}/cgroup rw - cgroup2 cgroup2 rw\n", root.path().display());
        let proc = Proc::at(root.path().join("proc"));
        (root, proc, mountinfo)
    }

    fn look(root: &Path, proc: &Proc, mountinfo: &str) -> Detected {
        detect(proc, &Machine { root, mountinfo, uid: rustix::process::geteuid().as_raw(), bus_address: None })
    }

    #[test]
    fn a_writable_group_is_chosen() {
        let (root, proc, mountinfo) = captured("domain\n");
        let found = look(root.path(), &proc, &mountinfo);
        assert!(
            matches!(&found.places[..], [Place::V2(own), Place::Subreaper] if own.directory() == root.path().join("cgroup/ci")),
            "{found:?}"
        );
        assert_eq!(found.refused, []);
    }

    #[test]
    fn a_threaded_group_is_refused_with_its_reason() {
        let (root, proc, mountinfo) = captured("threaded\n");
        let found = look(root.path(), &proc, &mountinfo);
        assert_eq!(found.places, [Place::Subreaper]);
        assert!(found.refused[0].why.contains("is a threaded group"), "{found:?}");
    }

    #[test]
    fn a_missing_hierarchy_is_refused_with_its_reason() {
        let (root, proc, _) = captured("domain\n");
        let found = look(root.path(), &proc, "");
        assert_eq!(found.places, [Place::Subreaper]);
        assert_eq!(found.refused[0].why, "no cgroup v2 hierarchy is mounted");
    }

    #[test]
    fn a_kernel_that_cannot_kill_a_group_is_refused() {
        let (root, proc, mountinfo) = captured("domain\n");
        let group = root.path().join("cgroup/ci");
        fs::remove_file(group.join("cgroup.kill")).unwrap();
        let found = look(root.path(), &proc, &mountinfo);
        assert_eq!(found.refused[0].why, "the kernel has neither cgroup.kill nor cgroup.freeze (Linux 5.2)");
        fs::write(group.join("cgroup.freeze"), "0\n").unwrap();
        assert_eq!(look(root.path(), &proc, &mountinfo).refused, []);
    }

    /// The backends in order, on a machine with systemd and its bus, for a process in the unit `unit`; the marked ones
    /// are delegated.
    fn with_systemd(group: &str, marked: &[&str]) -> Option<Vec<Backend>> {
        let (root, proc, mountinfo) = captured("domain\n");
        let directory = root.path().join("cgroup").join(group);
        fs::create_dir_all(&directory).unwrap();
        for file in ["cgroup.procs", "cgroup.kill"] {
            fs::write(directory.join(file), "").unwrap();
        }
        fs::write(root.path().join("proc/self/cgroup"), format!("0::/{group}\n")).unwrap();
        for unit in marked {
            let unit = root.path().join("cgroup").join(unit);
            // Not on every filesystem.
            rustix::fs::setxattr(&unit, "user.delegate", b"1", rustix::fs::XattrFlags::empty()).ok()?;
        }
        fs::create_dir_all(root.path().join("run/systemd/system")).unwrap();
        fs::create_dir_all(root.path().join("run/dbus")).unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let socket = match uid {
            0 => root.path().join("run/dbus/system_bus_socket"),
            uid => root.path().join(format!("run/user/{uid}/bus")),
        };
        fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
        Some(look(root.path(), &proc, &mountinfo).places.iter().map(Place::backend).collect())
    }

    #[test]
    fn systemd_is_asked_unless_it_delegated_the_unit_that_we_are_in() {
        const SCOPE_FIRST: [Backend; 3] = [Backend::Scope, Backend::V2, Backend::Subreaper];
        const V2_FIRST: [Backend; 3] = [Backend::V2, Backend::Scope, Backend::Subreaper];
        let user = "user.slice/user@1000.service";
        for (group, marked, expected) in [
            ("user.slice/session-3.scope", &[][..], SCOPE_FIRST),
            ("system.slice/runner.service", &["system.slice/runner.service"], V2_FIRST),
            ("system.slice/runner.service/a/b", &["system.slice/runner.service"], V2_FIRST),
            // The service manager's own: everything in it is delegated to that.
            ("user.slice/user@1000.service/app.slice/term.scope", &[user], SCOPE_FIRST),
            ("user.slice/user@1000.service/init", &[user], SCOPE_FIRST),
            ("plain", &[], SCOPE_FIRST),
            ("user.slice/user@1000.service/app.slice/perflock-1.scope/perflock-1/sub", &[user], V2_FIRST),
        ] {
            if let Some(found) = with_systemd(group, marked) {
                assert_eq!(found, expected, "{group}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_mountinfo_is_read_without_panic(text: String) {
            let _ = locate(&text, Path::new("/"));
            let _ = unescape(&text);
        }

        /// Lines of mounts are not likely in any text: here one has its fields.
        #[test]
        fn any_mount_is_read_without_panic(
            root in "/[^ \n]{0,20}", mount in "/[^ \n]{0,20}", kind in "(cgroup2|cgroup|tmpfs)", path in "/?[^\0]{0,30}",
        ) {
            let line = format!("22 20 0:22 {root} {mount} rw,relatime shared:9 - {kind} none rw\n");
            match locate(&line, Path::new(&path)) {
                Ok(found) => {
                    prop_assert_eq!(&kind, "cgroup2");
                    prop_assert!(found.relative.is_relative() && !found.relative.starts_with(".."), "{:?}", found);
                    prop_assert!(found.directory().starts_with(&found.mount));
                    prop_assert_eq!(found.path, Path::new(&path));
                }
                Err(why) => prop_assert!(!why.is_empty()),
            }
        }

        /// As the kernel writes it: a mount point of any bytes comes out as it is.
        #[test]
        fn a_mount_point_survives_the_kernel_s_spelling(name in proptest::collection::vec(1u8.., 0..20)) {
            let octal = |&byte: &u8| match byte {
                b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
                other => vec![other],
            };
            let spelled: Vec<u8> = name.iter().flat_map(octal).collect();
            // Lines are text here: what is not UTF-8 has been replaced before.
            if let (Ok(spelled), Ok(name)) = (String::from_utf8(spelled), String::from_utf8(name)) {
                prop_assert_eq!(unescape(&spelled), PathBuf::from(name));
            }
        }
    }

    #[test]
    fn only_a_clear_mark_delegates() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!is_marked(directory.path()));
        let mark = |value: &[u8]| {
            rustix::fs::setxattr(directory.path(), "user.delegate", value, rustix::fs::XattrFlags::empty())
        };
        // Not on every filesystem.
        if mark(b"1").is_err() {
            return;
        }
        assert!(is_marked(directory.path()));
        for other in [&b"0"[..], b"", b"10", b"\n1", b"yes", &[0xff; 60]] {
            mark(other).unwrap();
            assert!(!is_marked(directory.path()), "{other:?}");
        }
    }
}
