//! Where a group is: its path in the hierarchy, and in what is mounted of that.

use std::path::{Component, Path, PathBuf};

/// A group in a mounted v2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// Where the hierarchy is mounted.
    pub mount: PathBuf,
    /// The group's path in the mount, without a leading slash.
    pub relative: PathBuf,
    /// The group's path in the hierarchy, as `/proc/PID/cgroup` names it.
    pub path: PathBuf,
}

impl Location {
    /// The group `name` directly below.
    pub fn child(&self, name: &str) -> Self {
        Self { mount: self.mount.clone(), relative: self.relative.join(name), path: self.path.join(name) }
    }

    /// The group above, if it is in the mount.
    pub fn parent(&self) -> Option<Self> {
        let (relative, path) = (self.relative.parent()?.to_owned(), self.path.parent()?.to_owned());
        Some(Self { mount: self.mount.clone(), relative, path })
    }

    /// The path in the hierarchy of what is mounted there: `/`, where it is all of it.
    pub fn mounted(&self) -> &Path {
        self.path.ancestors().nth(self.relative.components().count()).unwrap_or(Path::new("/"))
    }

    /// Where another group is in the same mount, if it is there. Seen from a cgroup namespace, what is outside begins with `/..`.
    pub fn relative_of(&self, path: &Path) -> Option<PathBuf> {
        let relative = path.strip_prefix(self.mounted()).ok()?;
        has_no_detours(relative).then(|| relative.to_owned())
    }

    /// Its path in the mount has no detours, which could lead out of the hierarchy.
    pub fn is_plain(&self) -> bool {
        has_no_detours(&self.relative)
    }

    /// Its directory.
    pub fn directory(&self) -> PathBuf {
        self.mount.join(&self.relative)
    }
}

fn has_no_detours(relative: &Path) -> bool {
    relative.components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The group `a/perflock-1` of a mount.
    fn location(path: &str) -> Location {
        Location { mount: "/nonexistent".into(), relative: "a/perflock-1".into(), path: path.into() }
    }

    #[test]
    fn another_group_is_found_in_the_same_mount() {
        let job = location("/docker/7/a/perflock-1");
        assert_eq!(job.mounted(), Path::new("/docker/7"));
        for (path, relative) in [
            ("/docker/7/b/c", Some("b/c")),
            ("/docker/7", Some("")),
            ("/docker/77/b", None),
            ("/docker/7/../8", None),
            ("/", None),
        ] {
            assert_eq!(job.relative_of(Path::new(path)), relative.map(PathBuf::from), "{path}");
        }
        let whole = location("/a/perflock-1");
        assert_eq!(whole.relative_of(Path::new("/b")), Some("b".into()));
        assert_eq!(whole.relative_of(Path::new("/../b")), None);
    }
}
