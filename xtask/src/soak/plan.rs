//! What a job is to be, drawn at random from a seed.

use std::ffi::OsString;
use std::time::Duration;

use super::area::{Area, USERS};
use super::record::{JobNumber, Kind, Mode, Pin};
use crate::room::Room;

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
    /// Where it runs.
    pub(super) pin: Pin,
    /// How it asks for that.
    pinning: Vec<String>,
    /// `-n` or `-w`, for [`Kind::Limited`].
    limit: Option<String>,
    work: Duration,
    burns: bool,
    /// What it leaves behind ends by itself after this long; zero for nothing.
    leftover: Duration,
}

impl Plan {
    /// Draws a job; this share of them wants the machine alone.
    pub(super) fn draw(random: &mut fastrand::Rng, room: &Room, exclusive_percent: u8) -> Self {
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
        let mode = if random.u8(0..100) < exclusive_percent { Mode::Exclusive } else { Mode::Shared };
        let (pin, pinning) = match kind {
            Kind::Outsider => (Pin::Free, Vec::new()),
            Kind::Patient | Kind::Limited => pinned(random, mode, room),
        };
        // An outsider that leaves something behind keeps the lock by it; that is flock(1)'s affair.
        // What is left of a dead job with cores of its own must be met by one that wants some, before one that ends everybody.
        let leaves = kind != Kind::Outsider && random.u8(0..100) < if pin == Pin::Leased { 20 } else { 8 };
        // A few are there for so long that whatever is done to holders happens to them, and those with cores of their own until
        // another one is there.
        let usual = if pin == Pin::Leased { 20_000 } else { 10_000 };
        let work = if random.u8(0..100) < 6 { random.u64(20_000..100_000) } else { random.u64(0..usual) };
        Self {
            user: random.usize(0..USERS.len()),
            mode,
            kind,
            pin,
            pinning,
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
                words.extend(self.limit.iter().chain(&self.pinning).map(OsString::from));
                words.push("--cgroup=required".into());
                words
            }
        };
        words.extend([area.path("stress_job"), area.log(), area.presence(), area.queue()].map(OsString::from));
        words.push(job.to_string().into());
        words.push(self.mode.word().into());
        words.push(self.pin.word().into());
        words.push(if self.burns { "burn" } else { "sleep" }.into());
        words.push(self.work.as_micros().to_string().into());
        words.push(self.leftover.as_millis().to_string().into());
        words
    }
}

/// Draws where a job of perflock's runs, and the options that ask for it. Whoever has the machine alone shares its cores with
/// nobody, and so has none to itself.
fn pinned(random: &mut fastrand::Rng, mode: Mode, room: &Room) -> (Pin, Vec<String>) {
    let cores = room.cores.min(2);
    let (for_cores, for_cpus) = if mode == Mode::Shared { (33, 43) } else { (8, 16) };
    let (pin, mut options) = match random.u8(0..100) {
        // A machine of one core is no place for this.
        drawn if drawn < for_cores && cores > 1 => {
            let pin = if mode == Mode::Shared { Pin::Leased } else { Pin::Pinned };
            // Mostly one, so that there are some side by side on a small machine, too.
            let count = if random.u8(0..4) == 0 { cores } else { 1 };
            let mut options = vec![format!("--cores={count}")];
            options.extend(random.bool().then(|| "--smt".to_owned()));
            (pin, options)
        }
        drawn if (for_cores..for_cpus).contains(&drawn) => {
            let cpus: Vec<u32> = room.cpus.iter().collect();
            let one = random.choice(cpus).map_or_else(|| "all".to_owned(), |cpu| cpu.to_string());
            let list = if random.bool() { one } else { "all".to_owned() };
            (Pin::Pinned, vec![format!("--cpus={list}")])
        }
        _ => return (Pin::Free, Vec::new()),
    };
    options.extend((random.u8(0..100) < 30).then(|| "--pin=soft".to_owned()));
    (pin, options)
}
