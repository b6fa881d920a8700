//! Readers for the few files of `/proc` that perflock needs, see proc(5). Each takes its root from [`Proc`], so that
//! tests feed captured trees. A process may end between any two reads; callers take every error as "gone or hidden".

mod cgroup;
mod machine;
mod numbers;
mod switches;
mod threads;

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

#[cfg(test)]
use cgroup::parse_cgroups;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use cgroup::{parse_cgroup_v1, parse_cgroup_v2};
pub use machine::MachineCpu;
pub use switches::{ContextSwitches, is_gone};

/// A mounted proc filesystem.
#[derive(Clone, Debug)]
pub struct Proc {
    root: PathBuf,
}

/// Reads a file whose size the kernel does not tell: `fs::read` would begin with 32 bytes and read again and again.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_at_most(path, usize::MAX)
}

/// The same of a file that somebody else may make as long as they like: no more than about `limit` bytes of it.
fn read_at_most(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut file = fs::File::open(path)?;
    let mut bytes = Vec::with_capacity(4096);
    let mut chunk = [0; 4096];
    while bytes.len() < limit {
        match file.read(&mut chunk)? {
            0 => break,
            length => bytes.extend_from_slice(&chunk[..length]),
        }
    }
    Ok(bytes)
}

/// More of a command line is of no use to anybody: a ticket keeps 4 KiB.
const MAX_CMDLINE: usize = 64 * 1024;

/// execve(2) takes no more than a quarter of the stack's limit, which is 8 MiB as a rule. A process can say by prctl(2) that its
/// environment is any part of its memory.
const MAX_ENVIRON: usize = 8 * 1024 * 1024;

/// The part of `/proc/PID/stat` that is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// The process.
    pub pid: i32,
    /// Its name, at most 15 bytes, chosen by itself: hostile text.
    pub comm: String,
    /// `R`, `S`, `D`, `Z`, `T` (stopped), `t` (traced), …
    pub state: char,
    /// Its parent.
    pub ppid: i32,
    /// When it started, in clock ticks since boot: with the pid, an identity that is not used again.
    pub start_ticks: u64,
    /// User and system time of the live process, in clock ticks.
    pub cpu_ticks: u64,
    /// The same of its children that ended and that it waited for, of theirs included.
    pub ended_children_ticks: u64,
    /// How many threads it has, the main one included until the process is reaped.
    pub threads: u64,
    /// It is a thread of the kernel's own.
    pub kernel_thread: bool,
    /// Its resident memory, in pages.
    pub resident_pages: u64,
}

impl Default for Proc {
    fn default() -> Self {
        Self::at("/proc")
    }
}

/// The inode of the pid namespace that every other is inside of: `PROC_PID_INIT_INO`, include/linux/proc_ns.h.
const INITIAL_PID_NAMESPACE: u64 = 0xefff_fffc;

