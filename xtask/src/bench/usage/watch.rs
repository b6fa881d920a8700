//! What `wholock --watch` and top(1) take of a core while each shows the same machine on a terminal of its own.

use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

use super::super::area::Inside;
use super::super::stats::{Line, Sample};
use super::super::tools::wait_until;
use super::crowd::Crowd;
use super::terminal::Terminal;
use crate::Failure;

/// How often each is watched.
const ROUNDS: usize = 3;

/// How long at a time: several pictures, and more than half a minute together.
const WATCHED: Duration = Duration::from_secs(12);

/// How long they get first: the start is over then, and the second picture drawn.
const SETTLE: Duration = Duration::from_secs(3);

/// The key that ends either program.
const QUIT: u8 = b'q';

/// Measures both in turns.
///
/// # Errors
/// A program cannot be run, draws nothing, or does not end.
pub(super) fn measure(place: &Inside, crowd: &Crowd) -> Result<Vec<Line>, Failure> {
    let mut samples = [Sample::default(), Sample::default()];
    for round in 0..ROUNDS {
        for turn in 0..2 {
            // Each goes first equally often.
            let index = (round + turn) % 2;
            let command = [watch, top][index](place);
            samples[index].push(percent_of_a_core(command)?);
        }
    }
    let [own, top] = &samples;
    let ratio = own.pairs(top, |own, top| own / top);
    Ok(vec![Line {
        what: format!("CPU use of `wholock --watch`, {ROUNDS} × {} s, {crowd}", WATCHED.as_secs()),
        own: format!("{} % of a core", own.show(2)),
        other: format!("`top -d 2`: {} %", top.show(2)),
        difference: format!("× {}", ratio.show(2)),
        target: Some(("≤ 0.5 %", own.median() <= 0.5)),
    }])
}

/// `wholock --watch`, which draws a picture every 2 s.
fn watch(place: &Inside) -> Command {
    let mut command = Command::new(place.binary("wholock"));
    command.args(["--watch", "--lock"]).arg(place.lock());
    command
}

/// top(1) with the same pace, and nobody's own settings.
fn top(place: &Inside) -> Command {
    let mut command = Command::new("top");
    command.args(["-d", "2"]).env("HOME", place.file("home"));
    command
}

/// What a program uses on a terminal of its own, once it has started, in percent.
fn percent_of_a_core(command: Command) -> Result<f64, Failure> {
    let program = format!("{command:?}");
    let mut terminal = Terminal::start(command)?;
    let pid = terminal.running.pid();
    wait_until(&format!("{program} has drawn something"), || terminal.drawn_bytes() > 0)?;
    if terminal.running.ended_within(SETTLE)? {
        return Err(format!("{program} ended; the last that it drew: {}", terminal.last_words()));
    }
    let used_nsec = || cpu_nsec(pid).map_err(|error| format!("cannot read what {program} used: {error}"));
    let drawn_bytes = terminal.drawn_bytes();
    let (start, before_nsec) = (Instant::now(), used_nsec()?);
    std::thread::sleep(WATCHED);
    let (after_nsec, took) = (used_nsec()?, start.elapsed());
    if terminal.drawn_bytes() == drawn_bytes {
        return Err(format!("{program} draws nothing; the last that it drew: {}", terminal.last_words()));
    }
    terminal.press(QUIT)?;
    let status = terminal.running.wait()?;
    if !status.success() {
        return Err(format!("{program} failed ({status}); the last that it drew: {}", terminal.last_words()));
    }
    Ok(100.0 * (after_nsec - before_nsec) as f64 / took.as_nanos() as f64)
}

/// What the threads of a child have used, those included that ended: unlike `/proc/PID/schedstat`, which is its first
/// thread's.
fn cpu_nsec(pid: u32) -> io::Result<i64> {
    let mut clock = 0;
    // SAFETY: a child that was not waited for, and a valid place for the clock's number.
    let result = unsafe { libc::clock_getcpuclockid(pid.cast_signed(), &raw mut clock) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place for the time.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(time.tv_sec * 1_000_000_000 + time.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_counts_also_one_that_ended() {
        let own = std::process::id();
        let before_nsec = cpu_nsec(own).unwrap();
        let burn = || {
            let end = Instant::now() + Duration::from_millis(30);
            while Instant::now() < end {}
        };
        std::thread::spawn(burn).join().unwrap();
        assert!(cpu_nsec(own).unwrap() - before_nsec > 3_000_000);
        // Above the highest process number there can be.
        assert!(cpu_nsec(1 << 23).is_err());
    }
}
