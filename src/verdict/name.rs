//! Who used the machine beside a job: asked only if somebody did, and when the machine was given back.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::look::{Seen, Share};
use super::{Culprit, Kind, Program};
use crate::cgroup::v2::Location;
use crate::clock;
use crate::escape::place::Place;
use crate::procfs::{Proc, Stat};
use crate::user;

/// So many culprits, and programs of each, are told.
const TOLD: usize = 3;

/// Processes are looked at for no longer than this, in CPU time: whoever has the machine by now is not to be disturbed by it.
const LONGEST: Duration = Duration::from_millis(30);

/// Who used less than this part of all is not told.
const WORTH_TELLING: u64 = 20;

/// Whether the groups directly below this one have names of their own: it holds units or containers, or the job.
pub(super) fn is_opened(group: &Path, job: &Path) -> bool {
    user_of(group).is_none() && (Place::is_divided(group) || job.starts_with(group) && job != group)
}

/// Whether a group is in a user's slice, a service or a container.
fn has_a_name(group: &Path) -> bool {
    let place = Place::of(group);
    user_of(group).is_some() || place.container || place.unit.is_some_and(is_service)
}

fn is_service(unit: &str) -> bool {
    unit.ends_with(".service")
}

/// The user of systemd's slice that a group is in.
fn user_of(group: &Path) -> Option<u32> {
    group.components().find_map(|component| match component {
        Component::Normal(name) => name.to_str()?.strip_prefix("user-")?.strip_suffix(".slice")?.parse().ok(),
        _ => None,
    })
}

/// A process that was found in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    uid: u32,
    /// Its own group.
    group: PathBuf,
    name: String,
    usec: u64,
    /// It was there before, and what it had used then is not known.
    at_most: bool,
    runs: bool,
}

/// Who it was, the largest first. `job` is where the job's group was.
pub fn culprits(seen: &Seen, proc: &Proc, job: Option<&Location>, ticks_per_second: u64) -> Vec<Culprit> {
    let least_usec = seen.elsewhere_usec / WORTH_TELLING;
    let mut culprits: Vec<Culprit> = Vec::new();
    if let Some(job) = job {
        let shares: Vec<&Share> = seen.groups.iter().filter(|share| share.usec >= least_usec).collect();
        let mut found = processes_in(&seen.groups, job, seen.since_usec, proc, ticks_per_second);
        culprits.extend(shares.into_iter().map(|share| {
            let owner = || std::fs::metadata(job.mount.join(&share.group)).ok().map(|metadata| metadata.uid());
            culprit(share, job.mounted(), found.remove(&*share.group).unwrap_or_default(), owner)
        }));
    }
    let mut users: BTreeMap<u32, Vec<Found>> = BTreeMap::new();
    for process in &seen.processes {
        let Some(uid) = process.uid else { continue };
        let (name, group, usec) = (process.name.clone(), PathBuf::new(), process.usec);
        let found = Found { uid, group, name, usec, at_most: false, runs: false };
        users.entry(uid).or_default().push(found);
    }
    culprits.extend(users.into_iter().map(|(uid, found)| {
        let cpu_usec = found.iter().map(|found| found.usec).fold(0, u64::saturating_add);
        let programs = programs(found, cpu_usec);
        Culprit { name: user::name(uid), kind: Kind::User, uid: Some(uid), group: None, cpu_usec, programs }
    }));
    let mut culprits = merged(culprits);
    culprits.retain(|culprit| culprit.cpu_usec >= least_usec);
    culprits.sort_by_key(|culprit| std::cmp::Reverse(culprit.cpu_usec));
    culprits.truncate(TOLD);
    culprits
}

