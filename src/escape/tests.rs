//! Captured trees: a proc filesystem, a v2 hierarchy, and systemd's files.

use std::path::PathBuf;

use super::*;

const ID: &str = "7-a-0000000b-c";

/// A machine on which a job ran for the last three seconds, with 100 as the number of its main process.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        tree.write("proc/loadavg", "0 0 0 1/9 999");
        tree.write("proc/sys/kernel/pid_max", "4194304");
        tree
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name.trim_start_matches('/'))
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    /// A process that began a second ago.
    fn process(&self, pid: i32, ppid: i32, group: &str, environ: &str) {
        self.process_since(1, pid, ppid, group, environ);
    }

    fn process_since(&self, seconds: u64, pid: i32, ppid: i32, group: &str, environ: &str) {
        // A machine may have been booted just now.
        let at_sec = (crate::clock::boottime_usec() / 1_000_000).saturating_sub(seconds);
        let ticks = at_sec * rustix::param::clock_ticks_per_second();
        self.write(
            &format!("proc/{pid}/stat"),
            &format!("{pid} (p{pid}) S {ppid} 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {ticks} 0 0"),
        );
        self.write(&format!("proc/{pid}/cgroup"), &format!("4:memory:/x\n0::{group}\n"));
        self.write(&format!("proc/{pid}/environ"), environ);
        self.write(&format!("proc/{pid}/cmdline"), &format!("run\0{pid}\0"));
        self.write(&format!("groups{group}/cpu.stat"), "usage_usec 5\n");
    }

    /// What is found if every group is new, or none.
    fn escapes(&self, all_new: bool) -> Escapes {
        self.escapes_of(Some(if all_new { 0 } else { u64::MAX }))
    }

    fn escapes_of(&self, group_inode: Option<u64>) -> Escapes {
        let mountinfo = || format!("23 20 0:23 / {} rw - cgroup2 cgroup2 rw\n", self.path("groups").display());
        let uid = rustix::process::geteuid().as_raw();
        let here = Here { proc: Proc::at(self.path("proc")), root: self.0.path(), mountinfo: &mountinfo, uid };
        let started_usec = crate::clock::boottime_usec() - 3_000_000;
        here.escapes(ID, Trail { main: 100, started_usec, group_inode }, crate::clock::boottime_usec())
    }

    fn pids(&self) -> Vec<i32> {
        self.escapes(false).escaped.iter().map(|it| it.pid).collect()
    }
}

fn marker() -> String {
    format!("A=1\0{}={ID}\0", nested::VARIABLE)
}

#[test]
fn who_carries_the_marker_or_descends_from_one_has_escaped() {
    let tree = Tree::new();
    tree.process(110, 1, "/a/run-u3.scope/sub", &marker());
    tree.process(111, 110, "/b", "");
    tree.process(112, 111, "/b", "");
    tree.process(113, 1, "/b", &format!("{}={ID}0\0", nested::VARIABLE));
    // Before the job, with a number from after it; and after it, with one from before.
    tree.process_since(60, 114, 1, "/b", &marker());
    tree.process(90, 1, "/b", &marker());
    // A loop, as it may be read while numbers are used again.
    tree.process(120, 121, "/b", "");
    tree.process(121, 120, "/b", "");
    assert_eq!(tree.pids(), [110, 111, 112]);
    let first = tree.escapes(false).escaped.remove(0);
    let expected = Escaped {
        pid: 110,
        name: "p110".to_owned(),
        command: vec!["run".to_owned(), "110".to_owned()],
        unit: Some("run-u3.scope".to_owned()),
        group: Some("/a/run-u3.scope/sub".to_owned()),
    };
    assert_eq!(first, expected);
}

#[test]
fn the_dead_and_the_kernel_s_own_have_not_escaped() {
    let tree = Tree::new();
    tree.process(110, 1, "/a", &marker());
    let text = fs::read_to_string(tree.path("proc/110/stat")).unwrap();
    tree.write("proc/110/stat", &text.replace(") S ", ") Z "));
    tree.process(111, 2, "/a", &marker());
    let text = fs::read_to_string(tree.path("proc/111/stat")).unwrap();
    tree.write("proc/111/stat", &text.replace(" -1 0 0", " -1 2129984 0"));
    assert_eq!(tree.pids(), [] as [i32; 0]);
}

#[test]
fn when_numbers_began_again_at_the_bottom_all_are_looked_at() {
    let tree = Tree::new();
    tree.process(90, 1, "/b", &marker());
    tree.write("proc/loadavg", "0 0 0 1/9 95");
    assert_eq!(tree.pids(), [90]);
}

#[test]
fn new_groups_are_possible_escapes_and_old_ones_are_not() {
    let tree = Tree::new();
    tree.process(110, 1, "/mine/new", "");
    tree.process(111, 1, "/mine/new", "");
    tree.process(112, 1, "/docker/0123/x", "");
    assert_eq!(tree.escapes(false), Escapes::default());
    let possible = |group: &str, pid: i32, processes: usize, cpu_usec| Possible {
        group: group.to_owned(),
        unit: None,
        container: group.starts_with("/docker"),
        processes,
        pid,
        command: vec!["run".to_owned(), pid.to_string()],
        cpu_usec,
    };
    let found = tree.escapes(true).possible;
    assert_eq!(found, [possible("/mine/new", 110, 2, Some(5)), possible("/docker/0123", 112, 1, None)]);
}

#[test]
fn of_units_only_transient_ones_are_suspected() {
    let tree = Tree::new();
    let user = "/user.slice/user-0.slice/user@0.service/app.slice";
    let uid = rustix::process::geteuid().as_raw();
    tree.process(110, 1, "/system.slice/of-a-file.service", "");
    tree.process(111, 1, "/system.slice/run-u1.service/sub", "");
    tree.process(112, 1, &format!("{user}/run-u2.service"), "");
    tree.process(113, 1, "/user.slice/user-0.slice/session-4.scope", "");
    tree.process(114, 1, "/user.slice/user-0.slice/user@0.service/init.scope", "");
    for file in ["run/systemd/transient/run-u1.service", "run/systemd/transient/session-4.scope"] {
        tree.write(file, "");
    }
    tree.write(&format!("run/user/{uid}/systemd/transient/run-u2.service"), "");
    let units = |found: Escapes| -> Vec<String> { found.possible.into_iter().filter_map(|it| it.unit).collect() };
    assert_eq!(units(tree.escapes(true)), ["run-u1.service", "run-u2.service"]);
    assert_eq!(units(tree.escapes(false)), [] as [&str; 0]);
    // Without a group of the job's own, systemd's files tell what is new.
    assert_eq!(units(tree.escapes_of(None)), ["run-u1.service", "run-u2.service"]);
    let old = SystemTime::now() - Duration::from_secs(60);
    let file = fs::File::options().write(true).open(tree.path("run/systemd/transient/run-u1.service")).unwrap();
    file.set_modified(old).unwrap();
    assert_eq!(units(tree.escapes_of(None)), ["run-u2.service"]);
}

#[test]
fn jobs_of_perflock_and_what_is_known_for_certain_are_not_suspected() {
    let tree = Tree::new();
    tree.process(110, 1, "/a/perflock-9-a-0000000b-c/sub", "");
    tree.process(111, 1, "/a/perflock-nested-5-7", "");
    tree.process(112, 1, "/b", &marker());
    tree.process(113, 1, "/b", "");
    let found = tree.escapes(true);
    assert_eq!(found.escaped.iter().map(|it| it.pid).collect::<Vec<_>>(), [112]);
    assert_eq!(found.possible, []);
}
