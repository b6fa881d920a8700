//! A word that processes share after a fork.

use std::io;
use std::ptr;
use std::sync::atomic::AtomicI32;

/// A word in memory that stays shared with a child, whether or not the child shares the rest. It begins as zero.
#[derive(Debug)]
pub(super) struct SharedWord(ptr::NonNull<AtomicI32>);

impl SharedWord {
    pub(super) fn new() -> io::Result<Self> {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address that the kernel chooses, full of zeroes.
        let page = unsafe { libc::mmap(ptr::null_mut(), size_of::<AtomicI32>(), access, kind, -1, 0) };
        let mapped = (page != libc::MAP_FAILED).then(|| ptr::NonNull::new(page.cast())).flatten();
        mapped.map(Self).ok_or_else(io::Error::last_os_error)
    }

    pub(super) fn word(&self) -> &AtomicI32 {
        // SAFETY: the mapping holds a zeroed, page-aligned word, and lives as long as `self`.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for SharedWord {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference to it outlives `self`.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<AtomicI32>()) };
    }
}
