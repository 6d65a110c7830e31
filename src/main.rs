//! The program `migrate`.

use migrate_engine::agent::session;
use migrate_engine::companion::{lock_guard, pager, tracker};
use migrate_engine::migration::postcopy::receiver;
use migrate_engine::ops::guardian;
use migrate_engine::ui;

fn main() -> std::process::ExitCode {
    // Without it some things take longer.
    let _ = migrate_engine::sys::fd::make_room();
    migrate_engine::trace::sleepers::keep_in(migrate_engine::ops::places::Places::here().run);
    let args: Vec<_> = std::env::args_os().collect();
    // A session process of the agent: not a verb, so it is taken before the command line is parsed.
    if let [_, entry, argument] = args.as_slice()
        && entry == session::ENTRY
    {
        return session::main(argument).into();
    }
    if let [_, entry] = args.as_slice()
        && tracker::is_entry(entry)
    {
        return tracker::main().into();
    }
    if let [_, entry, _will] = args.as_slice()
        && lock_guard::is_entry(entry)
    {
        return lock_guard::main().into();
    }
    if let [_, entry] = args.as_slice()
        && guardian::is_entry(entry)
    {
        // Without a file there is nothing that can be told.
        return guardian::main(&|path| drop(ui::log::begin(0, Some(path)))).into();
    }
    if let [_, entry] = args.as_slice()
        && let Some(main) = pager::entry(entry).or_else(|| receiver::entry(entry))
    {
        return main().into();
    }
    migrate_engine::cli::run(args).into()
}
