//! What other users' tickets say of cores and cpusets: at worst it delays who asks for cores, who is told of it.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use serde_json::{Value, json};

use crate::harness::{ALICE, Running, V1Group, World, is_slow, wait_until};
use crate::hostile::{boot, hold, joined, put};
use crate::junk::is_raw;
use crate::needs;
use crate::pins::Room;
use crate::queue::{sleeps, voluntary_switches};
use crate::resources::json_of;

/// A shared job's ticket that says these things after who joined; `asked` cores.
fn says(asked: Option<u64>, lines: &[Value]) -> String {
    let mut first: Value = serde_json::from_str(&joined("forged\x1b[2J", "\x1b[31mmessage")).unwrap();
    first["mode"] = "shared".into();
    if let Some(asked) = asked {
        first["cores"] = asked.into();
    }
    let lines = lines.iter().map(|line| format!("{line}\n"));
    [format!("{first}\n")].into_iter().chain(lines).collect()
}

fn cores(cpus: &str) -> Value {
    json!({"event": "cores", "cpus": cpus})
}

fn granted() -> Value {
    json!({"event": "granted", "at_usec": 1})
}

/// Makes a part of a ticket live.
fn hold_part(path: &Path, start: i64, length: i64) -> File {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let lock = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: length,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
    file
}

/// The byte that stands for asking for cores.
const ASKING: i64 = 1 << 62;

/// A job that waits, once it said so.
#[track_caller]
fn waits(room: &Room, line: &str, said: &str) -> Running {
    let waiter = room.cmd(line).args(["echo", "ran"]).spawn();
    waiter.wait_stderr(said);
    wait_until("it sleeps", || sleeps(waiter.pid()));
    waiter
}

/// It sleeps, and is not woken for half a second.
#[track_caller]
fn is_quiet(waiter: &Running) {
    wait_until("it sleeps", || sleeps(waiter.pid()));
    let before = voluntary_switches(waiter.pid());
    // This is what is measured.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(voluntary_switches(waiter.pid()), before, "{}", waiter.stderr());
    assert_eq!(waiter.stdout(), "");
}

#[test]
fn a_neighbour_who_claims_every_core_delays_who_asks_and_nobody_else() {
    needs!(Root, V2, TwoCores);
    for (cpus, free) in [("0-1", 0), ("0-4095", 0), ("1", 1)] {
        let room = Room::new();
        let ticket = put(&room, "5.s", says(Some(2), &[cores(cpus), granted()]));
        let held = hold(&ticket);
        let said = format!("pls: waiting for 2 cores ({free} of 2 free) behind 1 job; 41001 runs ");
        let waiter = waits(&room, "pls --cores 2", &said);
        is_quiet(&waiter);
        for line in ["pls -n", "pls -n --cpus 1", "perflock -q --cancel 4 --"] {
            let done = room.cmd(line).arg("true").run();
            assert!(done.status.success() || line.contains("cancel"), "{line}: {}", done.stderr);
        }
        room.cmd("pls -q -n --cores 1 true").run().exits(75);
        // The machine itself it does not have: the waiter is in its way, not this ticket.
        let text = room.cmd("wholock --sample 0").run().exits(0).says("").stdout;
        assert!(text.contains("cpus of node 0: ") && !is_raw(&text), "{text}");
        json_of(room.cmd("wholock --json --sample 0"));
        assert!(!is_raw(&waiter.stderr()), "{:?}", waiter.stderr());
        drop(held);
        waiter.wait().exits(0).prints("ran\n");
        room.cmd("perflock true").run().exits(0);
        room.assert_clean();
    }
}

#[test]
fn an_exclusive_job_does_not_wait_for_who_claims_cores_only() {
    needs!(Root, V2, TwoCores);
    let room = Room::new();
    let held = hold(&put(&room, "5.s", says(Some(2), &[cores("0-1"), granted()])));
    room.cmd("perflock -n --pin soft --cores 2 echo ran").run().exits(0).prints("ran\n").says("");
    drop(held);
    room.cmd("perflock true").run().exits(0);
    room.assert_clean();
}

#[test]
fn nonsense_about_cores_is_passed_over() {
    needs!(Root, V2, TwoCores);
    let room = Room::new();
    for lines in [
        vec![cores("x")],
        vec![cores("")],
        vec![cores("0-4294967295")],
        vec![json!({"event": "cores"})],
        vec![json!({"event": "cores", "cpus": [0, 1]})],
        vec![cores("0-1"), json!({"event": "stopped"}), json!({"event": "resumed"})],
        vec![json!({"event": "pinned", "cpus": "0-1", "memory_nodes": "0", "strength": "hard"}), granted()],
        vec![json!({"event": "pinned", "cpus": "7-3", "memory_nodes": "99999999", "strength": "firm"}), granted()],
        vec![json!({"event": "group", "backend": "v2", "path": null, "cpuset": 7}), granted()],
    ] {
        let ticket = put(&room, "5.s", says(None, &lines));
        let held = hold(&ticket);
        room.cmd("pls -n --pin soft --cores 2 echo ran").run().exits(0).prints("ran\n").says("");
        let text = room.cmd("wholock --sample 0").run().exits(0).says("").stdout;
        assert!(!is_raw(&text), "{text:?}");
        json_of(room.cmd("wholock --json --sample 0"));
        drop(held);
        fs::remove_file(ticket).unwrap();
    }
    // An exclusive job's ticket has none.
    let ticket = put(&room, "5.x", says(Some(2), &[cores("0-1"), granted()]));
    let held = hold(&ticket);
    room.cmd("pls -n --pin soft --cores 2 echo ran").run().exits(0).prints("ran\n").says("");
    drop(held);
    room.cmd("perflock true").run().exits(0);
    room.assert_clean();
}