impl Proc {
    /// A proc tree at `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn file(&self, pid: i32, name: &str) -> PathBuf {
        self.root.join(pid.to_string()).join(name)
    }

    /// Every process of our pid namespace that is visible to us (`hidepid` hides others).
    ///
    /// # Errors
    /// The directory could not be read.
    pub fn pids(&self) -> io::Result<Vec<i32>> {
        let entries = fs::read_dir(&self.root)?.flatten();
        Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    /// `/proc/PID/stat`.
    ///
    /// # Errors
    /// The process is gone or hidden, or the line is not one that the kernel writes.
    pub fn stat(&self, pid: i32) -> io::Result<Stat> {
        let line = read(&self.file(pid, "stat"))?;
        parse_stat(&line).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// The children of a process's main thread, from one file: `/proc/PID/task/PID/children`.
    ///
    /// # Errors
    /// The process is gone or hidden, or the kernel was built without `CONFIG_PROC_CHILDREN`.
    pub fn children(&self, pid: i32) -> io::Result<Vec<i32>> {
        let text = read(&self.file(pid, &format!("task/{pid}/children")))?;
        let text = String::from_utf8_lossy(&text);
        Ok(text.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect())
    }

    /// The process's arguments, the first 64 KiB of them; empty for a kernel thread or a zombie.
    ///
    /// # Errors
    /// The process is gone or hidden.
    pub fn cmdline(&self, pid: i32) -> io::Result<Vec<String>> {
        let bytes = read_at_most(&self.file(pid, "cmdline"), MAX_CMDLINE)?;
        let text = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
        if text.is_empty() {
            return Ok(Vec::new());
        }
        Ok(text.split(|&b| b == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect())
    }

    /// Whether the environment that the process was started with has the variable `name`, and `word` is one of the words
    /// of its value.
    ///
    /// # Errors
    /// The process is gone, or not ours to look into.
    pub fn environ_has(&self, pid: i32, name: &str, word: &str) -> io::Result<bool> {
        Ok(self.environ(pid)?.has(name, word))
    }

    /// The environment that the process was started with.
    ///
    /// # Errors
    /// The process is gone, or not ours to look into.
    pub fn environ(&self, pid: i32) -> io::Result<Environ> {
        read_at_most(&self.file(pid, "environ"), MAX_ENVIRON).map(Environ)
    }

    /// The effective user of the process.
    ///
    /// # Errors
    /// The process is gone or hidden.
    pub fn uid(&self, pid: i32) -> io::Result<u32> {
        Ok(fs::metadata(self.root.join(pid.to_string()))?.uid())
    }

    /// The number of the process in its own pid namespace, where the kernel has several: `NSpid` of `/proc/PID/status`.
    pub fn innermost_pid(&self, pid: i32) -> Option<i32> {
        let text = read(&self.file(pid, "status")).ok()?;
        // A name can have no line of its own in it: the kernel escapes it.
        let line = std::str::from_utf8(&text).ok()?.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        line.split_ascii_whitespace().last()?.parse().ok()
    }

    /// Who logged in and became, by su or sudo, the user that the process runs as: `/proc/PID/loginuid`, kept by the
    /// kernel's audit part. `None` where nobody logged in (a service, cron), or the kernel does not keep it.
    pub fn login_uid(&self, pid: i32) -> Option<u32> {
        let text = read(&self.file(pid, "loginuid")).ok()?;
        let uid = std::str::from_utf8(&text).ok()?.trim().parse().ok()?;
        (uid != u32::MAX).then_some(uid)
    }

    /// The identity of this boot.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn boot_id(&self) -> io::Result<String> {
        let text = read(&self.root.join("sys/kernel/random/boot_id"))?;
        Ok(String::from_utf8_lossy(&text).trim().to_owned())
    }

    /// The inode number of one of our own namespaces (`pid`, `cgroup`): equal numbers, same namespace.
    ///
    /// # Errors
    /// The kernel has no such namespace, or `/proc` is not mounted.
    pub fn own_namespace(&self, kind: &str) -> io::Result<u64> {
        Ok(fs::metadata(self.root.join("self/ns").join(kind))?.ino())
    }

    /// The same of another process.
    ///
    /// # Errors
    /// The process is gone, or not ours to look into.
    pub fn namespace(&self, pid: i32, kind: &str) -> io::Result<u64> {
        Ok(fs::metadata(self.file(pid, "ns").join(kind))?.ino())
    }

    /// Whether every process of the machine is in our pid namespace or in one below, where we have a number for it.
    pub fn sees_every_pid_namespace(&self) -> bool {
        self.own_namespace("pid").is_ok_and(|namespace| namespace == INITIAL_PID_NAMESPACE)
    }

    /// Every flock(2) lock on the file `dev`, `inode`, held or waited for: `/proc/locks`.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn flocks(&self, dev: u64, inode: u64) -> io::Result<Vec<Flock>> {
        Ok(parse_locks(&read(&self.root.join("locks"))?, dev, inode))
    }
}

