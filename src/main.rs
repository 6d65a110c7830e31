//! The program `migrate`.

use migrate_engine::cli;

fn main() -> std::process::ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    cli::companions::begin(&arguments).unwrap_or_else(|| cli::run(arguments)).into()
}
