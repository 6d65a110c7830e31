//! A description and descriptors, from one process of ours to another over a UNIX stream socket: the length (u32,
//! little-endian) and the JSON of the description, then the descriptors one by one.

use crate::sys::pass_fd;
use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Largest description that is read, bytes.
const TEXT_MAX: u32 = 64 << 20;

/// Sends them.
///
/// # Errors
/// The socket's; a description that is too long.
pub(crate) fn send(to: &mut UnixStream, description: &impl Serialize, descriptors: &[OwnedFd]) -> io::Result<()> {
    write(to, description, TEXT_MAX)?;
    descriptors.iter().try_for_each(|fd| pass_fd::send_fd(to, fd.as_fd()))
}

/// Receives them; `count` tells how many descriptors belong to a description.
///
/// # Errors
/// The socket's; what is no such description.
pub(crate) fn receive<T: DeserializeOwned>(
    from: &mut UnixStream,
    count: impl Fn(&T) -> usize,
) -> io::Result<(T, Vec<OwnedFd>)> {
    let description: T = read(from, TEXT_MAX)?;
    let descriptors = (0..count(&description)).map(|_| pass_fd::receive_fd(from)).collect::<io::Result<Vec<_>>>()?;
    Ok((description, descriptors))
}

/// Sends a description of at most so many bytes, without descriptors.
///
/// # Errors
/// The socket's; a description that is too long.
pub(crate) fn write(to: &mut UnixStream, description: &impl Serialize, bytes_max: u32) -> io::Result<()> {
    let text = serde_json::to_vec(description).map_err(io::Error::other)?;
    let length = u32::try_from(text.len()).ok().filter(|n| *n <= bytes_max);
    let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "a description that is too long");
    to.write_all(&length.ok_or_else(too_long)?.to_le_bytes())?;
    to.write_all(&text)
}

/// Receives one of at most so many bytes.
///
/// # Errors
/// The socket's; what is no such description.
pub(crate) fn read<T: DeserializeOwned>(from: &mut UnixStream, bytes_max: u32) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "an impossible length"));
    }
    let mut text = vec![0; length as usize];
    from.read_exact(&mut text)?;
    serde_json::from_slice(&text).map_err(io::Error::other)
}