/// The environment that a process was started with: its own to write over, hostile text.
#[derive(Clone, Debug, Default)]
pub struct Environ(Vec<u8>);

impl Environ {
    /// The words of every variable called `name`.
    pub fn words<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let value = move |entry: &'a [u8]| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=");
        self.0.split(|&b| b == 0).filter_map(value).flat_map(|value| value.split(|&b| b == b' '))
    }

    /// Whether `word` is one of them.
    pub fn has(&self, name: &str, word: &str) -> bool {
        self.words(name).any(|found| found == word.as_bytes())
    }
}

/// A flock(2) lock as `/proc/locks` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flock {
    /// Who took it. It may be dead: a forked process can keep the lock.
    pub pid: i32,
    /// `LOCK_EX`, not `LOCK_SH`.
    pub exclusive: bool,
    /// Still waiting for it.
    pub waiting: bool,
}

/// The flag of a kernel thread in `/proc/PID/stat`: include/linux/sched.h.
const PF_KTHREAD: u64 = 0x0020_0000;

pub(crate) fn parse_stat(line: &[u8]) -> Option<Stat> {
    // The name stands in parentheses and may hold parentheses and spaces itself: the last `)` ends it.
    let open = line.iter().position(|&b| b == b'(')?;
    let close = line.iter().rposition(|&b| b == b')')?;
    let comm = String::from_utf8_lossy(line.get(open + 1..close)?).into_owned();
    let pid = std::str::from_utf8(&line[..open]).ok()?.trim().parse().ok()?;
    let rest = std::str::from_utf8(&line[close + 1..]).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Stat {
        pid,
        comm,
        state: fields.first()?.chars().next().filter(char::is_ascii_alphabetic)?,
        ppid: fields.get(1)?.parse().ok()?,
        start_ticks: number(19)?,
        cpu_ticks: number(11)?.saturating_add(number(12)?),
        ended_children_ticks: number(13)?.saturating_add(number(14)?),
        threads: number(17)?,
        kernel_thread: number(6)? & PF_KTHREAD != 0,
        resident_pages: number(21)?,
    })
}

