//! Talking to systemd over D-Bus: org.freedesktop.systemd1(5). Every conversation is one question to a process of its own
//! (`helper`): a connection is woken by other units of the machine, and a bus may never answer, or hang up half-way
//! through a message. So nothing of it is left when the command starts.

use std::ffi::OsStr;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zbus::zvariant::{OwnedObjectPath, Value};

use super::bus::{BUS, Bus, BusError, Peer};
use crate::helper::{self, Answer, Begun, Interrupt};
use crate::pin::Pin;
use crate::procfs::Proc;

/// How long a bus may take to answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// The same while a job runs, to which signals are not passed on meanwhile.
const PATIENCE_IN_A_JOB: Duration = Duration::from_secs(1);

const MANAGER: Peer<'static> = Peer {
    destination: "org.freedesktop.systemd1",
    object: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};

/// How many names are tried for a scope whose name somebody has taken.
const NAMES: usize = 3;

/// A service manager that makes scopes for us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manager {
    /// Its bus.
    socket: PathBuf,
    /// The machine's own, not a user's.
    system: bool,
}

/// Why a service manager cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// As a sentence fragment.
    pub why: String,
    /// What mends it.
    pub cure: Option<String>,
}

/// Why a question has no answer.
#[derive(Debug)]
pub struct NoAnswer {
    /// `None`: we were asked to stop waiting.
    pub missing: Option<Missing>,
    /// Whether systemd may still do what it was asked for.
    pub(crate) begun: Begun,
}

impl From<Missing> for NoAnswer {
    fn from(missing: Missing) -> Self {
        Self { missing: Some(missing), begun: Begun::No }
    }
}

impl Missing {
    /// Nothing that we know would mend it.
    pub(super) fn because(why: impl Into<String>) -> Self {
        Self { why: why.into(), cure: None }
    }

    /// There is no service manager of this user.
    fn no_manager(why: impl Into<String>, uid: u32) -> Self {
        let cure = (uid != 0).then(|| format!("loginctl enable-linger {}", crate::user::name(uid)));
        Self { why: why.into(), cure }
    }
}

impl Manager {
    /// The machine's for root, else the user's own. `root` is `/` but in tests; `address` the value of
    /// `DBUS_SESSION_BUS_ADDRESS`, asked only where the well-known place is empty: cron and su do not set it.
    /// `None` on a machine that does not run systemd: sd_booted(3).
    ///
    /// # Errors
    /// What is missing.
    pub fn find(root: &Path, uid: u32, address: Option<&OsStr>) -> Result<Option<Self>, Missing> {
        if !root.join("run/systemd/system").is_dir() {
            return Ok(None);
        }
        if uid == 0 {
            let socket = root.join("run/dbus/system_bus_socket");
            return match is_socket_of(&socket, None) {
                true => Ok(Some(Self { socket, system: true })),
                false => Err(Missing::because("the system bus does not run")),
            };
        }
        let runtime = root.join(format!("run/user/{uid}"));
        let socket = runtime.join("bus");
        if is_socket_of(&socket, Some(uid)) {
            return Ok(Some(Self { socket, system: false }));
        }
        let named = address.and_then(OsStr::to_str).and_then(unix_path).filter(|path| is_socket_of(path, Some(uid)));
        if let Some(socket) = named {
            return Ok(Some(Self { socket, system: false }));
        }
        let user = crate::user::name(uid);
        Err(if is_socket_of(&runtime.join("systemd/private"), Some(uid)) {
            Missing {
                why: format!("the service manager of {user} has no bus ({})", socket.display()),
                cure: Some("install dbus-user-session and log in again".to_owned()),
            }
        } else {
            Missing::no_manager(format!("no service manager of {user} runs"), uid)
        })
    }

    /// It is the machine's own, not a user's.
    pub fn is_system(&self) -> bool {
        self.system
    }

    /// Whether somebody listens on its bus who is of our world. Nothing is said, and nobody is waited for.
    ///
    /// # Errors
    /// What is missing.
    pub(crate) fn listens(&self) -> Result<(), Missing> {
        connect(&self.socket, self.system).map(|_| ())
    }

