//! `TCP_REPAIR` and its relatives of tcp(7): a connection's state read and written without a packet. Linux 3.5,
//! `TCP_REPAIR_WINDOW` 4.8. Needs CAP_NET_ADMIN in the user namespace of the socket's network namespace.

use super::socket::{int_option, option, set_int_option, set_option};
use super::{Errno, Result};
use std::os::fd::BorrowedFd;

const TCP: i32 = libc::IPPROTO_TCP;
const TCP_REPAIR: i32 = 19;
const TCP_REPAIR_QUEUE: i32 = 20;
const TCP_QUEUE_SEQ: i32 = 21;
const TCP_REPAIR_OPTIONS: i32 = 22;
const TCP_TIMESTAMP: i32 = 24;
const TCP_REPAIR_WINDOW: i32 = 29;

const OPTION_MSS: u32 = 2;
const OPTION_WINDOW_SCALE: u32 = 3;
const OPTION_SACK: u32 = 4;
const OPTION_TIMESTAMPS: u32 = 8;

/// Queues that `TCP_REPAIR_QUEUE` selects for `TCP_QUEUE_SEQ`, send(2) and recv(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Queue {
    /// Neither.
    None = 0,
    /// Received and not read.
    Receive = 1,
    /// Written and not acknowledged.
    Send = 2,
}

/// Enters repair mode. Also forces address reuse, until the mode is left. `EPERM` for a listening socket.
pub fn enter(fd: BorrowedFd<'_>) -> Result<()> {
    set_int_option(fd, TCP, TCP_REPAIR, 1)
}

/// Leaves repair mode; sends a window probe if `probe`. Resets `SO_REUSEADDR` to 0: set it again afterwards.
pub fn leave(fd: BorrowedFd<'_>, probe: bool) -> Result<()> {
    set_int_option(fd, TCP, TCP_REPAIR, if probe { 0 } else { -1 })
}

/// Whether the socket is in repair mode.
pub fn is_on(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(int_option(fd, TCP, TCP_REPAIR)? != 0)
}

/// Selects a queue.
pub fn select(fd: BorrowedFd<'_>, queue: Queue) -> Result<()> {
    set_int_option(fd, TCP, TCP_REPAIR_QUEUE, queue as i32)
}

/// Sequence number at the end of the selected queue.
pub fn sequence(fd: BorrowedFd<'_>) -> Result<u32> {
    int_option(fd, TCP, TCP_QUEUE_SEQ).map(|v| v as u32)
}

/// Sets the sequence number of the selected queue; the socket must not be connected yet.
pub fn set_sequence(fd: BorrowedFd<'_>, sequence: u32) -> Result<()> {
    set_int_option(fd, TCP, TCP_QUEUE_SEQ, sequence as i32)
}

/// Options agreed on when the connection was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// Maximum segment size clamp.
    pub mss: u32,
    /// Window scaling: (for what we send into, for what we announce).
    pub window_scale: Option<(u8, u8)>,
    /// Selective acknowledgements.
    pub sack: bool,
    /// Time stamps.
    pub timestamps: bool,
}

/// `TCP_REPAIR_OPTIONS`, after connect(2) and before any data.
pub fn set_negotiated(fd: BorrowedFd<'_>, options: &Negotiated) -> Result<()> {
    let mut list = vec![(OPTION_MSS, options.mss)];
    if options.sack {
        list.push((OPTION_SACK, 0));
    }
    if options.timestamps {
        list.push((OPTION_TIMESTAMPS, 0));
    }
    if let Some((send, receive)) = options.window_scale {
        list.push((OPTION_WINDOW_SCALE, u32::from(send) | u32::from(receive) << 16));
    }
    let bytes: Vec<u8> = list.iter().flat_map(|(k, v)| [k.to_ne_bytes(), v.to_ne_bytes()].concat()).collect();
    set_option(fd, TCP, TCP_REPAIR_OPTIONS, &bytes)
}

/// Sends an acknowledgement that is being delayed, as far as `TCP_QUICKACK` does: not while received data waits to be read.
/// Later ones may be delayed as before (the value is even).
pub fn send_delayed_acknowledgement(fd: BorrowedFd<'_>) -> Result<()> {
    set_int_option(fd, TCP, libc::TCP_QUICKACK, 2)
}

