//! `criu`: CRIU's command line on top of migrate's engine. Images are native ones, in a directory of their own inside the
//! images directory, beside the log.

mod actions;
mod getopt;
mod options;

use std::process::ExitCode;

const HELP: &str = "\
Usage: criu dump|pre-dump -t PID [options]
       criu restore [options]
       criu check [--feature NAME]

  -t, --tree PID           -D, --images-dir DIR     -W, --work-dir DIR
  -o, --log-file FILE      -v[N], --verbosity[=N]   --pidfile FILE
  -R, --leave-running      -s, --leave-stopped      -d, --restore-detached
  -S, --restore-sibling    -j, --shell-job          --tcp-established
  --tcp-close              -l, --file-locks         --link-remap
  -x, --ext-unix-sk        --track-mem              --prev-images-dir DIR
  --pre-dump-mode MODE     --timeout SECONDS        --no-default-config
  --feature NAME           -V, --version            -h, --help
";

fn main() -> ExitCode {
    // Without it some things take longer.
    let _ = migrate_engine::sys::fd::make_room();
    migrate_engine::trace::sleepers::keep_in(migrate_engine::ops::places::Places::here().run);
    let settings = match options::Settings::of(std::env::args().skip(1)) {
        Ok(settings) => settings,
        Err(wrong) => {
            eprintln!("criu: {wrong}\nTry 'criu --help'.");
            return ExitCode::from(1);
        }
    };
    if settings.version {
        // The version whose interface this is, as callers compare it, then ours.
        println!("Version: 4.2\nEngine: migrate {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    if settings.help || settings.action.is_empty() {
        print!("{HELP}");
        return ExitCode::from(u8::from(!settings.help));
    }
    ExitCode::from(actions::run(&settings))
}