    /// Lets systemd make a delegated scope, whose name begins with `name`, with the process `pid` in it, which may run where
    /// `restriction` says. `moved` says whether
    /// it is there; where this returns without an error, it is or will be in a moment.
    ///
    /// # Errors
    /// systemd could not, or did not answer, or `interrupt` ended the wait.
    pub(crate) fn start_scope(
        &self,
        name: &str,
        restriction: Option<Restriction<'_>>,
        pid: i32,
        interrupt: &Interrupt<'_>,
        moved: &dyn Fn() -> bool,
    ) -> Result<(), NoAnswer> {
        let scope = Scope { pid: pid.cast_unsigned(), system: self.system, restriction };
        self.ask(PATIENCE, Some(interrupt), Some(moved), |bus, begin| start_scope(bus, name, scope, begin))
    }

    /// Lets systemd move the process `pid` into the sub-group `group` of a scope that it delegated to us.
    ///
    /// # Errors
    /// As for [`Manager::start_scope`].
    pub(crate) fn attach(&self, unit: &str, group: &str, pid: i32) -> Result<(), NoAnswer> {
        let body = (unit, format!("/{group}"), vec![pid.cast_unsigned()]);
        self.ask(PATIENCE_IN_A_JOB, None, None, |bus, _| {
            bus.call(MANAGER, "AttachProcessesToUnit", &body).map(|_| ()).map_err(|error| explain(&error))
        })
    }

    fn ask(
        &self,
        patience: Duration,
        interrupt: Option<&Interrupt<'_>>,
        seen: Option<&dyn Fn() -> bool>,
        question: impl FnOnce(&mut Bus, &dyn Fn()) -> Result<(), String>,
    ) -> Result<(), NoAnswer> {
        // Where nobody listens there is nobody to wait for.
        let stream = connect(&self.socket, self.system)?;
        let answer = helper::ask(patience, interrupt, seen, |begin| {
            let stream = stream.map_or_else(|| connect_in_time(&self.socket, self.system), Ok)?;
            let mut bus = Bus::new(stream).map_err(|error| explain(&error))?;
            question(&mut bus, begin).map(|()| String::new())
        });
        match answer {
            Ok(Answer::Said(Ok(_)) | Answer::Seen) => Ok(()),
            Ok(Answer::Said(Err(why))) => Err(Missing::because(why).into()),
            Ok(Answer::Silent(begun)) => {
                let why = format!("{} did not answer within {} s", self.socket.display(), patience.as_secs());
                Err(NoAnswer { missing: Some(Missing::because(why)), begun })
            }
            Ok(Answer::Ended(begun)) => {
                let missing = Missing::because("the process that asked systemd ended without an answer");
                Err(NoAnswer { missing: Some(missing), begun })
            }
            Ok(Answer::Interrupted(begun)) => Err(NoAnswer { missing: None, begun }),
            Err(error) => {
                let why = format!("cannot make a process to ask systemd: {}", crate::error::reason(&error));
                Err(Missing::because(why).into())
            }
        }
    }
}

/// Connects, unless too many wait for that already: then `None`, since the kernel would let us wait without end.
fn connect(socket: &Path, system: bool) -> Result<Option<UnixStream>, Missing> {
    use nix::errno::Errno;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr};
    let own = rustix::process::geteuid().as_raw();
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let connected = nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, flags, None).and_then(|fd| {
        nix::sys::socket::connect(fd.as_raw_fd(), &UnixAddr::new(socket)?)?;
        Ok(UnixStream::from(fd))
    });
    match connected {
        Ok(stream) => is_of_our_world(&stream, system).then_some(Some(stream)).ok_or_else(|| foreign(socket)),
        Err(Errno::EAGAIN) => Ok(None),
        Err(errno) => {
            let why = format!("nobody answers at {}: {}", socket.display(), crate::error::reason(&errno.into()));
            let nobody = matches!(errno, Errno::ECONNREFUSED | Errno::ENOENT);
            Err(if nobody { Missing::no_manager(why, own) } else { Missing::because(why) })
        }
    }
}

/// The same in the helper process, which may wait: it is not waited for without end.
fn connect_in_time(socket: &Path, system: bool) -> Result<UnixStream, String> {
    let stream = UnixStream::connect(socket).map_err(|error| crate::error::reason(&error))?;
    if is_of_our_world(&stream, system) { Ok(stream) } else { Err(foreign(socket).why) }
}

fn foreign(socket: &Path) -> Missing {
    Missing::because(format!("{} belongs to another user or pid namespace", socket.display()))
}

