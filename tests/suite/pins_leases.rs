//! Cores of their own for shared jobs.
