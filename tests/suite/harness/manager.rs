//! A machine with a systemd of its own, below a group that the test made and in namespaces that nobody else sees.
//!
//! ```text
//! group of the world                        the root of the machine: root's
//! └─ user.slice/user-UID.slice              root's
//!    ├─ session-1.scope                     root's; what the test runs is here, as after a login
//!    └─ user@UID.service                    the user's
//!       ├─ init.scope                       systemd --user
//!       └─ app.slice/perflock-….scope       made by systemd when perflock asks
//! ```
//!
//! `systemd --user` is the real one, with the bus that it starts. It has no system manager above it that could move a
//! process out of the session's group for it, so it is given `CAP_DAC_OVERRIDE` and does that itself; to what runs in the
//! session it looks the same, and that has no more rights than in a real one. There is no pid namespace: a process has one
//! number everywhere, and one `cgroup.kill` ends it all.

use std::fs;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::process::{Cmd, Running};
use super::world::World;
use super::{ALICE, groups, installed, own_group, scope_backend, wait_until};

/// A name for the user, as `/etc/passwd` of the machine has it.
const USER_NAME: &str = "pltest-alice";

/// Where systemd is.
const SYSTEMD: [&str; 2] = ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"];

/// Where root's bus is.
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";

/// All that the machine's systemd knows to start.
const UNITS: [(&str, &str); 6] = [
    ("basic.target", "[Unit]\nWants=dbus.socket\nAfter=dbus.socket\n"),
    ("dbus.socket", "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=BUS\n"),
    (
        "dbus.service",
        "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket\n[Service]\nType=notify\n\
         ExecStart=dbus-daemon --session --address=systemd: --nofork --nopidfile --systemd-activation --syslog-only\n",
    ),
    ("shutdown.target", "[Unit]\nDefaultDependencies=no\nRefuseManualStart=yes\n"),
    ("exit.target", "[Unit]\nDefaultDependencies=no\nRequires=exit.service\nAfter=exit.service\n"),
    (
        "exit.service",
        "[Unit]\nDefaultDependencies=no\nRequires=shutdown.target\nAfter=shutdown.target\nSuccessAction=exit-force\n\
         [Service]\nSlice=-.slice\nType=oneshot\nExecStart=true\n",
    ),
];

/// Builds the machine, whose user has the home `$1`, the number `$2` and the name `$3`, and becomes what follows, in the
/// group `$4`.
const BUILD: &str = r#"
umount --recursive --lazy /sys/fs/cgroup || mount -t tmpfs none /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs -o mode=755 none /run
mkdir -p /run/systemd/system /run/dbus /run/user/$2
chown $2:$2 /run/user/$2
chmod 700 /run/user/$2
{ cat /etc/passwd; [ $2 = 0 ] || echo "$3:x:$2:$2::$1:/bin/sh"; } > /run/passwd
mount --bind /run/passwd /etc/passwd
echo 0 > /sys/fs/cgroup/$4/cgroup.procs
cd /
touch "$1/built"
shift 4
exec "$@"
"#;

/// What the machine lacks that a rig needs.
pub(super) fn missing() -> Option<String> {
    if scope_backend() {
        return Some("jobs are in scopes that another systemd makes".to_owned());
    }
    if Path::new("/run/systemd/system").exists() {
        return Some("systemd runs here itself: tests/vm shows its scopes".to_owned());
    }
    if !nix::unistd::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    if let Err(why) = own_group() {
        return Some(why);
    }
    if let Some(program) = ["unshare", "setpriv", "dbus-daemon", "systemctl"].into_iter().find(|name| !installed(name))
    {
        return Some(format!("{program} is not installed"));
    }
    systemd().is_none().then(|| "systemd is not installed".to_owned())
}

fn systemd() -> Option<&'static str> {
    SYSTEMD.into_iter().find(|path| Path::new(path).exists())
}

/// Marks a group as systemd marks one that it delegated.
pub(crate) fn delegate(group: &Path) {
    for name in ["user.delegate", "trusted.delegate"] {
        let _ = rustix::fs::setxattr(group, name, b"1", rustix::fs::XattrFlags::empty());
    }
}

