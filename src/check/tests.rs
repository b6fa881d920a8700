//! Captured machines, and what is said of them.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use super::facts::{Asker, Facts, Kernel};
use super::*;
use crate::config::ConfigError;
use crate::error::FileError;

/// A plain user, who has no name.
const USER: u32 = 41_001;

/// A machine below a directory: its files, a lock, and who asks.
struct Captured {
    root: tempfile::TempDir,
    settings: Settings,
    uid: u32,
    guard: fn() -> io::Result<()>,
    kernel: fn() -> Kernel,
}

/// One that has everything.
fn newest() -> Kernel {
    Kernel { release: "6.12.9".to_owned(), fits: Ok(()), gives_birth: true, has_threads: true }
}

impl Captured {
    /// With a lock that is set up, and no cgroup at all.
    fn new(uid: u32) -> Self {
        let root = tempfile::tempdir().unwrap();
        let lock = root.path().join("lock");
        let settings = Settings { lock, ..Settings::default() };
        let machine = Self { settings, root, uid, guard: || Ok(()), kernel: newest };
        machine.file("lock", "");
        machine.mode("lock", 0o666);
        fs::create_dir(machine.path("lock.d")).unwrap();
        machine.mode("lock.d", 0o1777);
        machine.file("proc/sys/kernel/random/boot_id", "98c01d5f-0000-0000-0000-000000000000\n");
        machine.file("proc/locks", "");
        machine.file("proc/1/stat", "1 (systemd) S 0 1 1 0 -1 4194560 1 1 1 1 1 1 1 1 20 0 1 0 1 1 1\n");
        machine.file("proc/self/cgroup", "");
        machine.file("proc/self/mountinfo", "");
        machine
    }

    /// With a unified hierarchy in which this process is in `group`, whose files a user can write.
    fn unified(uid: u32, group: &str) -> Self {
        let machine = Self::new(uid);
        machine.file("proc/self/cgroup", &format!("0::{group}\n"));
        let mount = format!("22 20 0:22 / {}/cgroup rw - cgroup2 cgroup2 rw\n", machine.root.path().display());
        machine.file("proc/self/mountinfo", &mount);
        for (name, text) in [
            ("cgroup.procs", ""),
            ("cgroup.type", "domain\n"),
            ("cgroup.kill", ""),
            ("cgroup.subtree_control", ""),
            ("cpu.stat", "usage_usec 7\nuser_usec 4\nsystem_usec 3\n"),
            ("cpu.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"),
        ] {
            machine.file(&format!("cgroup{group}/{name}"), text);
        }
        machine
    }

