//! Older kernels: a filter (seccomp(2)) that refuses system calls and hides a file, from the program under test and from all that
//! it starts. `PERFLOCK_TEST_KERNEL` names the one that every command of every world runs on.
//!
//! A file is hidden by asking us about each call that names one (`SECCOMP_RET_USER_NOTIF`): a thread of ours reads the path in
//! the caller's memory, answers ENOENT or lets the kernel go on. So it is the program as it was built that is tested.

use std::fs::File;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

/// What an older kernel, or a container's filter, lacks.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    /// Its name in `PERFLOCK_TEST_KERNEL`.
    pub(crate) name: &'static str,
    refused: &'static [(libc::c_long, i32)],
    /// There is no `cgroup.kill`.
    hides_kill: bool,
}

impl Kernel {
    /// Each of them.
    pub(crate) const ALL: [Self; 6] = [
        Self { name: "clone3-unknown", refused: &[(libc::SYS_clone3, libc::ENOSYS)], hides_kill: false },
        // As container engines answered before 2021.
        Self { name: "clone3-forbidden", refused: &[(libc::SYS_clone3, libc::EPERM)], hides_kill: false },
        Self { name: "5.10", refused: &[], hides_kill: true },
        Self { name: "5.4", refused: &UNKNOWN_TO_5_4, hides_kill: true },
        Self { name: "5.2", refused: &[(libc::SYS_pidfd_open, libc::ENOSYS)], hides_kill: true },
        Self { name: "pidfd-forbidden", refused: &[(libc::SYS_pidfd_send_signal, libc::EPERM)], hides_kill: false },
    ];

    /// The one of this name.
    #[track_caller]
    pub(crate) fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|kernel| kernel.name == name).unwrap_or_else(|| panic!("no such kernel: {name}"))
    }

    /// Whether it has no such call.
    #[cfg(feature = "crash-points")]
    pub(crate) fn refuses(self, call: libc::c_long) -> bool {
        self.refused.iter().any(|&(refused, _)| refused == call)
    }

    /// The one that everything is to run on.
    pub(crate) fn of_all() -> Option<Self> {
        std::env::var("PERFLOCK_TEST_KERNEL").ok().filter(|name| !name.is_empty()).map(|name| Self::named(&name))
    }
}

/// What Linux 5.4 does not have of what anything here might call. It has clone3(2), without the flags that perflock needs.
const UNKNOWN_TO_5_4: [(libc::c_long, i32); 6] = [
    (libc::SYS_clone3, libc::ENOSYS),
    (libc::SYS_openat2, libc::ENOSYS),
    (libc::SYS_pidfd_getfd, libc::ENOSYS),
    (libc::SYS_faccessat2, libc::ENOSYS),
    (libc::SYS_close_range, libc::ENOSYS),
    (libc::SYS_epoll_pwait2, libc::ENOSYS),
];

/// Calls that name a file, and which argument does.
const NAMING: &[(libc::c_long, usize)] = &[
    (libc::SYS_openat, 1),
    (libc::SYS_statx, 1),
    (libc::SYS_newfstatat, 1),
    (libc::SYS_faccessat, 1),
    (libc::SYS_faccessat2, 1),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, 0),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_stat, 0),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_access, 0),
];

/// Whether there is `cgroup.kill`, and it is not hidden from everything.
pub(super) fn has_kill() -> bool {
    use perflock::kernel::{is_at_least, release};
    is_at_least(&release(), (5, 14)) && !Kernel::of_all().is_some_and(|kernel| kernel.hides_kill)
}

/// Why there can be no such kernels here, if there cannot.
pub(super) fn missing() -> Option<String> {
    let action = libc::SECCOMP_RET_USER_NOTIF;
    // SAFETY: reads a number.
    let known = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) } == 0;
    (!known).then(|| "the kernel cannot ask about system calls (SECCOMP_RET_USER_NOTIF, Linux 5.0)".to_owned())
}

/// A kernel's filter, ready to be installed in a child, and whoever answers for it.
pub(super) struct Filter {
    program: Vec<libc::sock_filter>,
    listener: Option<Arc<UnixDatagram>>,
}