/// The mount and cgroup namespaces of a machine.
pub(crate) struct Namespaces([fs::File; 2]);

impl Namespaces {
    fn of(pid: i32) -> Self {
        Self(["mnt", "cgroup"].map(|kind| fs::File::open(format!("/proc/{pid}/ns/{kind}")).unwrap()))
    }

    /// Enters them, after a fork. Async-signal-safe.
    pub(super) fn enter(&self) -> std::io::Result<()> {
        for namespace in &self.0 {
            // SAFETY: a system call on a descriptor that is open.
            if unsafe { libc::setns(namespace.as_raw_fd(), 0) } == -1 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

/// A session of the user's on a machine.
pub(super) struct Inside {
    namespaces: Arc<Namespaces>,
    group: PathBuf,
    uid: u32,
}

impl Inside {
    /// Has the command run in this session.
    pub(super) fn enter(&self, mut cmd: Cmd) -> Cmd {
        cmd.namespaces = Some(self.namespaces.clone());
        let directory = format!("/run/user/{}", self.uid);
        cmd.in_group(&self.group)
            .env("XDG_RUNTIME_DIR", &directory)
            .env("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={directory}/bus"))
            .env_remove("DBUS_SYSTEM_BUS_ADDRESS")
    }
}

/// A machine booted with systemd, as one user sees it after a login. It is a [`World`] as well.
pub(crate) struct Machine {
    // Ends before the world, whose end kills everything.
    init: Running,
    world: World,
    bus: PathBuf,
}

impl Deref for Machine {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Machine {
    /// For a plain user, with a systemd of the user's own and its bus.
    pub(crate) fn new() -> Self {
        let uid = ALICE.to_string();
        let user = ["--reuid", &uid, "--regid", &uid, "--clear-groups"];
        let rights = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"];
        let manager = [systemd().unwrap(), "--user", "--unit=basic.target"];
        let init = [&["setpriv"], &user[..], &rights, &manager].concat();
        let machine = Self::start(ALICE, format!("/run/user/{ALICE}/bus"), &init);
        wait_until("the user's bus is there", || machine.inside(&machine.bus).exists());
        machine
    }

    /// For root: the systemd listens on the system bus and is at the root of the tree, as the machine's own.
    pub(crate) fn of_root() -> Self {
        let machine = Self::start(0, SYSTEM_BUS.to_owned(), &[systemd().unwrap(), "--user", "--unit=basic.target"]);
        wait_until("the system bus is there", || machine.inside(&machine.bus).exists());
        machine
    }

    /// For a plain user without a systemd of his own, as by cron or by su: the machine is booted with systemd, but nobody
    /// listens for this user.
    pub(crate) fn without_manager() -> Self {
        Self::start(ALICE, format!("/run/user/{ALICE}/bus"), &["sleep", "100000"])
    }

    fn start(uid: u32, bus: String, init: &[&str]) -> Self {
        let mut world = World::for_machine(uid);
        let session = world.group().join(format!("user.slice/user-{uid}.slice/session-1.scope"));
        fs::create_dir_all(&session).unwrap();
        let scope = match uid {
            0 => "init.scope".to_owned(),
            _ => format!("user.slice/user-{uid}.slice/user@{uid}.service/init.scope"),
        };
        let manager = world.group().join(&scope);
        fs::create_dir_all(&manager).unwrap();
        if uid != 0 {
            let service = manager.parent().unwrap();
            for group in [service, &manager] {
                for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
                    chown(group.join(file), Some(uid), Some(uid)).unwrap();
                }
            }
            delegate(service);
        }
        let units = world.path("units");
        fs::create_dir(&units).unwrap();
        for (name, text) in UNITS {
            fs::write(units.join(name), text.replace("BUS", &bus)).unwrap();
        }
        let cmd = world.cmd("unshare --mount --cgroup --propagation private sh -ec").arg(BUILD).arg("build").uid(0);
        let cmd = cmd.arg(world.path("")).args([&uid.to_string(), USER_NAME, &scope]).args(init);
        let cmd = cmd.env("XDG_RUNTIME_DIR", format!("/run/user/{uid}")).env("SYSTEMD_UNIT_PATH", &units);
        let cmd = cmd.env("SYSTEMD_LOG_TARGET", "console").env("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={bus}"));
        let running = cmd.env_remove("NOTIFY_SOCKET").spawn();
        let built = world.path("built");
        wait_until(&format!("the machine is built: {}", running.stderr()), || built.exists());
        let namespaces = Arc::new(Namespaces::of(running.pid()));
        world.settle(Inside { namespaces, group: session, uid });
        Self { init: running, world, bus: bus.into() }
    }

    /// Another session of the user, in which the test's commands are run from now on, in this group of the tree. It is
    /// made if need be, and is root's.
    pub(crate) fn log_in(&mut self, group: &str) -> PathBuf {
        let path = self.world.group().join(group);
        fs::create_dir_all(&path).unwrap();
        let namespaces = Arc::new(Namespaces::of(self.init.pid()));
        self.world.settle(Inside { namespaces, group: path.clone(), uid: self.uid() });
        path
    }

    /// Where a file of the machine is for the test.
    pub(crate) fn inside(&self, path: &Path) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.init.pid())).join(path.strip_prefix("/").unwrap())
    }

    /// The user's bus, for those inside.
    pub(crate) fn bus(&self) -> &Path {
        &self.bus
    }

    /// Listens where the user's bus should be, on a machine that looks as if the user had a systemd. Nobody answers unless
    /// the test does.
    pub(crate) fn listen(&self) -> UnixListener {
        let bind = |path: &Path| {
            let path = self.inside(path);
            let _ = fs::remove_file(&path);
            let listener = UnixListener::bind(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
            chown(&path, Some(self.uid()), Some(self.uid())).unwrap();
            listener
        };
        // Where systemctl finds it without a bus.
        let private = self.bus.with_file_name("systemd");
        fs::create_dir_all(self.inside(&private)).unwrap();
        drop(bind(&private.join("private")));
        bind(&self.bus)
    }

    /// A shell script that begins as root, in mounts of its own and in the session's group; `"$@"` is the command, to be
    /// run as the user.
    pub(crate) fn altered(&self, script: &str, line: &str) -> Cmd {
        let uid = self.uid().to_string();
        let script = format!("{script}\nexec setpriv --reuid {uid} --regid {uid} --clear-groups \"$@\"");
        let unshare = self.cmd("unshare --mount --propagation private sh -ec").arg(script).arg("altered").uid(0);
        unshare.args(line.split_whitespace())
    }

    /// The process of systemd.
    pub(crate) fn init(&self) -> &Running {
        &self.init
    }

    /// The group of a process, as those inside see it.
    #[track_caller]
    pub(crate) fn group_of(&self, pid: i32) -> String {
        let path = groups::path_of(pid);
        let root = format!("/{}", self.world.group().file_name().unwrap().to_str().unwrap());
        let at = path.find(&root).unwrap_or_else(|| panic!("{pid} is in {path}, not in the machine"));
        path[at + root.len()..].to_owned()
    }

    /// Asks systemd something: `machine.systemctl("show -P Delegate UNIT")`.
    #[track_caller]
    pub(crate) fn systemctl(&self, line: &str) -> String {
        let done = self.cmd("systemctl --user").args(line.split_whitespace()).run();
        assert!(done.status.success(), "systemctl {line}: {}", done.stderr);
        done.stdout
    }

    /// The jobs' units that systemd knows.
    #[track_caller]
    pub(crate) fn units(&self) -> Vec<String> {
        let listed = self.systemctl("list-units --all --plain --no-legend perflock-*");
        listed.lines().map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
    }

    /// [`World::wait_clean`], and systemd knows no unit of a job any more.
    #[track_caller]
    pub(crate) fn wait_gone(&self) {
        self.world.wait_clean();
        wait_until("systemd forgot the scopes", || self.units().is_empty());
    }
}
