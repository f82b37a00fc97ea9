//! Tests of the program as a process, as users run it.

mod cli;
mod durability;
mod examples;
mod import;
pub(crate) mod program;
mod readme;
mod reflection;
mod rolling;
mod secrecy;
mod startup;
mod traces;
