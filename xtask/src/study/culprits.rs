//! Who uses the machine beside a job that has it alone: each in a group of its own below the study's, as on a real machine.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::tally::Expected;
use crate::Failure;
use crate::bench::area::{self, Inside};
use crate::bench::tools::{Running, wait_until};

/// A user that nobody is.
const UID: u32 = 64_124;

/// What a culprit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Another user's loop.
    User,
    /// Another user's processes of 5 ms each, one after the other.
    Storm,
    /// A service: of systemd where that runs, else in a group of that name.
    Service,
    /// A container: namespaces and a group as docker's.
    Container,
}

/// All of them.
pub(super) const ALL: [Kind; 4] = [Kind::User, Kind::Storm, Kind::Service, Kind::Container];

impl Kind {
    /// As the command line knows it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Storm => "storm",
            Self::Service => "service",
            Self::Container => "container",
        }
    }

    /// What `studyload` has to do, and the name that its processes take.
    fn load(self) -> [&'static str; 2] {
        match self {
            Self::User => ["burn", "study-user"],
            Self::Storm => ["storm", "study-storm"],
            Self::Service => ["burn", "study-service"],
            Self::Container => ["contain", "study-box"],
        }
    }

    /// The group below the study's, and the culprit's name. Another one for each run, as on a real machine.
    fn place(self, run: usize) -> (PathBuf, String) {
        let pid = std::process::id();
        match self {
            Self::User | Self::Storm => (format!("{}-{run}", self.name()).into(), UID.to_string()),
            Self::Service => {
                let unit = format!("plstudy-{pid}-{run}.service");
                (Path::new("system.slice").join(&unit), unit)
            }
            Self::Container => {
                let id = format!("{:064x}", (u128::from(pid) << 64) | run as u128);
                (Path::new("system.slice").join(format!("docker-{id}.scope")), format!("docker-{id}"))
            }
        }
    }
}

/// A culprit that runs. Whatever becomes of the study, it ends with the study's group; a service of systemd's by itself.
pub(super) struct Culprit {
    kind: Kind,
    name: String,
    runs: Runs,
}

/// How it is ended.
enum Runs {
    /// A process of ours, in a group of ours.
    Child(Running, PathBuf),
    /// A unit of systemd's.
    Unit(String),
}

impl Culprit {
    /// Starts it, and returns when it disturbs.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn start(kind: Kind, place: &Inside, run: usize) -> Result<Self, Failure> {
        let (group, name) = kind.place(run);
        let [load, program] = kind.load();
        let uid = UID.to_string();
        let arguments = [load, program, &uid];
        if kind == Kind::Service && Path::new("/run/systemd/system").exists() {
            let mut command = place.silent("systemd-run")?;
            // It ends by itself if the study cannot end it.
            command.args(["--quiet", "--collect", "--service-type=exec", "--property=RuntimeMaxSec=60"]);
            command.arg(format!("--unit={name}")).arg(place.binary("studyload")).args(arguments);
            succeed(&mut command, place)?;
            return Ok(Self { kind, runs: Runs::Unit(name.clone()), name });
        }
        let group = place.group().join(group);
        fs::create_dir_all(&group).map_err(|error| format!("cannot make {}: {error}", group.display()))?;
        let members = group.join("cgroup.procs");
        let members = OpenOptions::new()
            .write(true)
            .open(&members)
            .map_err(|error| format!("cannot open {}: {error}", members.display()))?;
        let mut command = place.program("studyload")?;
        command.args(arguments).stdin(Stdio::null());
        // SAFETY: the closure makes one async-signal-safe call on an open descriptor and allocates nothing.
        unsafe { command.pre_exec(move || area::join(&members)) };
        let child = Running::start(&mut command)?;
        let comm = format!("/proc/{}/comm", child.pid());
        wait_until("a culprit disturbs", || fs::read_to_string(&comm).is_ok_and(|text| text.trim_end() == program))?;
        Ok(Self { kind, name, runs: Runs::Child(child, group) })
    }

    /// How a report has to name it.
    pub(super) fn expected(&self) -> Expected {
        let kind = match self.kind {
            Kind::User | Kind::Storm => "user",
            Kind::Service => "service",
            Kind::Container => "container",
        };
        Expected { kind, name: self.name.clone(), program: self.kind.load()[1] }
    }

    /// Ends it, and removes its group.
    ///
    /// # Errors
    /// It does not end.
    pub(super) fn end(self) -> Result<(), Failure> {
        match self.runs {
            Runs::Child(child, group) => {
                drop(child);
                // A process of a storm lives a moment longer, and so does what was in a container.
                wait_until("a culprit's group is empty", || fs::remove_dir(&group).is_ok())
            }
            Runs::Unit(unit) => {
                let status = Command::new("systemctl").args(["stop", &unit]).status();
                match status.is_ok_and(|status| status.success()) {
                    true => Ok(()),
                    false => Err(format!("cannot stop {unit}")),
                }
            }
        }
    }
}

/// Runs a program that has to succeed.
fn succeed(command: &mut Command, place: &Inside) -> Result<(), Failure> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(place.failed(&format!("{command:?} failed ({status})"))),
        Err(error) => Err(format!("cannot start {command:?}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_named_as_on_a_real_machine() {
        let (group, name) = Kind::Container.place(7);
        let file = group.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(file, format!("{name}.scope"));
        let id = name.strip_prefix("docker-").unwrap();
        assert!(id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
        let (group, name) = Kind::Service.place(7);
        assert_eq!(group, Path::new("system.slice").join(&name));
        assert!(name.ends_with("-7.service"));
        // The kernel keeps 15 bytes of a program's name.
        assert!(ALL.iter().all(|kind| kind.load()[1].len() <= 15));
    }
}
