//! The program `migrate`.

fn main() -> std::process::ExitCode {
    migrate_engine::cli::run(std::env::args_os().collect()).into()
}
