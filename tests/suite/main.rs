//! Whole programs on real cgroups: what they print, how they exit, and what they leave behind.
//!
//! Every test works in a [`harness::World`] of its own: a lock of its own, and a cgroup of its own below which every
//! job group is made and every process must have ended. Nothing outside is touched.

mod bad_input;
mod cancel;
mod check;
mod completions;
mod config;
mod containers;
#[cfg(feature = "crash-points")]
mod crash_points;
mod diff;
mod escapes;
mod fallback;
mod guard;
mod harness;
mod history;
mod hostile;
mod hostile_jobs;
mod in_a_session;
mod inherit;
mod junk;
mod leaving;
mod liars;
mod limits;
mod load;
mod manuals;
mod namespaces;
mod neighbours;
mod nested;
mod old_kernels;
mod order;
mod orphans;
mod outsiders;
mod pins;
mod pins_hostile;
mod pins_leases;
mod programs;
mod queue;
mod quiet;
mod readme;
mod regressions;
mod release;
mod report;
mod report_any;
mod report_review;
mod resources;
mod scope;
mod scope_bus;
mod scope_death;
mod setup;
mod setup_machine;
mod signals;
mod smoke;
mod terminal;
mod terminal_matrix;
mod terminal_stops;
mod users;
mod v1_only;
mod vm_results;
mod watch;
mod wholock;