/// Whether the bus is our own, and process numbers mean to it what they mean to us: one of the host that was mounted into
/// a container, or the other way round, would move some other process.
fn is_of_our_world(stream: &UnixStream, system: bool) -> bool {
    let Ok(peer) = nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerCredentials) else {
        return false;
    };
    let proc = Proc::default();
    // 0 is the kernel's number for a process that our pid namespace does not have. Another user's we may not look into.
    let same_namespace = match (proc.namespace(peer.pid(), "pid"), proc.own_namespace("pid")) {
        (Ok(theirs), Ok(own)) => theirs == own,
        _ => true,
    };
    // The machine's bus may be a user of its own; root needs no bus to harm us.
    let ours = system || [0, rustix::process::geteuid().as_raw()].contains(&peer.uid());
    peer.pid() != 0 && same_namespace && ours
}

/// Where a scope's processes may run.
#[derive(Clone, Copy, Debug)]
pub struct Restriction<'a> {
    /// On these processors, with the memory of these nodes.
    pub pin: &'a Pin,
    /// Nobody else is to run there: its cpuset will be a partition, and so has to be directly below the root.
    pub isolated: bool,
}

/// What systemd is asked for.
#[derive(Clone, Copy)]
struct Scope<'a> {
    pid: u32,
    /// Of the machine's service manager.
    system: bool,
    restriction: Option<Restriction<'a>>,
}

impl Scope<'_> {
    fn properties(&self) -> Vec<(&'static str, Value<'static>)> {
        let mut properties: Vec<(&str, Value<'_>)> = vec![
            ("Description", "a job of perflock".into()),
            ("Delegate", true.into()),
            ("PIDs", vec![self.pid].into()),
            // Gone when it is empty, also when it failed.
            ("CollectMode", "inactive-or-failed".into()),
            // A scope's default is lower than a login session's. What limits the unit that perflock was started in does not
            // hold for the scope, which is beside it.
            ("TasksMax", u64::MAX.into()),
        ];
        if self.system {
            // A partition's cpuset must be below another partition's, as the root is one.
            let isolated = self.restriction.is_some_and(|restriction| restriction.isolated);
            properties.push(("Slice", if isolated { "-.slice" } else { "perflock.slice" }.into()));
        }
        if let Some(Restriction { pin, .. }) = self.restriction {
            properties.push(("AllowedCPUs", pin.cpus.mask_bytes().into()));
            if pin.memory_is_bound {
                properties.push(("AllowedMemoryNodes", pin.memory_nodes.mask_bytes().into()));
            }
        }
        properties
    }
}

/// In the helper process.
fn start_scope(bus: &mut Bus, name: &str, scope: Scope<'_>, begin: &dyn Fn()) -> Result<(), String> {
    // Without this systemd sends no signal to anybody, unless somebody else subscribed: not so on a machine where nobody
    // is at a screen.
    bus.tell(MANAGER, "Subscribe", &()).map_err(|error| explain(&error))?;
    begin();
    let mut taken = String::new();
    for attempt in 1..=NAMES {
        let unit = if attempt == 1 { format!("{name}.scope") } else { format!("{name}-{attempt}.scope") };
        match start_unit(bus, &unit, scope) {
            Err(BusError::Refused(error, _)) if error.ends_with(".UnitExists") => {
                taken = format!("a unit {unit} exists already");
            }
            Ok(result) if result == "done" => return Ok(()),
            Ok(result) => return Err(format!("systemd could not make the scope {unit}: {result}")),
            Err(error) => return Err(explain(&error)),
        }
    }
    Err(taken)
}

