//! Jobs that do what they can to outlive their end: each is ended as promised. Nothing survives the release, the lock is free
//! only when the group is empty, and nothing is left behind.

mod forking;

mod frozen;
mod groups;
mod huge;
mod traced;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Instant;

use crate::harness::{ALICE, World, deadline, scope_backend};

/// Puts the program `tool` into the world: see `tool.c`.
fn furnish(world: &World) {
    static TOOL: OnceLock<Vec<u8>> = OnceLock::new();
    let tool = TOOL.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let (source, program) = (directory.path().join("tool.c"), directory.path().join("tool"));
        fs::write(&source, include_str!("tool.c")).unwrap();
        let cc =
            Command::new("gcc").args(["-O1", "-Wall", "-pthread", "-o"]).args([&program, &source]).output().unwrap();
        assert!(cc.status.success(), "{}", String::from_utf8_lossy(&cc.stderr));
        fs::read(program).unwrap()
    });
    world.executable("tool", tool);
}

/// A world with the tool in it.
pub(crate) fn furnished() -> World {
    let world = World::new();
    furnish(&world);
    world
}

/// The same, of a plain user where it can be: root's session makes scopes for root alone.
fn of_a_plain_user() -> World {
    let other = nix::unistd::geteuid().is_root() && !scope_backend();
    let world = if other { World::for_uid(ALICE) } else { World::new() };
    furnish(&world);
    world
}

/// The group of the one job that runs.
#[track_caller]
fn job_group(world: &World) -> PathBuf {
    let mut groups = world.job_groups();
    assert_eq!(groups.len(), 1, "{groups:?}");
    groups.pop().unwrap()
}

/// Does what ends a job, and watches it to its end as fast as it can: fails if ever the lock is free while the job's group has a
/// member.
#[track_caller]
fn watch_end(world: &World, group: &Path, end_it: impl FnOnce()) {
    let events = fs::File::open(group.join("cgroup.events")).unwrap();
    let populated = || {
        let mut text = [0; 128];
        // A group that is gone has none.
        let length = events.read_at(&mut text, 0).unwrap_or(0);
        String::from_utf8_lossy(&text[..length]).contains("populated 1")
    };
    assert!(populated() && !world.lock_is_free(), "the job does not run");
    end_it();
    let end = Instant::now() + deadline();
    while !world.lock_is_free() {
        assert!(Instant::now() < end, "the lock did not become free; the group's members: {}", populated());
    }
    assert!(!populated(), "the lock is free while the group has a member");
}
