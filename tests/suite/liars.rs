//! Tickets that are alive and lie: about whose process they are of, which group their job has, and what it is called.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;

use crate::harness::groups::path_of;
use crate::harness::{BOB, Cmd, Running, World, alive, is_slow, signal, state_of, wait_until};
use crate::hostile::{boot, hold, joined, put};
use crate::junk::{assert_serves, is_raw, waiting};
use crate::needs;

/// A third user, who has nothing to do with the lock.
const CAROL: u32 = 41_003;

/// A process that says which signals it gets, in a group of its own.
struct Canary {
    running: Running,
    group: PathBuf,
}

/// Every signal that can be caught; the program is called what `$0` is set to.
const WATCHES: &str = r#"$| = 1; $0 = shift;
for (grep { !/^(KILL|STOP|CHLD|CLD|NUM\d+|RT.*)$/ } keys %SIG) { my $name = $_; $SIG{$name} = sub { print "$name\n" } }
print "ready\n"; select undef, undef, undef, undef while 1;"#;

impl Canary {
    fn new(world: &World, uid: u32, name: &str) -> Self {
        let group = world.group().join("canary.service");
        fs::create_dir(&group).unwrap();
        let running = world.cmd("perl -e").arg(WATCHES).arg(name).uid(uid).in_group(&group).spawn();
        running.wait_stdout("ready\n");
        Self { running, group }
    }

    fn start_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.running.pid())).unwrap();
        stat.rsplit(") ").next().unwrap().split(' ').nth(19).unwrap().parse().unwrap()
    }

    /// It lives, and nobody signalled it.
    #[track_caller]
    fn is_well(&self) {
        assert!(alive(self.running.pid()), "it was killed: {}", self.running.stdout());
        assert_eq!(self.running.stdout(), "ready\n", "it was signalled");
    }

    fn end(self) {
        self.is_well();
        self.running.signal(libc::SIGKILL);
        self.running.wait().dies_of(libc::SIGKILL);
        wait_until("its group is empty", || fs::remove_dir(&self.group).is_ok());
    }
}

const COMMAND: &str = "\x1b]0;owned\x07\x1b[2J\rsafe\u{202e}\nsecond line\u{9b}31m";

/// A ticket's text in which `pid` supervises a job in `group`, and `guard` guards it.
fn lie(pid: i64, start_ticks: u64, guard: i64, group: Option<&str>, granted: bool) -> String {
    let mut first: serde_json::Value = serde_json::from_str(&joined(COMMAND, "\x1b[31mmessage\u{2028}")).unwrap();
    first["pid"] = pid.into();
    first["start_ticks"] = start_ticks.into();
    let mut text = format!("{first}\n");
    if granted {
        text += "{\"event\":\"granted\",\"at_usec\":1}\n";
    }
    if let Some(group) = group {
        text += &format!("{}\n", serde_json::json!({"event": "group", "backend": "v2", "path": group}));
    }
    text + &format!("{}\n", serde_json::json!({"event": "guard", "pid": guard}))
}

/// Everybody who meets a ticket with this text, of ALICE's: while it is alive, and after.
#[track_caller]
fn meets(world: &World, text: &str) {
    let ticket = put(world, "5.x", text);
    let held = hold(&ticket);
    let lock = File::open(world.lock()).unwrap();
    lock.lock().unwrap();
    let waiter = world.cmd("perflock echo ran").spawn();
    waiter.wait_stderr("perflock: waiting for lock behind 1 job");
    let busy = world.cmd("pls -n true").run().exits(75);
    let given_up = world.cmd("perflock -w 0.01 true").run().exits(75);
    let shown = world.cmd("wholock --sample 0.01").run().exits(0).says("");
    assert_eq!(waiter.stdout(), "");
    for text in [&busy.stderr, &given_up.stderr, &shown.stdout, &waiter.stderr()] {
        assert!(!is_raw(text), "{text:?}");
    }
    drop(lock);
    drop(held);
    let waited = waiter.wait().exits(0).prints("ran\n");
    assert!(!is_raw(&waited.stderr), "{:?}", waited.stderr);
    // Dead, it names what may be an orphan.
    for program in ["perflock", "pls"] {
        let done = world.cmd(program).args(["-w", "1000", "echo", "ran"]).run().exits(0).prints("ran\n");
        assert!(!is_raw(&done.stderr), "{:?}", done.stderr);
    }
    let _ = fs::remove_file(ticket);
}

