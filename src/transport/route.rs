//! Which way packets to a peer leave this host: by an interface, or from an address.

use nix::errno::Errno;
use nix::sys::socket::{self, SockaddrStorage, sockopt};
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::str::FromStr;

/// Longest name of an interface, bytes (`IFNAMSIZ` without the end, netdevice(7)).
const INTERFACE_MAX: usize = 15;

/// A way that is pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Route {
    /// Through this interface, whatever the routing table prefers.
    Interface(String),
    /// From this address of this host: rules of the routing go by it (ip-rule(8)).
    Address(IpAddr),
}

impl Route {
    /// Pins what this socket sends, before it is connected.
    ///
    /// # Errors
    /// There is no such interface or address here, or the address is of the other family (`EAFNOSUPPORT`).
    pub fn pin(&self, socket: &impl AsFd, to: &SocketAddr) -> Result<(), Errno> {
        match self {
            Self::Interface(name) => socket::setsockopt(&socket.as_fd(), sockopt::BindToDevice, &OsString::from(name)),
            Self::Address(from) if from.is_ipv4() != to.is_ipv4() => Err(Errno::EAFNOSUPPORT),
            Self::Address(from) => {
                let from = SockaddrStorage::from(SocketAddr::new(*from, 0));
                socket::bind(socket.as_fd().as_raw_fd(), &from)
            }
        }
    }

    /// The same as options of ssh(1); `None` where the remote shell is another program, whose options nobody knows.
    pub fn for_ssh(&self, program: &OsStr) -> Option<[OsString; 2]> {
        let is_ssh = std::path::Path::new(program).file_name() == Some(OsStr::new("ssh"));
        let words = match self {
            Self::Interface(name) => ["-B".into(), name.into()],
            Self::Address(from) => ["-b".into(), from.to_string().into()],
        };
        is_ssh.then_some(words)
    }
}

impl FromStr for Route {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        if let Ok(address) = word.trim_start_matches('[').trim_end_matches(']').parse() {
            return Ok(Self::Address(address));
        }
        // What the kernel takes for a name (dev_valid_name).
        let fits = !word.is_empty() && word.len() <= INTERFACE_MAX && !matches!(word, "." | "..");
        match fits && !word.starts_with('-') && !word.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
            true => Ok(Self::Interface(word.to_owned())),
            false => Err(format!("'{word}' is neither an interface nor an address of this host")),
        }
    }
}

impl Display for Route {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_or_else_an_interface() {
        assert_eq!("192.0.2.1".parse(), Ok(Route::Address("192.0.2.1".parse().unwrap())));
        assert_eq!("[fd00::1]".parse(), Ok(Route::Address("fd00::1".parse().unwrap())));
        assert_eq!("eth0.7".parse(), Ok(Route::Interface("eth0.7".into())));
        for wrong in ["", ".", "..", "-B", "a/b", "a:1", "a b", "abcdefghijklmnop"] {
            assert!(wrong.parse::<Route>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn ssh_is_told_and_others_cannot_be() {
        let route = Route::Interface("eth1".into());
        assert_eq!(route.for_ssh(OsStr::new("/usr/bin/ssh")), Some(["-B".into(), "eth1".into()]));
        assert_eq!(route.for_ssh(OsStr::new("rsh")), None);
    }
}
