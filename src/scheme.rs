//! The schemes' pure checks and digests, one file per scheme and network family.
//!
//! Level 1: no async, no file, no socket, no wall clock, no randomness.

pub mod svm;