#[test]
fn a_ticket_that_is_locked_in_part_only_keeps_nobody_busy() {
    needs!(Root, V2, TwoCores);
    // What it says; which part is locked; whether who asks has to wait for it.
    for (lines, start, length, in_the_way) in [
        (vec![], 0, 1, false),
        (vec![], ASKING, 1, true),
        (vec![], 0, 0, true),
        (vec![granted()], ASKING - 1, 3, true),
        (vec![cores("0-1")], 0, 1, true),
        (vec![cores("0-1")], ASKING, 1, true),
        (vec![cores("0-1")], ASKING + 1, 1, true),
        (vec![cores("0-1"), granted()], 7, 1, true),
    ] {
        let room = Room::new();
        let ticket = put(&room, "5.s", says(Some(1), &lines));
        let held = hold_part(&ticket, start, length);
        let context = format!("{lines:?} {start} {length}");
        if in_the_way {
            let waiter = waits(&room, "pls --cores 1", " behind 1 job");
            is_quiet(&waiter);
            let behind = waits(&room, "pls --cores 2", " behind 2 jobs");
            is_quiet(&behind);
            drop(held);
            waiter.wait().exits(0).prints("ran\n");
            behind.wait().exits(0).prints("ran\n");
        } else {
            let done = room.cmd("pls -n --pin soft --cores 1 echo ran").run();
            assert_eq!((&*done.stdout, &*done.stderr), ("ran\n", ""), "{context}");
            drop(held);
        }
        room.cmd("perflock true").run().exits(0).says("");
        room.assert_clean();
    }
}

