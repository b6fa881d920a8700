//! What other users' tickets say of cores and cpusets.