/// How far a restored connection's clock is set forward, milliseconds. A locked socket may still send an acknowledgement that
/// it had delayed (at most 200 ms): a peer drops what has an older time stamp than that (RFC 7323, 5.3).
const CLOCK_MARGIN_MS: u32 = 250;

/// What [`timestamp`] gave, set forward so that nothing the old socket has sent is newer. From Linux 6.7 on the lowest bit
/// says that the clock counts microseconds.
pub fn set_forward(timestamp: u32) -> u32 {
    let unit = if timestamp & 1 != 0 { 1000 } else { 1 };
    timestamp.wrapping_add(CLOCK_MARGIN_MS * unit)
}

/// The connection's time stamp clock, opaque.
pub fn timestamp(fd: BorrowedFd<'_>) -> Result<u32> {
    int_option(fd, TCP, TCP_TIMESTAMP).map(|v| v as u32)
}

/// Sets the connection's time stamp clock.
pub fn set_timestamp(fd: BorrowedFd<'_>, timestamp: u32) -> Result<()> {
    set_int_option(fd, TCP, TCP_TIMESTAMP, timestamp as i32)
}

/// `struct tcp_repair_window`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Window {
    pub snd_wl1: u32,
    pub snd_wnd: u32,
    pub max_window: u32,
    pub rcv_wnd: u32,
    pub rcv_wup: u32,
}

impl Window {
    /// Size of the kernel's struct.
    pub const SIZE: usize = 20;

    /// From the kernel's struct; `None` if it is not 20 bytes long.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::SIZE] = bytes.try_into().ok()?;
        let word = |n: usize| u32::from_ne_bytes([bytes[n], bytes[n + 1], bytes[n + 2], bytes[n + 3]]);
        Some(Self { snd_wl1: word(0), snd_wnd: word(4), max_window: word(8), rcv_wnd: word(12), rcv_wup: word(16) })
    }

    /// The kernel's struct.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let words = [self.snd_wl1, self.snd_wnd, self.max_window, self.rcv_wnd, self.rcv_wup];
        for (n, word) in words.iter().enumerate() {
            bytes[n * 4..][..4].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// `TCP_REPAIR_WINDOW`, read.
pub fn window(fd: BorrowedFd<'_>) -> Result<Window> {
    let mut room = [0; Window::SIZE];
    let len = option(fd, TCP, TCP_REPAIR_WINDOW, &mut room)?;
    Window::from_bytes(&room[..len]).ok_or(Errno::EINVAL)
}

/// `TCP_REPAIR_WINDOW`, written; after the queues are filled.
pub fn set_window(fd: BorrowedFd<'_>, window: &Window) -> Result<()> {
    set_option(fd, TCP, TCP_REPAIR_WINDOW, &window.to_bytes())
}

/// The start of `struct tcp_info`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// `TCP_ESTABLISHED` = 1, ...
    pub state: u8,
    /// `TCPI_OPT_TIMESTAMPS` = 1, `TCPI_OPT_SACK` = 2, `TCPI_OPT_WSCALE` = 4.
    pub options: u8,
    /// Scale of windows we send into.
    pub send_scale: u8,
    /// Scale of windows we announce.
    pub receive_scale: u8,
    /// Segments not acknowledged; for a listening socket: connections not accepted yet.
    pub unacked: u32,
    /// For a listening socket: its backlog.
    pub sacked: u32,
}

/// `TCP_INFO`.
pub fn info(fd: BorrowedFd<'_>) -> Result<Info> {
    let mut room = [0u8; 104];
    if option(fd, TCP, libc::TCP_INFO, &mut room)? < 32 {
        return Err(Errno::EINVAL);
    }
    let word = |n: usize| u32::from_ne_bytes([room[n], room[n + 1], room[n + 2], room[n + 3]]);
    Ok(Info {
        state: room[0],
        options: room[5],
        send_scale: room[6] & 15,
        receive_scale: room[6] >> 4,
        unacked: word(24),
        sacked: word(28),
    })
}
