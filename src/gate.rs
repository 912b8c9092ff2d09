//! The request flow without HTTP: admit a request, then finish it.

pub mod route;
