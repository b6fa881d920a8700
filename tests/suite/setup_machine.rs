//! Setting a whole machine up, and undoing it: in a mount namespace whose /run and /etc are the test's.

use std::fs;

use crate::harness::{Cmd, World, alive, source, wait_until};
use crate::needs;

/// A shell script on a machine with systemd and a service of the night. What its `systemctl` is told is in the file `told`.
fn on_a_machine(world: &World, script: &str) -> Cmd {
    let told = world.path("told");
    world.script("systemctl", &format!("#!/bin/sh\necho \"$*\" >>{}\n", told.display()));
    let unit = "[Service]\nType=oneshot\nExecStart=/usr/lib/apt/apt.systemd.daily update\n";
    world.write("nightly.service", unit);
    let here = world.path("").display().to_string();
    let script = format!(
        "mkdir -p etc/tmpfiles.d etc/systemd/system; cp -L /etc/passwd /etc/group etc; cp nightly.service etc/systemd/system; \
         mount --bind etc /etc; mount -t tmpfs run /run; mkdir -p /run/systemd/system; unset PERFLOCK_LOCK; \
         mount -t tmpfs -o mode=755 lib /var/lib; export XDG_CONFIG_HOME=/mnt; \
         mount -t tmpfs -o mode=755 bin /mnt; cp $(command -v perflock) $(command -v pls) /mnt; PATH=/mnt:{here}:$PATH; {script}"
    );
    world.cmd("unshare --mount sh -ec").arg(script)
}

fn parent_of(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse().ok()).unwrap_or(0)
}

fn comm_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

const FILES: &str =
    "find /etc/tmpfiles.d /etc/systemd /run /var/lib -type f -o -name perflock.d -o -path /var/lib/perflock | sort";

#[test]
fn a_machine_is_set_up_once_and_undone() {
    needs!(Root, Program("unshare"));
    let world = World::new();
    let script = format!(
        "perflock --setup --dry-run --tame nightly.service; {FILES}; perflock --setup --tame nightly.service; {FILES}; \
         perflock --setup --tame nightly.service; \
         sed 's/sum [0-9a-f]*/sum SUM/' /etc/systemd/system/nightly.service.d/perflock.conf; \
         perflock --undo --dry-run; perflock --undo; perflock --undo; {FILES}"
    );
    let done = on_a_machine(&world, &script).run().exits(0);
    let steps = "write /etc/tmpfiles.d/perflock.conf: the lock returns at every boot\n\
        write /etc/systemd/system/user@.service.d/perflock.conf: jobs of users who log in from now on can have cpusets, and their \
        I/O counted\n\
        create /var/lib/perflock (mode 1777)\n\
        write /etc/systemd/system/nightly.service.d/perflock.conf: nightly.service runs under pls, and waits while somebody has \
        the machine alone\n";
    let lines = |text: &str, verb: &str| -> String {
        let said = |line: &str| match line.split_once(' ').unwrap() {
            ("create", what) => {
                format!("perflock: {} {what}\n", verb.replace("wrote", "created").replace("write", "create"))
            }
            (_, what) => format!("perflock: {verb} {what}\n"),
        };
        text.lines().map(said).collect()
    };
    let removed = "x /etc/tmpfiles.d/perflock.conf\nx /etc/systemd/system/nightly.service.d/perflock.conf\n\
        x /etc/systemd/system/user@.service.d/perflock.conf\nx /var/lib/perflock\n";
    let said = [
        "perflock: would create /run/perflock.d (mode 1777)\nperflock: would create /run/perflock (mode 0666)\n"
            .to_owned(),
        lines(steps, "would write"),
        "perflock: created /run/perflock.d (mode 1777)\nperflock: created /run/perflock (mode 0666)\n".to_owned(),
        lines(steps, "wrote"),
        "perflock: /run/perflock is already set up; nothing was changed\n".to_owned(),
        "perflock: would remove /run/perflock.d\nperflock: would remove /run/perflock\n".to_owned(),
        lines(removed, "would remove"),
        "perflock: removed /run/perflock.d\nperflock: removed /run/perflock\n".to_owned(),
        lines(removed, "removed"),
        "perflock: /run/perflock is not set up; nothing was changed\n".to_owned(),
    ];
    let done = done.says(&said.concat());
    let before = "/etc/systemd/system/nightly.service\n";
    done.prints(&format!(
        "{before}{before}/etc/systemd/system/nightly.service.d/perflock.conf\n\
         /etc/systemd/system/user@.service.d/perflock.conf\n/etc/tmpfiles.d/perflock.conf\n/run/perflock\n/run/perflock.d\n\
         /var/lib/perflock\n# Written by perflock --setup, and removed by perflock --undo unless it was changed (sum SUM).\n\
         # Runs under pls: it waits while somebody has the machine alone, and no such job starts before it has ended.\n\
         [Service]\nExecStart=\nExecStart=/mnt/pls --quiet --leftovers wait -- /usr/lib/apt/apt.systemd.daily update\n\
         # The wait may take any time.\nTimeoutStartSec=infinity\n\
         # It stays in the service's own group, with its limits, and ends with the service as before.\nDelegate=yes\n{before}"
    ));
    // For what was written, and what was removed; not for what was the same.
    assert_eq!(world.read("told"), "daemon-reload\ndaemon-reload\n");
}