/// Of so many claims one is made, where a process takes a tenth of a second to start: no divisor of how many there are of
/// a kind, so that some of each are made.
fn every() -> usize {
    if is_slow() { 5 } else { 1 }
}

#[test]
fn no_process_is_touched_that_a_ticket_claims() {
    needs!(Root, V2, OwnGroup, Program("perl"));
    for victim in [BOB, 0] {
        let world = if victim == 0 { World::new() } else { World::for_uid(victim) };
        let canary = Canary::new(&world, CAROL, "perflock-guard");
        let pid = i64::from(canary.running.pid());
        let own = i64::from(std::process::id());
        let no_process = [0, -1, -pid, i32::MIN.into(), i32::MAX.into(), 1 << 40];
        let supervisors = [pid, 1, own].into_iter().chain(no_process);
        let guards = [pid, 1, own, 0, i32::MAX.into()].map(|guard| (guard, true)).into_iter().chain([(pid, false)]);
        let claims = supervisors.flat_map(|supervisor| guards.clone().map(move |guard| (supervisor, guard)));
        for (supervisor, (guard, granted)) in claims.step_by(every()) {
            meets(&world, &lie(supervisor, canary.start_ticks(), guard, None, granted));
            canary.is_well();
        }
        canary.end();
        assert_serves(&world, "nothing any more");
        world.assert_clean();
    }
}

#[test]
fn no_group_is_touched_that_a_ticket_claims() {
    needs!(Root, V2, OwnGroup, Program("perl"));
    for victim in [BOB, 0] {
        let world = if victim == 0 { World::new() } else { World::for_uid(victim) };
        let canary = Canary::new(&world, CAROL, "canary");
        let canary_s = path_of(canary.running.pid());
        // A true job, of the victim's own, with another lock.
        let other = world.path("other");
        world.cmd("perflock --setup --lock").arg(&other).run().exits(0);
        let job = world.cmd("perflock --lock").arg(&other).args(["sh", "-c", "echo running; exec sleep 600"]).spawn();
        job.wait_stdout("running\n");
        let true_group = world.job_groups().into_iter().find(|group| *group != canary.group).unwrap();
        let name = true_group.file_name().unwrap().to_str().unwrap();
        let true_path = canary_s.replace("canary.service", name);
        assert!(true_path.contains("/perflock-1-"), "{true_path}");
        let up = format!("{canary_s}/../{name}");
        let paths =
            ["/system.slice/ssh.service", "/", "", "..", "../..", "/..", "/../..", ".", &canary_s, &true_path, &up];
        let claims = paths.into_iter().flat_map(|path| [true, false].map(|granted| (path, granted)));
        for (path, granted) in claims.step_by(every()) {
            meets(&world, &lie(7, 7, 8, Some(path), granted));
            canary.is_well();
            assert!(!job_ended(&true_group), "{path}");
        }
        job.signal(libc::SIGTERM);
        job.wait().dies_of(libc::SIGTERM).says("");
        canary.end();
        assert_serves(&world, "nothing any more");
        world.assert_clean();
    }
}

/// Whether a group has no member.
fn job_ended(group: &Path) -> bool {
    fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().is_empty()
}

/// A live ticket of ALICE's that claims a group by this path, in which `NAME` stands for the only name that is believed.
fn named(world: &World, path: &str) -> (File, String) {
    let ticket = put(world, "5.x", "");
    let inode = fs::metadata(&ticket).unwrap().ino();
    let name = format!("perflock-5-{inode:x}-{}-1", &boot()[..8]);
    let text = lie(7, 7, 8, Some(&path.replace("NAME", &name)), true);
    // Without O_CREAT, which the kernel refuses for another user's file in a sticky directory (fs.protected_regular).
    let mut file = File::options().write(true).open(&ticket).unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    (hold(&ticket), name)
}

/// A path in the hierarchy that leads out of it, to a directory of the world's.
fn way_out(world: &World, directory: &Path) -> String {
    let own = path_of(std::process::id().cast_signed());
    let inside = Path::new(&own).join(world.group().file_name().unwrap());
    format!("{}{}{}/NAME", inside.display(), "/..".repeat(30), directory.display())
}

#[test]
fn a_guard_with_a_negative_number_ends_nobody() {
    needs!(Root, V2);
    let world = World::new();
    for guard in [-1, i64::from(i32::MIN), -i64::from(std::process::id())] {
        meets(&world, &lie(7, 7, guard, None, true));
    }
    world.assert_clean();
}

