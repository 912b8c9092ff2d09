//! The command line's commands. Each has its `Args` and a `run` that writes to what it is given and answers with the
//! exit status.

pub mod check;
pub mod init;
