//! Where groups of v1 are found and what is taken for one, by captured trees.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::super::detect::{Detected, detect};
use super::*;

/// A captured `/proc` and hierarchies, each mounted by the name of its first controller; our group is `/own` in all of them, and
/// is there in those that are `open`.
struct Captured {
    root: tempfile::TempDir,
    proc: Proc,
    mountinfo: String,
}

impl Captured {
    fn new(hierarchies: &[&str], open: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/self")).unwrap();
        let (mut own, mut mountinfo) = (String::new(), String::new());
        for (index, hierarchy) in hierarchies.iter().enumerate() {
            let mount = root.path().join(hierarchy.split(',').next().unwrap());
            fs::create_dir_all(mount.join(if open.contains(hierarchy) { "own" } else { "other" })).unwrap();
            own += &format!("{}:{hierarchy}:/own\n", index + 1);
            mountinfo += &format!("22 20 0:22 / {} rw - cgroup cgroup rw,{hierarchy}\n", mount.display());
        }
        fs::write(root.path().join("proc/self/cgroup"), own).unwrap();
        let proc = Proc::at(root.path().join("proc"));
        Self { root, proc, mountinfo }
    }

    fn find(&self) -> Result<Option<Site>, String> {
        Site::find(&self.proc, &self.mountinfo, rustix::process::geteuid().as_raw())
    }

    fn detect(&self, mountinfo: &str) -> Detected {
        let uid = rustix::process::geteuid().as_raw();
        detect(&self.proc, &Machine { root: self.root.path(), mountinfo, uid, bus_address: None })
    }
}

#[test]
fn the_best_hierarchy_that_is_ours_is_taken() {
    for (hierarchies, open, tracked, counted) in [
        (&["freezer", "cpu,cpuacct", "name=systemd"][..], &["freezer", "cpu,cpuacct"][..], "freezer", Some("cpu")),
        (&["freezer", "cpuacct", "name=systemd"], &["freezer"], "freezer", None),
        (&["freezer", "cpuacct", "name=systemd"], &["name=systemd", "cpuacct"], "name=systemd", Some("cpuacct")),
        (&["cpuacct", "memory"], &["cpuacct", "memory"], "cpuacct", Some("cpuacct")),
        (&["net_cls,net_prio", "cpu"], &["net_cls,net_prio", "cpu"], "net_cls", None),
        // A job that is limited has a group of its name for that.
        (&["freezer,memory", "name=systemd"], &["freezer,memory", "name=systemd"], "name=systemd", None),
    ] {
        let captured = Captured::new(hierarchies, open);
        let site = captured.find().unwrap().unwrap().child("perflock-1");
        let directory = |mount: &str| captured.root.path().join(mount).join("own/perflock-1");
        assert_eq!((site.directory(), site.cpuacct_directory()), (directory(tracked), counted.map(directory)));
        assert_eq!(site.path(), Path::new("/own/perflock-1"));
        // Its ticket says as much.
        let located = Site::locate(&captured.mountinfo, site.hierarchy(), site.path(), site.cpuacct_path());
        assert_eq!(located, Some(site));
    }
}

#[test]
fn what_is_not_ours_is_refused_with_its_reason_and_what_is_not_there_is_not() {
    let closed = Captured::new(&["freezer", "cpuacct"], &[]);
    let why = format!("no write access to {}/freezer/own: No such file or directory", closed.root.path().display());
    assert_eq!(closed.find(), Err(why));
    // Groups in these would change what a job gets.
    assert_eq!(Captured::new(&["memory", "cpu", "blkio"], &["memory", "cpu", "blkio"]).find(), Ok(None));
}

#[test]
fn a_session_uses_the_group_of_its_user_s_service_manager() {
    let captured = Captured::new(&["name=systemd"], &[]);
    let uid = rustix::process::geteuid().as_raw();
    let mount = captured.root.path().join("name=systemd");
    let session = format!("/user.slice/user-{uid}.slice/session-3.scope");
    for (own, at) in [
        (&*session, format!("user.slice/user-{uid}.slice")),
        ("/system.slice/cron.service", format!("user.slice/user-{uid}.slice")),
        ("/box/user.slice/session-1.scope", "box/user.slice".to_owned()),
    ] {
        fs::write(captured.root.path().join("proc/self/cgroup"), format!("1:name=systemd:{own}\n")).unwrap();
        assert!(captured.find().is_err(), "{own}");
        let service = mount.join(at).join(format!("user@{uid}.service"));
        fs::create_dir_all(&service).unwrap();
        assert_eq!(captured.find().unwrap().unwrap().directory(), service, "{own}");
        // Another user's is not ours, whatever it is called.
        let other = Site::find(&captured.proc, &captured.mountinfo, uid + 1);
        assert!(other.is_err(), "{own}");
        fs::remove_dir(&service).unwrap();
    }
}

