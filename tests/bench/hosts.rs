//! Hosts on one machine, for tests and benches: network, PID and mount namespaces, joined by veth pairs.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Port that agents listen at.
const PORT: u16 = 7413;

/// Process 1 of a host: bash, which waits for whoever is left to it, so that their ids are free again.
const INIT: &str = "ip link set lo up && echo ready && read -r _";

/// A child that ends with this value. One that has entered a host waits there for a child of its own, which is what is killed: if its
/// parent went first, whoever adopts orphans here would have to wait for it, and until then the host could not end.
#[derive(Debug)]
pub struct Ours(pub Child);

impl Drop for Ours {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(Some(_))) {
            return;
        }
        let inside = child_of(self.0.id());
        let sent = inside.map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
        if !matches!(sent, Some(Ok(()))) {
            let _ = self.0.kill();
        }
        // It stops as its child does.
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGCONT);
        let _ = self.0.wait();
    }
}

/// The first child of a process.
pub fn child_of(pid: u32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// A host. Whoever runs there ends with this value: with its process 1.
#[derive(Debug)]
pub struct Host {
    _holder: Ours,
    /// Its process 1, as we see it.
    pub init: i32,
    /// Where its keys, journals and trackers are.
    places: PathBuf,
    pub address: &'static str,
}

impl Host {
    fn up(places: PathBuf, address: &'static str) -> Result<Self, String> {
        std::fs::create_dir_all(&places).map_err(|e| format!("{}: {e}", places.display()))?;
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", INIT]);
        // It complains when its child is killed: that is how a host ends.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).current_dir("/");
        let mut holder = Ours(command.spawn().map_err(|e| format!("unshare: {e}"))?);
        let out = holder.0.stdout.as_mut().ok_or("it is piped")?;
        if out.read_exact(&mut [0; 6]).is_err() {
            let mut said = String::new();
            let _ = holder.0.stderr.take().map(|mut stderr| stderr.read_to_string(&mut said));
            return Err(format!("no namespaces: {said}"));
        }
        let init = child_of(holder.0.id()).ok_or("a host without a process")?;
        Ok(Self { _holder: holder, init, places, address })
    }

    /// A command that runs there.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--net", "--mount", "--pid", "--"]).arg(program);
        command.stdin(Stdio::null()).current_dir("/").env("MIGRATE_PLACES", &self.places);
        command
    }

    /// Starts a program whose parent is process 1, as it will be wherever it comes to, and whose ids are far from those of agents and
    /// commands; its process id there.
    pub fn start<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Result<i64, String> {
        // What our caller has left open would end outside of it.
        const SCRIPT: &str = "for open in /proc/$$/fd/*; do
                fd=${open##*/}; [ $fd -le 2 ] || [ $fd = 255 ] || eval \"exec $fd>&-\"
            done
            echo 20000 >/proc/sys/kernel/ns_last_pid; setsid \"$@\" </dev/null >/dev/null 2>&1 & echo $!";
        let mut target = self.command("bash");
        let output = target.args(["-c", SCRIPT, "bash"]).args(words).output().map_err(|e| e.to_string())?;
        String::from_utf8_lossy(&output.stdout).trim().parse().map_err(|e| format!("{output:?}: {e}"))
    }

    /// Runs a command that must succeed.
    pub fn run(&self, words: &str) -> Result<(), String> {
        let mut words = words.split(' ');
        let mut command = self.command(words.next().unwrap_or_default());
        let output = command.args(words).output().map_err(|e| e.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {said}")) }
    }

    /// Starts an agent there; where it listens, in the words that `migrate move` takes beside `--allow-plain`.
    pub fn agent(&self, program: &Path) -> Result<(Ours, String), String> {
        let mut agent = self.command(program);
        let listen = format!("tcp+plain://{}:{PORT}", self.address);
        agent.args(["agent", "--listen", &listen, "--allow-plain"]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut agent = Ours(agent.spawn().map_err(|e| e.to_string())?);
        let mut said = BufReader::new(agent.0.stderr.take().ok_or("it is piped")?);
        let mut all = String::new();
        while !all.lines().any(|line| line.starts_with("listening on ")) {
            if said.read_line(&mut all).map_err(|e| e.to_string())? == 0 {
                return Err(format!("the agent does not listen: {all}"));
            }
        }
        // Whatever it says later must not end it.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Ok((agent, listen))
    }
}

/// Their addresses, in order: 0 is none.
const ADDRESSES: [&str; 11] = [
    "192.0.2.0",
    "192.0.2.1",
    "192.0.2.2",
    "192.0.2.3",
    "192.0.2.4",
    "192.0.2.5",
    "192.0.2.6",
    "192.0.2.7",
    "192.0.2.8",
    "192.0.2.9",
    "192.0.2.10",
];

/// The device of the last of [`star`]'s hosts behind which another one is.
pub fn wire(host: usize) -> String {
    format!("wire-{}", name(host))
}

/// `a` is the first.
fn name(host: usize) -> char {
    (b'a'..=b'z').nth(host).map_or('?', char::from)
}

/// So many hosts, ten at most; the last one is between the others, which is also where clients are: each with places of its own below
/// `dir`, an address of its own, and a device `eth0`.
pub fn star<const N: usize>(dir: &Path) -> Result<[Host; N], String> {
    let hosts = (0..N).map(|n| Host::up(dir.join(name(n).to_string()), ADDRESSES[n + 1]));
    let hosts = hosts.collect::<Result<Vec<_>, _>>()?;
    let (middle, others) = hosts.split_last().ok_or("no hosts")?;
    middle.run("ip link add eth0 type bridge forward_delay 0")?;
    for (n, host) in others.iter().enumerate() {
        let wire = wire(n);
        // None sees the others' processes, so that a wire is laid by whoever sees all.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", middle.init));
        command.args(["ip", "link", "add", "name", &wire, "type", "veth", "peer", "name", "eth0", "netns"]);
        let output = command.arg(host.init.to_string()).output().map_err(|e| e.to_string())?;
        if !output.status.success() {
            return Err(format!("no wire: {}", String::from_utf8_lossy(&output.stderr)));
        }
        middle.run(&format!("ip link set dev {wire} master eth0 up"))?;
    }
    for host in &hosts {
        host.run(&format!("ip address add {}/24 dev eth0", host.address))?;
        host.run("ip link set eth0 up")?;
    }
    hosts.try_into().map_err(|_| "there are as many as were made".to_owned())
}
