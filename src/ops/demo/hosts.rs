//! Hosts and a network made of namespaces, with the tools of util-linux and iproute2.

use crate::failure::{Failure, Result};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Namespaces that live as long as a process sleeps in them.
struct Namespaces {
    holder: Child,
    /// The process to enter them by.
    inside: u32,
    user: bool,
}

impl Namespaces {
    /// Makes them. `flags` as for unshare(1). An ordinary user gets a user namespace around them.
    fn make(flags: &[&str], outer: Option<&Self>) -> Result<Self> {
        let user = outer.is_none() && !nix::unistd::geteuid().is_root();
        let mut command = match outer {
            Some(outer) => outer.enter("unshare"),
            None => Command::new("unshare"),
        };
        command.args(flags).args(user.then_some("--map-root-user"));
        // The shell tells its process id as the outside sees it, then waits until its standard input closes.
        command.args(["--kill-child", "sh", "-c", "echo ready; read -r _"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut holder = command.spawn().map_err(|e| Failure::of("unshare (util-linux) cannot be run", &e))?;
        let mut ready = [0; 6];
        let told = holder.stdout.as_mut().map(|out| out.read_exact(&mut ready));
        if !matches!(told, Some(Ok(()))) {
            let _ = holder.kill();
            let _ = holder.wait();
            return Err(Failure::new("namespaces cannot be made here")
                .hint("run it as root, or allow user namespaces (sysctl kernel.unprivileged_userns_clone)"));
        }
        let inside = innermost(holder.id());
        Ok(Self { holder, inside, user: user || outer.is_some_and(|o| o.user) })
    }

    /// A command that runs inside.
    fn enter(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.inside.to_string(), "--net", "--mount", "--pid", "--uts"]);
        if self.user {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.arg("--").arg(program);
        command
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        // Process 1 of the namespaces takes everybody in them along.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.inside as i32), nix::sys::signal::SIGKILL);
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The last of a chain of only children.
fn innermost(mut pid: u32) -> u32 {
    use crate::{image::Pid, proc::ProcDir};
    let mut buf = Vec::new();
    while let Some(child) = ProcDir::open(Pid(pid as i32))
        .and_then(|d| d.children_of_all_threads(&mut buf))
        .ok()
        .and_then(|children| children.first().copied())
    {
        pid = child.0 as u32;
    }
    pid
}

/// The network: a bridge in namespaces of its own, where the client is.
pub struct Network(Namespaces);

impl Network {
    /// Makes it, with an address for the client.
    pub fn make(client: &str) -> Result<Self> {
        let flags = ["--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc"];
        let network = Self(Namespaces::make(&flags, None)?);
        network.run(&["link", "set", "lo", "up"])?;
        network.run(&["link", "add", "br0", "type", "bridge", "forward_delay", "0"])?;
        network.run(&["address", "add", client, "dev", "br0"])?;
        network.run(&["link", "set", "br0", "up"])?;
        Ok(network)
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        ip(self.0.enter("ip").args(arguments))
    }

    /// A part of the demo that runs here.
    pub fn migrate_part(&self, part: &str) -> Command {
        let mut command = self.0.enter(own());
        command.args(["demo", "--part", part]);
        command
    }
}

/// A host on the network.
pub struct Host {
    namespaces: Namespaces,
    places: PathBuf,
}

impl Host {
    /// Makes it, with one interface `eth0`.
    pub fn make(network: &Network, name: &str, address: &str, dir: &Path) -> Result<Self> {
        let flags = ["--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc"];
        let namespaces = Namespaces::make(&flags, Some(&network.0))?;
        let host = Self { namespaces, places: dir.join(name) };
        std::fs::create_dir(&host.places).map_err(|e| Failure::of("cannot make a host's directory", &e))?;
        let target = inner_pid(&network.0, host.namespaces.inside)?;
        network.run(&["link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", &target])?;
        network.run(&["link", "set", name, "master", "br0", "up"])?;
        host.run("ip", &["link", "set", "lo", "up"])?;
        host.run("ip", &["address", "add", address, "dev", "eth0"])?;
        host.run("ip", &["link", "set", "eth0", "up"])?;
        host.run("hostname", &[name])?;
        Ok(host)
    }

    /// Adds the address that will move.
    pub fn add_address(&self, address: &str) -> Result<()> {
        self.run("ip", &["address", "add", &format!("{address}/24"), "dev", "eth0"])
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        ip(self.namespaces.enter(program).args(arguments))
    }

    /// This program, run on the host, with files of its own.
    pub fn migrate(&self) -> Command {
        let mut command = self.namespaces.enter(own());
        command.env("MIGRATE_PLACES", &self.places);
        command
    }

    /// A part of the demo that runs on the host.
    pub fn migrate_part(&self, part: &str) -> Command {
        let mut command = self.migrate();
        command.args(["demo", "--part", part]).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

/// A process id as the network's PID namespace numbers it.
fn inner_pid(network: &Namespaces, pid: u32) -> Result<String> {
    use crate::{image::Pid, proc::ProcDir};
    let failed = |e: crate::proc::Error| Failure::of("the demo's host has vanished", &e);
    let mut buf = Vec::new();
    let level =
        ProcDir::open(Pid(network.inside as i32)).and_then(|d| d.status(&mut buf)).map_err(failed)?.ns_pid.len();
    let ids = ProcDir::open(Pid(pid as i32)).and_then(|d| d.status(&mut buf)).map_err(failed)?.ns_pid;
    Ok(ids.get(level - 1).copied().unwrap_or(pid as i32).to_string())
}

fn own() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| "migrate".into())
}

fn ip(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|e| Failure::of("nsenter (util-linux) cannot be run", &e))?;
    if output.status.success() {
        return Ok(());
    }
    let mut failure = Failure::new(format!("the demo's network cannot be made: {command:?}"));
    failure.causes.push(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    Err(failure.hint("it needs ip (Debian package iproute2) and hostname"))
}