#[test]
fn v1_is_used_only_where_there_is_no_v2() {
    let captured = Captured::new(&["freezer"], &["freezer"]);
    let found = captured.detect(&captured.mountinfo);
    assert!(matches!(&found.places[..], [Place::V1(_), Place::Subreaper]), "{found:?}");
    let both = format!("{}23 20 0:23 / /nonexistent rw - cgroup2 cgroup2 rw\n", captured.mountinfo);
    assert_eq!(captured.detect(&both).places, [Place::Subreaper]);
    let found = Captured::new(&["freezer"], &[]);
    let found = found.detect(&found.mountinfo);
    assert_eq!(found.places, [Place::Subreaper]);
    assert!(found.reasons().contains("v1: no write access to "), "{}", found.reasons());
}

fn site(mount: &Path, relative: &str) -> Site {
    let path = Path::new("/").join(relative);
    let tracking = Location { mount: mount.to_owned(), relative: relative.into(), path };
    Site { hierarchy: FREEZER, cpuacct: Some(tracking.clone()), tracking }
}

#[test]
fn only_groups_of_our_naming_and_of_the_ticket_s_owner_are_taken() {
    let mount = tempfile::tempdir().unwrap();
    let own = rustix::process::geteuid().as_raw();
    fs::create_dir(mount.path().join("perflock-1")).unwrap();
    fs::write(mount.path().join("perflock-2"), "").unwrap();
    let refused = |relative: &str, owner| match Group::adopt(site(mount.path(), relative), owner) {
        Err(GroupError::Refused { why, .. }) => why,
        other => panic!("{relative}: {other:?}"),
    };
    for relative in ["", "ssh.service", "a/perflock", "perflock-1/.."] {
        assert_eq!(refused(relative, own), "its name is not a job group's");
    }
    assert_eq!(refused("x/../perflock-1", own), "its path is not a plain one");
    let others = "it belongs to another user than the ticket that names it";
    assert_eq!((refused("perflock-1", own + 1), refused("perflock-2", own)), (others, others));
    // Of the right name and owner, but no group.
    assert_eq!(refused("perflock-1", own), "it is not in a cgroup v1 hierarchy");
    for gone in ["perflock-3", "perflock-2/perflock-3"] {
        assert!(matches!(Group::adopt(site(mount.path(), gone), own), Ok(None)), "{gone}");
    }
}

#[test]
fn a_directory_elsewhere_is_not_made_a_group_and_not_left() {
    let mount = tempfile::tempdir().unwrap();
    let parent = Site { cpuacct: None, ..site(mount.path(), "") };
    assert!(matches!(Group::create(&parent, "perflock-1"), Err(GroupError::Refused { .. })));
    assert!(matches!(Group::create(&parent, "a"), Err(GroupError::Refused { .. })));
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 0);
}

#[test]
fn only_what_was_seen_to_be_empty_is() {
    let mount = tempfile::tempdir().unwrap();
    let group = Group { site: site(mount.path(), "perflock-1"), tasks: [None, None] };
    let tasks = |below: &str, text: &str| {
        let group = mount.path().join("perflock-1").join(below);
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("tasks"), text).unwrap();
    };
    // Gone.
    assert!(group.pass().unwrap());
    tasks("", "");
    tasks("a", "");
    tasks("a/b", "");
    assert!(group.pass().unwrap());
    tasks("a/b", "7\n");
    assert!(!group.pass().unwrap());
    // Of another pid namespace.
    tasks("a/b", "0\n");
    assert_eq!(group.population(), Population::Populated);
    fs::remove_file(mount.path().join("perflock-1/a/b/tasks")).unwrap();
    assert!(group.pass().is_err());
    assert_eq!(group.population(), Population::Populated);
}

#[test]
fn a_group_without_time_for_real_time_threads_does_not_count() {
    let group = tempfile::tempdir().unwrap();
    assert!(refuses_real_time(group.path()).is_ok());
    for (runtime, refuses) in [("0\n", true), ("950000\n", false)] {
        fs::write(group.path().join("cpu.rt_runtime_us"), runtime).unwrap();
        assert_eq!(refuses_real_time(group.path()).is_err(), refuses);
    }
}

proptest! {
    /// A ticket is anybody's text.
    #[test]
    fn no_path_of_a_ticket_leads_out_of_its_hierarchy(
        path in "(/|[.]{1,2}|perflock-|a){0,8}", hierarchy in "(freezer|name=systemd|memory|\\PC{0,9})",
    ) {
        let mountinfo = "22 20 0:22 / /m/f rw - cgroup cgroup rw,freezer\n23 20 0:23 / /m/m rw - cgroup cgroup rw,memory\n";
        if let Some(site) = Site::locate(mountinfo, &hierarchy, Path::new(&path), Some(Path::new(&path))) {
            prop_assert_eq!(&hierarchy, "freezer");
            prop_assert!(site.directory().starts_with("/m/f") && site.tracking.is_plain());
            prop_assert_eq!(site.cpuacct_directory(), None::<PathBuf>);
        }
    }
}