/// Those that are of the same name and kind as one.
fn merged(culprits: Vec<Culprit>) -> Vec<Culprit> {
    let mut all: Vec<Culprit> = Vec::new();
    for culprit in culprits {
        let same = |known: &&mut Culprit| (known.kind, &known.name) == (culprit.kind, &culprit.name);
        let Some(known) = all.iter_mut().find(same) else {
            all.push(culprit);
            continue;
        };
        known.cpu_usec = known.cpu_usec.saturating_add(culprit.cpu_usec);
        // It is in several.
        known.group = known.group.take().filter(|group| Some(group) == culprit.group.as_ref());
        for program in culprit.programs {
            match known.programs.iter_mut().find(|other| other.name == program.name) {
                Some(other) => {
                    other.cpu_usec = other.cpu_usec.saturating_add(program.cpu_usec);
                    other.at_most |= program.at_most;
                }
                None => known.programs.push(program),
            }
        }
        known.programs.sort_by_key(|program| (program.at_most, std::cmp::Reverse(program.cpu_usec)));
        known.programs.truncate(TOLD);
    }
    all
}

/// Who a group's share is to be told of.
fn culprit(share: &Share, base: &Path, found: Vec<Found>, owner: impl Fn() -> Option<u32>) -> Culprit {
    // Whoever used the most in it; nobody is left of a storm of short processes.
    let busiest = found.iter().max_by_key(|found| (!found.at_most, found.runs, found.usec, found.uid));
    // A slice is nobody: too many groups were in it to read each. Who runs in one of them now is the likeliest.
    let inner = busiest.map(|found| &found.group).filter(|inner| !has_a_name(&share.group) && has_a_name(inner));
    let group = inner.unwrap_or(&share.group);
    let place = Place::of(group);
    let unit = place.unit.map(str::to_owned);
    let container = place.group.file_name().filter(|_| place.container).map(|name| {
        let name = name.to_string_lossy();
        name.strip_suffix(".scope").unwrap_or(&name).to_owned()
    });
    let service = unit.filter(|unit| is_service(unit));
    let (kind, name, uid) = match (user_of(group), container, service) {
        (Some(uid), ..) => (Kind::User, user::name(uid), Some(uid)),
        (None, Some(container), _) => (Kind::Container, container, None),
        (None, None, Some(service)) => (Kind::Service, service, None),
        (None, None, None) => {
            let uid = busiest.map(|found| found.uid).or_else(owner);
            // Gone, with everybody in it.
            let name = uid.map_or_else(|| group.to_string_lossy().into_owned(), user::name);
            (Kind::User, name, uid)
        }
    };
    let group = Some(base.join(group).to_string_lossy().into_owned());
    Culprit { name, kind, uid, group, cpu_usec: share.usec, programs: programs(found, share.usec) }
}

/// The largest programs among processes that used `all_usec` together. Those of which it is known come first, and leave less for
/// the others; of those the ones that run now, since what the others used may be long ago.
fn programs(mut found: Vec<Found>, all_usec: u64) -> Vec<Program> {
    found.sort_by_key(|found| (found.at_most, !found.runs, std::cmp::Reverse(found.usec)));
    let mut left_usec = all_usec;
    let mut programs: Vec<Program> = Vec::new();
    for Found { name, usec, at_most, .. } in found {
        let cpu_usec = usec.min(left_usec);
        if !at_most {
            left_usec -= cpu_usec;
        }
        match programs.iter_mut().find(|program| program.name == name) {
            Some(program) => {
                program.cpu_usec = program.cpu_usec.saturating_add(cpu_usec).min(all_usec);
                program.at_most |= at_most;
            }
            None => programs.push(Program { name, cpu_usec, at_most }),
        }
    }
    programs.retain(|program| program.cpu_usec >= all_usec / WORTH_TELLING && program.cpu_usec > 0);
    // What is known only as a bound does not come before what is known, unless it may be far more.
    programs.sort_by_key(|program| {
        std::cmp::Reverse(if program.at_most { program.cpu_usec / 2 } else { program.cpu_usec })
    });
    programs.truncate(TOLD);
    programs
}

