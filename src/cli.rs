//! The commands, one file each: checked arguments in, a report out. Only `main` prints.

pub mod keygen;
