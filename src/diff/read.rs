//! Reading a report that anybody may have written.

use std::fs::{self, FileType};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use serde_json::Value;

use crate::report::document::VERSION;
use crate::text;

/// No report is as large: its lists are short, and commands in it are cut.
pub const MAX_SIZE: u64 = 1 << 20;

/// Why a file cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The kernel says no.
    #[error("cannot {verb} {file}: {}", crate::error::reason(.source))]
    File {
        /// `open` or `read`.
        verb: &'static str,
        /// Which, as people read it.
        file: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It can be read, and is not a report.
    #[error("cannot compare {file}: {why}")]
    Unfit {
        /// Which, as people read it.
        file: String,
        /// What is wrong with it.
        why: String,
    },
}

/// How a file is called in front of people: `-` is stdin.
pub fn name(path: &Path) -> String {
    if is_stdin(path) { "stdin".to_owned() } else { text::path(path) }
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// The report in a file, or on stdin.
///
/// # Errors
/// The file, and why it cannot be compared.
pub fn report(path: &Path) -> Result<Value, ReadError> {
    let file = || name(path);
    let failed = |verb| move |source| ReadError::File { verb, file: file(), source };
    let unfit = |why| ReadError::Unfit { file: file(), why };
    let mut bytes = Vec::new();
    let source: Box<dyn Read> = if is_stdin(path) {
        Box::new(io::stdin().lock())
    } else {
        // Before it is opened: that alone has a meaning for some devices.
        let kind = fs::metadata(path).map_err(failed("open"))?.file_type();
        fit(kind).map_err(|why| unfit(why.to_owned()))?;
        let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NOCTTY).open(path).map_err(failed("open"))?;
        fit(file.metadata().map_err(failed("read"))?.file_type()).map_err(|why| unfit(why.to_owned()))?;
        Box::new(file)
    };
    source.take(MAX_SIZE + 1).read_to_end(&mut bytes).map_err(failed("read"))?;
    parse(&bytes).map_err(unfit)
}

/// What a report can be in. A pipe is what shells make of `<(ssh other cat report)`.
fn fit(kind: FileType) -> Result<(), &'static str> {
    if kind.is_file() || kind.is_fifo() {
        Ok(())
    } else if kind.is_dir() {
        Err("it is a directory")
    } else {
        Err("it is neither a file nor a pipe")
    }
}

/// Finds out whether this is a report that can be understood. What it says is looked at later, field by field.
///
/// # Errors
/// Why it is none.
pub fn parse(bytes: &[u8]) -> Result<Value, String> {
    const NO_REPORT: &str = "it is JSON, but not what --report-file writes";
    if bytes.len() as u64 > MAX_SIZE {
        return Err(format!("it is larger than {}, which no report is", text::exact_bytes(MAX_SIZE)));
    }
    if bytes.trim_ascii().is_empty() {
        return Err("it is empty: its job runs, or ended in a way that nobody could report".to_owned());
    }
    // The error says where, and repeats nothing of the file.
    let report: Value = serde_json::from_slice(bytes).map_err(|error| format!("it is not JSON: {error}"))?;
    let version = report.get("version").and_then(Value::as_u64).filter(|&version| version > 0).ok_or(NO_REPORT)?;
    if version > VERSION.into() {
        return Err(format!(
            "it is a report of version {version}, and this perflock knows up to {VERSION}; compare with the one that wrote it"
        ));
    }
    match report["command"].is_array() || report["exit"].is_object() {
        true => Ok(report),
        false => Err(NO_REPORT.to_owned()),
    }
}
