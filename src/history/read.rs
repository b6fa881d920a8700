//! Reading histories, everybody's. Of a file that others write nothing is believed but its owner, and no more of it is read than a
//! history holds.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::line::{BEGINNING, LONGEST, Line};
use super::{Keeping, MOST_SIZE, file_of, full};
use crate::error::FileError;

/// A user's file, whole or full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Where it is.
    pub path: PathBuf,
    /// Whose it is to be: others' files under this name are passed over.
    pub uid: u32,
}

/// The files that there may be of one user, the older one first.
pub fn of_user(keeping: &Keeping, uid: u32) -> Vec<Source> {
    let is_own = uid == rustix::process::geteuid().as_raw();
    let own = keeping.own_file.iter().filter(|_| is_own).cloned();
    let paths = own.chain([file_of(&keeping.directory, uid)]);
    paths.flat_map(|path| [full(&path), path]).map(|path| Source { path, uid }).collect()
}

/// Everybody's files, and our own where nobody else looks; and why others' cannot be found, if so. A directory that is missing has
/// none.
pub fn of_everybody(keeping: &Keeping) -> (Vec<Source>, Option<FileError>) {
    let own = rustix::process::geteuid().as_raw();
    let mut users = vec![own];
    let mut unread = None;
    match fs::read_dir(&keeping.directory) {
        Ok(entries) => users.extend(entries.flatten().filter_map(|entry| user_in(entry.file_name().to_str()?))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => unread = Some(FileError::on("read", &keeping.directory)(error)),
    }
    users.sort_unstable();
    users.dedup();
    (users.into_iter().flat_map(|uid| of_user(keeping, uid)).collect(), unread)
}

/// What of a directory's entries, each a name and whether it is a regular file, is no user's history. Sorted.
pub fn foreign(entries: impl IntoIterator<Item = (OsString, bool)>) -> Vec<OsString> {
    let is_ours = |name: &OsString, is_file| is_file && name.to_str().and_then(user_in).is_some();
    let mut names: Vec<OsString> =
        entries.into_iter().filter(|(name, is_file)| !is_ours(name, *is_file)).map(|(name, _)| name).collect();
    names.sort_unstable();
    names
}

/// The same of a directory that is there.
///
/// # Errors
/// It could not be read.
pub fn foreign_in(directory: &Path) -> Result<Vec<OsString>, FileError> {
    let entry = |entry: fs::DirEntry| Ok((entry.file_name(), entry.file_type()?.is_file()));
    let entries = fs::read_dir(directory).and_then(|all| all.map(|found| found.and_then(entry)).collect());
    entries.map(|entries: Vec<_>| foreign(entries)).map_err(FileError::on("read", directory))
}

/// The user whose file has this name. A number has one spelling.
fn user_in(name: &str) -> Option<u32> {
    let number = name.strip_suffix(".1").unwrap_or(name).strip_suffix(".jsonl")?;
    number.parse().ok().filter(|uid: &u32| uid.to_string() == number)
}

impl Source {
    /// Calls `found` with each line of the file, the end of which is read if it is longer than `most`. Returns how many lines were
    /// passed over that make no sense. A file that is missing, or not its user's, has no line.
    ///
    /// # Errors
    /// It could not be read.
    pub fn read(&self, most: Option<u64>, found: &mut dyn FnMut(Line)) -> Result<usize, FileError> {
        self.read_some(most, &|_| true, found)
    }

    /// The same with those lines alone whose text `is_wanted`.
    ///
    /// # Errors
    /// It could not be read.
    pub fn read_some(
        &self,
        most: Option<u64>,
        is_wanted: &dyn Fn(&[u8]) -> bool,
        found: &mut dyn FnMut(Line),
    ) -> Result<usize, FileError> {
        let on = |error| FileError::on("read", &self.path)(error);
        let Some(mut file) = self.open().map_err(on)? else { return Ok(0) };
        let most = most.unwrap_or(2 * MOST_SIZE);
        let begin = file.metadata().map_err(on)?.len().saturating_sub(most);
        let mut reader = BufReader::new(&mut file);
        if begin > 0 {
            // From the first line that is whole.
            reader.seek(SeekFrom::Start(begin - 1)).map_err(on)?;
            pass_over(&mut reader).map_err(on)?;
        }
        // It may grow meanwhile.
        lines(&mut reader.take(most), is_wanted, found).map_err(on)
    }

    fn open(&self) -> io::Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match rustix::fs::open(&self.path, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(errno) => {
                let error = io::Error::from(errno);
                let is_none = matches!(
                    error.raw_os_error(),
                    Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENXIO | libc::EACCES)
                );
                return if is_none { Ok(None) } else { Err(error) };
            }
        };
        let metadata = file.metadata()?;
        Ok((metadata.is_file() && metadata.uid() == self.uid).then_some(file))
    }
}

/// Calls `found` with each line whose text `is_wanted`. Returns how many were passed over. No more than a line is in memory at a time.
///
/// # Errors
/// It could not be read.
pub fn lines(
    reader: &mut impl BufRead,
    is_wanted: &dyn Fn(&[u8]) -> bool,
    found: &mut dyn FnMut(Line),
) -> io::Result<usize> {
    let (mut passed_over, mut text) = (0, Vec::new());
    loop {
        text.clear();
        if reader.take(LONGEST as u64 + 1).read_until(b'\n', &mut text)? == 0 {
            return Ok(passed_over);
        }
        let is_whole = text.last() == Some(&b'\n');
        if !is_whole && text.len() > LONGEST {
            pass_over(reader)?;
            passed_over += 1;
            continue;
        }
        let text = text.strip_suffix(b"\n").unwrap_or(&text);
        if text.is_empty() || !is_wanted(text) {
            continue;
        }
        let line = Line::parse(text);
        passed_over += usize::from(line.is_none());
        if let Some(line) = line.or_else(|| behind_a_torn_one(text)) {
            found(line);
        }
    }
}

