//! Where ssh goes for a host: what its configuration makes of the name (`ssh -G`, ssh(1)).

use super::ssh::Place;
use std::ffi::OsString;
use std::io;
use std::process::{Command, Stdio};

/// How ssh gets to a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// Over the network.
    Directly,
    /// Through this host and port: `ProxyJump`, the first of several.
    Jump(String, u16),
    /// By what a command does: `ProxyCommand`.
    Command,
}

/// A host, as the configuration has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Name or address.
    pub host: String,
    pub port: u16,
    pub by: By,
}

/// Asks the remote shell. One that does not answer as ssh does goes to the host that is named.
///
/// # Errors
/// There is no such program.
pub fn resolve(place: &Place<'_>, rsh: &[OsString]) -> io::Result<Found> {
    let (program, arguments) = rsh.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut ssh = Command::new(program);
    ssh.args(arguments).arg("-G");
    if let Some(port) = place.port {
        ssh.args(["-p", &port.to_string()]);
    }
    ssh.args(["--", &place.destination()]).stdin(Stdio::null()).stderr(Stdio::null());
    let output = ssh.output()?;
    Ok(read(&String::from_utf8_lossy(&output.stdout), place))
}

/// A line has a word in small letters and its value.
fn read(text: &str, place: &Place<'_>) -> Found {
    let value = |key: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(word, _)| *word == key).map(|(_, value)| value.trim()).filter(|value| *value != "none")
    };
    let by = match (value("proxyjump"), value("proxycommand")) {
        (Some(jump), _) => {
            let first = jump.split(',').next().unwrap_or_default();
            let first = first.strip_prefix("ssh://").unwrap_or(first);
            let host = first.rsplit_once('@').map_or(first, |(_, host)| host);
            let (host, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
                Some((host, port)) => (host, port.strip_prefix(':')),
                None => host.split_once(':').map_or((host, None), |(host, port)| (host, Some(port))),
            };
            By::Jump(host.to_owned(), port.and_then(|port| port.parse().ok()).unwrap_or(22))
        }
        (None, Some(_)) => By::Command,
        (None, None) => By::Directly,
    };
    let port = value("port").and_then(|port| port.parse().ok()).or(place.port).unwrap_or(22);
    Found { host: value("hostname").unwrap_or(place.host).to_owned(), port, by }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLACE: Place<'static> = Place { user: None, host: "host-b", port: None };

    #[test]
    fn what_ssh_says_is_read() {
        let found = |text| read(text, &PLACE);
        let direct = found("user me\nhostname 192.0.2.7\nport 2222\nproxyjump none\n");
        assert_eq!(direct, Found { host: "192.0.2.7".into(), port: 2222, by: By::Directly });
        let jump = found("hostname b\nport 22\nproxyjump me@gate:2200,other\nproxycommand none\n");
        assert_eq!(jump.by, By::Jump("gate".into(), 2200));
        assert_eq!(found("hostname b\nproxyjump [fd00::1]:7\n").by, By::Jump("fd00::1".into(), 7));
        assert_eq!(found("hostname b\nproxycommand nc %h %p\n").by, By::Command);
        assert_eq!(found("no such option\n"), Found { host: "host-b".into(), port: 22, by: By::Directly });
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "[a-z \n:@\\[\\],0-9]{0,80}") {
            let _ = read(&text, &PLACE);
        }
    }
}
