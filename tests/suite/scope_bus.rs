//! Where systemd is not there, refuses, or keeps silent: perflock says so, and does what it can without.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::{Done, Machine, alive, patient, pid_in, state_of, wait_until};
use crate::needs;
use crate::scope::{end, parts, sleeper};

const TELL: &str = "sed -n s/^0:://p /proc/self/cgroup";

/// How long perflock waits for an answer.
const SILENCE: Duration = Duration::from_secs(5);

/// The job ran without a group, and one line of warning says why.
#[track_caller]
fn announced(done: &Done) {
    warned(done, "perflock: warning: ");
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    assert!(!done.stdout.contains("perflock-"), "{}", done.stdout);
}

/// What is said of a group that cannot be made begins like this, and names the scope that there is none of.
#[track_caller]
fn warned(done: &Done, prefix: &str) {
    let reasons = done.stderr.strip_prefix(&format!("{prefix}no job group can be made here ("));
    assert!(reasons.is_some_and(|reasons| reasons.contains("scope: ")), "{}", done.stderr);
}

/// Answers everybody on the bus like this, for as long as the test runs.
fn serve(listener: UnixListener, answer: impl Fn(UnixStream) + Clone + Send + 'static) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || answer(stream));
        }
    });
}

/// A job that perflock runs without a scope, or refuses to run; it takes no longer than the silence that is allowed.
fn falls_back(machine: &Machine, longest: Duration) -> Done {
    let start = Instant::now();
    let done = machine.cmd("perflock sh -c").arg(format!("{TELL}; exit 3")).run().exits(3);
    announced(&done);
    assert!(start.elapsed() < longest, "{:?}", start.elapsed());
    machine.assert_clean();
    let start = Instant::now();
    let required = machine.cmd("perflock --cgroup required touch ran").run().exits(125).prints("");
    warned(&required, "perflock: ");
    assert!(start.elapsed() < longest, "{:?}", start.elapsed());
    assert!(!machine.path("ran").exists());
    machine.assert_clean();
    done
}

#[test]
fn a_user_without_a_systemd_is_told_what_to_do() {
    needs!(Root, V2, Manager);
    let machine = Machine::without_manager();
    let done = falls_back(&machine, patient(SILENCE / 2));
    assert!(done.stderr.contains("loginctl enable-linger pltest-alice"), "{}", done.stderr);
    let done = machine.cmd("perflock --cgroup required true").run().exits(125);
    assert!(done.stderr.contains("loginctl enable-linger pltest-alice"), "{}", done.stderr);
    // Who asked for less is not told.
    machine.cmd("perflock --cgroup none true").run().exits(0).says("");
    // All the same without anything in the environment.
    let bare = machine.cmd("perflock true").env_remove("XDG_RUNTIME_DIR").env_remove("DBUS_SESSION_BUS_ADDRESS");
    bare.run().exits(0).mentions("loginctl enable-linger");
    // Somebody was there, but is no more.
    drop(machine.listen());
    falls_back(&machine, patient(SILENCE / 2));
}

#[test]
fn leftovers_of_the_fallback_are_ended_and_nothing_of_ours_is_one() {
    needs!(Root, V2, Manager);
    let machine = Machine::without_manager();
    let done = machine.cmd("perflock sh -c").arg("setsid sleep 600 & echo $! > pid; exit 7").run().exits(7);
    let pid = pid_in(&machine.path("pid"));
    let said = done.stderr_but_for_waits();
    let mut lines = said.lines();
    assert!(lines.next().unwrap().contains(" warning: no job group can be made here ("), "{}", done.stderr);
    assert!(lines.next().unwrap().starts_with("perflock: killed 1 leftover process: "), "{}", done.stderr);
    assert_eq!(lines.next(), None);
    assert!(!alive(pid));
    machine.assert_clean();
    let job = "cat /proc/$PPID/task/*/children; exec sleep 600";
    let running = machine.cmd("perflock sh -c").arg(job).spawn();
    let guard = machine.guard_of("1.x");
    wait_until("the job says who its siblings are", || running.stdout().contains(' '));
    // The command and the guard: no helper is left.
    assert_eq!(running.stdout().split_whitespace().count(), 2, "{}", running.stdout());
    assert!(running.stdout().contains(&guard.to_string()));
    running.signal(libc::SIGKILL);
    running.wait().dies_of(libc::SIGKILL);
    machine.wait_clean();
}

