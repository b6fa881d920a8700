//! Crashes at named steps, for tests. `PERFLOCK_CRASH=STEP:VICTIM[,STEP:VICTIM…]` names where, with `supervisor`,
//! `guard` or `both` for whom; every step that is reached adds a line to the file `PERFLOCK_CRASH_LOG`, which proves that it
//! was, and a second one tells what was killed.
//!
//! One step is made in a child that shares the supervisor's memory and may make system calls only, so nothing here
//! allocates once the plan is read, which the first step of a run does.

use std::ffi::CString;
use std::io::Write as _;
use std::os::unix::ffi::OsStringExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use super::Step;
use crate::procfs::Proc;

/// What the environment asks for.
struct Plan {
    supervisor: i32,
    log: Option<CString>,
    crashes: Vec<(String, Victim)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Victim {
    Supervisor,
    Guard,
    Both,
}

static PLAN: OnceLock<Plan> = OnceLock::new();

/// The guard, once it is known: a child that shares our memory cannot look for it.
static GUARD: AtomicI32 = AtomicI32::new(0);

pub(super) fn reached(step: Step) {
    let plan = PLAN.get_or_init(Plan::read);
    plan.log(step, "");
    if step == Step::GuardForked {
        GUARD.store(plan.newborn_guard(), Ordering::SeqCst);
    }
    let Some(&(_, victim)) = plan.crashes.iter().find(|(name, _)| name == step.name()) else { return };
    if Step::GUARD.contains(&step) {
        plan.log(step, " guard killed");
        kill(own_pid());
    }
    if victim != Victim::Supervisor {
        match plan.guard(step) {
            // It is not there yet, or has done its work.
            0 => plan.log(step, " guard gone"),
            guard => {
                plan.log(step, " guard killed");
                kill(guard);
            }
        }
    }
    if victim != Victim::Guard {
        plan.log(step, " supervisor killed");
        kill(plan.supervisor);
    }
}

impl Plan {
    fn read() -> Self {
        let log = std::env::var_os("PERFLOCK_CRASH_LOG").and_then(|path| CString::new(path.into_vec()).ok());
        let crash = |text: &str| {
            let (step, victim) = text.split_once(':')?;
            let victim = match victim {
                "supervisor" => Victim::Supervisor,
                "guard" => Victim::Guard,
                "both" => Victim::Both,
                _ => return None,
            };
            Some((step.to_owned(), victim))
        };
        let asked = std::env::var("PERFLOCK_CRASH").unwrap_or_default();
        let crashes = asked.split(',').filter_map(crash).collect();
        Self { supervisor: own_pid(), log, crashes }
    }

    /// One line in one write(2), which O_APPEND keeps whole.
    fn log(&self, step: Step, what: &str) {
        let Some(log) = &self.log else { return };
        let mut line = [0; 128];
        let mut rest = &mut line[..];
        let _ = writeln!(rest, "{} {}{what}", own_pid(), step.name());
        let length = 128 - rest.len();
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND | libc::O_CLOEXEC;
        // SAFETY: the path is a C string.
        let fd = unsafe { libc::open(log.as_ptr(), flags, 0o666) };
        // SAFETY: the bytes are there; a descriptor that could not be opened is refused.
        unsafe { libc::write(fd, line.as_ptr().cast(), length) };
        // SAFETY: the descriptor is ours alone.
        unsafe { libc::close(fd) };
    }

    /// The guard that was just forked: the latest child. A launcher that forked it is beside it, and a helper that spoke to
    /// systemd may be.
    fn newborn_guard(&self) -> i32 {
        let children = Proc::default().children(self.supervisor).unwrap_or_default();
        children.into_iter().rfind(|&pid| pid != own_pid()).unwrap_or(0)
    }

    /// The guard; 0 if there is none.
    fn guard(&self, step: Step) -> i32 {
        if step < Step::GuardForked {
            return 0;
        }
        let told_to_end = step >= Step::UsageRead;
        let known = GUARD.load(Ordering::SeqCst);
        if known != 0 && !told_to_end {
            return known;
        }
        // A launcher forked it, and it is a moment before it has its name. If it was told to end, there is none to wait for.
        let proc = Proc::default();
        let is_guard = |&pid: &i32| proc.stat(pid).is_ok_and(|stat| stat.comm == "perflock-guard" && stat.state != 'Z');
        let end = Instant::now() + Duration::from_secs(1);
        loop {
            let children = proc.children(self.supervisor).unwrap_or_default();
            let found = children.into_iter().find(is_guard);
            if found.is_some() || told_to_end || Instant::now() > end {
                return found.unwrap_or(0);
            }
        }
    }
}

fn own_pid() -> i32 {
    // Not the C library's idea of it, which a child in our memory shares.
    // SAFETY: takes nothing and always succeeds.
    unsafe { libc::getpid() }
}

fn kill(pid: i32) {
    // SAFETY: a child of ours, our parent, or ourselves: not reaped, so the number means that process.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}
