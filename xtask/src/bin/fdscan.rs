//! Who has a file open, found as lsof(8) and fuser(1) find it: by a look at every descriptor of every process. What
//! `cargo xtask bench usage` compares wholock with.
//!
//! `fdscan FILE LEAST` fails if fewer than LEAST processes have FILE open. It reads each link once, relative to its
//! directory, and does nothing else: no names, users or commands.
// A helper of the bench: its messages go to the bench's log.
#![allow(clippy::print_stderr)]

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use rustix::fs::{Mode, OFlags, RawDir};

/// How many bytes of a directory are read at a time.
const ENTRIES_BYTES: usize = 32 * 1024;

/// The longest link that is compared.
const LINK_BYTES: usize = 4096;

fn main() -> ExitCode {
    match scan() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("fdscan: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Does what the arguments say.
fn scan() -> Result<(), String> {
    let mut arguments = std::env::args_os().skip(1);
    let (file, least) = (arguments.next(), arguments.next());
    let least = least.and_then(|least| least.to_str()?.parse::<usize>().ok());
    let (Some(file), Some(least)) = (file, least) else { return Err("usage: fdscan FILE LEAST".to_owned()) };
    let file = fs::canonicalize(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    let found = count(file.as_os_str().as_bytes()).map_err(|error| format!("/proc: {error}"))?;
    if found < least { Err(format!("found {found} processes and not {least}")) } else { Ok(()) }
}

/// How many processes have this file open.
fn count(file: &[u8]) -> io::Result<usize> {
    let proc = open_directory(rustix::fs::CWD, "/proc")?;
    let (mut entries, mut links) = (Vec::with_capacity(ENTRIES_BYTES), Vec::with_capacity(ENTRIES_BYTES));
    let mut found = 0;
    let mut processes = RawDir::new(&proc, entries.spare_capacity_mut());
    while let Some(process) = processes.next() {
        let process = process?;
        let pid = process.file_name().to_bytes();
        if !pid.first().is_some_and(u8::is_ascii_digit) {
            continue;
        }
        let descriptors = [pid, b"/fd"].concat();
        // Ended meanwhile, or not ours to look at.
        let Ok(descriptors) = open_directory(&proc, descriptors.as_slice()) else { continue };
        found += usize::from(has_open(&descriptors, file, links.spare_capacity_mut()));
    }
    Ok(found)
}

/// Whether a link in this directory leads to the file.
fn has_open(descriptors: &OwnedFd, file: &[u8], links: &mut [MaybeUninit<u8>]) -> bool {
    let mut links = RawDir::new(descriptors, links);
    let mut target = [MaybeUninit::uninit(); LINK_BYTES];
    while let Some(Ok(link)) = links.next() {
        // `.` and `..` are no links.
        let read = rustix::fs::readlinkat_raw(descriptors, link.file_name(), &mut target);
        if read.is_ok_and(|(read, _)| &*read == file) {
            return true;
        }
    }
    false
}

/// Opens a directory.
fn open_directory(at: impl std::os::fd::AsFd, path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, path, flags, Mode::empty())?)
}
