//! Finding the command as execvp(3) does, before the lock is asked for: what can fail without the machine fails early.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags};

/// A command that was found, or whose path may still come to be.
#[derive(Debug)]
pub struct Command {
    pub(super) argv: Vec<CString>,
    /// Every file that execvp(3) would try, in order.
    pub(super) candidates: Vec<CString>,
    /// The path does not exist yet: worth a warning, since it may be built while we wait.
    pub missing_yet: bool,
}

/// Why the command cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// No such command. Exit code 127.
    #[error("cannot run {name}: {why}")]
    NotFound {
        /// As typed.
        name: String,
        /// With what to do.
        why: String,
    },
    /// Found, but not to be executed. Exit code 126.
    #[error("cannot run {name}: {why}")]
    NotExecutable {
        /// As typed.
        name: String,
        /// With what to do.
        why: String,
    },
    /// An argument that no program can be given.
    #[error("an argument contains a NUL byte")]
    Nul,
}

/// Where execvp(3) looks when PATH is not set.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Words that a shell would run itself, for which no file exists.
const SHELL_WORDS: [&str; 26] = [
    "alias", "bg", "bind", "builtin", "cd", "declare", "eval", "exec", "exit", "export", "fg", "for", "history", "if",
    "jobs", "let", "read", "set", "shopt", "source", "trap", "type", "ulimit", "umask", "unset", "while",
];

impl Command {
    /// Looks the command up in `path`, the value of PATH.
    ///
    /// # Errors
    /// It does not exist, or is not a program.
    pub fn look_up(argv: &[OsString], path: Option<&OsStr>) -> Result<Self, CommandError> {
        let name = argv.first().map(OsString::as_os_str).unwrap_or_default();
        let candidates = if name.as_bytes().contains(&b'/') {
            vec![PathBuf::from(name)]
        } else {
            in_path(name, path.unwrap_or(OsStr::new(DEFAULT_PATH)))
        };
        let mut first = 0;
        let missing_yet = match best(candidates.iter().map(|file| executable(file)), &mut first) {
            Found::Yes => false,
            Found::Missing if name.as_bytes().contains(&b'/') => true,
            Found::Missing => {
                let why = why_not_found(name);
                return Err(CommandError::NotFound { name: shown(name), why });
            }
            Found::Not(why) => return Err(CommandError::NotExecutable { name: shown(name), why }),
        };
        let to_c = |bytes: &OsStr| CString::new(bytes.as_bytes()).map_err(|_| CommandError::Nul);
        Ok(Self {
            argv: argv.iter().map(|arg| to_c(arg)).collect::<Result<_, _>>()?,
            // Those before the first that was found are not tried again: they would only cost the child time.
            candidates: candidates[first..].iter().map(|file| to_c(file.as_os_str())).collect::<Result<_, _>>()?,
            missing_yet,
        })
    }
}

fn in_path(name: &OsStr, path: &OsStr) -> Vec<PathBuf> {
    let files = path.as_bytes().split(|&b| b == b':').map(|directory| {
        // An empty entry means the current directory, spelled so that the file is not looked up in PATH again.
        let directory = if directory.is_empty() { b"." } else { directory };
        Path::new(OsStr::from_bytes(directory)).join(name)
    });
    if name.is_empty() { Vec::new() } else { files.collect() }
}

enum Found {
    Yes,
    Missing,
    Not(String),
}

fn executable(file: &Path) -> Found {
    let stat = match rustix::fs::stat(file) {
        Ok(stat) => stat,
        Err(rustix::io::Errno::ACCESS) => return Found::Not("Permission denied".to_owned()),
        Err(_) => return Found::Missing,
    };
    if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
        return Found::Not("it is a directory".to_owned());
    }
    match rustix::fs::accessat(rustix::fs::CWD, file, Access::EXEC_OK, AtFlags::EACCESS) {
        Ok(()) => Found::Yes,
        Err(_) => Found::Not(format!("it is not executable (chmod +x {})", file.display())),
    }
}

