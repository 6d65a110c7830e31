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
    /// Who has one.
    places: Vec<Place>,
}

/// Who has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Source,
    /// The destinations are numbered.
    Destination(u8),
    Client,
}

impl Place {
    fn letter(self) -> char {
        match self {
            Self::Source => 'a',
            Self::Destination(n) => char::from(b'b' + n),
            Self::Client => 'z',
        }
    }
}

impl Networks {
    /// For a source, so many destinations and a client.
    pub fn make(destinations: u8) -> io::Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let tag = format!("{:x}x{:x}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed) % 4096);
        let mut places = vec![Place::Source, Place::Client];
        places.extend((0..destinations).map(Place::Destination));
        let networks = Self { tag, places };
        let bridge = networks.bridge();
        shell(&format!("ip link add {bridge} type bridge forward_delay 0 && ip link set {bridge} up"))?;
        networks.places.iter().try_for_each(|place| networks.plug(*place))?;
        shell(&format!("ip -n {} addr add {ADDRESS}/24 dev eth0", networks.name(Place::Source)))?;
        Ok(networks)
    }

    fn bridge(&self) -> String {
        format!("ch{}", self.tag)
    }

    fn name(&self, place: Place) -> String {
        format!("c{}{}", place.letter(), self.tag)
    }

    /// What a place is reached by.
    pub fn address(place: Place) -> String {
        format!("10.77.0.{}", u32::from(place.letter()) - u32::from('a') + 1)
    }

    /// For setns(2).
    pub fn path(&self, place: Place) -> PathBuf {
        PathBuf::from("/run/netns").join(self.name(place))
    }

    /// A network as a host has it that has just come up.
    pub fn plug(&self, place: Place) -> io::Result<()> {
        let (name, bridge) = (self.name(place), self.bridge());
        // Of a card that stays in the host: others go on sending to it.
        let mac = format!("02:00:00:00:00:{:02x}", u32::from(place.letter()));
        shell(&format!(
            "ip netns add {name} && ip link add {name}h type veth peer name eth0 address {mac} netns {name} \
             && ip link set {name}h master {bridge} up && ip -n {name} link set lo up && ip -n {name} link set eth0 up \
             && ip -n {name} addr add {}/24 dev eth0",
            Self::address(place)
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
        for place in &self.places {
            let _ = self.unplug(*place);
            let _ = self.forget(*place);
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
