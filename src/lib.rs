//! perflock: run a job with the machine to itself.
#![allow(missing_docs)]
pub mod cgroup;
pub mod cli;
pub mod clock;
pub mod config;
pub mod error;
pub mod exit;
pub mod job;
pub mod lock;
pub mod nested;
pub mod orphan;
pub mod poll;
pub mod procfs;
pub mod report;
pub mod run;
pub mod say;
pub mod settings;
pub mod supervisor;
pub mod text;
pub mod user;
pub mod wholock;
