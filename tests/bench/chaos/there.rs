//! One of the destinations: a host, its agent, and the link to it.

use crate::host::{Host, Inside, parent, state};
use crate::link::Link;
use crate::net::{Networks, Place};
use crate::stage::{appended, program, wait};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug)]
pub struct There {
    pub host: Host,
    pub agent: Inside,
    pub link: Link,
    /// Of the link, at the source.
    pub address: String,
    /// For whoever is on the same network.
    pub by_network: String,
    socket: PathBuf,
    environment: Vec<(&'static str, String)>,
    /// Mounts of the host before anything has happened.
    mounts: usize,
}

impl There {
    /// The destination of this number comes up, and so many bytes a second go to it at most.
    pub fn up(
        number: u8,
        networks: &Arc<Networks>,
        (dir, disk): (&Path, &Path),
        rate: Option<u32>,
        environment: Vec<(&'static str, String)>,
    ) -> io::Result<Self> {
        let name = char::from(b'b' + number).to_string();
        let host = Host::up(&name, Place::Destination(number), networks, dir, disk)?;
        let (socket, at) = (dir.join(format!("agent-{name}.sock")), dir.join(format!("link-{name}.sock")));
        let by_network = format!("tcp+plain://{}:7413", Networks::address(Place::Destination(number)));
        let agent = agent(&host, (&socket, &by_network), &environment)?;
        let link = Link::lay(&at, &socket, rate)?;
        let mounts = host.mounts();
        let address = format!("unix:{}", at.display());
        Ok(Self { host, agent, link, address, by_network, socket, environment, mounts })
    }

    /// Processes of sessions: children of the agent, or of the one that a session has started which passes things on. What they have made
    /// of the target has their command line, too.
    pub fn sessions(&self) -> Vec<i32> {
        let of_agent = |pid: &i32| {
            let agent = |parent: i32| {
                parent == self.agent.pid
                    || std::fs::read(format!("/proc/{parent}/cmdline"))
                        .is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| word == b"--stdio"))
            };
            parent(*pid).is_some_and(agent)
        };
        self.host.processes("session-process").into_iter().filter(of_agent).collect()
    }

    /// What has come to the step it was told to stop at.
    pub fn stopped(&self) -> Option<i32> {
        self.sessions().into_iter().find(|pid| state(*pid) == Some('T'))
    }

    /// Power is lost; it comes up again after this time, with an agent.
    pub fn lose_power(&mut self, down: Duration) -> io::Result<()> {
        self.host.lose_power(down, &self.agent)?;
        self.agent = agent(&self.host, (&self.socket, &self.by_network), &self.environment)?;
        self.mounts = self.host.mounts();
        Ok(())
    }

    /// What it has said on its standard error.
    pub fn errors(&self) -> PathBuf {
        self.socket.with_extension("err")
    }

    /// What a destination must not keep that does not have the target: page stores, processes of sessions, mounts.
    pub fn keeps(&self) -> Vec<String> {
        let attempts = self.host.attempts();
        let stores = std::fs::read_dir("/dev/shm").into_iter().flatten().flatten();
        let stores = stores.filter_map(|entry| entry.file_name().into_string().ok());
        let theirs = |name: &String| {
            name.starts_with("migrate-incoming-") && attempts.iter().any(|attempt| name.contains(attempt.as_str()))
        };
        let mut kept: Vec<String> = stores.filter(theirs).collect();
        kept.extend(self.sessions().iter().map(|pid| format!("session {pid}")));
        let mounts = self.host.mounts();
        if mounts > self.mounts {
            kept.push(format!("{} mounts", mounts - self.mounts));
        }
        kept
    }
}

fn agent(on: &Host, (socket, by_network): (&Path, &str), environment: &[(&'static str, String)]) -> io::Result<Inside> {
    let mut command = on.command(program());
    command.args(["agent", "--listen", &format!("unix:{}", socket.display())]);
    command.args(["--listen", by_network, "--allow-plain"]);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.stderr(appended(&socket.with_extension("err"))?).stdout(Stdio::null());
    if std::env::var_os("CHAOS_LOG").is_some() {
        command.arg("-vv");
    }
    let before = socket.metadata().ok().map(|meta| std::os::unix::fs::MetadataExt::ino(&meta));
    let agent = on.start(command)?;
    let is_new = || {
        let now = socket.metadata().ok().map(|meta| std::os::unix::fs::MetadataExt::ino(&meta));
        now.is_some() && now != before
    };
    match wait(is_new, Duration::from_secs(10)) {
        true => Ok(agent),
        false => Err(io::Error::other("the agent does not begin")),
    }
}