/// Starts the scope and waits for systemd's job; returns the job's result.
fn start_unit(bus: &mut Bus, unit: &str, scope: Scope<'_>) -> Result<String, BusError> {
    // Listened for before it can come: the job may be over before the call returns. A bus takes messages in their order.
    let rule = format!("type='signal',interface='{}',member='JobRemoved',arg2='{unit}'", MANAGER.interface);
    bus.tell(BUS, "AddMatch", &rule)?;
    let properties = scope.properties();
    let none: Vec<(&str, Vec<(&str, Value<'_>)>)> = Vec::new();
    let reply = bus.call(MANAGER, "StartTransientUnit", &(unit, "fail", properties, none))?;
    let job: OwnedObjectPath = reply.body().deserialize()?;
    loop {
        let signal = bus.signal()?;
        if signal.header().member().is_some_and(|member| member == "JobRemoved") {
            let (_, path, _, result): (u32, OwnedObjectPath, String, String) = signal.body().deserialize()?;
            if path == job {
                return Ok(result);
            }
        }
    }
}

/// An error's words for a person.
pub(crate) fn explain(error: &BusError) -> String {
    let words = crate::text::escape(&error.to_string());
    if matches!(error, BusError::Refused(..)) { format!("systemd says: {words}") } else { words }
}

/// Whether there is a socket, of this user if one is named: nobody else's is trusted.
fn is_socket_of(path: &Path, uid: Option<u32>) -> bool {
    std::fs::metadata(path)
        .is_ok_and(|metadata| metadata.file_type().is_socket() && uid.is_none_or(|uid| metadata.uid() == uid))
}

/// The path in a D-Bus address such as `unix:path=/run/user/1000/bus,guid=…`; other kinds of address are not used.
pub(crate) fn unix_path(address: &str) -> Option<PathBuf> {
    let first = address.split(';').next()?;
    let pairs = first.strip_prefix("unix:")?.split(',');
    let path = pairs.into_iter().find_map(|pair| pair.strip_prefix("path="))?;
    // Escaped bytes are not worth a decoder: such a path is not found, and said not to be.
    Some(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::net::UnixListener;

    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("run/systemd/system")).unwrap();
        root
    }

    fn listen(path: &Path) -> UnixListener {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        UnixListener::bind(path).unwrap()
    }

    #[test]
    fn a_machine_without_systemd_has_no_manager_and_misses_none() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Manager::find(root.path(), 1000, None), Ok(None));
    }

    #[test]
    fn what_is_missing_is_named_with_its_cure() {
        let (root, own) = (machine(), rustix::process::geteuid().as_raw());
        let missing = Manager::find(root.path(), 41_001, None).unwrap_err();
        assert_eq!(missing.why, "no service manager of 41001 runs");
        assert_eq!(missing.cure.as_deref(), Some("loginctl enable-linger 41001"));
        assert_eq!(Manager::find(root.path(), 0, None).unwrap_err().why, "the system bus does not run");
        if own != 0 {
            let _private = listen(&root.path().join(format!("run/user/{own}/systemd/private")));
            assert!(Manager::find(root.path(), own, None).unwrap_err().cure.unwrap().contains("dbus-user-session"));
        }
    }

    #[test]
    fn another_user_s_socket_is_no_bus_of_ours() {
        let root = machine();
        let other = rustix::process::geteuid().as_raw() + 1;
        let socket = root.path().join(format!("run/user/{other}/bus"));
        let _listener = listen(&socket);
        assert!(Manager::find(root.path(), other, None).is_err());
        let address = format!("unix:path={}", socket.display());
        assert!(Manager::find(root.path(), other, Some(address.as_ref())).is_err());
    }

    #[test]
    fn a_path_is_taken_out_of_an_address() {
        let path = |address| unix_path(address).map(|path| path.to_string_lossy().into_owned());
        assert_eq!(path("unix:path=/run/user/1/bus,guid=7").as_deref(), Some("/run/user/1/bus"));
        assert_eq!(path("unix:guid=7,path=/x;tcp:host=a").as_deref(), Some("/x"));
        for other in ["", "tcp:host=a", "unix:abstract=/tmp/x", "path=/x"] {
            assert_eq!(path(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn any_address_is_read_without_panic(address: String, path in "[^,;]{0,30}", rest in "([,;].{0,20})?") {
            let _ = unix_path(&address);
            prop_assert_eq!(unix_path(&format!("unix:path={path}{rest}")), Some(PathBuf::from(path)));
        }

        /// What a bus says is another program's text.
        #[test]
        fn what_a_bus_says_reaches_the_terminal_escaped(name: String, words: String, refused: bool) {
            let error = if refused { BusError::Refused(name, words) } else { BusError::Broken(words) };
            prop_assert!(!explain(&error).chars().any(char::is_control));
        }

        #[test]
        fn any_address_of_the_environment_is_looked_at_without_panic(address: String) {
            let root = machine();
            prop_assert!(Manager::find(root.path(), 41_001, Some(address.as_ref())).is_err());
        }
    }
}
