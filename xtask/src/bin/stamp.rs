//! A job that tells when it ran, for `cargo xtask bench queue`.
//!
//! `stamp FILE INDEX` takes the time (`CLOCK_MONOTONIC`, in nanoseconds) when it starts and right before it exits, and stores
//! both as native numbers in the slot INDEX of FILE, which is long enough. In between it sleeps for 3 ms, so that
//! whoever was woken by the last hand-over is asleep again at the next. Built like `floor`: what happens before its
//! `main` counts as hand-over for everybody, so it must be little.
#![no_main]
#![cfg_attr(panic = "abort", no_std)]

use core::ffi::{c_char, c_int, c_uint, c_void};
use core::ptr;

/// How long the job takes, in microseconds.
const RUNS_USEC: c_uint = 3000;

/// `asm-generic/fcntl.h`: `O_RDWR`, `O_CLOEXEC`.
const READ_WRITE: c_int = 0o2;
/// See [`READ_WRITE`].
const CLOSE_ON_EXEC: c_int = 0o2_000_000;

/// `asm-generic/mman.h`: `PROT_READ | PROT_WRITE`.
const READABLE_WRITABLE: c_int = 0x3;
/// `MAP_SHARED`.
const SHARED: c_int = 0x1;

/// `CLOCK_MONOTONIC`.
const MONOTONIC: c_int = 1;

/// `struct timespec` of 64 bits.
#[repr(C)]
struct Time {
    /// Seconds.
    sec: i64,
    /// And nanoseconds.
    nsec: i64,
}

// Declared here for the reason that `floor` gives.
#[link(name = "c")]
#[cfg_attr(all(panic = "abort", target_feature = "crt-static"), link(name = "gcc_eh"))]
unsafe extern "C" {
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn mmap(at: *mut c_void, size: usize, protection: c_int, flags: c_int, file: c_int, offset: i64) -> *mut c_void;
    fn atoi(text: *const c_char) -> c_int;
    fn usleep(usec: c_uint) -> c_int;
    fn clock_gettime(clock: c_int, time: *mut Time) -> c_int;
    fn _exit(status: c_int) -> !;
}

/// Nothing here panics.
#[cfg(panic = "abort")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: ends the process.
    unsafe { _exit(99) }
}

/// See the crate's documentation. Exits with a number that tells which call failed, else 0.
///
/// # Safety
/// Called by the C runtime with `argc` pointers to strings in `argv`, and a null pointer behind them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let start_nsec = now_nsec();
    if argc != 3 {
        return 10;
    }
    // SAFETY: `argc` says that there are a second and a third pointer.
    let arguments = unsafe { argv.add(1).cast::<[*const c_char; 2]>() };
    // SAFETY: as above.
    let [file, index] = unsafe { *arguments };
    // SAFETY: a string.
    let index = unsafe { atoi(index) } as usize;
    // SAFETY: a string.
    let file = unsafe { open(file, READ_WRITE | CLOSE_ON_EXEC) };
    let size = (index + 1) * size_of::<[i64; 2]>();
    // SAFETY: a new mapping, anywhere; of no file it fails.
    let slots = unsafe { mmap(ptr::null_mut(), size, READABLE_WRITABLE, SHARED, file, 0) };
    if slots.addr() == usize::MAX {
        return 11;
    }
    let slots = slots.cast::<[i64; 2]>();
    // SAFETY: the mapping is long enough, and the file as well: whoever starts us says so.
    let slot = unsafe { slots.add(index) };
    // SAFETY: sleeps.
    unsafe { usleep(RUNS_USEC) };
    // SAFETY: in the mapping, as above, and aligned.
    unsafe { slot.write_volatile([start_nsec, now_nsec()]) };
    // SAFETY: ends the process, at once.
    unsafe { _exit(0) }
}

/// `CLOCK_MONOTONIC`.
fn now_nsec() -> i64 {
    let mut now = Time { sec: 0, nsec: 0 };
    // SAFETY: a valid place for the time.
    unsafe { clock_gettime(MONOTONIC, &raw mut now) };
    now.sec * 1_000_000_000 + now.nsec
}