    /// With systemd, and a manager of the user's that has these controllers. `None` where sockets cannot be given away.
    fn with_systemd(controllers: &str) -> Option<(Self, UnixListener)> {
        let slice = format!("/user.slice/user-{USER}.slice");
        let machine = Self::unified(USER, &format!("{slice}/session-1.scope"));
        fs::create_dir_all(machine.path("run/systemd/system")).unwrap();
        machine.file(&format!("cgroup{slice}/user@{USER}.service/cgroup.controllers"), controllers);
        let bus = machine.path(&format!("run/user/{USER}/bus"));
        fs::create_dir_all(bus.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(&bus).unwrap();
        chown(&bus, Some(USER), Some(USER)).ok().map(|()| (machine, listener))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn file(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn facts_with(&self, configuration: Result<Vec<String>, ConfigError>) -> Facts {
        let (try_guard, ask_kernel) = (self.guard, self.kernel);
        let asker = Asker { uid: self.uid, user: "ann".to_owned(), bus_address: None, try_guard, ask_kernel };
        let mut facts = Facts::gather(self.root.path(), &asker, &self.settings, Vec::new(), configuration).unwrap();
        // Of the test's own disk.
        facts.lock.is_in_memory = Some(false);
        facts
    }

    fn rows_with(&self, configuration: Result<Vec<String>, ConfigError>) -> Vec<Row> {
        rows(&self.facts_with(configuration))
    }

    fn rows(&self) -> Vec<Row> {
        self.rows_with(Ok(Vec::new()))
    }
}

#[track_caller]
fn row(rows: &[Row], id: &str) -> Row {
    rows.iter().find(|row| row.id == id).unwrap_or_else(|| panic!("no {id} in {rows:#?}")).clone()
}

/// The state and the cure of a row.
#[track_caller]
fn told(rows: &[Row], id: &str) -> (State, Option<String>) {
    let row = row(rows, id);
    (row.state, row.fix)
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn where_all_is_well_nothing_fails_however_the_machine_is_set() {
    let Some((machine, _bus)) = Captured::with_systemd("cpuset cpu io memory pids\n") else { return };
    machine.file("var/lib/systemd/linger/ann", "");
    machine.file("sys/devices/system/cpu/smt/active", "1\n");
    machine.file("proc/meminfo", "SwapTotal:  10 kB\nSwapFree:  4 kB\n");
    let rows = machine.rows();
    let failing: Vec<&Row> = rows.iter().filter(|row| row.fails()).collect();
    assert_eq!(failing, Vec::<&Row>::new());
    assert_eq!(row(&rows, "backend").detail, "scope: a group in a scope of your own service manager");
    assert_eq!((row(&rows, "smt").state, row(&rows, "swap").state), (State::Weaker, State::Weaker));
    assert_eq!(row(&rows, "swap").detail, "10.0K, 6.0K used");
    // Only root has it, and nobody else is promised it.
    assert_eq!(row(&rows, "isolated").state, State::Missing);
    let verdict = view::verdict(&rows, None);
    assert_eq!(verdict, "\nall that perflock promises works here\nwhat may spoil measurements: SMT, swap\n");
    // What could not be looked at was not seen to work.
    fs::remove_dir_all(machine.path("var/lib/systemd/linger")).unwrap();
    machine.file("var/lib/systemd/linger", "");
    let rows = machine.rows();
    let failing: Vec<(&str, State)> = rows.iter().filter(|row| row.fails()).map(|row| (&*row.id, row.state)).collect();
    assert_eq!(failing, [("linger", State::Unknown)]);
}

#[test]
fn what_a_service_manager_does_not_have_is_lost_and_what_root_does_about_it_is_told() {
    let Some((machine, bus)) = Captured::with_systemd("memory pids\n") else { return };
    let rows = machine.rows();
    let delegation = row(&rows, "delegation");
    assert_eq!(delegation.detail, "your service manager does not have cpuset, io, cpu");
    assert_eq!(delegation.fix.as_deref(), Some(crate::cgroup::controller::DELEGATE));
    assert_eq!(told(&rows, "hard-pin"), (State::Weaker, delegation.fix));
    assert_eq!(told(&rows, "memory-limit"), (State::Works, None));
    assert_eq!(told(&rows, "linger"), (State::Weaker, text("loginctl enable-linger ann")));
    machine.file("etc/systemd/system/user@.service.d/perflock.conf", "");
    assert_eq!(told(&machine.rows(), "delegation").1, text("log out of every session, and log in again"));
    // A manager that lingers is the same one after that.
    machine.file("var/lib/systemd/linger/ann", "");
    let restart = format!("when nothing of yours runs: sudo systemctl restart user@{USER}.service");
    assert_eq!(told(&machine.rows(), "delegation").1, Some(restart));
    fs::remove_file(machine.path("var/lib/systemd/linger/ann")).unwrap();
    // Where the controllers are in v1, no user is given any.
    machine.file(
        "proc/self/cgroup",
        &format!("4:memory:/\n{}", fs::read_to_string(machine.path("proc/self/cgroup")).unwrap()),
    );
    assert!(told(&machine.rows(), "delegation").1.unwrap().contains("systemd.unified_cgroup_hierarchy=1"));
    // A socket without anybody behind it.
    drop(bus);
    let rows = machine.rows();
    assert_eq!(told(&rows, "refused-scope").0, State::Missing);
    assert!(row(&rows, "refused-scope").detail.starts_with("nobody answers at "), "{rows:#?}");
    assert!(!row(&rows, "backend").detail.starts_with("scope"), "{rows:#?}");
    // Nobody is asked while somebody has the machine.
    machine.file("proc/locks", "");
    machine.file("lock.d/1.x", "");
    let backend = row(&machine.rows(), "backend");
    assert!(backend.detail.ends_with("; not asked, as jobs are queued"), "{backend:?}");
}

/// The README shows some of the rows.
#[test]
fn the_readme_shows_what_is_printed() {
    let Some((machine, _bus)) = Captured::with_systemd("memory pids\n") else { return };
    machine.file("sys/devices/system/cpu/intel_pstate/no_turbo", "0\n");
    let mut facts = machine.facts_with(Ok(Vec::new()));
    facts.lock.path = crate::settings::LOCK.into();
    facts.lock.set_up = "/usr/local/bin/perflock --setup".to_owned();
    let shown = ["lock-file", "queue", "backend", "hard-pin", "linger", "turbo"];
    let rows: Vec<Row> = rows(&facts).into_iter().filter(|row| shown.contains(&&*row.id)).collect();
    let expected =
        format!("```text\n$ perflock --check\n{}{}```\n", view::text(&rows, Some(80)), view::verdict(&rows, Some(80)));
    assert!(include_str!("../../README.md").contains(&expected), "{expected}");
}

#[test]
fn a_machine_with_v1_alone_has_the_fallback_and_says_what_that_costs() {
    let machine = Captured::new(USER);
    machine.file("proc/self/cgroup", "4:memory:/\n3:cpuset:/\n2:cpuacct,cpu:/\n");
    let rows = machine.rows();
    let (state, cure) = told(&rows, "backend");
    assert_eq!((state, cure), (State::Weaker, text("run perflock as root or in a delegated cgroup")));
    assert_eq!(row(&rows, "refused-v2").detail, "the kernel has no cgroup v2 hierarchy");
    for (id, state) in [
        ("kill", State::Weaker),
        ("cpu-time", State::Weaker),
        ("memory-peak", State::Weaker),
        ("pressure", State::Missing),
        ("memory-limit", State::Missing),
        ("pids-limit", State::Missing),
    ] {
        let row = row(&rows, id);
        assert!(row.state == state && row.lost.is_some() && row.fix.is_some() && row.fails(), "{row:?}");
    }
    assert_eq!(told(&rows, "linger"), (State::Works, None));
}

#[test]
fn in_a_container_the_lock_is_said_to_be_its_own() {
    let machine = Captured::unified(0, "/ci");
    machine.file(".dockerenv", "");
    let rows = machine.rows();
    assert!(row(&rows, "lock-file").detail.ends_with("in a container, its own unless it was mounted in"));
    assert_eq!(
        row(&rows, "backend").detail,
        format!("v2: a group directly below {}", machine.path("cgroup/ci").display())
    );
    // There is no room for controllers in a group that has processes.
    assert_eq!(row(&rows, "memory-limit").state, State::Missing);
    machine.file("cgroup/ci/cgroup.type", "threaded\n");
    assert!(row(&machine.rows(), "refused-v2").detail.contains("is a threaded group"));
}

#[test]
fn the_choice_of_no_group_or_of_no_fallback_is_what_is_checked() {
    let mut machine = Captured::unified(0, "/ci");
    machine.settings.cgroup = crate::cgroup::Choice::None;
    let rows = machine.rows();
    assert_eq!(row(&rows, "backend").detail, "subreaper: descendants are tracked, as asked for");
    assert!(told(&rows, "backend").1.unwrap().starts_with("use --cgroup auto"));
    machine.file("proc/self/mountinfo", "");
    machine.settings.cgroup = crate::cgroup::Choice::Required;
    assert_eq!(told(&machine.rows(), "backend").0, State::Missing);
}

#[test]
fn permissions_of_lock_and_queue_are_judged() {
    let machine = Captured::new(0);
    let states = |lock: u32, queue: u32| {
        machine.mode("lock", lock);
        machine.mode("lock.d", queue);
        let rows = machine.rows();
        [row(&rows, "lock-file").state, row(&rows, "queue").state]
    };
    use State::{Weaker, Works};
    assert_eq!(states(0o666, 0o1777), [Works, Works]);
    // As older set-ups leave it: flock(2) needs no more.
    assert_eq!(states(0o444, 0o1777), [Works, Works]);
    assert_eq!(states(0o660, 0o3775), [Works, Works]);
    assert_eq!(states(0o600, 0o1777), [Weaker, Works]);
    assert_eq!(states(0o666, 0o777), [Works, Weaker]);
    assert_eq!(states(0o660, 0o2775), [Works, Weaker]);
    assert_eq!(states(0o666, 0o755), [Works, Weaker]);
    assert_eq!(states(0o666, 0o3775), [Works, Weaker]);
}

#[test]
fn whoever_owns_the_lock_or_its_queue_is_no_plain_user() {
    let machine = Captured::new(0);
    for (name, id) in [("lock", "lock-file"), ("lock.d", "queue")] {
        // Not everybody may give files away.
        if chown(machine.path(name), Some(USER), None).is_err() {
            return;
        }
        let row = row(&machine.rows(), id);
        assert_eq!((row.state, row.promised), (State::Weaker, true), "{row:?}");
        assert!(row.detail.ends_with(&format!(" belongs to {USER}")), "{row:?}");
        assert!(row.fix.unwrap().contains(" --setup --lock "));
        chown(machine.path(name), Some(0), None).unwrap();
        assert_eq!(told(&machine.rows(), id), (State::Works, None));
    }
}

#[test]
fn what_a_kernel_cannot_do_is_told_with_what_helps() {
    let mut machine = Captured::unified(0, "/ci");
    assert_eq!(told(&machine.rows(), "kernel"), (State::Works, None));
    machine.kernel = || Kernel {
        release: "4.19.0".to_owned(),
        fits: Err(crate::kernel::Unfit {
            call: "pidfd_open(2)",
            release: "4.19.0".to_owned(),
            source: io::Error::from_raw_os_error(libc::ENOSYS),
        }),
        ..newest()
    };
    assert_eq!(told(&machine.rows(), "kernel"), (State::Missing, text("boot Linux 5.3 or newer")));
    machine.kernel = || Kernel { release: "5.4.0".to_owned(), gives_birth: false, ..newest() };
    assert_eq!(told(&machine.rows(), "kernel"), (State::Weaker, text("boot Linux 5.7 or newer")));
    let filtered = text("let clone3(2) through the filter that refuses it");
    machine.kernel = || Kernel { gives_birth: false, ..newest() };
    assert_eq!(told(&machine.rows(), "kernel"), (State::Weaker, filtered.clone()));
    machine.kernel = || Kernel { gives_birth: false, has_threads: false, ..newest() };
    let both = row(&machine.rows(), "kernel");
    assert_eq!(both.fix, filtered);
    let lost = both.lost.unwrap();
    assert!(lost.starts_with("a job that has to wait fails; the start of a job holds up "), "{lost}");
    // Without processes there are no threads, and it is not the kernel that is to blame.
    machine.guard = || Err(io::Error::from_raw_os_error(libc::EAGAIN));
    machine.kernel = || Kernel { has_threads: false, ..newest() };
    assert_eq!(told(&machine.rows(), "kernel"), (State::Works, None));
    // In the fallback nobody is born in a group.
    machine.file("proc/self/mountinfo", "");
    machine.kernel = || Kernel { gives_birth: false, ..newest() };
    assert_eq!(told(&machine.rows(), "kernel"), (State::Works, None));
}

#[test]
fn without_cgroup_kill_root_loses_nothing_and_a_plain_user_what_is_not_theirs() {
    for (uid, state) in [(0, State::Works), (USER, State::Weaker)] {
        let machine = Captured::unified(uid, "/ci");
        assert_eq!(told(&machine.rows(), "kill"), (State::Works, None));
        fs::remove_file(machine.path("cgroup/ci/cgroup.kill")).unwrap();
        machine.file("cgroup/ci/cgroup.freeze", "0\n");
        let kill = row(&machine.rows(), "kill");
        assert_eq!((kill.state, kill.lost.is_some()), (state, state == State::Weaker), "{kill:?}");
        assert_eq!(kill.fix.is_some(), state == State::Weaker);
        assert!(kill.detail.ends_with("there is no cgroup.kill"), "{kill:?}");
    }
}

#[test]
fn what_cannot_be_opened_is_missing_and_says_what_to_do() {
    let machine = Captured::new(USER);
    let set_up = format!("{} --lock {}", "--setup", machine.path("lock").display());
    fs::remove_file(machine.path("lock")).unwrap();
    let (state, fix) = told(&machine.rows(), "lock-file");
    assert!(state == State::Missing && fix.unwrap().ends_with(&set_up));
    std::os::unix::fs::symlink("elsewhere", machine.path("lock")).unwrap();
    let (state, fix) = told(&machine.rows(), "lock-file");
    let fix = fix.unwrap();
    assert!(state == State::Missing && fix.starts_with("sudo mv -T ") && fix.ends_with(&set_up), "{fix}");
    fs::remove_dir(machine.path("lock.d")).unwrap();
    machine.file("lock.d", "");
    assert_eq!(told(&machine.rows(), "queue").0, State::Missing);
}

#[test]
fn a_configuration_that_cannot_be_used_is_a_row_of_its_own() {
    let machine = Captured::new(USER);
    let path = PathBuf::from("/etc/perflock.toml");
    let why = || "grace: a string is expected".to_owned();
    let rows = machine.rows_with(Err(ConfigError::Line { path: path.clone(), line: 3, why: why() }));
    let configuration = row(&rows, "configuration");
    assert_eq!(configuration.detail, "/etc/perflock.toml:3: grace: a string is expected");
    assert_eq!((configuration.state, configuration.fix), (State::Missing, text("sudoedit /etc/perflock.toml")));
    let closed = FileError::on("read", &path)(io::Error::from_raw_os_error(libc::EACCES));
    assert_eq!(told(&machine.rows_with(Err(closed.into())), "configuration").0, State::Missing);
    let rows = machine.rows_with(Ok(vec!["/etc/perflock.toml:1: unknown key grase".to_owned()]));
    assert_eq!(told(&rows, "configuration").0, State::Weaker);
}

#[test]
fn a_guard_that_cannot_be_made_is_missing() {
    let mut machine = Captured::new(0);
    machine.guard = || Err(io::Error::from_raw_os_error(libc::EAGAIN));
    assert_eq!(told(&machine.rows(), "guard"), (State::Missing, text("ulimit -Su hard")));
    machine.guard = || Err(io::Error::from_raw_os_error(libc::ENOSYS));
    assert_eq!(told(&machine.rows(), "guard"), (State::Missing, None));
}

#[test]
fn a_proc_that_hides_others_weakens_wholock_for_all_but_root() {
    let mut machine = Captured::new(USER);
    fs::remove_file(machine.path("proc/1/stat")).unwrap();
    assert_eq!(told(&machine.rows(), "proc"), (State::Weaker, text("sudo mount -o remount,hidepid=0 /proc")));
    machine.uid = 0;
    assert_eq!(told(&machine.rows(), "proc"), (State::Works, None));
    fs::remove_file(machine.path("proc/locks")).unwrap();
    // What hides it is not known, and no option of the mount does.
    assert_eq!(told(&machine.rows(), "proc"), (State::Weaker, None));
}

#[test]
fn how_the_machine_is_set_is_told_with_the_command_that_changes_it() {
    let machine = Captured::new(0);
    machine.file("sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "powersave\n");
    machine.file("sys/devices/system/cpu/intel_pstate/no_turbo", "0\n");
    machine.file("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n");
    machine.file("proc/meminfo", "SwapTotal:  0 kB\nSwapFree:  0 kB\n");
    let rows = machine.rows();
    let sys = "/sys/devices/system/cpu";
    let governor = format!("echo performance | tee {sys}/cpufreq/policy*/scaling_governor >/dev/null");
    assert_eq!(told(&rows, "governor"), (State::Weaker, Some(governor)));
    let turbo = format!("echo 1 | tee {sys}/intel_pstate/no_turbo >/dev/null");
    assert_eq!(told(&rows, "turbo"), (State::Weaker, Some(turbo)));
    assert_eq!(row(&rows, "huge-pages").state, State::Weaker);
    assert_eq!(row(&rows, "swap").detail, "none");
    assert_eq!(row(&rows, "smt").state, State::Unknown);
    assert!(["governor", "turbo", "smt", "huge-pages", "swap"].iter().all(|id| !row(&rows, id).promised));
    fs::remove_dir_all(machine.path("sys/devices/system/cpu/intel_pstate")).unwrap();
    machine.file("sys/devices/system/cpu/cpufreq/boost", "1\n");
    assert!(told(&machine.rows(), "turbo").1.unwrap().starts_with("echo 0 | tee "));
}

#[test]
fn what_one_command_mends_stands_together_and_no_text_of_others_reaches_the_terminal() {
    let fix = || "sudo perflock --setup".to_owned();
    let rows = [
        Row::missing("a", "first", "x\u{1b}[2Jy").lost("one").fix(fix()),
        Row::weaker("b", "second", "words ".repeat(30).trim()).lost("two").fix("other\n".to_owned()),
        Row::missing("c", "third", "z").lost("three").fix(fix()),
        Row::works("d", "fourth", "fine"),
    ];
    let text = view::text(&rows, None);
    let expected = "\
FEATURE  STATE    WHAT IS THERE
first    missing  x\\u{1b}[2Jy
second   weaker   ";
    assert!(text.starts_with(expected), "{text}");
    let below = "first: x\\u{1b}[2Jy\n  lost  one\nthird: z\n  lost  three\n  fix   sudo perflock --setup\n\nsecond: ";
    assert!(text.contains(below), "{text}");
    assert!(text.ends_with("  lost  two\n  fix   other\\n\n"), "{text}");
    for width in [0, 20, 80, 200] {
        let text = view::text(&rows, Some(width));
        let widest = text.lines().map(unicode_width::UnicodeWidthStr::width).max().unwrap();
        assert!(widest <= usize::from(width).max(44), "{width}: {widest}\n{text}");
    }
    assert_eq!(view::text(&[], None), "");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Every file of a machine may say anything.
    #[test]
    fn any_machine_is_judged_without_panic(words: String, detail: String, width: Option<u16>) {
        let machine = Captured::unified(USER, "/ci");
        for name in ["proc/self/mountinfo", "proc/self/cgroup", "proc/locks", "proc/meminfo", "etc/tmpfiles.d/x.conf"] {
            machine.file(name, &words);
        }
        let mut rows = machine.rows();
        rows.push(Row::weaker("x", &words, detail).fix(words.clone()));
        let text = view::text(&rows, width) + &view::verdict(&rows, width);
        proptest::prop_assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{}", text);
    }
}
