//! Networks: one for each host and one for the client, on a bridge. The target has an address of its own, which moves with it.

use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The address of the target, which the first host has in the beginning.
pub const ADDRESS: &str = "10.77.0.100";
/// The same as an option has it.
pub const MOVES: &str = "10.77.0.100/24@eth0";

/// Removed when dropped.
#[derive(Debug)]
pub struct Networks {
    /// Names of interfaces have at most 15 characters.
    tag: String,
}

/// Who has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    A,
    B,
    Client,
}

const PLACES: [Place; 3] = [Place::A, Place::B, Place::Client];

impl Networks {
    pub fn make() -> io::Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let tag = format!("{:x}x{:x}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed) % 4096);
        let networks = Self { tag };
        let bridge = networks.bridge();
        shell(&format!("ip link add {bridge} type bridge forward_delay 0 && ip link set {bridge} up"))?;
        PLACES.iter().try_for_each(|place| networks.plug(*place))?;
        shell(&format!("ip -n {} addr add {ADDRESS}/24 dev eth0", networks.name(Place::A)))?;
        Ok(networks)
    }

    fn bridge(&self) -> String {
        format!("ch{}", self.tag)
    }

    fn name(&self, place: Place) -> String {
        let place = match place {
            Place::A => 'a',
            Place::B => 'b',
            Place::Client => 'c',
        };
        format!("c{place}{}", self.tag)
    }

    /// For setns(2).
    pub fn path(&self, place: Place) -> PathBuf {
        PathBuf::from("/run/netns").join(self.name(place))
    }

    /// A network as a host has it that has just come up.
    pub fn plug(&self, place: Place) -> io::Result<()> {
        let (name, bridge, n) = (self.name(place), self.bridge(), place as usize + 1);
        shell(&format!(
            "ip netns add {name} && ip link add {name}h type veth peer name eth0 netns {name} \
             && ip link set {name}h master {bridge} up && ip -n {name} link set lo up && ip -n {name} link set eth0 up \
             && ip -n {name} addr add 10.77.0.{n}/24 dev eth0"
        ))
    }

    /// From here on not a packet leaves this place.
    pub fn unplug(&self, place: Place) -> io::Result<()> {
        shell(&format!("ip link del {}h", self.name(place)))
    }

    /// The network ends with what was in it; it is unplugged.
    pub fn forget(&self, place: Place) -> io::Result<()> {
        shell(&format!("ip netns del {}", self.name(place)))
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        for place in PLACES {
            let _ = self.unplug(place);
            let _ = self.forget(place);
        }
        let _ = shell(&format!("ip link del {}", self.bridge()));
    }
}

fn shell(script: &str) -> io::Result<()> {
    let output = Command::new("sh").args(["-c", script]).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{script}: {}", String::from_utf8_lossy(&output.stderr))))
}