pub(crate) fn parse_locks(file: &[u8], dev: u64, inode: u64) -> Vec<Flock> {
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    let wanted = format!("{major:02x}:{minor:02x}:{inode}");
    let parse_line = |line: &[u8]| {
        let line = std::str::from_utf8(line).ok()?;
        let mut fields = line.split_ascii_whitespace().skip(1).peekable();
        let waiting = fields.next_if_eq(&"->").is_some();
        if fields.next()? != "FLOCK" {
            return None;
        }
        let exclusive = fields.nth(1)? == "WRITE";
        let pid = fields.next()?.parse().ok()?;
        (fields.next()? == wanted).then_some(Flock { pid, exclusive, waiting })
    };
    file.split(|&b| b == b'\n').filter_map(parse_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_full_of_parentheses_does_not_shift_the_fields() {
        let line = b"42 (a) R 1 (b) S 7 42 42 0 -1 4194304 90 0 0 0 11 31 3 4 20 0 1 0 5000 2277376 225 1 1";
        let expected = Stat {
            pid: 42,
            comm: "a) R 1 (b".to_owned(),
            state: 'S',
            ppid: 7,
            start_ticks: 5000,
            cpu_ticks: 42,
            ended_children_ticks: 7,
            threads: 1,
            kernel_thread: false,
            resident_pages: 225,
        };
        assert_eq!(parse_stat(line), Some(expected));
    }

    #[test]
    fn a_command_line_without_end_is_not_read_to_its_end() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("7")).unwrap();
        fs::write(root.path().join("7/cmdline"), vec![0; 1 << 20]).unwrap();
        let arguments = Proc::at(root.path()).cmdline(7).unwrap();
        assert_eq!(arguments.len(), MAX_CMDLINE);
    }

    #[test]
    fn a_kernel_thread_is_known_by_its_flag() {
        let line = b"2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 9 0 0 20 0 1 0 12 0 0 1 1";
        assert!(parse_stat(line).unwrap().kernel_thread);
    }

    #[test]
    fn holders_and_waiters_of_one_file_are_told_apart() {
        let file = b"1: FLOCK  ADVISORY  WRITE 17 fe:00:99 0 EOF\n1: -> FLOCK  ADVISORY  READ  18 fe:00:99 0 EOF\n\
            2: OFDLCK ADVISORY  WRITE -1 fe:00:99 0 EOF\n3: FLOCK  ADVISORY  WRITE 19 fe:00:98 0 EOF\n";
        let held = Flock { pid: 17, exclusive: true, waiting: false };
        let waits = Flock { pid: 18, exclusive: false, waiting: true };
        assert_eq!(parse_locks(file, rustix::fs::makedev(0xfe, 0), 99), [held, waits]);
    }

    #[test]
    fn who_logged_in_is_told_from_nobody() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("7")).unwrap();
        for (text, uid) in
            [("1000", Some(1000)), ("1000\n", Some(1000)), ("4294967295", None), ("", None), ("-1", None)]
        {
            fs::write(root.path().join("7/loginuid"), text).unwrap();
            assert_eq!(Proc::at(root.path()).login_uid(7), uid, "{text:?}");
        }
        assert_eq!(Proc::at(root.path()).login_uid(8), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(bytes: Vec<u8>) {
            let _ = parse_stat(&bytes);
            let _ = (parse_cgroup_v2(&bytes), parse_cgroups(&bytes));
            let _ = parse_cgroup_v1(&bytes, "cpuset");
            let _ = parse_locks(&bytes, 1, 1);
        }

        /// A process may call itself whatever it likes.
        #[test]
        fn no_name_shifts_the_fields_of_a_process(
            pid in 1i32.., comm in "[^\0\n]{0,15}", ppid in 0i32.., start_ticks: u64, user: u32, system: u32,
        ) {
            let line = format!(
                "{pid} ({comm}) S {ppid} 42 42 0 -1 4194304 90 0 0 0 {user} {system} {system} 1 20 0 1 0 {start_ticks} 9 2\n"
            );
            let cpu_ticks = u64::from(user) + u64::from(system);
            let ended_children_ticks = u64::from(system) + 1;
            let expected = Stat {
                pid, comm, state: 'S', ppid, start_ticks, cpu_ticks, ended_children_ticks, threads: 1, kernel_thread: false,
                resident_pages: 2,
            };
            prop_assert_eq!(parse_stat(line.as_bytes()), Some(expected));
        }

        /// A path in the hierarchy may hold every byte but a newline.
        #[test]
        fn a_group_s_path_is_read_as_it_is(name in "[^\n/]{1,40}", deleted: bool) {
            prop_assume!(!name.ends_with(" (deleted)"));
            let suffix = if deleted { " (deleted)" } else { "" };
            let file = format!("4:memory:/x\n0::/a/{name}{suffix}\n");
            prop_assert_eq!(parse_cgroup_v2(file.as_bytes()), Some(PathBuf::from(format!("/a/{name}"))));
        }

        #[test]
        fn only_flocks_of_the_very_file_are_listed(
            locks in proptest::collection::vec((0usize..3, any::<bool>(), any::<bool>(), 0i32.., 98u64..101), 0..8),
            tail: String,
        ) {
            let mut file = String::new();
            let mut expected = Vec::new();
            for &(kind, waiting, exclusive, pid, inode) in &locks {
                let kind = ["FLOCK ", "OFDLCK", "POSIX "][kind];
                let arrow = if waiting { "-> " } else { "" };
                let mode = if exclusive { "WRITE" } else { "READ " };
                file += &format!("1: {arrow}{kind} ADVISORY  {mode} {pid} fe:00:{inode} 0 EOF\n");
                if kind == "FLOCK " && inode == 99 {
                    expected.push(Flock { pid, exclusive, waiting });
                }
            }
            let found = parse_locks(file.as_bytes(), rustix::fs::makedev(0xfe, 0), 99);
            prop_assert_eq!(&found, &expected);
            file += &tail;
            prop_assert!(parse_locks(file.as_bytes(), rustix::fs::makedev(0xfe, 0), 99).starts_with(&expected));
        }
    }

    /// A captured process 7 whose every file is this.
    fn captured(bytes: &[u8]) -> (tempfile::TempDir, Proc) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("7/task/7")).unwrap();
        fs::create_dir_all(root.path().join("self")).unwrap();
        fs::create_dir_all(root.path().join("sys/kernel/random")).unwrap();
        let files = [
            "7/stat",
            "7/task/7/children",
            "7/cgroup",
            "7/cmdline",
            "7/environ",
            "7/loginuid",
            "7/status",
            "7/task/7/status",
        ];
        for file in files.into_iter().chain(["self/cgroup", "sys/kernel/random/boot_id", "locks"]) {
            fs::write(root.path().join(file), bytes).unwrap();
        }
        let proc = Proc::at(root.path());
        (root, proc)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Command line and environment are the process's to write.
        #[test]
        fn no_file_of_a_process_makes_a_reader_panic(bytes: Vec<u8>) {
            let (_root, proc) = captured(&bytes);
            let _ = proc.stat(7);
            let _ = proc.children(7);
            let _ = proc.cgroup_v2(7);
            let _ = proc.own_cgroup_v2();
            let _ = proc.login_uid(7);
            let _ = proc.context_switches(7);
            let _ = proc.tracer(7);
            let _ = proc.boot_id();
            let _ = proc.flocks(1, 1);
            prop_assert_eq!(proc.cmdline(7).unwrap().is_empty(), bytes.is_empty() || bytes == [0]);
            let _ = proc.environ_has(7, "NAME", "word");
        }

        #[test]
        fn a_word_is_found_in_its_own_variable_only(
            before in proptest::collection::vec("[^\0]{0,20}", 0..4), words in proptest::collection::vec("[a-z]{1,8}", 0..4),
        ) {
            prop_assume!(!before.iter().any(|entry| entry.starts_with("NAME=")));
            let environ = [&before[..], &[format!("NAME={}", words.join(" "))]].concat().join("\0") + "\0";
            let (_root, proc) = captured(environ.as_bytes());
            for word in &words {
                prop_assert!(proc.environ_has(7, "NAME", word).unwrap());
            }
            prop_assert!(!proc.environ_has(7, "NAME", "WORD").unwrap());
            prop_assert!(!proc.environ_has(7, "AME", words.first().map_or("", |word| word)).unwrap());
        }

        #[test]
        fn a_command_line_is_read_as_it_is(argv in proptest::collection::vec("[^\0]{0,20}", 1..5)) {
            prop_assume!(argv != [""]);
            let (_root, proc) = captured((argv.join("\0") + "\0").as_bytes());
            prop_assert_eq!(proc.cmdline(7).unwrap(), argv);
        }
    }

    #[test]
    fn the_kernel_s_own_files_are_read() {
        let proc = Proc::default();
        let own = std::process::id().cast_signed();
        let stat = proc.stat(own).unwrap();
        assert_eq!(stat.pid, own);
        assert_eq!(stat.ppid, std::os::unix::process::parent_id().cast_signed());
        assert!(proc.pids().unwrap().contains(&own));
        assert_eq!(proc.boot_id().unwrap().len(), 36);
        assert!(proc.own_namespace("pid").unwrap() > 0);
        assert_eq!(proc.innermost_pid(own), Some(own));
        assert_eq!(proc.cmdline(own).unwrap(), std::env::args().collect::<Vec<_>>());
    }
}
