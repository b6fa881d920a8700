//! What other users put into the queue directory: it delays nobody, harms nobody, and does not reach a terminal raw.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::stat::Mode;

use crate::harness::{ALICE, BOB, World, alive, me, pid_in, wait_until};
use crate::needs;

/// A file in the queue that ALICE owns, readable by everybody.
pub(crate) fn put(world: &World, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = world.queue().join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    chown(&path, Some(ALICE), Some(ALICE)).unwrap();
    path
}

/// Makes a ticket live, as a process of its owner would.
pub(crate) fn hold(path: &Path) -> File {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let lock =
        libc::flock { l_type: libc::F_WRLCK as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
    fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
    file
}

pub(crate) fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned()
}

/// A well-formed first line of a ticket, as this machine would write it for a process that is nobody's ancestor.
pub(crate) fn joined(command: &str, message: &str) -> String {
    joined_by(2, command, message)
}

pub(crate) fn joined_by(pid: u32, command: &str, message: &str) -> String {
    let inode = |kind: &str| {
        let link = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().into_os_string().into_string().unwrap();
        link.chars().filter(char::is_ascii_digit).collect::<String>().parse::<u64>().unwrap()
    };
    let line = serde_json::json!({
        "format": 1, "boot": boot(), "joined_usec": 1, "pid": pid, "start_ticks": 1,
        "pid_namespace": inode("pid"), "cgroup_namespace": inode("cgroup"), "mode": "exclusive",
        "command": [command], "message": message,
    });
    format!("{line}\n")
}

#[test]
fn malformed_tickets_hold_nobody_up() {
    needs!(Root, V2);
    let world = World::new();
    put(&world, "5.x", "garbage\n");
    nix::unistd::mkfifo(&world.queue().join("6.x"), Mode::from_bits_truncate(0o644)).unwrap();
    symlink("/etc/passwd", world.queue().join("7.s")).unwrap();
    symlink("/dev/zero", world.queue().join("8.x")).unwrap();
    fs::create_dir(world.queue().join("9.s")).unwrap();
    File::options().write(true).open(put(&world, "10.x", "")).unwrap().set_len(1 << 40).unwrap();
    put(&world, "11.x", "");
    put(&world, "12.x", joined("no end of line", "").trim_end());
    put(&world, "13.x", [0xff, 0xfe, b'\n']);
    put(&world, "18446744073709551616.x", "garbage");
    put(&world, "18446744073709551615.x", "garbage");
    put(&world, "014.x", "garbage");
    put(&world, "-1.x", "garbage");
    put(&world, "notes.txt", "garbage");
    let odd = world.queue().join(OsStr::from_bytes(b"15\xff.x"));
    fs::write(&odd, "").unwrap();
    for program in ["perflock", "pls"] {
        let done = world.cmd(program).args(["-w", "1000", "echo", "ran"]).run().exits(0).prints("ran\n");
        assert_eq!(done.stderr, "", "{program}");
    }
    // As a plain user, who may not clean them away.
    let done = world.cmd("perflock --cgroup none -n true").uid(BOB).run();
    assert!(done.status.code() == Some(0) || !done.stderr.is_empty(), "{}", done.stderr);
    world.cmd("wholock --sample 0").run().exits(0).prints("the machine is free\n").says("");
    assert!(odd.exists() && world.lock_is_free());
    fs::remove_file(odd).unwrap();
    assert_eq!(fs::symlink_metadata(world.queue().join("6.x")).unwrap().permissions().mode() & 0o777, 0o644);
}

#[test]
fn a_live_ticket_that_lies_is_waited_for_and_shown_escaped() {
    needs!(Root, V2);
    let world = World::new();
    let command = "\x1b]0;owned\x07\x1b[2J\rsafe\u{202e}\nsecond line";
    let text = joined(command, "\x1b[31mmessage") + "{\"event\":\"granted\",\"at_usec\":1}\n";
    let ticket = put(&world, "5.x", text);
    let held = hold(&ticket);
    // A ticket that claims to have the machine delays nobody who gets the lock file. So it really has it.
    world.cmd("perflock -n true").run().exits(0).says("");
    let lock = File::open(world.lock()).unwrap();
    lock.lock().unwrap();
    let raw = |text: &str| text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}');
    let waiter = world.cmd("perflock echo ran").spawn();
    waiter.wait_stderr("waiting for lock behind 1 job; 41001 runs ");
    assert!(!raw(&waiter.stderr()), "{:?}", waiter.stderr());
    assert_eq!(waiter.stderr().lines().count(), 1, "{:?}", waiter.stderr());
    let shown = world.cmd("wholock --sample 0").run().exits(0);
    assert!(!raw(&shown.stdout), "{:?}", shown.stdout);
    assert!(
        shown.stdout.contains(r"\u{1b}]0;owned") && shown.stdout.contains(r"\u{1b}[31mmessage"),
        "{}",
        shown.stdout
    );
    // The header, the liar, the waiter, and who really has the lock file.
    assert_eq!(shown.stdout.lines().count(), 4, "{}", shown.stdout);
    let done = world.cmd("pls -n true").run().exits(75);
    assert!(!raw(&done.stderr), "{:?}", done.stderr);
    drop(held);
    drop(lock);
    waiter.wait().exits(0).prints("ran\n");
    world.cmd("perflock true").run().exits(0).says("");
    world.assert_clean();
}

