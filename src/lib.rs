//! perflock: run a job with the machine to itself.
//!
//! The binaries `perflock`, `pls` and `wholock` are one statement each; this library is the program.
//!
//! # Theory of operation
//!
//! Five promises, each with its limits, are what the code keeps:
//! 1. **Alone means alone.** While an exclusive job has a living member, no other job has one.
//! 2. **Nothing survives release.** Every member of the job's group is dead before the lock is free, also when perflock
//!    itself was killed. (Leaving the group takes a deliberate write by root, or by the group's owner.)
//! 3. **Fair.** First come, first served. A waiting exclusive job is never overtaken by a later shared one.
//! 4. **Silent.** A waiting or supervising perflock causes no wakeups and takes no kernel-wide lock, but for one look at what
//!    others use, 10 ms after a job's start and under locks that are taken to read ([`verdict`]).
//! 5. **Honest.** What was used and what was killed is said; what could not be known is said to be unknown.
//!
//! One invocation is a straight line of values, each made once and handed on:
//!
//! ```text
//! cli → settings → supervisor::command, pin::Plan, cgroup::detect → lock::Place → lock::Hold → cgroup::JobGroup
//!     → supervisor (guard, spawn, watch) → Outcome → release → report, exit
//! ```
//!
//! [`run`] is the only module that sees lock and supervisor together. `lock`, `cgroup` and the supervisor's policy do
//! not know each other; [`wholock`] reads through `lock` and `cgroup` and changes nothing. [`check`] asks the same functions
//! as a run does what works here, and makes nothing that stays.
//!
//! # Order, and what it protects
//!
//! *Start*: decide → take the lock file → with it held, end or wait for orphans → name the group in the ticket → make
//! the group → fork the guard → the command is born in the group. Taking the lock before looking at orphans shuts
//! plain flock(1) users out again; naming the group before it exists means that no crash leaves an invisible one.
//! In a systemd scope, whose path systemd chooses: the launcher is forked → systemd makes the scope around it → the group
//! is made in it and named in the ticket → the launcher makes guard and command, and ends → controllers are enabled →
//! the command is let in. Until the guard is there the launcher dies with the supervisor, and the scope with it.
//!
//! *Pinned jobs* ([`pin`]): whatever can never be had fails before the queue is joined. A shared job that asks for cores of its
//! own gets them, in its ticket, before it asks for the lock file: plain flock(1) is not shut out for want of cores. Its
//! group in the v1 cpuset hierarchy is named in the ticket before it is made, like the job's group, and the command joins it
//! between birth and exec; in a scope, the cpuset is checked while the command stands at the gate.
//!
//! *Limited jobs* ([`limit`]) are so by their own group in v2, before the command executes, or by groups in the v1 hierarchies of
//! memory and pids, which are named, made, joined and removed as a cpuset is. Supervisor and guard are in neither.
//!
//! *Where there is cgroup v1 only* ([`cgroup::legacy`]) the order is that of v2, but nobody is born into a group: the command
//! joins it before it executes, and the guard of a supervisor that was killed waits for that. Both groups, that which tracks the
//! job and that which counts its CPU time, are named in the ticket before they are made.
//!
//! *Release*: main process reaped and group `populated 0` → guard told to end → usage read → group removed → `LOCK_UN`
//! → ticket unlinked while it is still locked → guard reaped → escapes looked for ([`escape`]) → printing. In a scope the guard is told after the group is
//! removed: systemd tidies up when the last process is gone (so a guard that systemd stops stays a moment too). The unlock
//! is explicit, since a descriptor that the guard shares keeps the lock. While a ticket is live nothing is printed that would
//! have to wait for its reader: a slow terminal never holds the machine, nor the queue.
//!
//! *Crashes*: supervisor dead → the guard kills the group, waits until it is empty, removes it, frees the lock, and
//! removes the ticket. Guard dead → the supervisor forks another. Both dead → the kernel frees the lock, the dead
//! ticket still names the group, and whoever gets the lock next deals with it before starting ([`orphan`]).
//!
//! *The report* (`--report`) is gathered on the way by `run::account`, which the guard shares: if the supervisor was killed,
//! the guard writes the file, after it has given the machine back. What has to be looked up is looked up then too, so that a
//! report never lengthens the hold; only the group's counters must be read before the group is removed. [`diff`] reads what it left.
//!
//! *The verdict* ([`verdict`]): what others use is looked at when the command has run for 10 ms, before the supervisor sleeps until
//! something happens, and when the group is empty, before it is removed. Who it was is looked up when the machine was given back.
//!
//! *The history* ([`history`]) is a line for every job that ran, in a file of its user's own, written when the machine was given back
//! and before anything is printed; by the guard, if the supervisor was killed. Nothing is looked up for it.
//!
//! Each of these steps has a name in [`step`]. A model made of them (`tests/model`) goes through every interleaving of a few
//! jobs that are killed, cancelled and stopped; tests crash the program itself at each of them; and a soak
//! (`cargo xtask soak`) runs thousands of jobs of several users, killed and stopped at random, and proves from their log that
//! none met another that it should not.
//!
//! # What is known not to hold
//!
//! - A report names the jobs that shared the machine at the start and at the end; who came and went in between it cannot know.
//!   If perflock is killed after the machine was given back, before it has looked all that
//!   up, the file stays empty: the guard has gone by then.
//! - A job whose supervisor is killed after the machine was given back, before it has written its line, is in no history.
//! - Processes that left the job's group are found by the job's marker in their environment, or by a parent that has it
//!   ([`escape`]): one that runs as another user, or emptied its environment and lost its parent, is not, unless its group is
//!   new. What a service that was there before runs for a job in its own group, and what ended before the job, is not seen; nor
//!   is anything if perflock was killed.
//! - Among processes that want every processor all the time, a fork bomb's, the supervisor comes late to whatever it does. At a
//!   time limit the guard kills in its place ([`supervisor::guard`]), and then not all that were killed are counted. After the
//!   command's end only the supervisor ends what it left, late. Where the scheduler has neither autogroups nor a cpu controller
//!   between guard and job (sched(7)), the guard is late as well.
//! - Jobs that ask for nothing may run on cores that others have to themselves: only `--isolated` keeps them off. Jobs inside
//!   one job have no tickets, and so no cores of their own among each other.
//! - That a soft pin was left is seen of the main process alone, when it ends. What its children did, nobody sees.
//! - A limit of memory is blamed for what the kernel killed where the job had come to it; if the machine ran out at the same time,
//!   it may have been that. What a job's own sub-groups in v1 counted is not in its counters.
//! - Who is first in the line for cores looks once a second where another user's orphan has some too, or more than 256 jobs do:
//!   not all of their ends can be slept on. Cores of an orphan whose members only its owner sees are given away, with a warning.
//! - Between the death of both supervisor and guard and the next perflock, a plain flock(1) user gets the lock file
//!   while the orphan lives.
//! - In the fallback without a group ([`cgroup::subreaper`]) a process that empties its environment and whose
//!   supervisor is killed is lost. There, and only when the supervisor was killed, a line of processes that fork and end within
//!   microseconds may not be caught for long; the machine is held meanwhile.
//! - A process that waits in the kernel where no signal ends that, or that is frozen by a v1 freezer together with others, holds
//!   the machine until it goes on. The supervisor names it; the guard, which has nobody to tell, does not.
//! - Before Linux 5.14 members are killed by signals ([`cgroup::freeze`]): what runs as another user than a plain user's perflock
//!   is not killed by it, and holds the machine until it ends. Before 5.7, and where clone3(2) is refused, a command that joins its
//!   group takes the kernel-wide lock of the fourth promise, once ([`kernel`]).
//! - What the job made in a v1 freezer hierarchy stays there: it is outside of its group, unless it is tracked there.
//! - Where there is v1 only, a member of a pid namespace that is not below ours is not listed, so it is neither waited for nor
//!   killed; and a job that makes groups within each other until their path is too long for the kernel (4096 bytes) holds the
//!   machine until somebody removes them. If systemd begins to count for a job's unit while the job runs, it moves the
//!   processes to that unit's cpuacct group, and what they use from then on is missing.
//! - systemd may stop a scope at any time: at the end of a user's last session, by the user's or root's word. The guard
//!   then ends the job; what the job moved out of the scope before lives on.
//! - A guard that was killed in a scope is replaced from where the supervisor is, and moved in by systemd. If that fails, it
//!   guards from the session, and ends with it.
//! - A signal whose sender is a member of the job that was reaped before we looked is taken for one from outside, and
//!   forwarded: the command may get it twice.
//! - A command that stops without its process group is followed only where it is in front: behind, the shell takes it for one
//!   that runs.
//! - A waiter stopped by SIGSTOP, which no program can catch, keeps its place and holds up those behind it; ^Z does not.

pub mod cgroup;
pub mod check;
pub mod child;
pub mod cli;
pub mod clock;
pub mod config;
pub mod diff;
pub mod error;
pub mod escape;
pub mod exit;
mod fork;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
mod helper;
pub mod history;
pub mod job;
pub mod kernel;
pub mod limit;
pub mod lock;
pub mod machine;
mod mask;
pub mod nested;
pub mod orphan;
mod pages;
pub mod pin;
pub mod poll;
pub mod procfs;
pub mod report;
pub mod run;
pub mod say;
pub mod settings;
pub mod setup;
pub mod step;
pub mod supervisor;
pub mod text;
pub mod ticks;
pub mod user;
pub mod verdict;
pub mod wholock;