#[test]
fn the_lock_returns_at_boot_with_its_permissions() {
    needs!(Root, Program("unshare"), Program("systemd-tmpfiles"));
    for (group, expected) in [("", "666 0 0\n1777 0 0\n"), ("--group users", "660 0 GID\n3775 0 GID\n")] {
        let world = World::new();
        let script = format!(
            "perflock -q --setup {group}; rm -r /run/perflock /run/perflock.d; systemd-tmpfiles --create \
             /etc/tmpfiles.d/perflock.conf; stat -c '%a %u %g' /run/perflock /run/perflock.d; perflock --setup {group}"
        );
        let gid = nix::unistd::Group::from_name("users").unwrap().unwrap().gid.to_string();
        let done = on_a_machine(&world, &script).run().exits(0);
        done.prints(&expected.replace("GID", &gid))
            .says("perflock: /run/perflock is already set up; nothing was changed\n");
    }
}

#[test]
fn what_is_not_perflock_s_is_left_alone() {
    needs!(Root, Program("unshare"));
    let world = World::new();
    let script = "echo '# mine' >/etc/tmpfiles.d/perflock.conf; mkdir /run/perflock.d; echo >/run/perflock.d/notes; \
                  perflock -q --setup; perflock --undo || echo $?; cat /etc/tmpfiles.d/perflock.conf; ls /run/perflock.d; \
                  test -e /run/perflock && perflock true";
    let done = on_a_machine(&world, script).run().exits(0).prints("125\n# mine\nnotes\n");
    done.mentions("perflock: cannot remove /run/perflock.d: Directory not empty\n");
}

#[test]
fn a_systemd_that_does_not_answer_is_told_of() {
    needs!(Root, Program("unshare"));
    let world = World::new();
    let script = "printf '#!/bin/sh\\nexit 1\\n' >systemctl; perflock --setup";
    let done = on_a_machine(&world, script).run().exits(125);
    done.mentions("perflock: systemd was not told of its new units; run: systemctl daemon-reload\n");
}

#[test]
fn nothing_is_undone_while_somebody_uses_the_machine() {
    needs!(V2);
    let world = World::new();
    let undo = || world.cmd("perflock --undo").run();
    let holder = world.holder("pls");
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name;
    undo().exits(75).mentions(&format!("perflock: not undone: the machine is in use by 1 job; {user} runs sh -c "));
    let tried = world.cmd("perflock --undo --dry-run").run().exits(75);
    tried.mentions(&format!("perflock: would not be undone now: the machine is in use by 1 job; {user} runs sh -c "));
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);

    let flock = world.cmd("flock").arg(world.lock()).args(["sh", "-c", "echo running; exec sleep 600"]).spawn();
    flock.wait_stdout("running\n");
    undo().exits(75).mentions(&format!("perflock: not undone: the machine is in use; {user} runs "));
    let waiter = world.waiter("1.x", world.cmd("perflock true"));
    undo().exits(75).mentions("perflock: not undone: the machine is in use by 1 job; ");
    assert!(world.lock().exists() && world.queue().exists());
    drop(waiter);
    drop(flock);
}

