//! sd_notify(3): tells the service manager that connections are taken.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Says READY=1 where somebody wants to know.
pub fn ready() {
    let Some(socket) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
        return;
    };
    if let Err(error) = tell(&socket, b"READY=1\n") {
        tracing::warn!(%error, "cannot tell the service manager that the agent is ready");
    }
}

fn tell(socket: &OsStr, text: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(text, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("migrate-notify-test-{}", std::process::id());
        let by_path = UnixDatagram::bind(&path).unwrap();
        let abstract_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (socket, receiver) in [(path.into_os_string(), by_path), (format!("@{name}").into(), abstract_name)] {
            tell(&socket, b"READY=1\n").unwrap();
            let mut text = [0; 32];
            let count = receiver.recv(&mut text).unwrap();
            assert_eq!(&text[..count], b"READY=1\n");
        }
    }
}
