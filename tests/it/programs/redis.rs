//! redis-server under load.

use super::stage::{ADDRESS, Program, Stage};
use std::io::Write;

const REDIS: Program = Program {
    name: "redis",
    needs: &[("/usr/bin/redis-server", "redis-server")],
    user: "",
    prepare: |_| Ok(()),
    command,
};

fn command(stage: &Stage) -> Vec<String> {
    let dir = stage.text("");
    let arguments = ["/usr/bin/redis-server", "--bind", ADDRESS, "--port", "7001", "--protected-mode", "no"];
    let more = ["--save", "", "--enable-debug-command", "yes", "--dir", &dir];
    arguments.iter().chain(&more).map(|word| (*word).to_owned()).collect()
}

super::program!(REDIS);

/// The main job: a million keys and a connected client that goes on sending.
#[test]
fn a_million_keys() {
    let Some(mut stage) = ready("a million keys") else { return };
    let report = moves(&mut stage, 1_000_000, "", &[]).unwrap();
    say("a million keys", &report);
}

/// Mutual TLS, and ssh, whose stand-in runs the other end in the other network.
#[test]
fn over_tls_and_ssh() {
    for transport in ["tls", "ssh"] {
        let Some(mut stage) = ready(transport) else { return };
        let report = match transport {
            "tls" => {
                stage.keys().unwrap();
                moves(&mut stage, 20_000, "tcp://10.77.0.2:7402", &["--streams", "3"])
            }
            _ => {
                let rsh = stage.fake_ssh().unwrap();
                let options = ["--rsh", &rsh, "--remote", env!("CARGO_BIN_EXE_migrate")];
                moves(&mut stage, 20_000, "over-there", &options)
            }
        };
        say(transport, &report.unwrap_or_else(|e| panic!("{transport}: {e}")));
    }
}

fn ready(what: &str) -> Option<Stage> {
    let found = std::path::Path::new("/usr/bin/redis-server").exists();
    let root = nix::unistd::geteuid().is_root();
    let stage = if found && root { Stage::make() } else { None };
    if stage.is_none() {
        crate::skip!("{what}: needs root, redis-server and network namespaces");
    }
    stage
}

fn say(what: &str, text: &str) {
    let _ = writeln!(std::io::stderr(), "redis, {what}: {text}");
}

fn moves(stage: &mut Stage, keys: u32, to: &str, options: &[&str]) -> Result<String, String> {
    let root = stage.start("", &command(stage))?;
    stage.fill_redis(keys)?;
    stage.start_client("redis")?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    let to = if to.contains("://") || to.is_empty() { stage.start_agent(to)? } else { to.to_owned() };
    let moved = stage.moved(root, &to, options)?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    let said = stage.client_ends()?;
    let said: serde_json::Value = serde_json::from_str(&said).map_err(|e| format!("{said}: {e}"))?;
    assert_eq!(said["others"].as_u64(), Some(keys.into()), "all of them were there when the client came");
    Ok(format!("{moved}; its client: {said}"))
}
