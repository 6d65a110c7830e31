//! Copies of one tree that run beside each other, and beside the original: what must differ is made different.
//!
//! ```text
//! namespaces     PID, mount (with its own /proc), UTS and network: new ones ([`super::pidns`], [`as_clone`])
//! host name      NAME-ID, NAME being that of the original
//! clone id       in a file that only the clone sees ([`place::write_id`]), and in the environment of hooks
//! address        one of its own, on an interface of its own ([`place::network`]), if it was given one
//! memory         areas with MADV_WIPEONFORK are empty, as in a child of fork(2) ([`super::mm::finish`])
//! connections    TCP connections are reset; listening sockets listen, in the clone's network
//! ```
//! Everything else is as it was, process ids included. Files are not copied: a clone on the same file system has the same ones
//! open.

pub(super) mod place;

use crate::image::fd::tcp::TcpState;
use crate::image::fd::{FileKind, SocketOptions};
use crate::image::ns::NsKind;
use crate::image::{Bytes, Model, NsId, Pid};
use crate::net::address::Place;
use crate::net::announce::Announcer;
use crate::proc::ProcDir;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::os::fd::AsFd;

/// The file with the id of a clone, in the run-time directory of its host (`/run/migrate/clone-id` for root).
pub const ID_FILE: &str = "clone-id";

/// The longest host name that Linux takes, bytes (`__NEW_UTS_LEN`).
const HOST_NAME_MAX: usize = 64;

/// Who one of several copies is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Tells it from all others: the session's id, and its number in it.
    pub id: String,
    /// Name of the original's host, for a tree without a UTS namespace of its own.
    pub host: String,
    /// An address of its own. The interface is the one of the host that its own is joined to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Place>,
}

impl Identity {
    /// The host name of the clone of a tree whose own was `name`: cut off in front of the id where it would be too long.
    fn host_name(&self, name: &[u8]) -> Bytes {
        let room = HOST_NAME_MAX.saturating_sub(self.id.len() + 1);
        let name = &name[..name.len().min(room)];
        Bytes([name, b"-", self.id.as_bytes()].concat())
    }
}

/// The model of a clone. The same for equal models and identities.
pub fn as_clone(mut model: Model, identity: &Identity) -> Model {
    let used: BTreeSet<NsId> = model.tasks.iter().flat_map(|task| [task.namespaces.net, task.namespaces.uts]).collect();
    for ns in used {
        let namespace = &mut model.namespaces[ns.at()];
        match &mut namespace.kind {
            NsKind::Net(_) => namespace.of_host = false,
            NsKind::Uts { hostname, .. } => {
                let name = if namespace.of_host { identity.host.as_bytes() } else { &hostname.0 };
                *hostname = identity.host_name(name);
                namespace.of_host = false;
            }
            _ => {}
        }
    }
    let interface = identity.address.as_ref().map(|place| place.interface.as_bytes());
    for file in &mut model.files {
        match &mut file.kind {
            FileKind::Tcp(tcp) => {
                if matches!(tcp.state, TcpState::Connected(_) | TcpState::Connecting) {
                    tcp.state = TcpState::Ended { recv_queue: Bytes::default(), reset: true };
                }
                unbind(&mut tcp.options, interface);
            }
            FileKind::Udp(udp) => unbind(&mut udp.options, interface),
            _ => {}
        }
    }
    model
}

/// Tells the neighbours of a clone that runs where its address is now, if it has one. A warning if they were not told.
pub fn announce(root: Pid, identity: &Identity) -> Option<String> {
    let place = identity.address.as_ref()?;
    let tell = || -> Result<(), Box<dyn std::error::Error>> {
        let ns = ProcDir::open(root)?.open_file("ns/net", OFlag::O_RDONLY)?;
        Ok(Announcer::open(Some(ns.as_fd()), &place.interface)?.announce(place.ip)?)
    };
    tell().err().map(|error| format!("neighbours of clone {} were not told of {place}: {error}", identity.id))
}

