//! Where a target is to go, and where an agent listens.

use super::WordError;
use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;
use std::str::FromStr;

/// Port of the agent when none is named.
pub const PORT: u16 = 7413;

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    /// Name or number, without the brackets of an IPv6 number.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// A destination.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Dest {
    /// Through the system's ssh: `[ssh://][USER@]HOST[:PORT]`.
    Ssh {
        /// User over there; `None` = what ssh decides.
        user: Option<String>,
        /// Host, or an alias of ssh_config.
        host: String,
        /// Port; `None` = what ssh decides.
        port: Option<u16>,
    },
    /// An agent over mutual TLS: `tcp://HOST[:PORT]`.
    Tls(Address),
    /// An agent over TCP without protection: `tcp+plain://HOST[:PORT]`. Loopback only, unless `--allow-plain`.
    Plain(Address),
    /// An agent's UNIX socket: `unix:PATH`.
    Unix(PathBuf),
    /// This host, in a new PID namespace: `local`.
    Local,
}

/// Where an agent listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Listen {
    /// `unix:PATH`, mode 0600.
    Unix(PathBuf),
    /// `tcp://[HOST]:PORT` over mutual TLS; an empty host is every address.
    Tls(Address),
    /// `tcp+plain://HOST:PORT`: nothing is encrypted.
    Plain(Address),
}

const HOW: &str = "write HOST or USER@HOST (ssh), tcp://HOST[:PORT], unix:PATH or local";

/// Splits `host`, `host:port`, `[v6]`, `[v6]:port`; the host must not be empty unless `any`.
fn host_and_port(text: &str, any: bool) -> Result<(String, Option<u16>), &'static str> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("the bracket of the IPv6 address is not closed")?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err("brackets are for IPv6 addresses");
            }
            match after.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if after.is_empty() => (host, None),
                None => return Err("only :PORT may follow the bracket"),
            }
        }
        None if text.matches(':').count() > 1 => {
            return Err("an IPv6 address stands in brackets, as in [fd00::2]:7413");
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() && !any {
        return Err("the host is missing");
    }
    // A leading dash would be read as an option by ssh; a slash, blank or control character is in no host name.
    if host.starts_with('-') || host.chars().any(|c| c.is_whitespace() || c.is_control() || "/@,[]".contains(c)) {
        return Err("that is no host name");
    }
    let port = match port {
        Some(port) => match port.parse() {
            Ok(port) if port > 0 => Some(port),
            _ => return Err("a port is a number from 1 to 65535"),
        },
        None => None,
    };
    Ok((host.to_owned(), port))
}

fn ssh(text: &str) -> Result<Dest, &'static str> {
    let (user, rest) = match text.rsplit_once('@') {
        Some((user, rest)) => (Some(user), rest),
        None => (None, text),
    };
    if let Some(user) = user
        && (user.is_empty()
            || user.starts_with('-')
            || user.chars().any(|c| c.is_whitespace() || c.is_control() || "/:,@".contains(c)))
    {
        return Err("that is no user name");
    }
    let (host, port) = host_and_port(rest, false)?;
    Ok(Dest::Ssh { user: user.map(str::to_owned), host, port })
}

fn address(text: &str) -> Result<Address, &'static str> {
    let (host, port) = host_and_port(text, false)?;
    Ok(Address { host, port: port.unwrap_or(PORT) })
}

impl FromStr for Dest {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        let read = || {
            if let Some(rest) = word.strip_prefix("ssh://") {
                return ssh(rest);
            }
            if let Some(rest) = word.strip_prefix("tcp://") {
                return address(rest).map(Self::Tls);
            }
            if let Some(rest) = word.strip_prefix("tcp+plain://") {
                return address(rest).map(Self::Plain);
            }
            match word.strip_prefix("unix:") {
                Some("") => return Err("the path of the socket is missing"),
                Some(path) => return Ok(Self::Unix(path.into())),
                None => {}
            }
            match word {
                "local" => Ok(Self::Local),
                _ if word.is_empty() || word.contains("://") => Err(HOW),
                _ => ssh(word),
            }
        };
        read().map_err(|why| WordError::new("destination", word, why))
    }
}

impl Display for Address {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl Display for Dest {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ssh { user, host, port } => {
                // Without the scheme, a host called `local` would be read as this host and `unix:22` as a socket.
                if user.is_none() && (host == "local" || host == "unix") {
                    f.write_str("ssh://")?;
                }
                if let Some(user) = user {
                    write!(f, "{user}@")?;
                }
                match host.contains(':') {
                    true => write!(f, "[{host}]")?,
                    false => f.write_str(host)?,
                }
                port.map_or(Ok(()), |port| write!(f, ":{port}"))
            }
            Self::Tls(address) => write!(f, "tcp://{address}"),
            Self::Plain(address) => write!(f, "tcp+plain://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Local => f.write_str("local"),
        }
    }
}

