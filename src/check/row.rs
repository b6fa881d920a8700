//! What was found of one feature.

use serde::Serialize;

/// How a feature is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// All of it is there, or it is not needed here.
    Works,
    /// A part of it, or something less that does in its place.
    Weaker,
    /// Nothing.
    Missing,
    /// It could not be looked at.
    Unknown,
}

impl State {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Works => "works",
            Self::Weaker => "weaker",
            Self::Missing => "missing",
            Self::Unknown => "unknown",
        }
    }
}

/// One feature. Its text may have other people's in it, and is escaped by whoever shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Its name for programs, which stays.
    pub id: String,
    /// Its name.
    pub feature: String,
    /// How it is.
    pub state: State,
    /// perflock promises it to this user: unless it works, the exit code is 1.
    pub promised: bool,
    /// What is there.
    pub detail: String,
    /// What is lost, unless it works.
    pub lost: Option<String>,
    /// The one command that mends it, or what else does, if that is known.
    pub fix: Option<String>,
}

impl Row {
    fn new(id: &str, feature: &str, state: State, detail: impl Into<String>) -> Self {
        let (id, feature) = (id.to_owned(), feature.to_owned());
        Self { id, feature, state, promised: true, detail: detail.into(), lost: None, fix: None }
    }

    /// All of it.
    pub(super) fn works(id: &str, feature: &str, detail: impl Into<String>) -> Self {
        Self::new(id, feature, State::Works, detail)
    }

    /// Some of it.
    pub(super) fn weaker(id: &str, feature: &str, detail: impl Into<String>) -> Self {
        Self::new(id, feature, State::Weaker, detail)
    }

    /// Nothing of it.
    pub(super) fn missing(id: &str, feature: &str, detail: impl Into<String>) -> Self {
        Self::new(id, feature, State::Missing, detail)
    }

    /// Nobody knows.
    pub(super) fn unknown(id: &str, feature: &str, detail: impl Into<String>) -> Self {
        Self::new(id, feature, State::Unknown, detail)
    }

    /// What is lost.
    pub(super) fn lost(mut self, lost: impl Into<String>) -> Self {
        self.lost = Some(lost.into());
        self
    }

    /// What mends it.
    pub(super) fn fix(mut self, fix: impl Into<Option<String>>) -> Self {
        self.fix = fix.into();
        self
    }

    /// It is told, and no more.
    pub(super) fn not_promised(mut self) -> Self {
        self.promised = false;
        self
    }

    /// It makes the exit code 1.
    pub fn fails(&self) -> bool {
        self.promised && self.state != State::Works
    }
}

/// A command as root: with sudo for everybody else.
pub(super) fn as_root(uid: u32, command: &str) -> String {
    if uid == 0 { command.to_owned() } else { format!("sudo {command}") }
}