#[test]
fn a_silent_bus_is_waited_for_for_five_seconds() {
    needs!(Root, V2, Manager);
    let machine = Machine::without_manager();
    // It takes connections, since the kernel does; nobody ever reads.
    let _listener = machine.listen();
    let start = Instant::now();
    let run = |line: &str| machine.cmd(line).args(["sh", "-c", "date +%s > began; exit 3"]).spawn();
    // All at the same time: each may take its five seconds.
    let (auto, required) = (run("pls"), run("pls --cgroup required"));
    let typed = machine.cmd("pls touch ran").spawn();
    let asked = machine.cmd("pls touch ran").spawn();
    wait_until("all have the lock", || machine.tickets().len() == 4);
    std::thread::sleep(Duration::from_millis(300));
    let told = Instant::now();
    typed.signal(libc::SIGINT);
    typed.wait().dies_of(libc::SIGINT).prints("").says("");
    asked.signal(libc::SIGTERM);
    asked.wait().dies_of(libc::SIGTERM).prints("").says("");
    assert!(told.elapsed() < patient(SILENCE / 3), "{:?}", told.elapsed());
    assert!(!machine.path("ran").exists());
    assert!(!machine.path("began").exists(), "nothing runs before it is known where");
    let refused = required.wait().exits(125);
    warned(&refused, "pls: ");
    let done = auto.wait().exits(3);
    warned(&done, "pls: warning: ");
    assert!(start.elapsed() > SILENCE * 9 / 10, "{:?}", start.elapsed());
    assert!(start.elapsed() < patient(SILENCE * 2), "{:?}", start.elapsed());
    machine.assert_clean();
}

#[test]
fn an_interrupt_typed_while_the_bus_is_silent_ends_perflock() {
    needs!(Root, V2, Manager);
    let machine = Machine::without_manager();
    let _listener = machine.listen();
    for (key, number) in [("\x03", libc::SIGINT), ("\x1c", libc::SIGQUIT)] {
        let mut terminal = machine.cmd("perflock touch ran").on_terminal();
        wait_until("it has the lock", || !machine.tickets().is_empty() && !machine.lock_is_free());
        std::thread::sleep(Duration::from_millis(200));
        let typed = Instant::now();
        terminal.type_in(key);
        let status = terminal.wait();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(number), "{status}");
        assert!(typed.elapsed() < patient(SILENCE / 3), "{:?}", typed.elapsed());
        assert!(!machine.path("ran").exists());
        machine.assert_clean();
    }
}

#[test]
fn a_bus_that_hangs_up_or_talks_nonsense_is_no_bus() {
    needs!(Root, V2, Manager);
    let answers: [fn(UnixStream); 4] = [
        |_| {},
        |mut stream| {
            let _ = stream.write_all(b"REJECTED EXTERNAL\r\n");
            let _ = stream.read(&mut [0; 4096]);
        },
        |mut stream| {
            let _ = stream.write_all(b"OK 0123456789abcdef0123456789abcdef\r\nAGREE_UNIX_FD\r\n");
            // A message with a length that nobody has.
            let _ = stream.write_all(b"l\x02\x00\x01\xff\xff\xff\xff\x01\x00\x00\x00\xff\xff\xff\xff");
            let _ = stream.read(&mut [0; 4096]);
        },
        |mut stream| {
            let _ = stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n");
        },
    ];
    for answer in answers {
        let machine = Machine::without_manager();
        serve(machine.listen(), answer);
        falls_back(&machine, patient(SILENCE * 2));
    }
}

