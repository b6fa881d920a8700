//! Clocks: that which tickets are stamped with, above all.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

/// Microseconds since boot, suspend included. Unlike the wall clock it cannot be set back, and every process of the
/// machine reads the same.
pub fn boottime_usec() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let usec = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
    usec.cast_unsigned()
}

/// How long ago a [`boottime_usec`] stamp was. A stamp in the future, which only a forged ticket has, is now.
pub fn since(stamp_usec: u64) -> Duration {
    Duration::from_micros(boottime_usec().saturating_sub(stamp_usec))
}

/// The CPU time that this thread has used.
pub fn cpu_time() -> Duration {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), u32::try_from(used.tv_nsec).unwrap_or(0))
}

/// How many ticks of the kernel's clock a time on it is, the last one begun not counted.
pub fn to_ticks(usec: u64, ticks_per_second: u64) -> u64 {
    convert(usec, ticks_per_second, 1_000_000)
}

/// How long so many of its ticks are.
pub fn to_usec(ticks: u64, ticks_per_second: u64) -> u64 {
    convert(ticks, 1_000_000, ticks_per_second.max(1))
}

fn convert(number: u64, times: u64, divided_by: u64) -> u64 {
    u64::try_from(u128::from(number) * u128::from(times) / u128::from(divided_by)).unwrap_or(u64::MAX)
}

/// Whether less than this was used since now, by a clock of CPU time: on a busy machine that is no shorter.
pub fn within(most: Duration, used: fn() -> Duration) -> impl Fn() -> bool {
    let begun = used();
    move || used().saturating_sub(begun) < most
}

/// The time of day where we are: `14:03:22`; empty where the C library cannot tell.
pub fn time_of_day() -> String {
    let time = |local: libc::tm| format!("{:02}:{:02}:{:02}", local.tm_hour, local.tm_min, local.tm_sec);
    local(clock_gettime(ClockId::Realtime).tv_sec).map(time).unwrap_or_default()
}

/// Day and minute where we are: `2026-11-25 14:03`; empty where the C library cannot tell.
pub fn day_and_minute(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let text = |local: libc::tm| {
        let (year, month) = (i64::from(local.tm_year) + 1900, local.tm_mon + 1);
        format!("{year}-{month:02}-{:02} {:02}:{:02}", local.tm_mday, local.tm_hour, local.tm_min)
    };
    i64::try_from(since.as_secs()).ok().and_then(local).map(text).unwrap_or_default()
}

fn local(time: libc::time_t) -> Option<libc::tm> {
    // SAFETY: an all-zero tm is valid, and it is only written to.
    let mut local: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to valid values.
    let told = unsafe { libc::localtime_r(&raw const time, &raw mut local) };
    (!told.is_null()).then_some(local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_and_microseconds_are_each_other_s() {
        assert_eq!((to_ticks(1_019_999, 100), to_usec(101, 100)), (101, 1_010_000));
        assert_eq!((to_ticks(u64::MAX, 10_000_000), to_usec(u64::MAX, 100)), (u64::MAX, u64::MAX));
        // A kernel that says nonsense.
        assert_eq!(to_usec(3, 0), 3_000_000);
    }
}
