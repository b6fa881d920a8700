//! The lock file, the queue, the configuration, and what is left of them after a boot. Pure.

use std::io;
use std::path::Path;

use super::facts::{ConfigFile, Facts, Found, LockFacts, Permissions};
use super::row::{Row, as_root};
use crate::config::ConfigError;
use crate::error::FileError;
use crate::lock::{LockError, queue_directory};
use crate::settings::LOCK;
use crate::text;

/// Has a machine make a lock at each boot that is not the machine's own: for that, `--setup` does it.
const MAKE_AT_BOOT: &str =
    "sh -c \"printf 'f LOCK 0666 root root -\\nd LOCK.d 1777 root root -\\n' >>/etc/tmpfiles.d/perflock-local.conf\"";

/// What is known of the lock.
pub(super) fn rows(facts: &Facts) -> Vec<Row> {
    vec![file(facts), queue(facts), configuration(facts), after_boot(facts)]
}

/// The command that sets the lock up for those who may use it now.
pub(super) fn set_up(facts: &Facts) -> String {
    let lock = &facts.lock;
    let group = lock.named.filter(|named| named.gid != 0 && Audience::of(*named, 0o4) == Audience::Group);
    let group = group.map(|named| format!(" --group {}", crate::user::group_name(named.gid))).unwrap_or_default();
    as_root(facts.uid, &format!("{}{group}", lock.set_up))
}

/// Who may use a file, by its mode.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Audience {
    Owner,
    Group,
    All,
}

impl Audience {
    /// Those who have the right `bits`, which are of one octal digit.
    fn of(permissions: Permissions, bits: u32) -> Self {
        let has = |shift: u32| permissions.mode >> shift & bits == bits;
        match (has(0), has(3)) {
            (true, _) => Self::All,
            (_, true) => Self::Group,
            _ => Self::Owner,
        }
    }

    fn shown(self, permissions: Permissions) -> String {
        match self {
            Self::Owner => format!("{} alone", crate::user::name(permissions.uid)),
            Self::Group => format!("group {}", crate::user::group_name(permissions.gid)),
            Self::All => "everybody".to_owned(),
        }
    }
}

fn file(facts: &Facts) -> Row {
    let lock = &facts.lock;
    let (id, name, path) = ("lock-file", "lock file", lock.path.display());
    let permissions = match &lock.file {
        Err(LockError::Missing(_)) if lock.private => {
            return Row::works(id, name, format!("{path} is made by your first job"));
        }
        Err(error) => {
            let lost = match (error, facts.uid) {
                (LockError::Missing(_), 0) => "nobody can run a job before root has run one",
                _ => "you can run no job, but with --private",
            };
            return Row::missing(id, name, error.to_string()).lost(lost).fix(mend(facts, error));
        }
        Ok(None) => return Row::unknown(id, name, format!("the permissions of {path} cannot be read")),
        Ok(Some(permissions)) => *permissions,
    };
    let audience = Audience::of(permissions, 0o4);
    let container = if lock.in_container { "; in a container, its own unless it was mounted in" } else { "" };
    let detail = format!("{path}, for {}{container}", audience.shown(permissions));
    let row = if lock.private {
        return Row::works(id, name, detail);
    } else if audience == Audience::Owner {
        Row::weaker(id, name, detail).lost("others can run no job here, and do not know of yours")
    } else if ![0, facts.uid].contains(&permissions.uid) {
        let owner = crate::user::name(permissions.uid);
        Row::weaker(id, name, format!("{path} belongs to {owner}")).lost(format!("{owner} can lock everybody out"))
    } else {
        return Row::works(id, name, detail);
    };
    row.fix(set_up(facts))
}

