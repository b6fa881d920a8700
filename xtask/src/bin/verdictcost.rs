//! What it takes to look at what others use, for `cargo xtask bench verdict`.
//!
//! `verdictcost flat|below PARENT ROUNDS` makes a thousand cgroup v2 groups and a job's below PARENT, and looks at them twice
//! through perflock's library, as before and after a job that nobody disturbed. `flat`: PARENT is taken for the root of the
//! hierarchy, directly below which all of them are. `below`: the whole hierarchy is looked at, as it is. It prints a line for
//! each round: nanoseconds of the first look, and of the second.
// A helper of the bench: what it prints is read there.
#![allow(clippy::print_stderr, clippy::print_stdout)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use perflock::cgroup::detect;
use perflock::cgroup::v2::Location;
use perflock::procfs::Proc;
use perflock::verdict::look::{First, Missing, Scene};

/// How many groups a full machine has.
const GROUPS: usize = 1000;

/// Idle time before every look: back-to-back ones would find everything in the caches.
const IDLE: Duration = Duration::from_millis(5);

/// The groups, removed when dropped.
struct Groups(Vec<PathBuf>);

impl Groups {
    fn create(parent: &Path) -> Result<Self, String> {
        let mut made = Self(Vec::with_capacity(GROUPS + 1));
        let names = (0..GROUPS).map(|number| format!("plbench-verdict-{number}.service"));
        for name in names.chain([JOB.to_owned()]) {
            let group = parent.join(name);
            fs::create_dir(&group).map_err(|error| format!("{}: {error}", group.display()))?;
            made.0.push(group);
        }
        Ok(made)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for group in &self.0 {
            if let Err(error) = fs::remove_dir(group) {
                eprintln!("verdictcost: cannot remove {}: {error}", group.display());
            }
        }
    }
}

/// The job's group, in which nothing runs.
const JOB: &str = "plbench-verdict-job";

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("verdictcost: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Does what the arguments say.
fn measure() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [shape, parent, rounds] = &arguments[..] else {
        return Err("usage: verdictcost flat|below PARENT ROUNDS".to_owned());
    };
    let rounds: usize = rounds.parse().map_err(|_| format!("{rounds} is not a number"))?;
    let groups = Groups::create(Path::new(parent))?;
    let proc = Proc::default();
    let job = match &**shape {
        "flat" => Location { mount: parent.into(), relative: JOB.into(), path: Path::new("/").join(JOB) },
        _ => detect::own_location(&proc, &detect::own_mountinfo())?.child(JOB),
    };
    let scene = Scene {
        proc: &proc,
        root: Path::new("/"),
        job: Some(&job),
        job_inode: None,
        apart: false,
        ticks_per_second: rustix::param::clock_ticks_per_second(),
        ours: perflock::clock::cpu_time,
    };
    let failed = |missing: Missing| format!("{missing:?}");
    for _ in 0..rounds {
        std::thread::sleep(IDLE);
        let start = Instant::now();
        let first = First::look(&scene, Vec::new, &|| true).map_err(failed)?;
        let took_first = start.elapsed();
        std::thread::sleep(IDLE);
        let start = Instant::now();
        first.second(&scene, |_| 0, |_| u64::MAX).map_err(failed)?;
        println!("{} {}", took_first.as_nanos(), start.elapsed().as_nanos());
    }
    drop(groups);
    Ok(())
}
