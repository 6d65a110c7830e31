//! The actions, each as the engine's use case with CRIU's habits around it.

use crate::options::Settings;
use migrate_engine::failure::Failure;
use migrate_engine::image::Pid;
use migrate_engine::kernel::Probe;
use migrate_engine::ops::options::{
    AfterDump, CheckOptions, DumpOptions, ExternalUnix, ImagePlace, Pids, PreDumpOptions, RestoreOptions, StateOptions,
    Stdio, Tcp,
};
use migrate_engine::ops::words::Target;
use migrate_engine::ops::{self, Event, Events};
use migrate_engine::transport::Abort;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

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
    log.line("Dumping finished successfully");
    Ok(0)
}

fn pre_dump(settings: &Settings, log: &Log) -> Result<u8, Failure> {
    let mut options = PreDumpOptions::new(target(settings)?, settings.images.join(IMAGE));
    options.parent = parent(settings);
    ops::pre_dump::run(&options, log)?;
    log.line("Pre-dumping finished successfully");
    Ok(0)
}

fn restore(settings: &Settings, log: &Log) -> Result<u8, Failure> {
    let mut options = RestoreOptions::new(ImagePlace::Dir(settings.images.join(IMAGE)));
    options.detach = settings.detached;
    options.leave_stopped = settings.leave_stopped;
    options.sibling = settings.sibling;
    options.state = state(settings);
    if let Some(file) = &settings.pidfile {
        let path = settings.in_work_dir(file);
        // Made before anything runs: an old one would be taken for ours.
        File::create_new(&path).map_err(|e| Failure::of(format!("cannot make {}", path.display()), &e))?;
        options.pidfile = Some(path);
    }
    let mut running = ops::restore::run(&options, log)?;
    log.line("Restore finished successfully. Tasks resumed.");
    Ok(if settings.detached { 0 } else { running.wait() })
}

/// Features by CRIU's names, with what of ours answers for them.
const FEATURES: &[(&str, &[Probe])] = &[
    ("mem_dirty_track", &[Probe::PagemapScan]),
    ("pagemap_scan", &[Probe::PagemapScan]),
    ("timens", &[Probe::TimeNamespace]),
    ("clone3_set_tid", &[Probe::SetTid]),
];

fn check(settings: &Settings, log: &Log) -> u8 {
    if let Some(feature) = &settings.feature {
        if feature == "list" {
            let names: Vec<&str> = FEATURES.iter().map(|f| f.0).collect();
            println!("{}", names.join(" "));
            return 0;
        }
        let known = FEATURES.iter().find(|f| f.0 == feature);
        return u8::from(!known.is_some_and(|(_, probes)| probes.iter().all(|p| p.works())));
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

/// The log: a file, which exists afterwards also on failure, or standard error.
struct Log {
    file: Option<Mutex<File>>,
    verbosity: u8,
}

impl Log {
    fn open(settings: &Settings) -> std::io::Result<Self> {
        let file = match settings.log.as_deref() {
            None => None,
            Some(name) if name == Path::new("-") => None,
            Some(name) => Some(Mutex::new(File::create(settings.in_work_dir(name))?)),
        };
        Ok(Self { file, verbosity: settings.verbosity })
    }

    fn line(&self, text: &str) {
        if let Some(file) = &self.file {
            // A full disk under the log is no reason to end the work.
            let _ = writeln!(file.lock().unwrap_or_else(std::sync::PoisonError::into_inner), "{text}");
        } else if self.verbosity > 2 {
            eprintln!("{text}");
        }
    }

    fn failure(&self, action: &str, failure: &Failure) {
        let mut text = format!("Error: {action}: {}", failure.what);
        for cause in &failure.causes {
            text += &format!(": {cause}");
        }
        for blocker in &failure.blockers {
            text += &format!("\nError: {} {}: {} ({})", blocker.code, blocker.object, blocker.reason, blocker.remedy);
        }
        text += &format!("\nError: target: {}", failure.target);
        if self.file.is_some() {
            self.line(&text);
        }
        eprintln!("{text}");
    }
}

impl Events for Log {
    fn event(&self, event: Event) {
        match event {
            Event::Warning(text) => self.line(&format!("Warn: {text}")),
            Event::Frozen => self.line("Tasks are stopped"),
            Event::Round { number, pages, .. } => self.line(&format!("Round {number}: {pages} pages")),
            _ => {}
        }
    }
}
