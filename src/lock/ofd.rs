//! Open file description locks: `F_OFD_SETLK` and its kin, fcntl(2). Like flock(2) they belong to the open file
//! description, so a forked process shares them; unlike it, a write lock needs a descriptor opened for writing.

/// A lock over the whole file, for the `F_OFD_…` calls of fcntl(2).
pub(super) fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}
