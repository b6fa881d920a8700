//! What perflock needs of the kernel, and what it does where that is older, or where a container's filter refuses a call.
//!
//! | call or file | Linux | without it |
//! |---|---|---|
//! | pidfd_open(2) and poll(2) on what it opens | 5.3 | nothing is run: [`check`] |
//! | pidfd_send_signal(2) | 5.1 | the same |
//! | `CLONE_PIDFD` of clone(2) | 5.2 | every kernel with pidfd_open(2) has it |
//! | `cgroup.freeze` | 5.2 | the same |
//! | clone3(2) with `CLONE_CLEAR_SIGHAND` and `CLONE_INTO_CGROUP` | 5.7 | clone(2), and the child joins: [`gives_birth_in_groups`] |
//! | faccessat2(2) | 5.8 | rustix asks faccessat(2), which knows the real user only: the same one, without a setuid bit |
//! | close_range(2) | 5.9 | each descriptor is closed: [`crate::supervisor::guard`] |
//! | `cgroup.kill` | 5.14 | the group is frozen, its members are killed, and it is thawed: [`crate::cgroup`] |
//!
//! Neither openat2(2) nor waitid(2) with `P_PIDFD` is used.

use std::io;
use std::sync::OnceLock;

use crate::error::{last_errno, reason};
use crate::fork::CLONE_INTO_CGROUP;

/// The oldest Linux that has all that perflock cannot do without.
pub(crate) const OLDEST: (u32, u32) = (5, 3);

/// The oldest in which a child can be born in a group.
pub(crate) const GIVES_BIRTH: (u32, u32) = (5, 7);

/// A call that perflock cannot do without is not to be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "perflock needs Linux {}.{} or newer: {call} is refused on Linux {release} ({}){}",
    OLDEST.0, OLDEST.1, reason(.source), hint(.release)
)]
pub struct Unfit {
    /// Which, with its section in the manual.
    pub call: &'static str,
    /// The kernel's, as uname(2) tells it.
    pub release: String,
    /// Its answer.
    #[source]
    pub source: io::Error,
}

/// A kernel that is new enough has the call.
fn hint(release: &str) -> &'static str {
    if is_at_least(release, OLDEST) {
        "; this one has it, so a filter refuses it, a container's say: let it through there"
    } else {
        ""
    }
}

/// Whether this kernel will do. Two system calls, which do nothing but say that they were asked for something impossible.
///
/// # Errors
/// It will not.
pub fn check() -> Result<(), Unfit> {
    // SAFETY: there is no process 0, and no flag is set.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, 0, 0) };
    knows("pidfd_open(2)", opened, libc::EINVAL)?;
    // SAFETY: -1 is no descriptor, and no details of the signal are given.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, -1, 0, std::ptr::null::<libc::siginfo_t>(), 0) };
    knows("pidfd_send_signal(2)", sent, libc::EBADF)
}

/// Whether a call answered as one that is there.
fn knows(call: &'static str, answer: libc::c_long, expected: i32) -> Result<(), Unfit> {
    match last_errno() {
        errno if answer == -1 && errno != expected => {
            Err(Unfit { call, release: release(), source: io::Error::from_raw_os_error(errno) })
        }
        _ => Ok(()),
    }
}

/// Whether a child can be born in a cgroup, with every signal at its default: asked once. Where clone3(2) is missing or refused,
/// clone(2) has to do; container engines answered EPERM for it, and answer ENOSYS now, since its flags lie in memory that their
/// filter cannot see.
pub fn gives_birth_in_groups() -> bool {
    static GIVES: OnceLock<bool> = OnceLock::new();
    *GIVES.get_or_init(|| {
        // SAFETY: clone_args is plain integers; zero means "not used" for each.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = CLONE_INTO_CGROUP;
        args.cgroup = 1;
        // No such signal: nothing is made. A kernel that does not know the field before finds it too long (E2BIG).
        args.exit_signal = u64::MAX;
        // SAFETY: `args` is read, and refused.
        let answer = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
        answer == -1 && last_errno() == libc::EINVAL
    })
}

/// The kernel's release: `6.1.0-25-amd64`.
pub fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Whether a kernel of this release is this old, or newer.
pub fn is_at_least(release: &str, oldest: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= oldest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_release_is_compared_by_its_first_two_numbers() {
        for (release, at_least) in
            [("6.18.44-x", true), ("5.14.0", true), ("5.10.0-28-amd64", false), ("4.19", false), ("", false)]
        {
            assert_eq!(is_at_least(release, (5, 14)), at_least, "{release}");
        }
    }

    #[test]
    fn an_error_names_the_call_the_kernel_and_the_oldest_that_will_do() {
        let unfit = |release: &str, errno| Unfit {
            call: "pidfd_open(2)",
            release: release.to_owned(),
            source: io::Error::from_raw_os_error(errno),
        };
        assert_eq!(
            unfit("4.19.0-27-amd64", libc::ENOSYS).to_string(),
            "perflock needs Linux 5.3 or newer: pidfd_open(2) is refused on Linux 4.19.0-27-amd64 (Function not implemented)"
        );
        assert_eq!(
            unfit("5.10.0-28-amd64", libc::EPERM).to_string(),
            "perflock needs Linux 5.3 or newer: pidfd_open(2) is refused on Linux 5.10.0-28-amd64 (Operation not permitted); \
             this one has it, so a filter refuses it, a container's say: let it through there"
        );
    }

    #[test]
    fn a_call_is_known_by_the_answer_that_only_it_gives() {
        // SAFETY: there is no such call.
        let answer = unsafe { libc::syscall(-1) };
        assert!(knows("no(2)", answer, libc::EINVAL).is_err());
        // SAFETY: closes no descriptor.
        let answer = i64::from(unsafe { libc::close(-1) });
        assert!(knows("close(2)", answer, libc::EBADF).is_ok());
        assert!(knows("getpid(2)", 7, libc::EBADF).is_ok());
    }

    proptest! {
        #[test]
        fn any_release_is_read_without_panic(release: String, minor in 0u32..2000) {
            let _ = is_at_least(&release, (5, 14));
            prop_assert_eq!(is_at_least(&format!("5.{minor}-{release}"), (5, 14)), minor >= 14);
        }
    }
}
