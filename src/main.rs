//! The program `keyvouch`.

use std::process::ExitCode;

fn main() -> ExitCode {
    keyvouch::main()
}