#[test]
fn a_reader_s_lock_on_the_part_that_asks_stops_nobody() {
    needs!(Root, V2, OwnGroup, TwoCores);
    let room = Room::for_uid(ALICE);
    let job = room.holder("pls -q --pin soft --cores 2");
    let waiter = waits(&room, "pls --pin soft --cores 1", "waiting for 1 core (0 of 2 free) behind 1 job");
    // Whoever may read a ticket can read-lock it, for as long as its owner does not hold that part.
    let reader = File::open(room.queue().join("1.s")).unwrap();
    let lock = libc::flock {
        l_type: libc::F_RDLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: ASKING,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(&reader, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
    room.cmd("pls -q -n --pin soft --cores 1 true").run().exits(75);
    job.signal(libc::SIGTERM);
    job.wait().dies_of(libc::SIGTERM);
    waiter.wait().exits(0).prints("ran\n");
    room.assert_clean();
}

#[test]
fn a_dead_ticket_that_claims_cores_and_a_job_out_of_sight_keeps_nobody() {
    needs!(Root, V2, TwoCores);
    let here = says(Some(2), &[cores("0-1"), granted()]);
    let elsewhere = |path: &str| {
        let group = json!({"event": "group", "backend": "v2", "path": path});
        let mut first: Value = serde_json::from_str(here.lines().next().unwrap()).unwrap();
        first["cgroup_namespace"] = 7.into();
        format!("{first}\n{}\n{}\n{group}\n", cores("0-1"), granted())
    };
    let named = |path: &str| format!("{here}{}\n", json!({"event": "group", "backend": "v2", "path": path}));
    for (text, is_told) in [
        (here.clone(), false),
        (elsewhere("/x/perflock-5"), false),
        (named("/../../x"), false),
        (named("relative"), false),
        (named(""), false),
        (format!("{here}{}\n", json!({"event": "group", "backend": "subreaper", "path": null})), false),
        (format!("{here}{}\n", json!({"event": "group", "backend": "moon", "path": null})), false),
    ] {
        for line in ["pls -n --pin soft --cores 2", "pls -w 30 --pin soft --cores 1", "pls --pin soft --cores 2"] {
            let room = Room::new();
            let ticket = put(&room, "5.s", &text);
            let done = room.cmd(line).args(["echo", "ran"]).run().exits(0).prints("ran\n");
            assert!(!is_raw(&done.stderr) && done.stderr.lines().count() <= 2, "{line} {text}: {}", done.stderr);
            assert!(!is_told || !done.stderr.is_empty(), "{text}");
            let _ = fs::remove_file(ticket);
        }
    }
}

#[test]
fn more_claims_than_there_are_descriptors_delay_only() {
    needs!(Root, V2, TwoCores);
    let room = Room::new();
    let claims =
        |number: u32, cpus: &str| hold(&put(&room, &format!("{number}.s"), says(Some(1), &[cores(cpus), granted()])));
    let held: Vec<File> = (1..400).map(|number| claims(number, "0")).collect();
    let last = claims(400, "1");
    let cmd = room.enter(World::cmd(&room, "sh -c")).arg("ulimit -n 1024; exec pls --pin soft --cores 1 echo ran");
    let waiter = cmd.spawn();
    waiter.wait_stderr("pls: waiting for 1 core (0 of 2 free) behind about 400 jobs; 41001 runs ");
    wait_until("it sleeps", || sleeps(waiter.pid()));
    assert_eq!(waiter.stdout(), "");
    // Not everybody is watched, but every end is seen.
    drop(last);
    waiter.wait().exits(0).prints("ran\n");
    drop(held);
    wait_until("newcomers have cleaned them all away", || {
        room.cmd("perflock true").run().exits(0);
        room.tickets().is_empty()
    });
    room.assert_clean();
}

/// A dead ticket of ALICE's that names a group in the v1 hierarchy, in which `NAME` stands for the only name that is believed.
fn names_cpuset(room: &Room, cpuset: &str) -> (PathBuf, String) {
    let ticket = put(room, "5.s", "");
    let inode = fs::metadata(&ticket).unwrap().ino();
    let name = format!("perflock-5-{inode:x}-{}-1", &boot()[..8]);
    let group = json!({"event": "group", "backend": "v2", "path": null, "cpuset": cpuset.replace("NAME", &name)});
    // Without O_CREAT, which the kernel refuses for another user's file in a sticky directory (fs.protected_regular).
    let mut file = File::options().write(true).open(&ticket).unwrap();
    std::io::Write::write_all(&mut file, says(Some(1), &[cores("0"), group]).as_bytes()).unwrap();
    (ticket, name)
}

#[test]
fn no_cpuset_is_removed_that_a_ticket_claims_and_that_is_not_its_own() {
    needs!(Root, V2, OwnGroup, TwoCores, V1("cpuset"));
    let room = Room::new();
    let inside = |group: &V1Group| {
        let status = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own =
            status.lines().find_map(|line| line.split_once(":cpuset:")).unwrap().1.trim_end_matches('/').to_owned();
        format!("{own}/{}", group.path().file_name().unwrap().to_str().unwrap())
    };
    let here = inside(room.cpuset());
    let canary = V1Group::cpuset("0").unwrap();
    let there = inside(&canary);
    let paths = [
        "/".to_owned(),
        String::new(),
        "..".to_owned(),
        "/../x".to_owned(),
        "NAME".to_owned(),
        there.clone(),
        format!("{here}/other/../NAME"),
        format!("{here}/NAME/../other"),
        format!("{here}/other"),
        format!("{here}/NAME/"),
        format!("{here}/NAME/."),
        // Root's, by the right name.
        format!("{here}/NAME"),
    ];
    for path in paths.iter().step_by(if is_slow() { 3 } else { 1 }) {
        let (ticket, name) = names_cpuset(&room, path);
        let groups = [room.cpuset().path().join(&name), room.cpuset().path().join("other")];
        for group in &groups {
            fs::create_dir(group).unwrap();
        }
        for line in ["pls -n --pin soft --cores 2", "perflock -n"] {
            room.cmd(line).args(["echo", "ran"]).run().exits(0).prints("ran\n").says("");
        }
        for group in &groups {
            assert!(group.exists(), "{path}");
            fs::remove_dir(group).unwrap();
        }
        assert!(canary.path().exists(), "{path}");
        let _ = fs::remove_file(ticket);
    }
    // What is its own goes, and what is below, but not as long as somebody is in it.
    let (_, name) = names_cpuset(&room, &format!("{here}/NAME"));
    let group = room.cpuset().path().join(&name);
    fs::create_dir_all(group.join("below")).unwrap();
    std::os::unix::fs::chown(&group, Some(ALICE), None).unwrap();
    room.cmd("perflock -n true").run().exits(0).says("");
    assert!(!group.exists());
    assert_eq!(room.tickets(), Vec::<String>::new());
    let (_, name) = names_cpuset(&room, &format!("{here}/NAME"));
    let group = room.cpuset().path().join(&name);
    fs::create_dir(&group).unwrap();
    std::os::unix::fs::chown(&group, Some(ALICE), None).unwrap();
    fs::write(group.join("cpuset.mems"), "0").unwrap();
    fs::write(group.join("cpuset.cpus"), "0").unwrap();
    let tasks = File::options().write(true).open(group.join("tasks")).unwrap();
    let sleeper = room.cmd("sh -c").arg("echo in; exec sleep 600");
    let sleeper = sleeper.before_exec(move || Ok(nix::unistd::write(&tasks, b"0").map(|_| ())?)).spawn();
    sleeper.wait_stdout("in\n");
    room.cmd("perflock -n true").run().exits(0).says("");
    assert!(group.exists());
    crate::pins::end(sleeper);
    wait_until("it can be removed", || fs::remove_dir(&group).is_ok());
    drop(canary);
    room.assert_clean();
}