#[test]
fn a_lock_of_one_s_own_is_undone_with_what_the_dead_left() {
    needs!(V2);
    let world = World::new();
    let waiter = world.holder("perflock");
    // Its ticket stays, with nobody to clean it.
    let behind = world.waiter("2.x", world.cmd("perflock true"));
    behind.signal(libc::SIGKILL);
    behind.wait().dies_of(libc::SIGKILL);
    waiter.signal(libc::SIGTERM);
    waiter.wait().dies_of(libc::SIGTERM);
    assert_eq!(world.tickets(), ["2.x"]);
    let (lock, queue) = (world.lock(), world.queue());
    let said = format!("perflock: removed {}\nperflock: removed {}\n", queue.display(), lock.display());
    let would = said.replace("removed", "would remove");
    world.cmd("perflock --undo --dry-run").run().exits(0).prints("").says(&would);
    assert!(lock.exists());
    assert_eq!(world.tickets(), ["2.x"]);
    world.cmd("perflock --undo").run().exits(0).prints("").says(&said);
    assert!(!lock.exists() && !queue.exists());
    // As it was, for the world's own end.
    fs::write(&lock, "").unwrap();
    fs::create_dir(&queue).unwrap();
}

#[test]
fn a_pls_that_others_can_change_is_not_given_to_root_s_services() {
    needs!(Root, Program("unshare"));
    let world = World::new();
    let script = format!(
        "chmod o+w /mnt/pls; perflock --setup --tame nightly.service || echo $?; chmod 755 /mnt/pls; chown 41001 /mnt; \
         perflock --setup --tame nightly.service || echo $?; chown 0 /mnt; rm /mnt/pls; \
         perflock --setup --tame nightly.service || echo $?; {FILES}"
    );
    let done = on_a_machine(&world, &script).run().exits(0);
    let why = |what: &str| {
        format!(
            "perflock: others than root can change {what}, so root's services must not run /mnt/pls; install perflock into \
             /usr/local/bin, and use that\n"
        )
    };
    let missing = "perflock: cannot find /mnt/pls: No such file or directory\n";
    done.prints("125\n125\n125\n/etc/systemd/system/nightly.service\n")
        .says(&[why("/mnt/pls"), why("/mnt"), missing.to_owned()].concat());
}

#[test]
fn a_group_s_lock_stays_the_group_s() {
    needs!(Root, Program("unshare"));
    let world = World::new();
    let script = "perflock -q --setup --group users; chmod 640 /run/perflock; perflock --setup; stat -c '%a %G' /run/perflock; \
                  perflock --setup; grep -c '0660 root' /etc/tmpfiles.d/perflock.conf; \
                  perflock -q --undo; perflock -q --setup; stat -c '%a' /run/perflock";
    let done = on_a_machine(&world, script).run().exits(0).prints("660 users\n1\n666\n");
    let gid = nix::unistd::Group::from_name("users").unwrap().unwrap().gid;
    done.says(&format!(
        "perflock: set the permissions of /run/perflock (group {gid}, mode 0660)\n\
         perflock: /run/perflock is already set up; nothing was changed\n"
    ));
}

#[test]
fn a_configured_lock_is_the_machine_s_and_a_named_one_is_set_up_alone() {
    needs!(Root, Program("unshare"));
    let world = World::new();
    let script = format!(
        "mkdir /run/lab; echo 'lock = \"/run/lab/lock\"' >/etc/perflock.toml; perflock -q --setup --lock /run/named; {FILES}; \
         perflock -q --undo --lock /run/named; perflock -q --setup; {FILES}; PERFLOCK_LOCK=/run/named perflock --undo; \
         perflock -q --undo; {FILES}"
    );
    let unit = "/etc/systemd/system/nightly.service\n";
    on_a_machine(&world, &script)
        .run()
        .exits(0)
        .prints(&format!(
            "{unit}/run/named\n{unit}/etc/systemd/system/user@.service.d/perflock.conf\n/run/lab/lock\n/var/lib/perflock\n{unit}"
        ))
        .says("perflock: /run/named is not set up; nothing was changed\n");
}