/// What mends a lock or a queue that cannot be opened.
fn mend(facts: &Facts, error: &LockError) -> Option<String> {
    let lock = &facts.lock;
    match error {
        LockError::Missing(_) => Some(set_up(facts)),
        LockError::WrongKind { .. } if lock.private => None,
        LockError::WrongKind { path, .. } => {
            let path = text::command_line(&[path.display().to_string()]);
            let (aside, set_up) = (as_root(facts.uid, "mv -T"), set_up(facts));
            Some(format!("{aside} {path} {path}.old && {set_up}"))
        }
        LockError::File(FileError { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
            let group = lock.named.filter(|named| named.gid != 0 && Audience::of(*named, 0o4) == Audience::Group);
            Some(match group {
                Some(named) => {
                    let (group, user) = (crate::user::group_name(named.gid), &facts.user);
                    as_root(facts.uid, &format!("usermod -aG {group} {user}"))
                }
                None => set_up(facts),
            })
        }
        _ => None,
    }
}

fn queue(facts: &Facts) -> Row {
    let lock = &facts.lock;
    let (id, name) = ("queue", "queue");
    let path = queue_directory(&lock.path);
    let path = path.display();
    let permissions = match &lock.queue {
        Err(LockError::Missing(_)) if lock.private => {
            return Row::works(id, name, format!("{path} is made by your first job"));
        }
        Err(error) => {
            return Row::missing(id, name, error.to_string()).lost("no job can queue").fix(mend(facts, error));
        }
        Ok(None) => return Row::unknown(id, name, format!("the permissions of {path} cannot be read")),
        Ok(Some(permissions)) => *permissions,
    };
    if let Some(Err(error)) = &lock.ticket {
        return Row::missing(id, name, error.to_string()).lost("no job of yours can queue").fix(mend(facts, error));
    }
    if let Err(why) = &lock.inside {
        return Row::missing(id, name, why.clone()).lost("no job can be run from here");
    }
    let writers = Audience::of(permissions, 0o3);
    if writers > Audience::Owner && permissions.mode & 0o1000 == 0 {
        let lost = "everybody who may queue can take others out of the queue, and run beside them";
        return Row::weaker(id, name, format!("{path} is not sticky")).lost(lost).fix(set_up(facts));
    }
    if !lock.private && ![0, facts.uid].contains(&permissions.uid) {
        // unlink(2): a sticky directory's owner may remove everybody's files.
        let owner = crate::user::name(permissions.uid);
        let row = Row::weaker(id, name, format!("{path} belongs to {owner}"));
        return row.lost(format!("{owner} can take others out of the queue, and run beside them")).fix(set_up(facts));
    }
    if let Ok(Some(file)) = lock.file
        && Audience::of(file, 0o4) > writers
    {
        let detail = format!("{path} is for {} only", writers.shown(permissions));
        return Row::weaker(id, name, detail).lost("others can run no job, but with flock(1)").fix(set_up(facts));
    }
    let inside = match &lock.inside {
        Ok(Some(outer)) => format!("; this is inside job {}, where nothing waits", outer.id.number),
        _ => String::new(),
    };
    Row::works(id, name, format!("{path} takes a ticket, {}{inside}", jobs(lock)))
}

fn jobs(lock: &LockFacts) -> String {
    if lock.jobs == 0 { "and is empty".to_owned() } else { format!("behind {}", text::count(lock.jobs, "job")) }
}

fn configuration(facts: &Facts) -> Row {
    let (id, name) = ("configuration", "configuration");
    let edit = |path: &Path| {
        let path_word = text::command_line(&[path.display().to_string()]);
        if facts.uid != 0 && path.starts_with("/etc") {
            format!("sudoedit {path_word}")
        } else {
            format!("${{EDITOR:-vi}} {path_word}")
        }
    };
    match &facts.configuration {
        Err(error) => {
            let path = match error {
                ConfigError::File(error) => &error.path,
                ConfigError::Line { path, .. } => path,
            };
            Row::missing(id, name, error.to_string()).lost("no job runs until it is mended").fix(edit(path))
        }
        Ok(warnings) if !warnings.is_empty() => {
            let read = facts.files.iter().rev().find(|file| warnings.iter().any(|line| is_of(line, file)));
            let fix = read.map(|file| edit(&file.path));
            Row::weaker(id, name, warnings.join("; ")).lost("what it says there has no effect").fix(fix)
        }
        Ok(_) => {
            for file in &facts.files {
                let path = file.path.display();
                let row = match &file.found {
                    Found::Read | Found::None => continue,
                    Found::Closed(why) => {
                        let quoted = text::command_line(&[path.to_string()]);
                        let row = Row::weaker(id, name, format!("{path} cannot be read: {why}"));
                        row.fix(as_root(facts.uid, &format!("chmod a+r {quoted}")))
                    }
                    // In a directory that is somebody else's, and stays closed: HOME is not one's own.
                    Found::Hidden(why) => Row::unknown(id, name, format!("{path} cannot be looked for: {why}")),
                };
                return row.lost("what it says has no effect for you");
            }
            let read = facts.files.iter().filter(|file| file.found == Found::Read);
            let read: Vec<String> = read.map(|file| file.path.display().to_string()).collect();
            Row::works(id, name, if read.is_empty() { "none: the defaults".to_owned() } else { read.join(", ") })
        }
    }
}

/// Warnings begin with the file's path and the line.
fn is_of(warning: &str, file: &ConfigFile) -> bool {
    warning.strip_prefix(&*file.path.to_string_lossy()).is_some_and(|rest| rest.starts_with(':'))
}

fn after_boot(facts: &Facts) -> Row {
    let lock = &facts.lock;
    let (id, name, path) = ("boot", "after a boot", lock.path.display());
    match (lock.is_in_memory, lock.made_at_boot) {
        _ if lock.private => Row::works(id, name, "a lock of your own is made by your first job"),
        (_, Some(true)) => Row::works(id, name, format!("systemd-tmpfiles makes {path}")),
        (Some(false), _) => Row::works(id, name, format!("{path} is on a disk, and stays")),
        (Some(true), made) => {
            let quoted = text::command_line(&[lock.path.display().to_string()]);
            // A path that has to be quoted would have to be quoted twice; printf(1) and tmpfiles.d(5) read a percent sign.
            let is_plain = quoted == lock.path.display().to_string() && !quoted.contains('%');
            let fix = match made {
                None => Some(format!("have this run at each boot: {}", lock.set_up)),
                Some(_) if lock.path == Path::new(LOCK) => Some(set_up(facts)),
                Some(_) => is_plain.then(|| as_root(facts.uid, &MAKE_AT_BOOT.replace("LOCK", &quoted))),
            };
            let row = Row::weaker(id, name, format!("{path} is in memory, and nothing makes it at boot"));
            row.lost("after a boot nobody can run a job before root has run one").fix(fix)
        }
        (None, _) => Row::unknown(id, name, format!("where {path} is kept cannot be found out")),
    }
}
