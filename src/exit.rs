//! Exit codes, as in timeout(1), and leaving by them.

use crate::supervisor::signals;

/// The time limit ended the command.
pub const TIMED_OUT: u8 = 124;
/// perflock itself failed, or was used wrongly.
pub const OURS: u8 = 125;
/// The command was found but could not be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The command was not found.
pub const NOT_FOUND: u8 = 127;
/// The lock was not obtained (`--nonblock`, `--wait`): EX_TEMPFAIL of sysexits(3).
pub const NOT_OBTAINED: u8 = 75;

/// The machine was not quiet (`--require-quiet`), or nobody knows.
pub const NOT_QUIET: u8 = 76;

/// How perflock ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By an exit code.
    Code(u8),
    /// By the signal that ended the command, or that ended our wait.
    Signal(i32),
}

impl Ending {
    /// Ends this process.
    pub fn leave(self) -> ! {
        match self {
            Self::Code(code) => std::process::exit(code.into()),
            Self::Signal(signal) => {
                signals::die_of(signal);
                // As PID 1 of a pid namespace, which no default action ends.
                std::process::exit(128 + signal)
            }
        }
    }
}
