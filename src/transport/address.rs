//! Where a peer is.

use super::error::{Result, TransportError};
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

/// Port of the agent when none is named.
pub const DEFAULT_PORT: u16 = 7413;

/// A peer that can be connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerAddress {
    /// The agent's UNIX socket; the peer is known by its credentials.
    Unix(PathBuf),
    /// TCP with TLS 1.3, both sides known by their certificates' fingerprints.
    Tls {
        /// Name or number.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// Bare TCP. Loopback only, unless [`super::connect::ConnectOptions::allow_plain`].
    Plain {
        /// Name or number.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// The system's own ssh.
    Ssh {
        /// User over there; `None` = what ssh decides.
        user: Option<String>,
        /// Host, or an alias of ssh_config.
        host: String,
        /// Port; `None` = what ssh decides.
        port: Option<u16>,
    },
    /// Another process of this program on this host, over pipes.
    Local,
}

impl Display for PeerAddress {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let bracketed = |host: &str| if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tls { host, port } => write!(f, "tcp://{}:{port}", bracketed(host)),
            Self::Plain { host, port } => write!(f, "tcp+plain://{}:{port}", bracketed(host)),
            Self::Local => f.write_str("local"),
            Self::Ssh { user, host, port } => {
                if let Some(user) = user {
                    write!(f, "{user}@")?;
                }
                f.write_str(&bracketed(host))?;
                port.map_or(Ok(()), |port| write!(f, ":{port}"))
            }
        }
    }
}

/// All socket addresses of a host, in the resolver's order. At least one.
pub fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>> {
    let failed = |source| TransportError::Connect { address: format!("{host}:{port}"), source };
    let found: Vec<_> = (host, port).to_socket_addrs().map_err(failed)?.collect();
    if found.is_empty() {
        return Err(failed(std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address")));
    }
    Ok(found)
}

/// Refuses bare TCP to another host unless it was asked for twice.
pub fn check_plain(address: &SocketAddr, allow_plain: bool) -> Result<()> {
    let loopback = match address.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback()),
    };
    if loopback || allow_plain { Ok(()) } else { Err(TransportError::PlainNotAllowed { address: address.to_string() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_is_for_loopback() {
        for (address, fine) in [
            ("127.0.0.1:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("10.0.0.1:1", false),
            ("[fd00::1]:1", false),
        ] {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(check_plain(&address, false).is_ok(), fine, "{address}");
            assert!(check_plain(&address, true).is_ok());
        }
    }

    #[test]
    fn shown_as_written() {
        let ssh = PeerAddress::Ssh { user: Some("u".into()), host: "fd00::2".into(), port: Some(22) };
        assert_eq!(ssh.to_string(), "u@[fd00::2]:22");
        assert_eq!(PeerAddress::Tls { host: "b".into(), port: 7413 }.to_string(), "tcp://b:7413");
    }
}
