//! Tests of the binary as a process, as users run it.

mod cli;
mod examples;
mod import;
mod life;
pub(crate) mod program;
mod readme;
mod rolling;
mod secrecy;
mod start;
mod strangers;
mod traces;