impl Filter {
    pub(super) fn of(kernel: Kernel) -> Self {
        let refused =
            kernel.refused.iter().map(|&(call, errno)| (call, libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()));
        let asked = NAMING.iter().filter(|_| kernel.hides_kill).map(|&(call, _)| (call, libc::SECCOMP_RET_USER_NOTIF));
        let statement = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
        let returns = |action| statement((libc::BPF_RET | libc::BPF_K) as u16, action);
        // The call's number comes first in seccomp_data.
        let mut program = vec![statement((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0)];
        for (call, action) in refused.chain(asked) {
            let code = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
            program.push(libc::sock_filter { code, jt: 0, jf: 1, k: u32::try_from(call).unwrap() });
            program.push(returns(action));
        }
        program.push(returns(libc::SECCOMP_RET_ALLOW));
        let listener = kernel.hides_kill.then(|| {
            let (ours, theirs) = UnixDatagram::pair().unwrap();
            std::thread::spawn(move || receive(&ours).map(|listener| answer(&listener)));
            Arc::new(theirs)
        });
        Self { program, listener }
    }

    /// Installs it in this process, for good. Async-signal-safe.
    pub(super) fn install(&self) -> io::Result<()> {
        let length = self.program.len() as u16;
        let program = libc::sock_fprog { len: length, filter: self.program.as_ptr().cast_mut() };
        let flags = if self.listener.is_some() { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER } else { 0 };
        // SAFETY: takes nothing and always succeeds.
        if unsafe { libc::geteuid() } != 0 {
            // SAFETY: sets a flag of this process: it is what others than root have to give for a filter.
            unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        }
        // SAFETY: the program is read, and is valid for the call.
        let fd = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
        match (&self.listener, RawFd::try_from(fd)) {
            (_, Ok(-1) | Err(_)) => Err(io::Error::last_os_error()),
            (None, Ok(_)) => Ok(()),
            (Some(socket), Ok(fd)) => send(socket, fd),
        }
    }
}

/// Room for a control message of one descriptor, aligned as its header is.
type Control = [u64; 3];

fn message(byte: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    // SAFETY: msghdr is plain data, for which zero is a value.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = byte;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>();
    message
}

fn send(socket: &UnixDatagram, fd: RawFd) -> io::Result<()> {
    let mut text = [0u8; 1];
    let mut byte = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: 1 };
    let mut control: Control = [0; 3];
    let message = message(&mut byte, &mut control);
    // SAFETY: reads the message.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: there is room for a header, and nobody else has it.
    let header = unsafe { &mut *header };
    header.cmsg_level = libc::SOL_SOCKET;
    header.cmsg_type = libc::SCM_RIGHTS;
    // SAFETY: computes a number.
    header.cmsg_len = unsafe { libc::CMSG_LEN(size_of::<RawFd>() as u32) } as usize;
    // SAFETY: the header has a place for data behind it.
    let data = unsafe { libc::CMSG_DATA(header) };
    // SAFETY: there is room for one descriptor.
    unsafe { data.cast::<RawFd>().write_unaligned(fd) };
    // SAFETY: the message and what it points to are valid for the call.
    match unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) } {
        1 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The listener of a child that installed its filter; none if that failed.
fn receive(socket: &UnixDatagram) -> Option<OwnedFd> {
    let mut text = [0u8; 1];
    let mut byte = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: 1 };
    let mut control: Control = [0; 3];
    let mut message = message(&mut byte, &mut control);
    // SAFETY: the message and what it points to are valid for the call.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    // SAFETY: the kernel filled in as much of the control data as the message says.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if got != 1 || header.is_null() {
        return None;
    }
    // SAFETY: the header has data behind it.
    let data = unsafe { libc::CMSG_DATA(header) };
    // SAFETY: the data is one descriptor.
    let fd = unsafe { data.cast::<RawFd>().read_unaligned() };
    // SAFETY: the kernel made it for us.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Answers until no process has the filter any more.
fn answer(listener: &OwnedFd) {
    loop {
        let mut ready = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&raw mut ready, 1, -1) };
        if ready.revents & libc::POLLIN == 0 && ready.revents & libc::POLLHUP != 0 {
            return;
        }
        // SAFETY: plain data, and the kernel wants it zeroed.
        let mut asked: libc::seccomp_notif = unsafe { zeroed() };
        // SAFETY: a valid place for a notice. It fails if who asked was killed or interrupted meanwhile.
        if unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut asked) } != 0 {
            continue;
        }
        let goes_on = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
        let (error, flags) = if names_kill(&asked) { (-libc::ENOENT, 0) } else { (0, goes_on) };
        let mut reply = libc::seccomp_notif_resp { id: asked.id, val: 0, error, flags };
        // SAFETY: a valid answer.
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut reply) };
    }
}

fn names_kill(asked: &libc::seccomp_notif) -> bool {
    let index =
        NAMING.iter().find(|(call, _)| *call == libc::c_long::from(asked.data.nr)).map_or(0, |&(_, index)| index);
    let mut path = [0; libc::PATH_MAX as usize];
    let memory = File::open(format!("/proc/{}/mem", asked.pid));
    let length = memory.and_then(|memory| memory.read_at(&mut path, asked.data.args[index])).unwrap_or(0);
    path[..length].split(|&byte| byte == 0).next().is_some_and(|path| path.ends_with(b"/cgroup.kill"))
}
