//! The binary: parse, call, exit code. Everything else is in the library.
use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(virt_v2v_wrapper::cli::run(std::env::args_os()))
}
