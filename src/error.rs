//! What failed, on which file, and the kernel's reason: the shape that the errors of every module share.

use std::io;
use std::path::{Path, PathBuf};

use crate::text;

/// A system call on a file failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {}: {}", text::path(.path), reason(.source))]
pub struct FileError {
    /// What was tried: `open`, `read`, `create`.
    pub verb: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`: `read(path).map_err(FileError::on("read", path))`.
    pub fn on<E: Into<io::Error>>(verb: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |error| Self { verb, path: path.to_owned(), source: error.into() }
    }
}

/// What the last system call of this thread said. Async-signal-safe.
pub(crate) fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// The kernel's reason in its own words, without Rust's `(os error 13)`.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::GroupError;

    #[test]
    fn an_error_names_the_act_the_file_and_the_reason() {
        let error = FileError::on("open", Path::new("/run/perflock"))(io::Error::from_raw_os_error(libc::EACCES));
        assert_eq!(error.to_string(), "cannot open /run/perflock: Permission denied");
    }

    /// A ticket can name any path.
    #[test]
    fn a_path_of_another_user_is_shown_escaped() {
        let (path, source) = (Path::new("/a\x1b[2J/perflock-1"), io::Error::from_raw_os_error(libc::EACCES));
        let error = FileError::on("open", path)(source);
        assert_eq!(error.to_string(), r"cannot open /a\u{1b}[2J/perflock-1: Permission denied");
        let refused = GroupError::Refused { path: path.to_owned(), why: "it is not" };
        let kill = GroupError::Kill { path: path.to_owned(), why: "it lives".to_owned() };
        assert!(![refused, kill].iter().any(|error| error.to_string().chars().any(char::is_control)));
    }
}