/// systemd ends only the first process of a service with `KillMode=process`, as apt-daily-upgrade is: dpkg must not be torn.
#[test]
fn a_tamed_service_that_is_stopped_lets_its_rest_finish() {
    needs!(V2);
    let world = World::new();
    let drop_in = source("config/systemd/apt-daily-upgrade.service.d/perflock.conf");
    let command = drop_in.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/")).unwrap();
    let options = command.split_once(" -- ").unwrap().0;
    let script = "(trap '' TERM; until [ -e go ]; do sleep 0.01; done; echo finished) & echo running; wait; :";
    let service = world.cmd(options).args(["--grace", "0", "--", "sh", "-c", script]).spawn();
    service.wait_stdout("running\n");
    let shell =
        world.processes().into_iter().find(|&pid| parent_of(pid) == service.pid() && comm_of(pid) == "sh").unwrap();
    service.signal(libc::SIGTERM);
    wait_until("the shell ends", || !alive(shell));
    world.cmd("perflock -n true").run().exits(75);
    world.write("go", "");
    service.wait().dies_of(libc::SIGTERM).prints("running\nfinished\n");
    world.assert_clean();
}

#[test]
fn what_makes_no_sense_is_refused() {
    let world = World::new();
    let refused = |line: &str, why: &str| {
        world.cmd(line).run().exits(125).prints("").mentions(why);
    };
    refused("perflock --setup --tame apt-daily", "--tame is for the machine's own lock");
    refused("perflock --dry-run true", "--dry-run goes with --setup or --undo");
    refused("perflock --undo --setup", "cannot be used with");
    assert!(world.lock().exists());
}

#[test]
fn a_directory_of_the_machine_s_is_not_given_to_everybody() {
    needs!(Root, Program("unshare"));
    let world = World::new();
    let script = format!(
        "mkdir -m 755 /var/lib/log /run/empty; echo >/var/lib/log/syslog; \
         printf '[history]\\ndirectory = \"/var/lib/log\"\\n' >/etc/perflock.toml; \
         perflock --setup || echo $?; {FILES}; stat -c %a /var/lib/log; rm /etc/perflock.toml; \
         export XDG_CONFIG_HOME=/run/c; mkdir -p /run/c/perflock; \
         printf '[history]\\ndirectory = \"/run/empty\"\\n' >/run/c/perflock/config.toml; \
         perflock -q --setup; stat -c %a /run/empty /var/lib/perflock; perflock -q --undo; \
         test -d /run/empty && ! test -e /var/lib/perflock"
    );
    on_a_machine(&world, &script)
        .run()
        .exits(0)
        .prints("125\n/etc/systemd/system/nightly.service\n/var/lib/log/syslog\n755\n755\n1777\n")
        .says("perflock: /var/lib/log is not perflock's: it holds syslog; choose another history.directory\n");
}

#[test]
fn the_histories_at_boot_are_the_configured_ones() {
    needs!(Root, Program("unshare"));
    for (key, expected) in [("size = \"none\"", ""), ("directory = \"/var/lib/h\"", "d /var/lib/h 1777 root root -\n")]
    {
        let world = World::new();
        world.write("perflock.toml", &format!("[history]\n{key}\n"));
        let script = "cp perflock.toml /etc; perflock -q --setup; sed 1,4d /etc/tmpfiles.d/perflock.conf; ls /var/lib";
        let made = if expected.is_empty() { "" } else { "h\n" };
        on_a_machine(&world, script).run().exits(0).prints(&format!("{expected}{made}"));
    }
}

/// dpkg stops at a script that fails, and the package is then half removed.
#[test]
fn a_user_s_mount_among_the_histories_does_not_stop_a_purge() {
    needs!(Root, Program("unshare"));
    let world = World::new();
    world.write("postrm", &source("config/debian/postrm"));
    let script = "perflock -q --setup; mkdir /var/lib/perflock/m; mount -t tmpfs m /var/lib/perflock/m; \
                  echo >/var/lib/perflock/m/kept; sh postrm purge; ls /var/lib/perflock/m; test ! -e /run/perflock";
    let done = on_a_machine(&world, script).run().exits(0).prints("kept\n");
    done.mentions("perflock: /var/lib/perflock could not be removed, and stays\n");
}
