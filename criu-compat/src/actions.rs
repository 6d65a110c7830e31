//! The actions, each as the engine's use case with CRIU's habits around it.

use crate::features;
use crate::log::Log;
use crate::options::Settings;
use migrate_engine::cli::signals::Watch;
use migrate_engine::failure::{Failure, TargetState};
use migrate_engine::image::Pid;
use migrate_engine::ops;
use migrate_engine::ops::options::{
    AfterDump, CheckOptions, DumpOptions, ExternalUnix, ImagePlace, Pids, PreDumpOptions, RestoreOptions, StateOptions,
    Stdio, Tcp,
};
use migrate_engine::ops::words::Target;
use migrate_engine::trace::freeze;
use migrate_engine::transport::Abort;
use std::fs::File;
use std::path::PathBuf;

/// The image's directory inside the images directory, which holds logs and whatever the caller keeps there.
const IMAGE: &str = "migrate-image";

/// Runs the action; the exit code.
pub fn run(settings: &Settings) -> u8 {
    let log = match Log::open(settings) {
        Ok(log) => log,
        Err(e) => {
            eprintln!("criu: cannot open the log: {e}");
            return 1;
        }
    };
    if let Some(timeout) = settings.timeout {
        freeze::give_up_after(timeout);
    }
    let result = match settings.action.as_str() {
        "dump" => dump(settings, &log),
        "pre-dump" => pre_dump(settings, &log),
        "restore" => restore(settings, &log),
        "check" => return check(settings, &log),
        other => Err(Failure::new(format!("unknown command: {other}"))),
    };
    match result {
        Ok(code) => code,
        Err(failure) => {
            log.failure(&settings.action, &failure);
            1
        }
    }
}

fn state(settings: &Settings) -> StateOptions {
    StateOptions {
        pids: Some(Pids::Same),
        tcp: match (settings.tcp_established, settings.tcp_close) {
            (true, _) => Tcp::Keep,
            (_, true) => Tcp::Close,
            _ => Tcp::Refuse,
        },
        external_unix: Some(if settings.ext_unix { ExternalUnix::Reconnect } else { ExternalUnix::Refuse }),
        stdio: if settings.shell_job { Stdio::Attach } else { Stdio::Refuse },
        ..StateOptions::default()
    }
}

fn target(settings: &Settings) -> Result<Target, Failure> {
    settings.tree.map(|pid| Target::Pid(Pid(pid))).ok_or_else(|| Failure::new("no -t|--tree PID was given"))
}

fn parent(settings: &Settings) -> Option<PathBuf> {
    settings.prev_images.as_ref().map(|prev| settings.images.join(prev).join(IMAGE))
}

fn dump(settings: &Settings, log: &Log) -> Result<u8, Failure> {
    // A signal undoes what was done, and is a failure like others.
    let _watch = Watch::begin()?;
    let mut options = DumpOptions::new(target(settings)?, ImagePlace::Dir(settings.images.join(IMAGE)));
    options.parent = parent(settings);
    options.force = true;
    options.after = match (settings.leave_running, settings.leave_stopped) {
        (true, _) => AfterDump::Run,
        (_, true) => AfterDump::Stop,
        _ => AfterDump::End,
    };
    options.state = state(settings);
    ops::dump::run(&options, log)?;
    log.info("Dumping finished successfully");
    Ok(0)
}

fn pre_dump(settings: &Settings, log: &Log) -> Result<u8, Failure> {
    let _watch = Watch::begin()?;
    let mut options = PreDumpOptions::new(target(settings)?, settings.images.join(IMAGE));
    options.parent = parent(settings);
    ops::pre_dump::run(&options, log)?;
    log.info("Pre-dumping finished successfully");
    Ok(0)
}

fn restore(settings: &Settings, log: &Log) -> Result<u8, Failure> {
    let watch = if settings.detached { Watch::begin()? } else { Watch::begin_foreground()? };
    let mut options = RestoreOptions::new(ImagePlace::Dir(settings.images.join(IMAGE)));
    options.detach = settings.detached;
    options.leave_stopped = settings.leave_stopped;
    options.sibling = settings.sibling;
    options.state = state(settings);
    options.pidfile = settings.pidfile.as_ref().map(|file| settings.in_work_dir(file));
    if let Some(path) = &options.pidfile {
        // Made before anything runs: an old one would be taken for ours.
        File::create_new(path)
            .map_err(|e| Failure::of(format!("cannot make {}", path.display()), &e).target(TargetState::NotStarted))?;
    }
    let mut running = ops::restore::run(&options, log).inspect_err(|_| {
        // Nothing of a restore that failed is in the way of the next.
        let _ = options.pidfile.as_ref().map(std::fs::remove_file);
    })?;
    log.info("Restore finished successfully. Tasks resumed.");
    if settings.detached {
        return Ok(0);
    }
    // What is sent to us from now on is meant for the tree.
    running.outcome.pid.into_iter().for_each(|pid| watch.forward_to(Pid(pid)));
    Ok(running.wait())
}

fn check(settings: &Settings, log: &Log) -> u8 {
    if let Some(feature) = &settings.feature {
        return match features::works(feature) {
            Some(works) => u8::from(!works),
            None => {
                log.failure("check", &Failure::new(format!("Unknown feature {feature}")));
                1
            }
        };
    }
    let cannot = |e: std::io::Error| Failure::of("Cannot look at this host", &e);
    let looked = Abort::new().map_err(cannot).and_then(|abort| ops::check::run(&CheckOptions::default(), &abort));
    match looked {
        Ok(_) => {
            println!("Looks good.");
            0
        }
        Err(failure) => {
            log.failure("check", &failure);
            1
        }
    }
}
