//! The pages of programs that a process has mapped, and does not need while it sleeps for hours.
//!
//! The kernel maps sixteen pages of a file where one is touched (mm/memory.c, `do_fault_around`), so that a start, which runs
//! through a little of everything, maps nearly all of the program: two thirds of what a waiter is counted as using.

use std::ffi::{c_int, c_void};

/// Unmaps what is only read of the program, before a long sleep. What is used again is mapped again from the page cache, by a
/// fault of less than a microsecond each; a file that was replaced or removed stays, as long as it is mapped. Libraries are
/// left: others map the same pages.
pub(crate) fn let_go() {
    // SAFETY: the callback has the type that dl_iterate_phdr(3) asks for, and is given nothing of ours.
    unsafe { libc::dl_iterate_phdr(Some(unmap), std::ptr::null_mut()) };
}

/// The callback of dl_iterate_phdr(3). The program is the first of what it tells; 1: no others.
unsafe extern "C" fn unmap(object: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
    // SAFETY: the loader calls this with an object that is loaded.
    let object = unsafe { &*object };
    // SAFETY: its program headers stay mapped as long as it is loaded.
    let headers = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
    for header in headers {
        // What was relocated lies in segments that may be written to: of that, each process has its own.
        if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0 {
            let page = rustix::param::page_size() as u64;
            let start = (object.dlpi_addr + header.p_vaddr) / page * page;
            let end = object.dlpi_addr + header.p_vaddr + header.p_memsz;
            // SAFETY: this is a file's mapping of the loader's, which nobody wrote to: dropping its pages changes nothing
            // of what is read there (madvise(2), "repopulated from the up-to-date contents of the underlying mapped file").
            // That it fails is no harm.
            unsafe { libc::madvise(start as *mut c_void, (end - start) as usize, libc::MADV_DONTNEED) };
        }
    }
    1
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Mutex;

    /// Addresses of this program's code, and how many KiB of it are mapped.
    fn code() -> (std::ops::Range<usize>, u64) {
        let own = std::env::current_exe().unwrap();
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines();
        let head = lines.find(|line| line.contains("r-xp") && line.ends_with(own.to_str().unwrap())).unwrap();
        let (start, end) = head.split_whitespace().next().unwrap().split_once('-').unwrap();
        let address = |hex| usize::from_str_radix(hex, 16).unwrap();
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        (address(start)..address(end), rss.trim().trim_end_matches(" kB").parse().unwrap())
    }

    #[test]
    fn pages_that_are_let_go_are_mapped_again_when_they_are_used_and_what_was_written_stays() {
        static WRITTEN: Mutex<u64> = Mutex::new(1);
        *WRITTEN.lock().unwrap() = 2;
        let (addresses, _) = code();
        let sum = || {
            // SAFETY: code that is mapped, and only read.
            let byte = |address: usize| u64::from(unsafe { std::ptr::read_volatile(address as *const u8) });
            addresses.clone().step_by(4096).map(byte).sum::<u64>()
        };
        let before = sum();
        let (_, mapped) = code();
        // Other tests of this process run meanwhile, and have pages mapped again.
        let least = (0..100).map(|_| {
            super::let_go();
            code().1
        });
        let least = least.min().unwrap();
        assert!(least < mapped / 2, "{least} KiB of {mapped} are mapped");
        assert_eq!((sum(), *WRITTEN.lock().unwrap()), (before, 2));
    }
}
