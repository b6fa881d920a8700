//! Files in the queue directory that are no tickets, or no longer any, whoever put them there: nobody is held up by them,
//! and nobody waits for one to open.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;

use crate::harness::{ALICE, BOB, Cmd, Running, World, threads_of, wait_until};
use crate::hostile::{hold, joined};
use crate::needs;

/// Whether something would reach a terminal that moves its cursor or hides text.
pub(crate) fn is_raw(text: &str) -> bool {
    text.chars().any(|c| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c))
}

/// Starts a job that has to wait, whatever number its ticket gets.
#[track_caller]
pub(crate) fn waiting(cmd: Cmd) -> Running {
    let waiter = cmd.spawn();
    wait_until("the waiter sleeps", || threads_of(waiter.pid()).len() == 2);
    waiter
}

/// The lock does what it should for the world's user: alone, held and waited for, and shown.
#[track_caller]
pub(crate) fn assert_serves(world: &World, context: &str) {
    for program in ["perflock", "pls"] {
        let done = world.cmd(program).args(["-w", "1000", "echo", "ran"]).run().exits(0).prints("ran\n");
        assert_eq!(done.stderr, "", "{context}: {program}");
    }
    world.cmd("wholock --sample 0").run().exits(0).prints("the machine is free\n").says("");
    let holder = world.holder("perflock");
    let waiter = waiting(world.cmd("pls echo waited"));
    let busy = world.cmd("perflock -n true").run().exits(75);
    let shown = world.cmd("wholock --sample 0").run().exits(0).says("");
    assert_eq!(shown.stdout.lines().count(), 3, "{context}: {}", shown.stdout);
    assert_eq!(waiter.stdout(), "", "{context}");
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM).says("");
    let waited = waiter.wait().exits(0).prints("waited\n");
    for text in [busy.stderr, shown.stdout, waited.stderr] {
        assert!(!is_raw(&text), "{context}: {text:?}");
    }
    assert!(world.lock_is_free(), "{context}");
    assert_eq!(world.job_groups(), Vec::<PathBuf>::new(), "{context}");
}

/// Puts one thing into the queue; `owner` gets it.
fn put(world: &World, owner: u32, name: &[u8], make: impl FnOnce(&Path)) {
    let path = world.queue().join(OsStr::from_bytes(name));
    make(&path);
    lchown(&path, Some(owner), Some(owner)).unwrap();
}

fn file(text: impl AsRef<[u8]>) -> impl FnOnce(&Path) {
    move |path| {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    }
}

fn fifo(path: &Path) {
    nix::unistd::mkfifo(path, Mode::from_bits_truncate(0o666)).unwrap();
}

/// Everything that can lie around.
fn litter(world: &World, owner: u32) {
    let ticket = joined("dead", "a message");
    let fifo_elsewhere = world.path("fifo");
    if !fifo_elsewhere.exists() {
        fifo(&fifo_elsewhere);
    }
    let link = |target: &Path| {
        let target = target.to_owned();
        move |path: &Path| symlink(target, path).unwrap()
    };
    let queue = world.queue();
    put(world, owner, b"1.x", link("/nonexistent".as_ref()));
    put(world, owner, b"2.x", link(&fifo_elsewhere));
    put(world, owner, b"3.s", link("/etc/passwd".as_ref()));
    put(world, owner, b"4.x", link(&queue.join("5.x")));
    put(world, owner, b"5.x", file(&ticket));
    put(world, owner, b"6.x", link("6.x".as_ref()));
    put(world, owner, b"7.x", fifo);
    put(world, owner, b"8.s", |path| fs::create_dir(path).unwrap());
    put(world, owner, b"9.x", |path| drop(UnixListener::bind(path).unwrap()));
    put(world, owner, b"10.x", |path| fs::hard_link(queue.join("5.x"), path).unwrap());
    let huge = ticket.clone() + &" ".repeat(65 * 1024);
    put(world, owner, b"11.x", file(&huge));
    put(world, owner, b"12.s", |path| File::create(path).unwrap().set_len(10 << 20).unwrap());
    put(world, owner, b"13.x", |path| File::create(path).unwrap().set_len(60 << 10).unwrap());
    put(world, owner, b"14.x", file(&ticket[..ticket.len() / 2]));
    put(world, owner, b"15.x", file(&ticket[..ticket.len() - 1]));
    put(world, owner, b"16.x", file(ticket.replace("dead", "\\ud800")));
    put(world, owner, b"17.x", file([&b"\xff\xfe\0\x1b[2J\n"[..], ticket.as_bytes()].concat()));
    put(world, owner, b"18.x", file([ticket.as_bytes(), b"\xff\xfe\n{\"event\":\"group\"}\n{\"event\":7}\n"].concat()));
    put(world, owner, b"19.x", file("[".repeat(60_000) + "\n"));
    put(world, owner, b"20.x", file("{\"a\":".repeat(10_000) + "\n"));
    put(world, owner, b"21.x", file("\n".repeat(60_000)));
    put(world, owner, b"22.x", file(""));
    // Names.
    for name in [
        "0.x",
        "0.s",
        "00.x",
        "007.x",
        "-1.x",
        "+1.x",
        "1.x ",
        "1.X",
        ".x",
        "x",
        "1.",
        "1.x.x",
        "1.2.x",
        "\u{661}.x",
        "4611686018427387905.x",
        "9223372036854775807.x",
        "9223372036854775808.s",
        "18446744073709551615.x",
        "18446744073709551616.x",
        "340282366920938463463374607431768211456.x",
        "\x1b[2J.x",
        "new-1-1",
        "1.x\n2.x",
    ] {
        put(world, owner, name.as_bytes(), file(&ticket));
    }
    put(world, owner, &[&b"9"[..]; 200].concat(), file(""));
    put(world, owner, b"\xff\xfe.x", file(""));
}

