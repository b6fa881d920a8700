//! Job groups, the guard, limits, pins and what systemd gives. Pure.

use std::path::Path;

use super::facts::Facts;
use super::groups::{Groups, MemoryCount};
use super::lock;
use super::row::{Row, as_root};
use crate::cgroup::controller::DELEGATE;
use crate::cgroup::cpuset::Way as PinWay;
use crate::cgroup::limits::Way as LimitWay;
use crate::cgroup::v2::Location;
use crate::cgroup::{Choice, Place, Refusal};
use crate::settings::LOCK;

/// Every controller that jobs use, by what is lost without it.
const CONTROLLERS: [(&str, &str); 5] = [
    ("cpuset", "hard pins"),
    ("memory", "--memory and peaks of memory"),
    ("pids", "--pids and counts of processes"),
    ("io", "counts of what was read and written"),
    ("cpu", "shares of CPU time among jobs"),
];

/// What is lost where single processes are killed.
const NOT_YOURS: &str = "what becomes another user's, such as by sudo, is not ended, and holds the machine";

/// What is lost where these go on meanwhile.
const FORKS: &str = "a job that forks without end takes longer to end";

/// What brings controllers of cgroup v1, which systemd gives to no user, into v2.
fn unify(groups: &Groups) -> String {
    let option = if groups.systemd { "systemd.unified_cgroup_hierarchy=1" } else { "cgroup_no_v1=all" };
    format!("boot with {option} on the kernel's command line")
}

/// What is known of job groups.
pub(super) fn rows(facts: &Facts) -> Vec<Row> {
    let groups = &facts.groups;
    let first = backend(facts);
    let refused = groups.detected.refused.iter().map(|refusal| refused(groups, refusal));
    let [cpu_time, memory_peak, pressure] = accounting(facts);
    let rest = [
        kill(facts),
        guard(facts),
        cpu_time,
        memory_peak,
        pressure,
        limit(facts, "memory-limit", "--memory", &groups.memory),
        limit(facts, "pids-limit", "--pids", &groups.pids),
        hard_pin(facts),
        soft_pin(groups),
        isolated(facts),
        delegation(facts),
        linger(facts),
        other_processes(facts),
    ];
    [first].into_iter().chain(refused).chain(rest).collect()
}

/// What mends the want of a group.
fn group_cure(groups: &Groups) -> String {
    match groups.choice {
        Choice::None => "use --cgroup auto, or put it into the configuration".to_owned(),
        Choice::Auto | Choice::Required => groups.detected.cure(),
    }
}

/// What mends something that a group could do.
fn cure_of(facts: &Facts, cure: Option<&String>) -> Option<String> {
    match cure {
        _ if !facts.groups.has_group() => Some(group_cure(&facts.groups)),
        Some(cure) if cure == DELEGATE => Some(delegate(facts)),
        cure => cure.cloned(),
    }
}

/// What gives controllers to the service managers of plain users.
fn delegate(facts: &Facts) -> String {
    let groups = &facts.groups;
    if groups.is_hybrid {
        unify(groups)
    } else if groups.delegates && matches!(groups.lingers, Ok(true)) {
        // It outlives every session, as it was started.
        let restart = as_root(facts.uid, &format!("systemctl restart user@{}.service", facts.uid));
        format!("when nothing of yours runs: {restart}")
    } else if groups.delegates {
        "log out of every session, and log in again".to_owned()
    } else if facts.lock.path == Path::new(LOCK) {
        lock::set_up(facts)
    } else {
        DELEGATE.to_owned()
    }
}

/// A group's directory; that of the root of a hierarchy without a slash at its end.
fn shown(group: &Location) -> String {
    group.directory().components().as_path().display().to_string()
}

fn backend(facts: &Facts) -> Row {
    let (id, name, groups) = ("backend", "backend", &facts.groups);
    let lost = "a process that hides from its parent may survive a perflock that is killed";
    match groups.place() {
        None => {
            let row = Row::missing(id, name, groups.detected.reasons()).lost("--cgroup required lets no job run");
            row.fix(group_cure(groups))
        }
        Some(Place::Subreaper) => {
            let why = if groups.choice == Choice::None { "as asked for" } else { "no group can be made" };
            let row = Row::weaker(id, name, format!("subreaper: descendants are tracked, {why}"));
            row.lost(lost).fix(group_cure(groups))
        }
        Some(Place::Scope(manager)) => {
            let whose = if manager.is_system() { "the machine's" } else { "your own" };
            let unasked = if groups.unasked { "; not asked, as jobs are queued" } else { "" };
            Row::works(id, name, format!("scope: a group in a scope of {whose} service manager{unasked}"))
        }
        Some(Place::V2(own)) => {
            let inside = if matches!(facts.lock.inside, Ok(Some(_))) { ", inside a job" } else { "" };
            Row::works(id, name, format!("v2: a group directly below {}{inside}", shown(own)))
        }
        Some(Place::V1(site)) => {
            let (hierarchy, directory) = (site.hierarchy(), site.directory());
            Row::works(id, name, format!("v1: a group of the hierarchy {hierarchy}, below {}", directory.display()))
        }
    }
}

