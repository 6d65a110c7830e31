//! How much is on its way over a connection, and how much should be: what is sent first on another connection over the same
//! link waits behind it, in the queues of hosts and routers.

use super::stream::Stream;
use crate::sys::socket::{self, SIOCOUTQ};
use std::os::fd::AsFd;
use std::time::Duration;

/// Time that bulk data may spend in queues.
const QUEUED: Duration = Duration::from_millis(2);
/// So much may be under way whatever is known, bytes.
const LEAST_BYTES: u64 = 64 << 10;
/// What is under way before anything is known, bytes.
const FIRST_BYTES: u64 = 256 << 10;
/// The longest pause between two looks.
const LOOK: Duration = Duration::from_millis(5);
/// The shortest: a sleep takes about as long anyway.
const SLEEP: Duration = Duration::from_micros(100);

/// What the kernel knows of a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnderWay {
    /// Bytes that were written and not acknowledged.
    pub bytes: u64,
    /// Bytes a second that have arrived lately; 0 = not known.
    pub rate: u64,
    /// The shortest round trip.
    pub round_trip: Duration,
}

/// Places in `struct tcp_info` (linux/tcp.h), bytes.
const MIN_RTT: usize = 148;
const DELIVERY_RATE: usize = 160;

impl UnderWay {
    /// Of a TCP connection, also below TLS; `None` where the kernel does not say (before Linux 4.9), and for others.
    pub fn of(stream: &Stream) -> Option<Self> {
        let socket = stream.tcp_socket()?.as_fd();
        let mut info = [0; 256];
        let length = socket::option(socket, libc::SOL_TCP, libc::TCP_INFO, &mut info).ok()?;
        let info = info.get(..length)?;
        let round_trip = u32::from_ne_bytes(info.get(MIN_RTT..MIN_RTT + 4)?.try_into().ok()?);
        let rate = u64::from_ne_bytes(info.get(DELIVERY_RATE..DELIVERY_RATE + 8)?.try_into().ok()?);
        let bytes = socket::ioctl_int(socket, SIOCOUTQ).ok()?;
        // Of a connection that has measured none it is `u32::MAX`.
        let round_trip = Duration::from_micros(if round_trip == u32::MAX { 0 } else { round_trip.into() });
        Some(Self { bytes: u64::try_from(bytes).unwrap_or(0), rate, round_trip })
    }

    /// How long to wait before more is sent, for it to spend little time in queues; nothing = it can be sent now.
    ///
    /// Under way may be what the path takes in a round trip, a quarter more, so that a faster path is found out, and a little.
    pub fn wait(&self) -> Option<Duration> {
        if self.rate == 0 {
            return (self.bytes > FIRST_BYTES).then_some(SLEEP);
        }
        let over = self.bytes.saturating_sub(self.most());
        let nanoseconds = u128::from(over) * 1_000_000_000 / u128::from(self.rate);
        let wait = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        (over > 0).then(|| wait.clamp(SLEEP, LOOK))
    }

    /// Bytes that may be under way.
    pub fn most(&self) -> u64 {
        let time = self.round_trip * 5 / 4 + QUEUED;
        let bytes = u128::from(self.rate) * time.as_nanos() / 1_000_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX).max(LEAST_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn as_much_as_the_path_takes_and_a_little() {
        let way = |bytes, rate, us| UnderWay { bytes, rate, round_trip: Duration::from_micros(us) };
        // 1 Gbit/s next door: 2 ms of it, and a quarter of nearly nothing.
        assert_eq!(way(250_000, 125_000_000, 80).wait(), None);
        assert_eq!(
            way(272_500 + 125_000, 125_000_000, 80).wait(),
            Some(Duration::from_millis(1) + Duration::from_micros(80))
        );
        // 100 Mbit/s far away: the pipe holds 1 MB.
        assert_eq!(way(1_000_000, 12_500_000, 80_000).wait(), None);
        assert_eq!(way(2_000_000, 12_500_000, 80_000).wait(), Some(LOOK));
        // Slow: a little always goes.
        assert_eq!(way(LEAST_BYTES, 1000, 100).wait(), None);
        assert_eq!(way(FIRST_BYTES + 1, 0, 0).wait(), Some(SLEEP));
    }

    #[test]
    fn the_kernel_tells_what_is_not_acknowledged() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = Stream::tcp(TcpStream::connect(listener.local_addr().unwrap()).unwrap()).unwrap();
        let (mut other, _) = listener.accept().unwrap();
        assert_eq!(UnderWay::of(&stream).map(|way| way.bytes), Some(0));
        let much = vec![7; 64 << 20];
        let mut written = 0;
        // Until the other end, which reads nothing, can take no more.
        while let Ok(n) = stream.try_write(&[std::io::IoSlice::new(&much[written..])]) {
            written += n;
        }
        assert!(UnderWay::of(&stream).unwrap().bytes > 0);
        let mut rest = vec![0; written];
        other.read_exact(&mut rest).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while UnderWay::of(&stream).unwrap().bytes > 0 {
            assert!(std::time::Instant::now() < deadline, "it is never acknowledged");
            std::thread::sleep(Duration::from_millis(1));
        }
        let way = UnderWay::of(&stream).unwrap();
        assert!(way.rate > 0 && way.round_trip < Duration::from_secs(10), "{way:?}");
        assert_eq!(UnderWay::of(&Stream::pair().unwrap().0), None);
    }
}
