//! The audit record: what is answered is on the disk, whatever happens; every change to it is found.

mod disk;
mod log;