/// A line that was written behind one that had no end.
fn behind_a_torn_one(text: &[u8]) -> Option<Line> {
    let at = text.windows(BEGINNING.len()).rposition(|part| part == BEGINNING)?;
    Line::parse(&text[at..])
}

/// Reads on to the next line.
fn pass_over(reader: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = reader.fill_buf()?;
        let end = buffer.iter().position(|&byte| byte == b'\n');
        let length = end.map_or(buffer.len(), |end| end + 1);
        reader.consume(length);
        if end.is_some() || length == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::line::tests::line;
    use proptest::prelude::*;

    fn read(text: &[u8]) -> (Vec<Line>, usize) {
        let mut found = Vec::new();
        let passed_over = lines(&mut &*text, &|_| true, &mut |line| found.push(line)).unwrap();
        (found, passed_over)
    }

    fn numbered(number: u64) -> Line {
        Line { number, ..line() }
    }

    #[test]
    fn a_torn_line_takes_no_other_with_it() {
        let torn = &line().to_text()[..70];
        let text = [torn, &numbered(1).to_text(), b"\n\n", &numbered(2).to_text(), torn].concat();
        assert_eq!(read(&text), (vec![numbered(1), numbered(2)], 2));
        // One that says of itself that it is one in the middle of another is that other's text.
        let says = Line { command: vec![String::from_utf8(numbered(3).to_text()).unwrap()], ..line() };
        assert_eq!(read(&says.to_text()), (vec![says], 0));
    }

    #[test]
    fn a_line_without_end_is_passed_over_in_pieces() {
        let text = [&vec![b'x'; 3 * LONGEST], &b"\n"[..], &numbered(1).to_text()].concat();
        assert_eq!(read(&text), (vec![numbered(1)], 1));
        assert_eq!(read(&vec![b'x'; 3 * LONGEST]), (vec![], 1));
    }

    #[test]
    fn of_a_large_file_whole_lines_at_the_end_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("1.jsonl");
        let text: Vec<u8> = (0..100).flat_map(|number| numbered(number).to_text()).collect();
        fs::write(&path, &text).unwrap();
        let source = Source { path, uid: rustix::process::geteuid().as_raw() };
        let length = numbered(99).to_text().len() as u64;
        for (most, first) in [(3 * length, 97), (3 * length - 1, 98), (length - 1, 100), (text.len() as u64, 0)] {
            let mut numbers = Vec::new();
            assert_eq!(source.read(Some(most), &mut |line| numbers.push(line.number)).unwrap(), 0);
            assert_eq!(numbers, (first..100).collect::<Vec<_>>(), "{most}");
        }
        // Another user's file is nobody's history, and what is no file is none.
        let none = |source: Source| source.read(None, &mut |_| panic!("a line")).unwrap();
        assert_eq!(none(Source { uid: source.uid + 1, ..source.clone() }), 0);
        assert_eq!(none(Source { path: directory.path().to_owned(), ..source.clone() }), 0);
        let link = directory.path().join("2.jsonl");
        std::os::unix::fs::symlink(&source.path, &link).unwrap();
        assert_eq!(none(Source { path: link, ..source }), 0);
    }

    #[test]
    fn a_user_s_file_has_one_name() {
        let users = ["0.jsonl", "1000.jsonl.1", "01.jsonl", "+1.jsonl", "x.jsonl", "1.json", "4294967296.jsonl"];
        assert_eq!(users.map(user_in), [Some(0), Some(1000), None, None, None, None, None]);
    }

    #[test]
    fn what_is_no_user_s_file_is_foreign() {
        let entries = |names: &[(&str, bool)]| foreign(names.iter().map(|&(name, is_file)| (name.into(), is_file)));
        assert_eq!(entries(&[]), [] as [&str; 0]);
        assert_eq!(entries(&[("0.jsonl", true), ("1000.jsonl", true), ("1000.jsonl.1", true)]), [] as [&str; 0]);
        let theirs = [("syslog", true), ("1.jsonl", false), ("2.jsonl", true), ("01.jsonl", true), (".x", true)];
        assert_eq!(entries(&theirs), [".x", "01.jsonl", "1.jsonl", "syslog"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever others write: what stands between is passed over, and every line of ours is found.
        #[test]
        fn every_line_is_found_among_any_bytes(
            parts in proptest::collection::vec(
                (prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..200),
                    "[{}\":,a-z0-9\\\\]{0,60}".prop_map(String::into_bytes),
                    (0usize..300).prop_map(|cut| line().to_text()[..cut].to_vec()),
                ], any::<bool>()),
                0..12,
            ),
        ) {
            let mut text = Vec::new();
            for (number, (garbage, ends)) in (0..).zip(&parts) {
                text.extend(garbage.iter().filter(|&&byte| byte != b'\n'));
                if *ends {
                    text.push(b'\n');
                }
                text.extend(numbered(number).to_text());
            }
            let numbers: Vec<u64> = read(&text).0.iter().map(|line| line.number).collect();
            prop_assert_eq!(numbers, (0..parts.len() as u64).collect::<Vec<_>>());
        }
    }
}