#[test]
fn a_live_ticket_that_cannot_be_read_is_waited_for_until_its_owner_is_gone() {
    needs!(Root, V2);
    let world = World::new();
    // A newer version's, perhaps.
    let ticket = put(&world, "5.x", "{\"format\":2,\"everything\":\"is different\"}\n");
    let held = hold(&ticket);
    world.cmd("perflock -n true").run().exits(75);
    // Whoever asks why is shown it.
    let shown = world.cmd("wholock --sample 0").run().exits(0).says("").stdout;
    let row = shown.lines().nth(1).unwrap_or_default();
    assert!(row.starts_with("  5  ") && row.contains("its ticket cannot be read"), "{shown}");
    world.cmd("wholock -q").run().exits(1);
    let waiter = world.cmd("perflock true").spawn();
    waiter.wait_stderr("perflock: waiting for lock behind 1 job");
    drop(held);
    waiter.wait().exits(0);
    // Only whoever joins cleans.
    world.cmd("perflock true").run().exits(0).says("");
    world.assert_clean();
}

#[test]
fn a_live_ticket_of_a_newer_version_is_waited_for_whatever_it_says() {
    needs!(Root, V2);
    let world = World::new();
    // Each word is known, and may mean something else there. The same from this version delays nobody who gets the lock file.
    let text = joined("sleep", "").replace("\"format\":1", "\"format\":2");
    let ticket = put(&world, "5.x", text + "{\"event\":\"granted\",\"at_usec\":1}\n");
    let held = hold(&ticket);
    for program in ["perflock", "pls"] {
        world.cmd(program).args(["-n", "true"]).run().exits(75);
    }
    let waiter = world.cmd("pls echo ran").spawn();
    waiter.wait_stderr("pls: waiting for lock behind 1 job; 41001 runs sleep (exclusive, ");
    drop(held);
    waiter.wait().exits(0).prints("ran\n");
    // Only whoever joins cleans.
    world.cmd("perflock true").run().exits(0).says("");
    world.assert_clean();
}

#[test]
fn a_live_ticket_in_the_name_of_somebody_s_ancestor_is_not_believed() {
    needs!(Root, V2);
    let world = World::new();
    // The shell of root's login, or init: everybody's ancestor.
    for pid in [std::process::id(), 1] {
        let text = joined_by(pid, "forged", "") + "{\"event\":\"granted\",\"at_usec\":1}\n";
        let ticket = put(&world, "5.x", text);
        let held = hold(&ticket);
        let done = world.cmd("perflock -n echo ran").run();
        drop(held);
        done.exits(0).prints("ran\n").says("");
        fs::remove_file(ticket).unwrap();
    }
    world.assert_clean();
}

#[test]
fn a_read_lock_by_another_user_does_not_make_a_ticket_live() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(ALICE);
    put(&world, "5.x", joined("dead", ""));
    // BOB can read ALICE's ticket, and flock it, but cannot prolong its life.
    let script = "exec 8<lock.d/5.x; flock -x 8; echo locked; read go < fifo";
    nix::unistd::mkfifo(&world.path("fifo"), Mode::from_bits_truncate(0o666)).unwrap();
    fs::set_permissions(world.path("fifo"), fs::Permissions::from_mode(0o666)).unwrap();
    let prank = world.sh(script).uid(BOB).spawn();
    prank.wait_stdout("locked\n");
    world.cmd("perflock -w 1000 echo ran").run().exits(0).prints("ran\n").says("");
    world.write("fifo", "go\n");
    prank.wait().exits(0);
    world.assert_clean();
}

#[test]
fn the_highest_number_is_an_error_that_names_whom_to_ask() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(BOB);
    let last = put(&world, "4611686018427387904.x", "garbage");
    let said = format!("perflock: the queue has no number left: remove {} (made by 41001)\n", last.display());
    world.cmd("perflock touch ran").run().exits(125).prints("").says(&said);
    assert!(!world.path("ran").exists());
    // Root cleans a dead one away.
    world.cmd("perflock true").uid(0).run().exits(0).says("");
    world.cmd("perflock true").run().exits(0).says("");
    world.assert_clean();
}

