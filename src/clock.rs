//! Clocks: that which tickets are stamped with, above all.

use std::time::Duration;

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

/// The time of day where we are: `14:03:22`; empty where the C library cannot tell.
pub fn time_of_day() -> String {
    let now = clock_gettime(ClockId::Realtime).tv_sec;
    // SAFETY: an all-zero tm is valid, and it is only written to.
    let mut local: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to valid values.
    if unsafe { libc::localtime_r(&raw const now, &raw mut local) }.is_null() {
        return String::new();
    }
    format!("{:02}:{:02}:{:02}", local.tm_hour, local.tm_min, local.tm_sec)
}