#[test]
fn wholock_reads_no_group_outside_of_the_hierarchy() {
    needs!(Root, V2, OwnGroup);
    let world = World::new();
    let directory = world.path("evil");
    let (held, name) = named(&world, &way_out(&world, &directory));
    fs::create_dir_all(directory.join(&name)).unwrap();
    // Whoever opens it to read sleeps.
    nix::unistd::mkfifo(&directory.join(&name).join("cpu.stat"), Mode::from_bits_truncate(0o644)).unwrap();
    let shown = world.cmd("wholock --sample 0").run().exits(0).says("");
    assert!(shown.stdout.contains("41001") && !is_raw(&shown.stdout), "{}", shown.stdout);
    drop(held);
}

#[test]
fn another_user_s_stopped_process_is_not_continued() {
    needs!(Root, V2, OwnGroup, Program("perl"));
    let world = World::new();
    let canary = Canary::new(&world, CAROL, "perflock-guard");
    canary.running.signal(libc::SIGSTOP);
    wait_until("it is stopped", || state_of(canary.running.pid()) == 'T');
    let ticket = put(&world, "5.x", lie(7, 7, canary.running.pid().into(), None, true));
    let held = hold(&ticket);
    let lock = File::open(world.lock()).unwrap();
    lock.lock().unwrap();
    let waiter = waiting(world.cmd("perflock echo ran"));
    waiter.wait_stderr("perflock: waiting for lock behind 1 job");
    assert_eq!(state_of(canary.running.pid()), 'T', "ALICE's ticket made root continue CAROL's process");
    drop((lock, held));
    waiter.wait().exits(0);
    signal(canary.running.pid(), libc::SIGCONT);
    canary.running.wait_stdout("CONT\n");
}

/// A command line with a word that would draw on a terminal, where a message still shows it.
fn ugly(cmd: Cmd) -> Cmd {
    cmd.args(["env", &format!("{COMMAND}=1"), "sh", "-c", "echo running; exec sleep 600"])
}

#[test]
fn an_outsider_s_command_is_escaped() {
    needs!(V2, Program("flock"));
    let world = World::new();
    let outsider = ugly(world.cmd("flock").arg(world.lock())).spawn();
    outsider.wait_stdout("running\n");
    let busy = world.cmd("perflock -n true").run().exits(75).mentions("by flock, process ");
    let waiter = waiting(world.cmd("pls true"));
    waiter.wait_stderr("by flock, process ");
    let shown = world.cmd("wholock --sample 0").run().exits(0);
    assert!(shown.stdout.contains(r"\u{1b}]0;owned"), "{}", shown.stdout);
    for text in [busy.stderr, shown.stdout, waiter.stderr()] {
        assert!(!is_raw(&text), "{text:?}");
    }
    waiter.signal(libc::SIGINT);
    waiter.wait().dies_of(libc::SIGINT);
    crate::outsiders::end_flock(&world, outsider);
    world.assert_clean();
}

#[test]
fn an_orphan_s_command_is_escaped() {
    needs!(V2);
    let world = World::new();
    let job = ugly(world.cmd("perflock -m").arg(COMMAND)).spawn();
    job.wait_stdout("running\n");
    world.kill_both(job, "1.x");
    let shown = world.cmd("wholock --sample 0").run().exits(0);
    let done = world.cmd("perflock true").run().exits(0).mentions(r"\u{1b}]0;owned");
    for text in [shown.stdout, done.stderr] {
        assert!(!is_raw(&text), "{text:?}");
    }
    world.cmd("perflock true").run().exits(0).says("");
    world.assert_clean();
}

#[test]
fn a_leftover_s_name_is_escaped() {
    needs!(V2, Program("perl"));
    let world = World::new();
    let name = "$0 = \"\\e[2J\\e]0;x\\a\\n\"; $SIG{TERM} = 'IGNORE'; print STDERR qq(up\\n); close STDERR; sleep 600";
    let script = format!("perl -e '{name}' 2> up & until [ -s up ]; do sleep 0.01; done");
    let done = world.cmd("perflock --grace 1.2 sh -c").arg(script).run().exits(0);
    assert!(done.stderr.contains(r"perflock: killed 1 leftover process: \u{1b}[2J\u{1b}]"), "{:?}", done.stderr);
    assert!(!is_raw(&done.stderr), "{:?}", done.stderr);
    world.assert_clean();
}
