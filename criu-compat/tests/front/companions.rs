//! Companions of `criu`: a tracker between a pre-dump and the next dump, a guard of connections; both from the program that
//! runs, also when its file was replaced meanwhile.

use crate::stage::{CRIU, Stage, end, until};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

#[test]
fn a_chain_of_dumps_is_tracked() {
    let Some(mut stage) = Stage::new() else { return };
    let pid = stage.counter();
    let target = pid.to_string();
    let (first, second, last) = (stage.images("1"), stage.images("2"), stage.images("3"));
    stage.criu(&["pre-dump", "--track-mem", "-t", &target, "-D", &first, "-o", "dump.log", "-v4"]).code(0);
    let trackers = stage.trackers();
    assert_eq!(trackers.len(), 1, "{}", stage.text("1/dump.log"));
    stage.counts();
    let line = ["pre-dump", "--track-mem", "--prev-images-dir", "../1", "-t", &target, "-D", &second, "-o", "dump.log"];
    stage.criu(&[&line[..], &["-v4"]].concat()).code(0);
    let next = stage.trackers();
    assert!(next.len() == 1 && next != trackers, "the first tracker was not taken over: {next:?}");
    let line =
        ["dump", "--track-mem", "--prev-images-dir", "../2", "-t", &target, "-D", &last, "-o", "dump.log", "-v4"];
    stage.criu(&line).code(0);
    assert!(stage.trackers().is_empty());
    stage.gone(pid);
    for log in ["1/dump.log", "2/dump.log", "3/dump.log"] {
        let text = stage.text(log);
        assert!(!text.contains("tracker") && !text.contains("Error"), "{log}: {text}");
    }
    // What has not changed is in the first image alone.
    let size = |dir: &str| -> u64 {
        let files = fs::read_dir(stage.path(dir).join("migrate-image")).unwrap().flatten();
        files.map(|file| file.metadata().unwrap().len()).sum()
    };
    assert!(
        size("1") > 8 << 20 && size("2") < 4 << 20 && size("3") < 4 << 20,
        "{} {} {}",
        size("1"),
        size("2"),
        size("3")
    );
    stage.criu(&["restore", "-d", "-D", &last]).code(0);
    stage.counts();
    end(pid);
}

#[test]
fn a_replaced_program_starts_its_own_version() {
    let Some(mut stage) = Stage::new() else { return };
    let pid = stage.counter();
    let (images, program, config) = (stage.images("images"), stage.path("criu"), stage.path("config"));
    fs::copy(CRIU, &program).unwrap();
    // It waits here for its configuration.
    nix::unistd::mkfifo(&config, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let line =
        ["pre-dump", "-t", &pid.to_string(), "-D", &images, "-o", "dump.log", "--config", config.to_str().unwrap()];
    let mut criu = stage.command(&program, &line).spawn().unwrap();
    let mut config = fs::OpenOptions::new().write(true).open(&config).unwrap();
    let (marker, script) = (stage.path("marker"), stage.path("script"));
    fs::write(&script, format!("#!/bin/sh\ntouch {}\n", marker.display())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&script, &program).unwrap();
    config.write_all(b"track-mem\n").unwrap();
    drop(config);
    assert_eq!(criu.wait().unwrap().code(), Some(0));
    assert_eq!(stage.trackers().len(), 1, "{}", stage.text("images/dump.log"));
    assert!(!marker.exists(), "the new program was started");
    // Of the engine's own program, which it calls by its first argument, too.
    let name = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let tracker = until("the tracker is there", || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().into_string().ok());
        let mut ours = pids.filter(|pid| {
            let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let places = stage.path("places").into_os_string().into_encoded_bytes();
            read("cmdline").ends_with(b"\0tracker-process\0")
                && read("environ").windows(places.len()).any(|part| part == places)
        });
        ours.next()
    });
    assert_eq!(name(&tracker), "migrate\n");
    assert!(!Path::new(&format!("/proc/{tracker}")).join("exe").read_link().unwrap().starts_with("/usr"));
}
