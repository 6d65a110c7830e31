//! What the network must see, and must not see, while a tree changes its place: [`lock`] keeps sockets and packets as they
//! are, [`capture`] keeps what they do not take meanwhile, [`segment`] gives it to them and says to a restored socket what its
//! peer has said before, [`announce`] tells neighbours of an address that has moved, [`quiet`] keeps it from them until it is known
//! where to, and [`link`] joins an interface of a clone's to one of this host. [`gate`] lets queues of listeners run empty before,
//! [`nft`] holds segments off between a dump and its restore, [`flows`] says what of the traffic is the tree's. [`address`], [`place`]
//! (paths of UNIX sockets), [`filter`], [`multicast`], [`audit`] and [`namespace`] know one thing about sockets each.

pub mod address;
pub mod announce;
pub mod audit;
pub mod capture;
pub mod filter;
pub mod flows;
pub mod gate;
pub mod link;
pub mod lock;
pub mod multicast;
pub mod namespace;
pub mod nft;
pub mod packet;
pub mod place;
pub mod quiet;
pub mod segment;

use crate::sys::Errno;

/// What goes wrong with a socket. The caller knows whose it is and adds the process and descriptor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("{operation} ({kind} socket): {errno}")]
    Kernel {
        /// `TCP`, `UDP`, `UNIX`, `raw`, ...
        kind: &'static str,
        /// What was tried: a system call or an option's name.
        operation: String,
        /// Its answer.
        errno: Errno,
    },
    /// The socket is in a state or has a value that the model cannot hold.
    #[error("{kind} socket: {reason}")]
    Unsupported {
        /// `TCP`, `UDP`, `UNIX`, ...
        kind: &'static str,
        /// What it is.
        reason: String,
    },
    /// The model holds something no kernel would have given.
    #[error("{kind} socket in the image: {reason}")]
    BadModel {
        /// `TCP`, `UDP`, `UNIX`, ...
        kind: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// Result of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// Adds what was tried to a kernel's answer.
pub fn failed(kind: &'static str, operation: &str) -> impl FnOnce(Errno) -> Error + use<> {
    let operation = operation.to_owned();
    move |errno| Error::Kernel { kind, operation, errno }
}

/// Appends an attribute of a netlink message (netlink(7)): length and kind, then the value, filled up to four bytes.
fn push_attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend((4 + value.len() as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::push_attribute;

    #[test]
    fn attributes_are_filled_up() {
        let mut message = Vec::new();
        push_attribute(&mut message, 7, b"abcde");
        assert_eq!(message, [9, 0, 7, 0, b'a', b'b', b'c', b'd', b'e', 0, 0, 0]);
        push_attribute(&mut message, 7, b"abcd");
        assert_eq!(message.len(), 12 + 8);
    }
}