#[test]
fn a_bus_that_never_stops_talking_is_not_listened_to_for_ever() {
    needs!(Root, V2, Manager);
    let machine = Machine::without_manager();
    serve(machine.listen(), |mut stream| while stream.write_all(&[b'x'; 1024]).is_ok() {});
    falls_back(&machine, patient(SILENCE * 2));
    // Nor to one that says a byte now and then.
    let machine = Machine::without_manager();
    let slowly = |mut stream: UnixStream| {
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    serve(machine.listen(), slowly);
    falls_back(&machine, patient(SILENCE * 2));
}

#[test]
fn a_bus_without_a_systemd_is_no_help() {
    needs!(Root, V2, Manager);
    let machine = Machine::without_manager();
    let address = format!("--address=unix:path={}", machine.bus().display());
    let bus = machine.cmd("dbus-daemon --session --nofork --nopidfile --nosyslog").arg(address).spawn();
    wait_until("the bus is there", || machine.inside(machine.bus()).exists());
    let start = Instant::now();
    let done = machine.cmd("perflock sh -c").arg(format!("{TELL}; exit 3")).run().exits(3);
    announced(&done);
    machine.cmd("perflock --cgroup required true").run().exits(125).mentions("scope: ");
    assert!(start.elapsed() < patient(SILENCE * 3), "{:?}", start.elapsed());
    bus.signal(libc::SIGKILL);
    bus.wait();
    machine.wait_clean();
}

#[test]
fn the_bus_is_found_whatever_the_environment_says() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    let nobody = machine.path("nobody");
    let elsewhere = format!("unix:path={}", nobody.display());
    for address in
        [None, Some(""), Some("garbage"), Some("unix:path="), Some("tcp:host=127.0.0.1,port=1"), Some(&*elsewhere)]
    {
        for directory in [None, Some(""), Some("/nonexistent")] {
            let mut cmd = machine.cmd(&format!("perflock {TELL}")).env_remove("DBUS_SESSION_BUS_ADDRESS");
            cmd = cmd.env_remove("XDG_RUNTIME_DIR");
            if let Some(address) = address {
                cmd = cmd.env("DBUS_SESSION_BUS_ADDRESS", address);
            }
            if let Some(directory) = directory {
                cmd = cmd.env("XDG_RUNTIME_DIR", directory);
            }
            let done = cmd.run().exits(0).says("");
            parts(done.stdout.trim_end());
        }
    }
    machine
        .cmd(&format!("env -i PERFLOCK_LOCK={}", machine.lock().display()))
        .arg(machine.program("perflock"))
        .args(["sh", "-c", "exit 5"])
        .run()
        .exits(5)
        .says("");
    machine.wait_gone();
    // Elsewhere than usual it must be named.
    fs::rename(machine.inside(machine.bus()), machine.inside(Path::new("/run/moved"))).unwrap();
    let done = machine.cmd(&format!("perflock {TELL}")).env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/run/moved").run();
    parts(done.exits(0).says("").stdout.trim_end());
    let done = machine.cmd(&format!("perflock {TELL}")).run().exits(0);
    announced(&done);
    machine.wait_clean();
}

#[test]
fn the_very_first_job_after_login_gets_a_scope() {
    needs!(Root, V2, Manager);
    // The bus is started by whoever connects first, and systemd comes to it after that.
    let machine = Machine::new();
    let done = machine.cmd(&format!("perflock {TELL}")).run().exits(0).says("");
    parts(done.stdout.trim_end());
    machine.wait_gone();
    let machine = Machine::new();
    machine.sh("for i in $(seq 10); do pls --cgroup required true & done; wait").run().exits(0).says("");
    machine.wait_gone();
}