#[test]
fn a_forged_ticket_does_not_make_root_kill_anything() {
    needs!(Root, V2, OwnGroup);
    let world = World::new();
    let victim = world.group().join("victim.service");
    fs::create_dir(&victim).unwrap();
    let sleeper = world.cmd("sh -c").arg("echo $$ > pid; exec sleep 600").in_group(&victim).spawn();
    let pid = pid_in(&world.path("pid"));
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned();
    let group_line = |path: &str| format!("{{\"event\":\"group\",\"backend\":\"v2\",\"path\":\"{path}\"}}\n");
    // By a name that is not ours; upwards; and by the right name, but of root's group.
    put(&world, "1.x", joined("a", "") + &group_line(&path));
    put(&world, "2.x", joined("b", "") + &group_line("/"));
    put(&world, "3.x", joined("c", "") + &group_line(&format!("{path}/../victim.service")));
    let right = put(&world, "4.x", "");
    use std::os::unix::fs::MetadataExt;
    let inode = fs::metadata(&right).unwrap().ino();
    let name = format!("perflock-4-{inode:x}-{}-1", &boot()[..8]);
    let parent = path.strip_suffix("victim.service").unwrap();
    // Without O_CREAT, which the kernel refuses for another user's file in a sticky directory (fs.protected_regular).
    let mut ticket = fs::File::options().write(true).truncate(true).open(&right).unwrap();
    std::io::Write::write_all(&mut ticket, (joined("d", "") + &group_line(&format!("{parent}{name}"))).as_bytes())
        .unwrap();
    let root_s = world.group().join(&name);
    fs::create_dir(&root_s).unwrap();
    let other = world.cmd("sh -c").arg("echo $$ > other; exec sleep 600").in_group(&root_s).spawn();
    let other_pid = pid_in(&world.path("other"));
    world.cmd("perflock -w 1000 echo ran").run().exits(0).prints("ran\n");
    assert!(alive(pid) && alive(other_pid));
    world.cmd("wholock --sample 0").run().exits(0).prints("the machine is free\n");
    other.signal(libc::SIGKILL);
    other.wait().dies_of(libc::SIGKILL);
    sleeper.signal(libc::SIGKILL);
    sleeper.wait().dies_of(libc::SIGKILL);
    // The kernel lets a group go when its last member is reaped.
    for group in [victim, root_s] {
        wait_until("the group is empty", || !group.exists() || fs::remove_dir(&group).is_ok());
    }
    world.cmd("perflock true").run().exits(0);
    world.assert_clean();
}

#[test]
fn a_hostile_command_line_of_the_own_user_is_escaped_too() {
    needs!(V2);
    let world = World::new();
    let holder =
        world.cmd("perflock -m").arg("\x1b[5mnote").args(["sh", "-c", "echo running; exec sleep 600 # \x1b[31m"]);
    let holder = holder.spawn();
    holder.wait_stdout("running\n");
    let done = world.cmd("perflock -n true").run().exits(75);
    assert!(!done.stderr.contains('\x1b'), "{:?}", done.stderr);
    let shown = world.cmd("wholock").run().exits(0).stdout;
    assert!(!shown.contains('\x1b') && shown.contains(r"# \u{1b}[5mnote"), "{shown:?}");
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}

#[test]
fn a_very_long_message_or_command_does_not_hide_its_job() {
    needs!(V2);
    let world = World::new();
    let long = "\u{1}".repeat(100_000);
    let holder = world.cmd("pls -m").arg(&long).args(["sh", "-c", "echo running; exec sleep 600", &long]).spawn();
    holder.wait_stdout("running\n");
    // Also a waiter's: whoever comes later waits behind it.
    let waiter = world.waiter("2.x", world.cmd("perflock -q -m").arg(&long).arg("true"));
    world.cmd("pls -n true").run().exits(75);
    let shown = world.cmd("wholock --sample 0").run().exits(0).stdout;
    assert_eq!(shown.lines().count(), 3, "{shown}");
    assert!(shown.contains(&format!("\n  1  {} ", me())) && shown.contains(&format!("\n  2  {} ", me())), "{shown}");
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    waiter.wait().exits(0);
    world.assert_clean();
}

#[test]
fn a_long_message_does_not_make_a_nested_job_wait_for_itself() {
    needs!(V2);
    let world = World::new();
    let long = "x".repeat(100_000);
    let done = world.cmd("perflock -m").arg(&long).args(["perflock", "-w", "100", "echo", "inside"]).run();
    done.exits(0).prints("inside\n").says("");
    world.assert_clean();
}

#[test]
fn a_ticket_of_an_earlier_boot_is_dead_whatever_it_names() {
    needs!(Root, V2);
    let world = World::new();
    let text = joined("long ago", "").replace(&boot(), "00000000-0000-0000-0000-000000000000");
    put(&world, "5.x", text + "{\"event\":\"stopped\"}\n");
    world.cmd("perflock true").run().exits(0).says("");
    world.assert_clean();
}

#[test]
fn files_that_look_like_tickets_do_not_hide_a_job() {
    needs!(Root, V2);
    let world = World::new();
    for number in 1..=100 {
        put(&world, &format!("{number}.x"), "");
    }
    let holder = world.holder("perflock");
    // Its owner may link it under another name: it is one job.
    let ticket = world.tickets().into_iter().find(|name| name.starts_with("101.")).unwrap();
    std::fs::hard_link(world.queue().join(&ticket), world.queue().join("101.s")).unwrap();
    let shown = world.sh("ulimit -Sn 64; exec wholock --sample 0").run().exits(0).says("").stdout;
    assert_eq!(shown.matches("101  ").count(), 1, "{shown}");
    // Where it cannot be told who has the machine, it is not called free.
    let done = world.sh("ulimit -n 64; exec wholock -q").run().exits(125).prints("");
    assert!(done.stderr.ends_with(": Too many open files\n"), "{}", done.stderr);
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
}
