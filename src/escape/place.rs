//! What the path of a group says: the systemd unit, the container, the job.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use crate::job::JobId;
use crate::nested;

/// Kinds of units that processes are in: systemd.unit(5).
const KINDS: [&str; 5] = [".service", ".scope", ".mount", ".socket", ".swap"];

/// How container engines name a container's own group: podman, docker, containerd, CRI-O and LXC.
const CONTAINERS: [&str; 8] =
    ["libpod-", "docker-", "nerdctl-", "cri-containerd-", "crio-", "buildkit-", "lxc.payload.", "lxc.monitor."];

/// The groups directly below which some make a group for each container; the last is systemd-machined's, for systemd-nspawn and
/// libvirt.
const ENGINES: [&str; 7] = ["docker", "lxc", "libpod_parent", "buildkit", "containerd", "nerdctl", "machine.slice"];

/// Where a process is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    /// The container's unit, or else the innermost one.
    pub unit: Option<&'a str>,
    /// The group of the container, or else of that unit, or else the one that the process is in.
    pub group: &'a Path,
    /// It is in a container.
    pub container: bool,
    /// It is in a login session, or a manager of the user's own.
    pub is_a_login: bool,
    /// It is in a job of perflock's, which accounts for it.
    pub is_a_job: bool,
}

impl<'a> Place<'a> {
    /// What the path of a group in the v2 hierarchy says.
    pub(crate) fn of(path: &'a Path) -> Self {
        let name = |group: &'a Path| group.file_name().and_then(OsStr::to_str);
        let groups = || path.ancestors().filter_map(|group| Some((group, name(group)?)));
        let container = groups().find(|(group, name)| {
            let above = group.parent().and_then(Path::file_name).and_then(OsStr::to_str);
            let named = CONTAINERS.iter().any(|prefix| name.starts_with(prefix));
            named || above.is_some_and(|above| ENGINES.contains(&above))
        });
        let is_unit = |(_, name): &(&Path, &str)| KINDS.iter().any(|kind| name.ends_with(kind));
        let unit = container.map_or_else(|| groups().find(is_unit), |own| Some(own).filter(is_unit));
        let is_login = |name: &str| {
            name.starts_with("session-") && name.ends_with(".scope")
                || name.starts_with("user@")
                || name == "init.scope"
        };
        let inner = |component: Component<'_>| match component {
            Component::Normal(name) => name.to_str().and_then(nested::parse_group_name).is_some(),
            _ => false,
        };
        Self {
            unit: unit.map(|(_, name)| name),
            group: container.or(unit).map_or(path, |(group, _)| group),
            container: container.is_some(),
            is_a_login: unit.is_some_and(|(_, name)| is_login(name)),
            is_a_job: JobId::in_group_path(path).next().is_some() || path.components().any(inner),
        }
    }

    /// Whether there is nothing but other units and containers below the group at `path`: a slice, or a container engine's group.
    pub(crate) fn is_divided(path: &Path) -> bool {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        name.ends_with(".slice") || ENGINES.contains(&name)
    }

    /// The file that systemd writes for a transient unit, and for no other.
    pub(crate) fn transient_file(&self, root: &Path, uid: u32, unit: &str) -> PathBuf {
        let of_a_user = self.group.components().any(|component| match component {
            Component::Normal(name) => name.to_str().is_some_and(|name| name.starts_with("user@")),
            _ => false,
        });
        let manager = if of_a_user { format!("run/user/{uid}/systemd") } else { "run/systemd".to_owned() };
        root.join(manager).join("transient").join(unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seen(path: &str) -> (Option<&str>, &str, bool, bool) {
        let place = Place::of(Path::new(path));
        (place.unit, place.group.to_str().unwrap(), place.container, place.is_a_job)
    }

    #[test]
    fn units_containers_and_jobs_are_told_apart() {
        let session = "/user.slice/user-1000.slice/session-2.scope";
        assert_eq!(seen(session), (Some("session-2.scope"), session, false, false));
        let service = "/user.slice/user-1000.slice/user@1000.service/app.slice/run-u3.service";
        assert_eq!(seen(&format!("{service}/sub/group")), (Some("run-u3.service"), service, false, false));
        let manager = "/user.slice/user-1000.slice/user@1000.service";
        assert_eq!(seen(&format!("{manager}/app.slice")), (Some("user@1000.service"), manager, false, false));
        assert_eq!(seen("/mine/a"), (None, "/mine/a", false, false));
        assert_eq!(seen("/"), (None, "/", false, false));
        let docker = "/system.slice/docker-0123456789ab.scope";
        assert_eq!(seen(&format!("{docker}/init.scope")), (Some("docker-0123456789ab.scope"), docker, true, false));
        assert_eq!(seen("/docker/0123456789ab/x"), (None, "/docker/0123456789ab", true, false));
        assert_eq!(seen("/docker"), (None, "/docker", false, false));
        let nspawn = "/machine.slice/systemd-nspawn@a.service";
        assert_eq!(seen(&format!("{nspawn}/payload")), (Some("systemd-nspawn@a.service"), nspawn, true, false));
        for (path, is_a_login) in [(session, true), (manager, true), (service, false), (docker, false), ("/a", false)] {
            assert_eq!(Place::of(Path::new(path)).is_a_login, is_a_login, "{path}");
        }
        let job = "/a/perflock-7-a-0000000b-c";
        assert_eq!(seen(&format!("{job}/sub")), (None, &*format!("{job}/sub"), false, true));
        assert!(seen("/a/perflock-nested-5-7").3);
        assert!(!seen("/a/perflock-of-mine").3);
    }

    #[test]
    fn each_manager_keeps_its_own_transient_units() {
        let file = |path: &str| {
            let place = Place::of(Path::new(path));
            place.transient_file(Path::new("/"), 1000, place.unit.unwrap()).to_str().unwrap().to_owned()
        };
        assert_eq!(file("/system.slice/run-u3.service"), "/run/systemd/transient/run-u3.service");
        let of_a_user = "/user.slice/user-1000.slice/user@1000.service/app.slice/a.scope";
        assert_eq!(file(of_a_user), "/run/user/1000/systemd/transient/a.scope");
    }

    proptest! {
        #[test]
        fn any_path_is_a_place_in_itself(path in "(/|[.]{1,2}|user@1[.]service|docker|libpod-|perflock-|\\PC){0,12}") {
            let path = Path::new(&path);
            let place = Place::of(path);
            prop_assert!(path.starts_with(place.group));
            prop_assert!(place.unit.is_none_or(|unit| !unit.contains('/')));
        }
    }
}