/// A socket that is bound to a device which the clone does not have hears all of those that it has.
fn unbind(options: &mut SocketOptions, interface: Option<&[u8]>) {
    options.raw.retain(|(name, value)| {
        let device = value.0.split(|byte| *byte == 0).next().unwrap_or_default();
        *name != libc::SO_BINDTODEVICE || device == b"lo" || interface == Some(device)
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::arbitrary::value;
    use crate::image::fd::tcp::Tcp;
    use crate::image::tests::sample;

    fn identity() -> Identity {
        let address = Place { ip: "10.0.0.7".parse().unwrap(), prefix: 24, interface: "eth0".into() };
        Identity { id: "hkqwzrtb-2".into(), host: "web1".into(), address: Some(address) }
    }

    fn hostname(model: &Model) -> String {
        let ns = &model.namespaces[model.root().namespaces.uts.at()];
        match &ns.kind {
            NsKind::Uts { hostname, .. } if !ns.of_host => hostname.to_string(),
            kind => panic!("{kind:?}"),
        }
    }

    #[test]
    fn it_has_a_network_and_a_name_of_its_own() {
        let mut model = sample();
        let uts = model.root().namespaces.uts.at();
        model.namespaces[uts].of_host = true;
        let clone = as_clone(model.clone(), &identity());
        assert_eq!(hostname(&clone), "web1-hkqwzrtb-2");
        assert!(!clone.namespaces[clone.root().namespaces.net.at()].of_host);
        assert!(clone.namespaces[clone.root().namespaces.ipc.at()].of_host, "what need not differ does not");
        model.namespaces[uts].of_host = false;
        model.namespaces[uts].kind = NsKind::Uts { hostname: Bytes(vec![b'x'; 64]), domainname: Bytes(b"d".to_vec()) };
        let long = hostname(&as_clone(model, &identity()));
        assert!(long.len() == HOST_NAME_MAX && long.ends_with("x-hkqwzrtb-2"), "{long}");
    }

    #[test]
    fn connections_are_over_and_listeners_stay() {
        let mut model = sample();
        let listens = TcpState::Listen { backlog: 7 };
        let states = [listens, TcpState::Closed, TcpState::Connecting, TcpState::Connected(value(&[]))];
        for (file, state) in model.files.iter_mut().zip(states) {
            file.kind = FileKind::Tcp(Tcp { state, ..value(&[]) });
        }
        let state = |model: &Model| -> Vec<TcpState> {
            let of = |kind: &FileKind| match kind {
                FileKind::Tcp(tcp) => Some(tcp.state.clone()),
                _ => None,
            };
            model.files.iter().filter_map(|file| of(&file.kind)).collect()
        };
        let before = state(&model);
        assert_eq!(before.len(), 4, "{before:?}");
        for (was, is) in before.iter().zip(state(&as_clone(model, &identity()))) {
            match was {
                TcpState::Connected(_) | TcpState::Connecting => {
                    assert_eq!(is, TcpState::Ended { recv_queue: Bytes::default(), reset: true });
                }
                stays => assert_eq!(*stays, is),
            }
        }
    }

    #[test]
    fn only_devices_that_it_has_are_bound_to() {
        let device = |name: &str| (libc::SO_BINDTODEVICE, Bytes([name.as_bytes(), b"\0"].concat()));
        let mut options = SocketOptions { raw: ["eth0", "eth1", "lo"].map(device).into(), ..SocketOptions::default() };
        unbind(&mut options, Some(b"eth0"));
        assert_eq!(options.raw, [device("eth0"), device("lo")]);
        unbind(&mut options, None);
        assert_eq!(options.raw, [device("lo")]);
    }

    #[test]
    fn a_clone_of_an_equal_model_is_equal() {
        assert_eq!(as_clone(sample(), &identity()), as_clone(sample(), &identity()));
    }
}
