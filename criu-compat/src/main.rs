//! `criu`: CRIU's command line on top of migrate's engine. Images are native ones, in a directory of their own inside the
//! images directory, beside the log.

mod actions;
mod config;
mod features;
mod getopt;
mod log;
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
  --pre-dump-mode MODE     --timeout SECONDS        --config FILE
  --no-default-config      --feature NAME           --extra, --all
  -V, --version            -h, --help
";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    if let Some(code) = migrate_engine::cli::companions::begin(&arguments) {
        return code.into();
    }
    let words: Result<Vec<String>, _> = arguments.into_iter().skip(1).map(std::ffi::OsString::into_string).collect();
    let settings = words
        .map_err(|word| format!("{} is not UTF-8", word.display()))
        .and_then(|words| options::Settings::of(words, &config::Places::of_this_process()));
    let settings = match settings {
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
