//! What a job is to be, drawn at random from a seed.

use std::ffi::OsString;
use std::time::Duration;

use super::area::{Area, USERS};
use super::record::{JobNumber, Kind, Mode};

/// How long perflock lets leftovers live after TERM. Those of the workers ignore that.
const GRACE: &str = "50ms";

/// One job.
#[derive(Debug)]
pub(super) struct Plan {
    /// Index into [`USERS`].
    pub(super) user: usize,
    /// How it shares the machine.
    pub(super) mode: Mode,
    /// Who asks.
    pub(super) kind: Kind,
    /// `-n` or `-w`, for [`Kind::Limited`].
    limit: Option<String>,
    work: Duration,
    burns: bool,
    /// What it leaves behind ends by itself after this long; zero for nothing.
    leftover: Duration,
}

impl Plan {
    /// Draws a job.
    pub(super) fn draw(random: &mut fastrand::Rng) -> Self {
        let kind = match random.u8(0..100) {
            0..10 => Kind::Outsider,
            10..20 => Kind::Limited,
            _ => Kind::Patient,
        };
        let limit = match kind {
            Kind::Limited if random.bool() => Some("--nonblock".to_owned()),
            Kind::Limited => Some(format!("--wait={}ms", random.u32(1..400))),
            Kind::Patient | Kind::Outsider => None,
        };
        // A few are there for so long that whatever is done to holders happens to them.
        let work = if random.u8(0..100) < 6 { random.u64(20_000..100_000) } else { random.u64(0..10_000) };
        // An outsider that leaves something behind keeps the lock by it; that is flock(1)'s affair.
        let leaves = kind != Kind::Outsider && random.u8(0..100) < 8;
        Self {
            user: random.usize(0..USERS.len()),
            mode: if random.u8(0..100) < 40 { Mode::Exclusive } else { Mode::Shared },
            kind,
            limit,
            work: Duration::from_micros(work),
            burns: random.bool(),
            leftover: if leaves { Duration::from_millis(random.u64(1..300)) } else { Duration::ZERO },
        }
    }

    /// Its command line. The first word is a file of the area, or flock.
    pub(super) fn words(&self, area: &Area, job: JobNumber) -> Vec<OsString> {
        let lock = area.lock().into_os_string();
        let mut words: Vec<OsString> = match (self.kind, self.mode) {
            (Kind::Outsider, Mode::Exclusive) => vec!["flock".into(), lock],
            (Kind::Outsider, Mode::Shared) => vec!["flock".into(), "-s".into(), lock],
            (_, mode) => {
                let program = if mode == Mode::Exclusive { "perflock" } else { "pls" };
                let mut words = vec![area.path(program).into(), "--lock".into(), lock, "--grace".into(), GRACE.into()];
                words.extend(self.limit.iter().map(OsString::from));
                words.push("--cgroup=required".into());
                words
            }
        };
        words.extend([area.path("stress_job"), area.log(), area.presence(), area.queue()].map(OsString::from));
        words.push(job.to_string().into());
        words.push(self.mode.word().into());
        words.push(if self.burns { "burn" } else { "sleep" }.into());
        words.push(self.work.as_micros().to_string().into());
        words.push(self.leftover.as_millis().to_string().into());
        words
    }
}