/// The world of a victim, whose group is the victim's too.
fn world_of(victim: u32) -> World {
    if victim == 0 { World::new() } else { World::for_uid(victim) }
}

#[test]
fn whatever_lies_around_in_the_queue_holds_nobody_up() {
    needs!(Root, V2, OwnGroup);
    // Another user's litter; one's own, which may be cleaned away; and root, who may clean everything away.
    for (owner, victim) in [(ALICE, BOB), (BOB, BOB), (ALICE, 0)] {
        let world = world_of(victim);
        litter(&world, owner);
        assert_serves(&world, &format!("litter of {owner}, seen by {victim}"));
        // What it points to is as it was.
        assert!(world.path("fifo").exists() && fs::metadata("/etc/passwd").unwrap().len() > 0);
    }
}

#[test]
fn what_is_too_large_for_a_ticket_is_none_even_if_it_is_locked() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(BOB);
    let text = joined("large", "") + "{\"event\":\"granted\",\"at_usec\":1}\n";
    put(&world, ALICE, b"1.x", file(text.clone() + &" ".repeat(65 * 1024)));
    put(&world, ALICE, b"2.x", file(&text));
    File::options().write(true).open(world.queue().join("2.x")).unwrap().set_len(10 << 20).unwrap();
    let held = ["1.x", "2.x"].map(|name| hold(&world.queue().join(name)));
    assert_serves(&world, "large files");
    drop(held);
}

#[test]
fn hundreds_of_dead_tickets_of_somebody_else_hold_nobody_up() {
    needs!(Root, V2, OwnGroup);
    for victim in [BOB, 0] {
        let world = world_of(victim);
        for number in 1..=400 {
            let name = format!("{number}.{}", if number % 2 == 0 { "x" } else { "s" });
            match number % 5 {
                0 => put(&world, ALICE, name.as_bytes(), fifo),
                1 => put(&world, ALICE, name.as_bytes(), |path| symlink("/dev/zero", path).unwrap()),
                2 => put(&world, ALICE, name.as_bytes(), file("garbage\n")),
                _ => put(&world, ALICE, name.as_bytes(), file(joined("dead", ""))),
            }
        }
        assert_serves(&world, &format!("hundreds of files, seen by {victim}"));
    }
}

/// Takes a write lease on each of the files, and an OFD write lock on those that end in `x`: as a live ticket has. Whoever
/// opens one without O_NONBLOCK sleeps until the kernel's patience with the lease is over.
const LEASES: &str = r#"
$SIG{IO} = 'IGNORE';
for my $name (@ARGV) {
    open(my $file, '+<', "lock.d/$name") or die "$name: $!";
    push @files, $file;
    if ($name =~ /x$/) { my $l = pack('s s x4 q q i x4', 1, 0, 0, 0, 0); fcntl($file, 37, $l) or die "lock: $!" }
    fcntl($file, 1024, 1) or die "lease: $!";
}
print "leased\n"; close STDOUT; sleep;
"#;

#[test]
fn a_ticket_under_its_owner_s_lease_makes_nobody_wait_for_its_opening() {
    needs!(Root, V2, OwnGroup, Program("perl"));
    for victim in [BOB, 0] {
        let world = world_of(victim);
        let text = joined("leased", "") + "{\"event\":\"granted\",\"at_usec\":1}\n";
        for name in ["1.x", "2.s", "3.x"] {
            put(&world, ALICE, name.as_bytes(), file(&text));
        }
        let leaser = world.cmd("perl -e").arg(LEASES).args(["1.x", "2.s", "3.x"]).uid(ALICE).spawn();
        leaser.wait_stdout("leased\n");
        assert_serves(&world, &format!("leases, seen by {victim}"));
        leaser.signal(libc::SIGKILL);
        leaser.wait().dies_of(libc::SIGKILL);
        wait_until("only the files are left", || world.processes().is_empty());
    }
}

#[test]
fn a_queue_full_of_junk_is_cleaned_by_root_as_far_as_it_can_be() {
    needs!(Root, V2);
    let world = World::new();
    for number in 1..=40 {
        put(&world, ALICE, format!("{number}.x").as_bytes(), file(joined("dead", "")));
    }
    put(&world, ALICE, b"41.x", fifo);
    chown(world.queue(), Some(ALICE), None).unwrap();
    // Each newcomer cleans some.
    wait_until("only what is no ticket is left", || {
        world.cmd("pls true").run().exits(0).says("");
        world.tickets() == ["41.x"]
    });
}