/// Whether anything is lost by it, the backend's own row tells.
fn refused(groups: &Groups, refusal: &Refusal) -> Row {
    let backend = refusal.backend.name();
    let id = format!("refused-{backend}");
    let row = Row::missing(&id, backend, refusal.why.clone()).fix(refusal.cure.clone()).not_promised();
    row.lost(match groups.place() {
        Some(place) if groups.has_group() => format!("nothing: jobs are in a {} group", place.backend()),
        _ => "a group of each job's own".to_owned(),
    })
}

fn kill(facts: &Facts) -> Row {
    let (id, name, groups) = ("kill", "kill", &facts.groups);
    if !groups.has_group() {
        return Row::weaker(id, name, "process by process, as they are found")
            .lost("processes of other users, such as by sudo, and those that hide")
            .fix(group_cure(groups));
    }
    let (freezes, detail, fix) = match groups.place() {
        Some(Place::V1(site)) if site.freezes() => {
            (true, "the freezer holds every process of a job until it is killed", unify(groups))
        }
        Some(Place::V1(_)) => {
            (false, "process by process: no group of the freezer's hierarchy is yours", unify(groups))
        }
        _ if groups.kills => return Row::works(id, name, "cgroup.kill ends every process of a job at once"),
        _ => {
            let detail = "a job's group is frozen until its processes are killed: there is no cgroup.kill";
            (true, detail, "boot Linux 5.14 or newer".to_owned())
        }
    };
    // kill(2) asks whose a process is, and nobody asks root.
    match (freezes, facts.uid) {
        (true, 0) => return Row::works(id, name, detail),
        (true, _) => Row::weaker(id, name, detail).lost(NOT_YOURS),
        (false, 0) => Row::weaker(id, name, detail).lost(FORKS),
        (false, _) => Row::weaker(id, name, detail).lost(format!("{FORKS}; {NOT_YOURS}")),
    }
    .fix(fix)
}

fn guard(facts: &Facts) -> Row {
    let (id, name) = ("guard", "guard");
    match &facts.guard {
        Ok(()) => Row::works(id, name, "a process that watches another was made, and ended"),
        Err(error) => {
            // fork(2): the user has as many processes as they may.
            let full = error.kind() == std::io::ErrorKind::WouldBlock;
            Row::missing(id, name, format!("none can be made: {}", crate::error::reason(error)))
                .lost("no job runs, or none is ended if perflock is killed")
                .fix(full.then(|| "ulimit -Su hard".to_owned()))
        }
    }
}

fn accounting(facts: &Facts) -> [Row; 3] {
    let groups = &facts.groups;
    let cure = group_cure(groups);
    let waited_for = "only of processes that are waited for";
    let cpu = match (groups.counts_cpu, groups.has_group()) {
        (true, _) => Row::works("cpu-time", "CPU time", "of every process of a job"),
        (false, has_group) => Row::weaker("cpu-time", "CPU time", waited_for)
            .lost("CPU time of processes that nobody waits for")
            .fix(match groups.place() {
                Some(Place::V1(_)) => Some(unify(groups)),
                _ => (!has_group).then(|| cure.clone()),
            }),
    };
    let (id, name) = ("memory-peak", "memory peak");
    let lost = "what all processes of a job had together at most";
    let memory = match &groups.memory_count {
        MemoryCount::Peak => Row::works(id, name, "of all processes of a job together"),
        MemoryCount::Now => {
            let row = Row::weaker(id, name, "what a job has now is counted, but no peak");
            row.lost(lost).fix("boot Linux 5.19 or newer".to_owned())
        }
        MemoryCount::WhenLimited => Row::weaker(id, name, "of limited jobs; of others that of the largest process")
            .lost(format!("{lost}, without a limit"))
            .fix("perflock --memory SIZE CMD".to_owned()),
        MemoryCount::No { why, cure } => Row::weaker(id, name, format!("of the largest process only: {why}"))
            .lost(lost)
            .fix(cure_of(facts, cure.as_ref())),
    };
    let (id, name) = ("pressure", "pressure");
    let pressure = if groups.counts_pressure {
        Row::works(id, name, "how long a job waited for CPU, memory and disk")
    } else {
        let cure = if matches!(groups.place(), Some(Place::V1(_))) {
            unify(groups)
        } else if groups.has_group() {
            "boot with psi=1 on the kernel's command line".to_owned()
        } else {
            cure
        };
        Row::missing(id, name, "not counted").lost("how long a job waited for CPU, memory and disk").fix(cure)
    };
    [cpu, memory, pressure]
}

fn limit(facts: &Facts, id: &str, name: &str, way: &LimitWay) -> Row {
    match way {
        LimitWay::V1(at) => Row::works(id, name, format!("by a group below {}", shown(at))),
        LimitWay::Group => Row::works(id, name, "by the job's own group"),
        LimitWay::Unlimited { why, cure } => {
            let lost = format!("jobs with {name} are refused, and no default of the configuration holds");
            Row::missing(id, name, why.clone()).lost(lost).fix(cure_of(facts, cure.as_ref()))
        }
    }
}

