//! The program `migrate`.

use migrate_engine::agent::session;

fn main() -> std::process::ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    // A session process of the agent: not a verb, so it is taken before the command line is parsed.
    if let [_, entry, argument] = args.as_slice()
        && entry == session::ENTRY
    {
        return session::main(argument).into();
    }
    migrate_engine::cli::run(args).into()
}