/// What lives now in the groups that have a share, and may have used it, by group.
fn processes_in<'a>(
    shares: &'a [Share],
    job: &Location,
    since_usec: u64,
    proc: &Proc,
    ticks_per_second: u64,
) -> BTreeMap<&'a Path, Vec<Found>> {
    let mut groups: BTreeMap<&Path, Vec<Found>> = BTreeMap::new();
    if shares.is_empty() {
        return groups;
    }
    let own = std::process::id().cast_signed();
    let since_ticks = clock::to_ticks(since_usec, ticks_per_second);
    // Those that began last first: they are more likely to be it.
    let in_time = clock::within(LONGEST, clock::cpu_time);
    for pid in proc.pids().unwrap_or_default().into_iter().rev().take_while(|_| in_time()) {
        let Some(stat) = proc.stat(pid).ok().filter(|stat| !stat.kernel_thread && pid != own) else { continue };
        let ticks = used(&stat);
        if ticks == 0 {
            continue;
        }
        let Some(group) = proc.cgroup_v2(pid).ok().and_then(|path| job.relative_of(&path)) else { continue };
        // The innermost, which has the process.
        let share =
            shares.iter().filter(|share| group.starts_with(&share.group)).max_by_key(|share| depth(&share.group));
        let (Some(share), Ok(uid)) = (share, proc.uid(pid)) else { continue };
        groups.entry(&share.group).or_default().push(Found {
            uid,
            group,
            name: stat.comm,
            usec: clock::to_usec(ticks, ticks_per_second).min(share.usec),
            at_most: stat.start_ticks < since_ticks,
            runs: stat.state == 'R',
        });
    }
    groups
}

/// With its children that ended; not those of everybody, that the first process waited for.
fn used(stat: &Stat) -> u64 {
    let of_children = if stat.pid == 1 { 0 } else { stat.ended_children_ticks };
    stat.cpu_ticks.saturating_add(of_children)
}