fn hard_pin(facts: &Facts) -> Row {
    let (id, name) = ("hard-pin", "hard pin");
    match &facts.groups.cpuset {
        PinWay::V1(at) => Row::works(id, name, format!("by a cpuset below {}", shown(at))),
        PinWay::Scope => Row::works(id, name, "by the cpuset of the job's scope"),
        PinWay::V2 => Row::works(id, name, "by the cpuset of the job's own group"),
        PinWay::Affinity { why, cure } => Row::weaker(id, name, format!("by affinity alone: {why}"))
            .lost("a job can leave its processors, and --pin hard is refused")
            .fix(cure_of(facts, cure.as_ref())),
    }
}

fn soft_pin(groups: &Groups) -> Row {
    let (id, name) = ("soft-pin", "soft pin");
    match &groups.reachable {
        Some(cpus) => Row::works(id, name, format!("to any of the processors {cpus}")),
        None => Row::unknown(id, name, "where you may run cannot be found out"),
    }
}

fn isolated(facts: &Facts) -> Row {
    let (id, name, groups) = ("isolated", "--isolated", &facts.groups);
    let lost = "whoever is not pinned may run on a job's processors too";
    if facts.uid != 0 {
        let row = Row::missing(id, name, "for root alone").not_promised();
        return row.lost(lost).fix("run perflock as root".to_owned());
    }
    let (why, cure) = match &groups.cpuset {
        _ if groups.isolates => return Row::works(id, name, "by a partition of the cpusets"),
        PinWay::V1(_) => ("the cpusets are in cgroup v1, which has no partitions".to_owned(), Some(unify(groups))),
        PinWay::Affinity { why, cure } => (why.clone(), cure.clone()),
        PinWay::Scope | PinWay::V2 => ("the cpuset cannot be a partition".to_owned(), None),
    };
    Row::missing(id, name, why).lost(lost).fix(cure)
}

fn delegation(facts: &Facts) -> Row {
    let (id, name, groups) = ("delegation", "delegation", &facts.groups);
    if facts.uid == 0 {
        return Row::works(id, name, "root needs none");
    }
    if !groups.systemd {
        return Row::works(id, name, "not needed: systemd does not run here");
    }
    let user = &facts.user;
    let Some(has) = &groups.delegated else {
        return Row::missing(id, name, format!("no service manager of {user} is seen"))
            .lost("what jobs in a scope of your own could do")
            .fix(format!("loginctl enable-linger {user}"));
    };
    let lacks: Vec<(&str, &str)> =
        CONTROLLERS.into_iter().filter(|(name, _)| !has.iter().any(|has| has == name)).collect();
    if lacks.is_empty() {
        return Row::works(id, name, format!("your service manager has {}", has.join(", ")));
    }
    let names =
        |pick: fn(&(&'static str, &'static str)) -> &'static str| lacks.iter().map(pick).collect::<Vec<_>>().join(", ");
    let detail = format!("your service manager does not have {}", names(|lack| lack.0));
    Row::weaker(id, name, detail).lost(names(|lack| lack.1)).fix(delegate(facts))
}

fn linger(facts: &Facts) -> Row {
    let (id, name, groups) = ("linger", "linger", &facts.groups);
    if facts.uid == 0 || !groups.systemd {
        return Row::works(id, name, "not needed: no logout ends your jobs");
    }
    match &groups.lingers {
        Ok(true) => Row::works(id, name, "your service manager outlives your sessions"),
        // In a group of their own jobs have nothing to do with it.
        Ok(false) if groups.has_group() && !groups.is_in_user_scope() => {
            Row::works(id, name, "not needed: jobs are not in your service manager")
        }
        Ok(false) => Row::weaker(id, name, "off: your service manager ends with your last session")
            .lost("jobs in the background end when you log out")
            .fix(format!("loginctl enable-linger {}", facts.user)),
        Err(error) => Row::unknown(id, name, format!("cannot be looked up: {}", crate::error::reason(error)))
            .fix(format!("loginctl show-user --property=Linger {}", facts.user)),
    }
}

fn other_processes(facts: &Facts) -> Row {
    let (id, name) = ("proc", "/proc");
    if (facts.uid == 0 || facts.sees_others) && facts.sees_locks {
        return Row::works(id, name, "shows processes and locks of others");
    }
    if !facts.sees_locks {
        // Not the mount's option subset=pid: with that nothing of perflock works.
        return Row::weaker(id, name, "hides who has which lock")
            .lost("wholock cannot tell who uses the lock file by plain flock(1)");
    }
    Row::weaker(id, name, "hides processes of others")
        .lost("wholock cannot tell who uses the machine outside of jobs")
        .fix(as_root(facts.uid, "mount -o remount,hidepid=0 /proc"))
}