/// Like execvp(3): the first that runs, whose index goes to `first`; else a permission that was missing; else nothing
/// was there.
fn best(found: impl Iterator<Item = Found>, first: &mut usize) -> Found {
    let mut best = Found::Missing;
    for (index, one) in found.enumerate() {
        match one {
            Found::Yes => {
                *first = index;
                return Found::Yes;
            }
            Found::Not(_) if matches!(best, Found::Missing) => best = one,
            Found::Not(_) | Found::Missing => {}
        }
    }
    best
}

fn why_not_found(name: &OsStr) -> String {
    let text = name.to_string_lossy();
    if let Some((variable, _)) = text.split_once('=')
        && !variable.is_empty()
        && variable.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    {
        return format!("to set a variable for the command, put env first: env {} CMD", shown(name));
    }
    if text == "-c" {
        return "to run a shell command line: sh -c 'COMMAND LINE'".to_owned();
    }
    if SHELL_WORDS.contains(&&*text) {
        return format!("it is a word of the shell; to run it in one: bash -ic '{text} …'");
    }
    let text = shown(name);
    format!("not found in PATH (if it is an alias or a function of your shell: bash -ic '{text} …')")
}

fn shown(name: &OsStr) -> String {
    crate::text::escape(&name.to_string_lossy())
}

/// The environment to start the command with: ours, with `changes` in place of what had those names.
pub(super) fn environment(changes: &[(&str, String)]) -> Vec<CString> {
    let changed = |name: &OsStr| changes.iter().any(|(changed, _)| name == *changed);
    let kept = std::env::vars_os().filter(|(name, _)| !changed(name)).map(|(name, value)| (name, value.into_vec()));
    let new = changes.iter().map(|(name, value)| (OsString::from(name), value.clone().into_bytes()));
    kept.chain(new)
        .filter_map(|(name, value)| {
            let mut entry = name.into_vec();
            entry.push(b'=');
            entry.extend(value);
            CString::new(entry).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn look_up(argv: &[&str], path: &str) -> Result<Command, CommandError> {
        let argv: Vec<OsString> = argv.iter().map(OsString::from).collect();
        Command::look_up(&argv, Some(OsStr::new(path)))
    }

    fn bin(files: &[(&str, u32)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, mode) in files {
            let file = directory.path().join(name);
            std::fs::write(&file, "").unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(*mode)).unwrap();
        }
        directory
    }

    #[test]
    fn the_first_executable_in_path_is_found_behind_one_that_is_not() {
        let (a, b) = (bin(&[("tool", 0o644)]), bin(&[("tool", 0o755)]));
        let path = format!("{}:{}", a.path().display(), b.path().display());
        assert!(!look_up(&["tool"], &path).unwrap().missing_yet);
        let only_a = a.path().to_str().unwrap();
        assert!(matches!(look_up(&["tool"], only_a), Err(CommandError::NotExecutable { .. })));
    }

    #[test]
    fn what_is_no_command_says_what_to_type_instead() {
        let hint = |argv: &[&str]| look_up(argv, "/nonexistent").unwrap_err().to_string();
        assert!(hint(&["FOO=1", "./b"]).contains("env FOO=1 CMD"));
        assert!(hint(&["-c", "x"]).contains("sh -c"));
        assert!(hint(&["cd"]).contains("bash -ic 'cd"));
        assert!(hint(&["ll"]).contains("bash -ic 'll"));
        assert!(hint(&[""]).starts_with("cannot run"));
    }

    #[test]
    fn a_path_that_does_not_exist_yet_is_let_through() {
        assert!(look_up(&["./not-built-yet"], "/bin").unwrap().missing_yet);
    }

    #[test]
    fn a_directory_is_not_a_command() {
        assert!(matches!(look_up(&["/"], "/bin"), Err(CommandError::NotExecutable { .. })));
    }

    #[test]
    fn a_changed_variable_stands_once() {
        let environment = environment(&[("PATH", "/x".to_owned()), ("NEW", "y".to_owned())]);
        let paths: Vec<_> = environment.iter().filter(|entry| entry.as_bytes().starts_with(b"PATH=")).collect();
        assert_eq!(paths, [&CString::new("PATH=/x").unwrap()]);
        assert!(environment.contains(&CString::new("NEW=y").unwrap()));
    }
}
