//! Open file description locks: `F_OFD_SETLK` and its kin, fcntl(2). Like flock(2) they belong to the open file
//! description, so a forked process shares them; unlike it, a write lock needs a descriptor opened for writing.

/// A lock over the whole file, for the `F_OFD_…` calls of fcntl(2).
pub(super) fn whole_file(kind: libc::c_int) -> libc::flock {
    lock(kind, 0, 0)
}

/// A lock over the part that a job holds as long as it asks for cores: far behind the text, so that it is a lock and nothing
/// else. It is a part of the whole, which the job holds as long as it lives, and can be let go alone: that wakes who waits
/// for its turn to ask.
pub(super) fn asking(kind: libc::c_int) -> libc::flock {
    lock(kind, 1 << 62, 1)
}

fn lock(kind: libc::c_int, start: libc::off_t, length: libc::off_t) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}