impl FromStr for Listen {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        let wrong = |why: &str| WordError::new("address to listen on", word, why);
        if let Some(path) = word.strip_prefix("unix:") {
            return if path.is_empty() {
                Err(wrong("the path of the socket is missing"))
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        if let Some(rest) = word.strip_prefix("tcp+plain://") {
            let (host, port) = host_and_port(rest, false).map_err(wrong)?;
            return Ok(Self::Plain(Address { host, port: port.unwrap_or(PORT) }));
        }
        let Some(rest) = word.strip_prefix("tcp://") else {
            return Err(wrong("write unix:PATH, tcp://[HOST]:PORT or tcp+plain://HOST:PORT"));
        };
        let (host, port) = host_and_port(rest, true).map_err(wrong)?;
        Ok(Self::Tls(Address { host, port: port.unwrap_or(PORT) }))
    }
}

impl Display for Listen {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tls(address) => write!(f, "tcp://{address}"),
            Self::Plain(address) => write!(f, "tcp+plain://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(word: &str) -> Dest {
        word.parse().unwrap()
    }

    #[test]
    fn forms_of_the_contract() {
        let ssh = |user: Option<&str>, host: &str, port| Dest::Ssh {
            user: user.map(str::to_owned),
            host: host.to_owned(),
            port,
        };
        assert_eq!(read("b"), ssh(None, "b", None));
        assert_eq!(read("host:22"), ssh(None, "host", Some(22)));
        assert_eq!(read("ssh://u@b:2222"), ssh(Some("u"), "b", Some(2222)));
        assert_eq!(read("u@[fd00::2]"), ssh(Some("u"), "fd00::2", None));
        assert_eq!(read("tcp://b"), Dest::Tls(Address { host: "b".into(), port: 7413 }));
        assert_eq!(read("tcp+plain://127.0.0.1:9"), Dest::Plain(Address { host: "127.0.0.1".into(), port: 9 }));
        assert_eq!(read("tcp://[::1]:80"), Dest::Tls(Address { host: "::1".into(), port: 80 }));
        assert_eq!(read("unix:/run/a.sock"), Dest::Unix("/run/a.sock".into()));
        assert_eq!(read("local"), Dest::Local);
        assert_eq!(read("ssh://local"), ssh(None, "local", None));
    }

    #[test]
    fn wrong_destinations_are_refused() {
        for wrong in [
            "",
            "-oProxyCommand=x",
            "u@-x",
            "-u@h",
            "fd00::2",
            "[b]",
            "[::1",
            "b:0",
            "b:70000",
            "b:",
            "http://b",
            "unix:",
            "tcp://",
            "a b",
            "a,b",
            "@g",
        ] {
            assert!(wrong.parse::<Dest>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn listen_addresses() {
        assert_eq!("tcp://:7413".parse(), Ok(Listen::Tls(Address { host: String::new(), port: 7413 })));
        assert_eq!("unix:/x".parse(), Ok(Listen::Unix("/x".into())));
        assert_eq!("tcp+plain://[::1]".parse(), Ok(Listen::Plain(Address { host: "::1".into(), port: 7413 })));
        assert!("7413".parse::<Listen>().is_err());
        assert!("tcp+plain://:7413".parse::<Listen>().is_err(), "every address is not loopback");
    }

    fn any_host() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-z][a-z0-9.-]{0,20}",
            any::<std::net::Ipv4Addr>().prop_map(|a| a.to_string()),
            any::<std::net::Ipv6Addr>().prop_map(|a| a.to_string())
        ]
    }

    fn any_dest() -> impl Strategy<Value = Dest> {
        let address = || (any_host(), 1u16..).prop_map(|(host, port)| Address { host, port });
        prop_oneof![
            (proptest::option::of("[a-z][a-z0-9_-]{0,8}"), any_host(), proptest::option::of(1u16..))
                .prop_map(|(user, host, port)| Dest::Ssh { user, host, port }),
            address().prop_map(Dest::Tls),
            address().prop_map(Dest::Plain),
            "/[^\0]{0,30}".prop_map(|path| Dest::Unix(path.into())),
            Just(Dest::Local),
        ]
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(dest in any_dest()) {
            prop_assert_eq!(dest.to_string().parse(), Ok(dest));
        }

        #[test]
        fn any_text_is_read_or_refused(word in ".{0,40}") {
            let _ = (word.parse::<Dest>(), word.parse::<Listen>());
        }
    }
}