fn depth(group: &Path) -> usize {
    group.components().count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    fn found(name: &str, usec: u64, at_most: bool, runs: bool) -> Found {
        let group = "system.slice/busy.service".into();
        Found { uid: 4_000_000, group, name: name.to_owned(), usec, at_most, runs }
    }

    fn told(found: Vec<Found>, all_usec: u64) -> Vec<(String, u64, bool)> {
        let one = |program: Program| (program.name, program.cpu_usec, program.at_most);
        programs(found, all_usec).into_iter().map(one).collect()
    }

    #[test]
    fn a_group_is_told_by_what_it_is() {
        let label = |path: &str, found: Vec<Found>| {
            let share = Share { group: path.into(), usec: 100 };
            let culprit = culprit(&share, Path::new("/base"), found, || Some(4_000_001));
            assert_eq!(culprit.group, Some(format!("/base/{path}")));
            (culprit.kind, culprit.name, culprit.uid)
        };
        let user = "user.slice/user-4000000.slice";
        assert_eq!(label(user, vec![]), (Kind::User, "4000000".to_owned(), Some(4_000_000)));
        assert_eq!(label("system.slice/cron.service", vec![]), (Kind::Service, "cron.service".to_owned(), None));
        let docker = "system.slice/docker-0123.scope";
        assert_eq!(label(docker, vec![]), (Kind::Container, "docker-0123".to_owned(), None));
        assert_eq!(label("docker/0123", vec![]), (Kind::Container, "0123".to_owned(), None));
        assert_eq!(label("mine", vec![]), (Kind::User, "4000001".to_owned(), Some(4_000_001)));
        let busy = || vec![found("a", 9, true, false), found("b", 5, true, true)];
        let elsewhere = |found| Found { group: "mine/sub".into(), ..found };
        assert_eq!(
            label("mine", busy().into_iter().map(elsewhere).collect()),
            (Kind::User, "4000000".to_owned(), Some(4_000_000))
        );
        // A slice in which nobody is known is that of whoever runs in it.
        let share = Share { group: "system.slice".into(), usec: 100 };
        let one = culprit(&share, Path::new("/"), busy(), || None);
        assert_eq!((one.kind, &*one.name), (Kind::Service, "busy.service"));
        assert_eq!(one.group.as_deref(), Some("/system.slice/busy.service"));
    }

    #[test]
    fn groups_are_opened_that_hold_units_or_the_job() {
        let job = Path::new("user.slice/user-7.slice/session-2.scope/perflock-1");
        for opened in ["system.slice", "user.slice", "kubepods.slice/kubepods-pod1.slice", "docker", "machine.slice"] {
            assert!(is_opened(Path::new(opened), job), "{opened}");
        }
        for whole in ["system.slice/a.service", "user.slice/user-7.slice", "mine", "docker/0123"] {
            assert!(!is_opened(Path::new(whole), job), "{whole}");
        }
        assert!(is_opened(Path::new("mine"), Path::new("mine/perflock-1")));
        assert!(!is_opened(Path::new("mine/perflock-1"), Path::new("mine/perflock-1")));
    }

    #[test]
    fn what_is_known_comes_before_what_may_be() {
        let new = found("cc1plus", 2_900_000, false, true);
        let old = found("systemd", 9_000_000_000, true, false);
        let two = told(vec![old.clone(), new.clone()], 3_100_000);
        assert_eq!(two, [("cc1plus".to_owned(), 2_900_000, false), ("systemd".to_owned(), 200_000, true)]);
        // One that runs, before one that sleeps.
        let burns = found("burn", 5_000_000, true, true);
        let both = told(vec![old, burns], 3_000_000);
        assert_eq!(both[0], ("burn".to_owned(), 3_000_000, true));
        assert_eq!(told(vec![new.clone(), new], 9_000_000), [("cc1plus".to_owned(), 5_800_000, false)]);
        assert_eq!(told(vec![found("little", 1, false, false)], 3_000_000), []);
    }

    #[test]
    fn processes_are_found_in_the_innermost_group() {
        let root = tempfile::tempdir().unwrap();
        let process = |pid: i32, group: &str, start: u64, ticks: u64| {
            let directory = root.path().join(pid.to_string());
            fs::create_dir(&directory).unwrap();
            let line = format!("{pid} (p{pid}) R 1 1 1 0 -1 4194304 0 0 0 0 {ticks} 0 3 0 20 0 1 0 {start} 9 2\n");
            fs::write(directory.join("stat"), line).unwrap();
            fs::write(directory.join("cgroup"), format!("3:cpu:/x\n0::{group}\n")).unwrap();
        };
        process(1, "/base/a", 5, 0);
        process(21, "/base/a/b/c", 200, 7);
        process(22, "/base/a", 5, 7);
        process(23, "/elsewhere/a", 5, 7);
        let job =
            Location { mount: root.path().into(), relative: "perflock-1".into(), path: "/base/perflock-1".into() };
        let shares = [("a", 500_000), ("a/b", 50_000)].map(|(group, usec)| Share { group: group.into(), usec });
        let found = processes_in(&shares, &job, 1_000_000, &Proc::at(root.path()), 100);
        let told = |group: &str| {
            let one = |found: &Found| (found.name.clone(), found.usec, found.at_most);
            found[Path::new(group)].iter().map(one).collect::<Vec<_>>()
        };
        assert_eq!(found.len(), 2);
        assert_eq!(told("a"), [("p22".to_owned(), 100_000, true)]);
        assert_eq!(told("a/b"), [("p21".to_owned(), 50_000, false)]);
    }

    proptest! {
        /// However much processes had used before, no program is told of with more than all there was.
        #[test]
        fn no_program_used_more_than_all(
            list in prop::collection::vec(("[ab]?", any::<u64>(), any::<bool>(), any::<bool>()), 0..8), all_usec: u64,
        ) {
            let list = list.iter().map(|(name, usec, at_most, runs)| found(name, *usec, *at_most, *runs)).collect();
            for (_, usec, _) in told(list, all_usec) {
                prop_assert!(usec <= all_usec);
            }
        }

        #[test]
        fn any_path_has_a_culprit(path in "(/|[.]{1,2}|user-[0-9]{1,12}|[.]slice|docker|\\PC){0,12}") {
            let share = Share { group: path.trim_start_matches('/').into(), usec: 1 };
            let _ = culprit(&share, Path::new("/"), vec![], || None);
            let _ = is_opened(Path::new(&path), Path::new("a/b"));
        }
    }
}
