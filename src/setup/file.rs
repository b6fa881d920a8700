//! One file of ours: how it is known, written and removed.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::error::FileError;

/// How every file that we write begins. The rest of the line has the sum of what follows it.
pub const MARK: &str = "# Written by perflock --setup, and removed by perflock --undo unless it was changed";

/// A file of ours with this content.
pub(super) fn marked(content: &str) -> String {
    format!("{MARK} (sum {:016x}).\n{content}", sum(content))
}

/// FNV-1a. Against oversight, not against malice: whoever can write the file can do anything.
fn sum(content: &str) -> u64 {
    content.bytes().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What is at a path of ours.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Missing,
    /// As we wrote it.
    Ours(String),
    /// We wrote it, and somebody changed it.
    Edited,
    /// Not ours. What it says, if it is a file that can be read.
    Theirs(String),
}

pub(super) fn found(path: &Path) -> Found {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Missing,
        // A link is nothing that we made, whatever it leads to.
        Ok(metadata) if metadata.is_file() => {}
        _ => return Found::Theirs(String::new()),
    }
    let text = fs::read_to_string(path).unwrap_or_default();
    match text.split_once('\n') {
        Some((mark, content)) if mark.starts_with(MARK) => {
            if mark.contains(&format!("(sum {:016x})", sum(content))) {
                Found::Ours(text)
            } else {
                Found::Edited
            }
        }
        _ => Found::Theirs(text),
    }
}

/// Whether two files say the same, whatever their comments and spaces.
pub(super) fn says_the_same(one: &str, other: &str) -> bool {
    fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
        let words = text.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
        words.filter(|words| words.first().is_some_and(|first| !first.starts_with(['#', ';'])))
    }
    lines(one).eq(lines(other))
}

/// Writes a file whole or not at all, with the directories that it needs.
pub(super) fn write(path: &Path, text: &str) -> Result<(), FileError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    only_ours(directory)?;
    let missing: Vec<&Path> = directory.ancestors().take_while(|directory| !directory.exists()).collect();
    for directory in missing.into_iter().rev() {
        // Whatever the umask is, others must be able to read what is in it.
        let made = fs::create_dir(directory)
            .and_then(|()| Ok(rustix::fs::chmod(directory, rustix::fs::Mode::from_raw_mode(0o755))?));
        made.map_err(FileError::on("create", directory))?;
    }
    let new = directory.join(format!(".perflock.{}", std::process::id()));
    // A file that was left there is not followed, nor kept.
    let _ = fs::remove_file(&new);
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&new)
        .and_then(|mut file| {
            // Whatever the umask is, others must be able to read it.
            rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o644))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&new, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&new);
        FileError::on("write", path)(error)
    })
}

/// Removes a file, and the drop-in's directory unless others have files in it; never the one that all of them are in.
pub(super) fn remove(path: &Path) -> Result<(), FileError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    only_ours(directory)?;
    fs::remove_file(path).map_err(FileError::on("remove", path))?;
    let name = directory.file_name().unwrap_or_default();
    if name != "tmpfiles.d" && Path::new(name).extension().is_some_and(|end| end == "d") {
        let _ = fs::remove_dir(directory);
    }
    Ok(())
}

/// Refuses directories, from `etc` down, that are links or that others than we can change: what is done there could be turned
/// against root.
pub(super) fn only_ours(directory: &Path) -> Result<(), FileError> {
    let own = rustix::process::geteuid().as_raw();
    for (above, directory) in directory.ancestors().enumerate() {
        let refused = |why| Err(FileError::on("change files in", directory)(io::Error::other(why)));
        match directory.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(FileError::on("look at", directory)(error)),
            Ok(metadata) if !metadata.is_dir() => return refused("it is not a directory, or it is a link to one"),
            Ok(metadata) => {
                // In a sticky directory others can neither remove nor rename what is root's.
                let is_sticky = above > 0 && metadata.mode() & 0o1000 != 0;
                if ![0, own].contains(&metadata.uid()) || metadata.mode() & 0o022 != 0 && !is_sticky {
                    return refused("others than root can change it");
                }
            }
        }
        if directory.ends_with("etc") {
            break;
        }
    }
    Ok(())
}

/// Whether a program that root is to run later can be changed by root only.
///
/// # Errors
/// It cannot be run so: why, and what to do.
pub fn only_root_can_change(program: &Path) -> Result<(), String> {
    let real = program.canonicalize().map_err(|error| FileError::on("find", program)(error).to_string())?;
    for path in real.ancestors() {
        let metadata = path.symlink_metadata().map_err(|error| FileError::on("look at", path)(error).to_string())?;
        // In a sticky directory others can neither remove nor rename what is root's.
        let is_sticky = metadata.is_dir() && metadata.mode() & 0o1000 != 0;
        if metadata.uid() != 0 || metadata.mode() & 0o022 != 0 && !is_sticky {
            return Err(format!(
                "others than root can change {}, so root's services must not run {}; install perflock into /usr/local/bin, \
                 and use that",
                path.display(),
                real.display()
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn directories_of_others_and_links_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc");
        let file = etc.join("systemd/system/x.service.d/perflock.conf");
        write(&file, "text").unwrap();
        let units = file.ancestors().nth(2).unwrap();
        for directory in file.ancestors().skip(1).take(4) {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o775)).unwrap();
            for tried in [write(&file, "other"), remove(&file)] {
                let said = tried.unwrap_err().to_string();
                assert_eq!(
                    said,
                    format!("cannot change files in {}: others than root can change it", directory.display())
                );
            }
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::rename(units, root.path().join("elsewhere")).unwrap();
        symlink(root.path().join("elsewhere"), units).unwrap();
        assert!(write(&file, "other").unwrap_err().to_string().contains("it is not a directory, or it is a link"));
        assert_eq!(fs::read_to_string(&file).unwrap(), "text");
    }

    proptest! {
        #[test]
        fn what_was_changed_is_not_ours(content in "[a-z# \n]{0,40}", more in "[a-z]{1,9}") {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("perflock.conf");
            fs::write(&path, marked(&content)).unwrap();
            prop_assert_eq!(found(&path), Found::Ours(marked(&content)));
            fs::write(&path, format!("{}{more}", marked(&content))).unwrap();
            prop_assert_eq!(found(&path), Found::Edited);
            fs::write(&path, format!("{content}\n{more}")).unwrap();
            prop_assert_eq!(found(&path), Found::Theirs(format!("{content}\n{more}")));
        }
    }
}