#[test]
fn a_systemd_that_wakes_up_too_late_leaves_no_scope() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    machine.cmd("perflock true").run().exits(0).says("");
    machine.wait_gone();
    machine.init().signal(libc::SIGSTOP);
    wait_until("systemd is stopped", || state_of(machine.init().pid()) == 'T');
    let start = Instant::now();
    let running = machine
        .cmd("pls sh -c")
        .arg(format!("{TELL}; touch began; until [ -e stop ]; do sleep 0.01; done; exit 3"))
        .spawn();
    wait_until("the job began", || machine.path("began").exists());
    assert!(start.elapsed() < patient(SILENCE * 2), "{:?}", start.elapsed());
    let members = machine.processes();
    machine.init().signal(libc::SIGCONT);
    // It works off what it was asked for; the job goes on where it is.
    wait_until("systemd answers", || machine.systemctl("is-system-running").contains("running"));
    wait_until("no scope is left", || machine.units().is_empty() && machine.scopes().is_empty());
    let stable: Vec<i32> = members.into_iter().filter(|&pid| alive(pid)).collect();
    assert!(stable.contains(&running.pid()));
    machine.write("stop", "");
    let done = running.wait().exits(3);
    warned(&done, "pls: warning: ");
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    assert!(!done.stdout.contains("perflock-"), "{}", done.stdout);
    machine.wait_gone();
    // And the same for one that was interrupted meanwhile.
    machine.init().signal(libc::SIGSTOP);
    wait_until("systemd is stopped", || state_of(machine.init().pid()) == 'T');
    let running = machine.cmd("perflock sleep 600").spawn();
    wait_until("it has the lock", || !machine.lock_is_free());
    std::thread::sleep(Duration::from_millis(300));
    running.signal(libc::SIGTERM);
    running.wait().dies_of(libc::SIGTERM);
    machine.assert_no_job();
    machine.init().signal(libc::SIGCONT);
    machine.wait_gone();
    let (running, _) = sleeper(&machine, "perflock --cgroup required");
    end(&machine, running);
}

#[test]
fn a_manager_that_is_killed_leaves_its_jobs_alone() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    let job = "until [ -e stop ]; do sleep 0.01; done; setsid sleep 600 & exit 3";
    let running = machine.cmd("perflock --grace 0.2 sh -c").arg(job).spawn();
    let guard = machine.guard_of("1.x");
    machine.init().signal(libc::SIGKILL);
    wait_until("systemd is dead", || !alive(machine.init().pid()));
    machine.write("stop", "");
    let done = running.wait().exits(3);
    assert!(done.stderr.starts_with("perflock: killed 1 leftover process: "), "{}", done.stderr);
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    assert!(!alive(guard));
    machine.assert_no_job();
    assert_eq!(machine.processes(), Vec::<i32>::new());
    // The next has nobody to ask, though the bus may still be there.
    let start = Instant::now();
    announced(&machine.cmd("perflock true").run().exits(0));
    assert!(start.elapsed() < patient(SILENCE * 2), "{:?}", start.elapsed());
}

#[test]
fn a_cgroup_hierarchy_that_cannot_be_written_or_seen_is_no_help() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    for script in [
        "mount -o remount,bind,ro /sys/fs/cgroup",
        "mount -t tmpfs none /sys/fs/cgroup",
        "umount /sys/fs/cgroup || mount -t tmpfs none /sys/fs/cgroup",
        // Only a part of the tree is there.
        "mkdir -p /run/part; mount --bind /sys/fs/cgroup/user.slice/user-$(id -u).slice /run/part 2>/dev/null || \
         mount --bind /sys/fs/cgroup/user.slice /run/part; mount -t tmpfs none /sys/fs/cgroup",
    ] {
        let job = format!("{TELL}; setsid sleep 600 & exit 3");
        let done = machine.altered(script, "perflock --grace 0.2 sh -c").arg(&job).run().exits(3);
        if done.stdout.contains("perflock-") {
            parts(done.stdout.trim_end());
            assert!(!done.stderr.contains("warning"), "{script}: {}", done.stderr);
        } else {
            warned(&done, "perflock: warning: ");
        }
        assert!(done.stderr.contains("perflock: killed 1 leftover process: "), "{script}: {}", done.stderr);
        machine.wait_gone();
        if !done.stdout.contains("perflock-") {
            let required = machine.altered(script, "perflock --cgroup required touch ran").run().exits(125);
            warned(&required, "perflock: ");
            assert!(!machine.path("ran").exists());
            machine.wait_gone();
        }
    }
}

#[test]
fn in_a_cgroup_namespace_of_its_own_a_job_is_run_somehow() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    let uid = machine.uid().to_string();
    for mount in ["", "umount /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup;"] {
        // The group of the session is the root in there.
        let script = format!("{mount} exec setpriv --reuid {uid} --regid {uid} --clear-groups \"$@\"");
        let cmd = machine.cmd("unshare --mount --propagation private --cgroup sh -ec").arg(script).arg("in").uid(0);
        let job = format!("{TELL}; setsid sleep 600 & exit 3");
        let done = cmd.args(["perflock", "--grace", "0.2", "sh", "-c", &job]).run().exits(3);
        assert!(done.stderr.contains("perflock: killed 1 leftover process: "), "{mount}: {}", done.stderr);
        assert!(
            done.stdout.contains("perflock-") || done.stderr.contains("warning: no job group"),
            "{mount}: {}",
            done.stderr
        );
        machine.wait_gone();
    }
}

