//! Whether the lock is there again after a boot: tmpfiles.d(5).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::lock::queue_directory;

/// Where files for systemd-tmpfiles(8) are, the first before the later: one hides those of its name in the others.
const DIRECTORIES: [&str; 4] = ["etc/tmpfiles.d", "run/tmpfiles.d", "usr/local/lib/tmpfiles.d", "usr/lib/tmpfiles.d"];

/// Whether some file below `root` has the lock file and its queue made at each boot. `None` where nothing makes files then.
pub(super) fn makes(root: &Path, lock: &Path) -> Option<bool> {
    if !DIRECTORIES.iter().any(|directory| root.join(directory).is_dir()) {
        return None;
    }
    let mut files = BTreeMap::new();
    for entry in DIRECTORIES.iter().flat_map(|directory| fs::read_dir(root.join(directory)).into_iter().flatten()) {
        let Ok(entry) = entry else { continue };
        let name = entry.file_name();
        if name.as_encoded_bytes().ends_with(b".conf") {
            files.entry(name).or_insert_with(|| entry.path());
        }
    }
    let texts: Vec<String> = files.values().filter_map(|path| fs::read_to_string(path).ok()).collect();
    let any = |kinds: &str, path: &Path| texts.iter().any(|text| has_line(text, kinds, path));
    Some(any("fF", lock) && any("dD", &queue_directory(lock)))
}

/// Whether a line is of one of these kinds, with whatever modifier, and for this path.
fn has_line(text: &str, kinds: &str, path: &Path) -> bool {
    text.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (kind, named) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        kind.starts_with(|letter| kinds.contains(letter)) && Path::new(named.trim_matches('"')) == path
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::tree;

    const BOTH: &str = "# perflock\nf /run/perflock 0666 root root -\nd! /run/perflock.d 1777 root root -\n";

    #[test]
    fn what_is_made_at_boot_is_found_and_what_is_hidden_is_not() {
        let lock = Path::new("/run/perflock");
        let answer = |files: &[(&str, &str)]| makes(tree(files).path(), lock);
        let makes = |files: &[(&str, &str)]| answer(files).unwrap();
        assert!(makes(&[("etc/tmpfiles.d/perflock.conf", BOTH)]));
        assert!(makes(&[("usr/lib/tmpfiles.d/lab.conf", BOTH), ("etc/tmpfiles.d/a.conf", "")]));
        assert!(!makes(&[("usr/lib/tmpfiles.d/lab.conf", BOTH), ("etc/tmpfiles.d/lab.conf", "")]));
        assert!(!makes(&[("etc/tmpfiles.d/perflock", BOTH)]));
        assert!(!makes(&[("etc/tmpfiles.d/p.conf", "f /run/perflock\n")]), "no queue");
        assert!(!makes(&[("etc/tmpfiles.d/p.conf", "#f /run/perflock\nr /run/perflock\nd /run/perflock.d\n")]));
        assert_eq!(answer(&[]), None);
    }
}
