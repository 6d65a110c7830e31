//! Hosts' networks for tests: network namespaces on one bridge.

use migrate_engine::net::nft;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Hosts' networks on one bridge; removed when dropped, with whoever still runs in them.
pub struct Networks {
    bridge: String,
    holders: Vec<Killed>,
}

impl Networks {
    /// Three of them.
    pub fn make() -> Option<Self> {
        Self::of(3)
    }

    /// So many: the first has the address .1 (10.77.0.0/24 and fd77::/64), the second .2, and so on; the first also .100.
    pub fn of(hosts: usize) -> Option<Self> {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        // Names of interfaces have at most 15 characters.
        let tag = format!("{}x{}", std::process::id() % 1_000_000, MADE.fetch_add(1, Ordering::Relaxed) % 100);
        let networks = Self { bridge: format!("mvb{tag}"), holders: hold(hosts)? };
        let bridge = &networks.bridge;
        let port = |n: usize| format!("mv{n}h{tag}");
        let mut script = format!("ip link add {bridge} type bridge forward_delay 0 && ip link set {bridge} up");
        for n in 0..hosts {
            let (port, host, ip) = (port(n), networks.holders[n].0.id(), networks.ip(n));
            script += &format!(
                " && ip link add {port} type veth peer name eth0 netns {host} \
                 && ip link set {port} master {bridge} up && {ip} link set lo up && {ip} link set eth0 up \
                 && {ip} addr add 10.77.0.{0}/24 dev eth0 && {ip} addr add fd77::{0}/64 dev eth0 nodad",
                n + 1
            );
        }
        for address in ["10.77.0.100/24 dev eth0", "fd77::100/64 dev eth0 nodad"] {
            script += &format!(" && {} addr add {address}", networks.ip(0));
        }
        let made =
            Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).status().is_ok_and(|status| status.success());
        if !made {
            crate::skip!("network namespaces on a bridge cannot be made here");
        }
        let ports: Vec<String> = (0..hosts).map(port).collect();
        made.then(|| networks.keep_order(&ports)).flatten()
    }

    /// Everything that goes over the bridge is handled by one processor: with two, one may overtake the other, and a sender take
    /// for lost what was late.
    fn keep_order(self, ports: &[String]) -> Option<Self> {
        let mut script = String::from("set -e; cd /sys/class/net\n");
        for (n, port) in ports.iter().enumerate() {
            let network = self.path(n);
            script += &format!(
                "echo 1 >{port}/queues/rx-0/rps_cpus\n\
                 nsenter --net={network} unshare --mount sh -c \
                 'mount -t sysfs sysfs /sys && echo 1 >/sys/class/net/eth0/queues/rx-0/rps_cpus'\n"
            );
        }
        let status = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).status();
        let kept = status.is_ok_and(|status| status.success());
        if !kept {
            crate::skip!("packets over a bridge cannot be kept in order here (rps_cpus)");
        }
        kept.then_some(self)
    }

    fn path(&self, network: usize) -> String {
        format!("/proc/{}/ns/net", self.holders[network].0.id())
    }

    /// Begins a command of ip(8) in one of the networks.
    fn ip(&self, network: usize) -> String {
        format!("nsenter --net={} ip", self.path(network))
    }

    /// A command in one of the networks (`ip netns exec` would change the mount namespace as well).
    pub fn inside(&self, network: usize, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path(network))).arg(program).stdin(Stdio::null());
        command
    }

    /// What of ours still holds segments off in one of the networks.
    pub fn held_off(&self, network: usize) -> Vec<String> {
        let namespace = std::fs::File::open(self.path(network)).unwrap();
        nft::leftovers(Some(namespace.as_fd())).unwrap()
    }

    /// Processes in one of the networks, whatever became of their parents, sessions and PID namespaces.
    fn processes(&self) -> Vec<i32> {
        use std::os::unix::fs::MetadataExt;
        let inode = |path: String| std::fs::metadata(path).ok().map(|file| file.ino());
        let ours: Vec<u64> = (0..self.holders.len()).filter_map(|n| inode(self.path(n))).collect();
        let holds = |pid: &i32| self.holders.iter().any(|holder| holder.0.id() as i32 == *pid);
        let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid: &i32| {
                !holds(pid) && inode(format!("/proc/{pid}/ns/net")).is_some_and(|net| ours.contains(&net))
            })
            .collect()
    }

    /// Ends everybody in one of the networks.
    pub fn end_all(&self) {
        for _ in 0..100 {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            for pid in left {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        self.end_all();
        let _ = Command::new("ip").args(["link", "del", &self.bridge]).status();
    }
}

/// Network namespaces, each held by a process. One with a name is a mount, which other tests see come and go under their moves.
pub fn hold(count: usize) -> Option<Vec<Killed>> {
    let network = |pid: &dyn std::fmt::Display| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let own = network(&"self");
    let start = || Killed(Command::new("unshare").args(["--net", "sleep", "1000"]).spawn().unwrap());
    let mut holders: Vec<Killed> = (0..count).map(|_| start()).collect();
    for Killed(holder) in &mut holders {
        // Until unshare(1) has done what it is for.
        while network(&holder.id()).is_none_or(|there| Some(there) == own) {
            if holder.try_wait().unwrap().is_some() {
                crate::skip!("network namespaces cannot be made here");
                return None;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    Some(holders)
}

/// A child that is killed when dropped.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