#[test]
fn a_proc_that_hides_others_changes_nothing() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    let done = machine.altered("mount -t proc -o hidepid=2 none /proc", &format!("perflock {TELL}")).run().exits(0);
    parts(done.says("").stdout.trim_end());
    machine.wait_gone();
}

#[test]
fn where_clone3_is_refused_the_command_is_in_its_scope_all_the_same() {
    needs!(Root, V2, Manager, Program("strace"));
    let machine = Machine::new();
    let strace = "strace -f -o /dev/null -e trace=clone3 -e inject=clone3:error=ENOSYS";
    let job = format!("setsid sleep 600 & {TELL}; exit 7");
    let done = machine.cmd(&format!("{strace} perflock sh -c")).arg(job).run().exits(7);
    let said = done.stderr_but_for_waits();
    assert!(said.starts_with("perflock: killed 1 leftover process: "), "{said}");
    parts(done.stdout.trim_end());
    machine.wait_gone();
    machine.cmd(&format!("{strace} perflock --cgroup required true")).run().exits(0).says("");
    machine.wait_gone();
}

#[test]
fn in_a_pid_namespace_nobody_else_is_moved() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    let uid = machine.uid().to_string();
    // The user's, and so one that his systemd would move.
    let victim = machine.cmd("sleep 600").spawn();
    let group = machine.group_of(victim.pid());
    // perflock's processes get numbers here that mean another process to systemd: one of them the victim's.
    for before in 1..8 {
        let script = format!(
            "echo {} > /proc/sys/kernel/ns_last_pid; exec setpriv --reuid {uid} --regid {uid} --clear-groups \"$@\"",
            victim.pid() - before
        );
        let unshare = machine.cmd("unshare --pid --fork --kill-child --mount-proc sh -c").arg(script).arg("in").uid(0);
        let done = unshare.args(["perflock", "sh", "-c", &format!("{TELL}; sleep 600 & exit 3")]).run().exits(3);
        assert!(alive(victim.pid()), "{before}: the victim was killed; {}", done.stderr);
        assert_eq!(machine.group_of(victim.pid()), group, "{before}: the victim was moved; {}", done.stderr);
        assert!(done.stderr.contains("perflock: killed 1 leftover process: "), "{before}: {}", done.stderr);
    }
    victim.signal(libc::SIGKILL);
    victim.wait();
    machine.wait_gone();
}

/// A bus that hangs takes no more connections when as many wait as it lets wait.
#[test]
fn a_bus_with_no_room_for_another_is_not_waited_for_without_end() {
    needs!(Root, V2, Manager);
    let machine = Machine::without_manager();
    let listener = machine.listen();
    // listen(2) again, with room for one.
    // SAFETY: changes a number of a socket of ours.
    assert_eq!(unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 0) }, 0);
    let mut waiting = Vec::new();
    let full = || {
        let socket = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Unix,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::SOCK_NONBLOCK | nix::sys::socket::SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        let address = nix::sys::socket::UnixAddr::new(&machine.inside(machine.bus())).unwrap();
        let connected = nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &address);
        waiting.push(socket);
        connected == Err(nix::errno::Errno::EAGAIN)
    };
    wait_until("nobody else can connect", full);
    let interrupted = machine.cmd("perflock touch ran").spawn();
    wait_until("it has the lock", || !machine.tickets().is_empty() && !machine.lock_is_free());
    interrupted.signal(libc::SIGTERM);
    interrupted.wait().dies_of(libc::SIGTERM);
    let start = Instant::now();
    let done = machine.cmd("perflock sh -c").arg("exit 3").run().exits(3);
    warned(&done, "perflock: warning: ");
    assert!(start.elapsed() < patient(SILENCE * 2), "{:?}", start.elapsed());
    machine.assert_clean();
}
