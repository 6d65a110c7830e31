//! Packets that locked sockets do not take, kept so that they can be given to them later: a packet that is only dropped
//! costs its sender a retransmission time-out of 200 ms or more.
//!
//! ```text
//! open                  packet sockets, bound, shown nothing
//! arm(ports)            just before the locks: shown TCP segments to these ports
//!   ... the sockets are locked and read, or made anew ...
//! take(flows)           right before they speak again: what came for them, in order
//! rest                  shown nothing, what is left is dropped
//! ```
//! Opening and closing packet sockets waits for a grace period of 5 to 22 ms: they are opened long before a pause and
//! closed long after it, and never bound anew; changing the filter does not wait. Packets are seen before netfilter, and
//! whether or not their address is still here.
//!
//! A captured packet whose checksum is not the sender's own but that of the hardware's or of nobody is completed; one that
//! is damaged is dropped, as the stack would have done.

use super::filter::{self, DROP_ALL};
use super::flows::{Flows, Reach};
use super::packet::{Header, PACKET_BYTES_MAX};
use super::{Result, failed};
use crate::sys::{Errno, packet, socket};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes of packets that wait in the kernel for each IP version; what comes beyond is dropped, and its sender repeats it.
const KERNEL_BYTES: i32 = 32 << 20;
/// Packets that are read at a time, so that a flood does not hold up whoever reads.
const PACKETS_AT_ONCE: usize = 20_000;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Packet sockets of one network namespace.
#[derive(Debug)]
pub struct Capture {
    v4: OwnedFd,
    /// Absent where IPv6 is not compiled in.
    v6: Option<OwnedFd>,
    room: Vec<u8>,
    lost: u64,
}

impl Capture {
    /// Opens them in this thread's network namespace, shown nothing yet. Needs CAP_NET_RAW.
    pub fn open() -> Result<Self> {
        let open = |protocol| -> std::result::Result<OwnedFd, Errno> {
            let fd = packet::open_cooked()?;
            socket::attach_filter(fd.as_fd(), &DROP_ALL)?;
            // Beyond the limit of the system where we may; else as much as it gives.
            let (level, force) = (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE);
            if socket::set_int_option(fd.as_fd(), level, force, KERNEL_BYTES).is_err() {
                socket::set_int_option(fd.as_fd(), level, libc::SO_RCVBUF, KERNEL_BYTES)?;
            }
            packet::bind_cooked(fd.as_fd(), protocol)?;
            Ok(fd)
        };
        let v4 = open(ETHERTYPE_IPV4).map_err(failed("packet", "socket"))?;
        Ok(Self { v4, v6: open(ETHERTYPE_IPV6).ok(), room: vec![0; PACKET_BYTES_MAX], lost: 0 })
    }

    /// From here on segments to these local ports are kept.
    pub fn arm(&mut self, ports: &BTreeSet<u16>) -> Result<()> {
        let show = |fd: BorrowedFd<'_>, v6: bool| {
            let program = filter::to_ports(v6, ports.iter().copied());
            socket::attach_filter(fd, &program).map_err(failed("packet", "SO_ATTACH_FILTER"))
        };
        show(self.v4.as_fd(), false)?;
        self.v6.as_ref().map_or(Ok(()), |fd| show(fd.as_fd(), true))
    }

    /// Nothing is kept any more, and what is left is dropped. Returns how many packets found no room since the last rest.
    pub fn rest(&mut self) -> Result<u64> {
        for fd in [Some(&self.v4), self.v6.as_ref()].into_iter().flatten() {
            socket::attach_filter(fd.as_fd(), &DROP_ALL).map_err(failed("packet", "SO_ATTACH_FILTER"))?;
            self.lost += u64::from(packet::lost(fd.as_fd()).map_err(failed("packet", "PACKET_STATISTICS"))?);
            // One byte of each is read, and is enough.
            while let Some(_dropped) = packet::receive(fd.as_fd(), &mut [0]).map_err(failed("packet", "reading"))? {}
        }
        Ok(std::mem::take(&mut self.lost))
    }

    /// What has come for these sockets, in the order it came, with right checksums. Stops after some thousands: call again
    /// until nothing is left.
    pub fn take(&mut self, flows: &Flows, reach: Reach) -> Result<Vec<Vec<u8>>> {
        let mut taken = Vec::new();
        for fd in [Some(&self.v4), self.v6.as_ref()].into_iter().flatten() {
            for _ in 0..PACKETS_AT_ONCE {
                let received = packet::receive(fd.as_fd(), &mut self.room).map_err(failed("packet", "reading"))?;
                let Some(received) = received else { break };
                let Some(packet) = self.room.get_mut(..received.len) else {
                    self.lost += 1;
                    continue;
                };
                let Some(header) = Header::parse(packet) else { continue };
                if !flows.want(&header, reach) {
                    continue;
                }
                if received.partial_checksum {
                    header.complete(packet);
                } else if !header.is_intact(packet) {
                    continue;
                }
                taken.push(packet[..header.packet_bytes()].to_vec());
            }
        }
        Ok(taken)
    }

    /// Readable when a packet has come.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [Some(&self.v4), self.v6.as_ref()].into_iter().flatten().map(AsFd::as_fd)
    }
}

#[cfg(test)]
mod tests {
    use super::super::lock::{self, NetLock};
    use super::super::segment::{Injector, parse_address};
    use super::*;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::Duration;

    /// Runs on a thread with a network namespace of its own, with its loopback up; skipped without the right to make one.
    fn in_a_network(test: impl FnOnce() + Send) {
        if !nix::unistd::geteuid().is_root() {
            crate::skip!("not root, no packet sockets");
            return;
        }
        std::thread::scope(|scope| {
            let run = scope.spawn(|| {
                if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
                    crate::skip!("no network namespace can be made");
                    return;
                }
                packet::set_up("lo").unwrap();
                test();
            });
            run.join().unwrap();
        });
    }

    fn pair(address: &str) -> (TcpListener, TcpStream, TcpStream) {
        let listener = TcpListener::bind(address).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_nodelay(true).unwrap();
        let server = listener.accept().unwrap().0;
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        (listener, client, server)
    }

    fn flows(locks: &[&TcpStream], listener: Option<SocketAddr>) -> Flows {
        let mut flows = Flows::default();
        for socket in locks {
            flows.connected(socket.local_addr().unwrap(), socket.peer_addr().unwrap());
        }
        listener.into_iter().for_each(|address| flows.listen(address));
        flows
    }

    fn deliver_unlocking(lock: NetLock, capture: &mut Capture, flows: &Flows, injector: &Injector) -> usize {
        let mut delivered = 0;
        lock::unlock_all(vec![lock], || {
            let packets = capture.take(flows, Reach::Same).unwrap();
            packets.iter().for_each(|packet| injector.packet(packet).unwrap());
            delivered += packets.len();
        })
        .unwrap();
        delivered
    }

    /// Segments that this network has repeated (`TCPRetransSegs`).
    fn repeated() -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
        let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
        let names = lines.next().unwrap().split(' ');
        let values = lines.next().unwrap().split(' ');
        names.zip(values).find(|(name, _)| *name == "RetransSegs").unwrap().1.parse().unwrap()
    }

    #[test]
    fn what_a_locked_socket_does_not_take_is_given_to_it_later() {
        in_a_network(|| {
            for address in ["127.0.0.1:0", "[::1]:0"] {
                let (listener, mut client, mut server) = pair(address);
                let mut capture = Capture::open().unwrap();
                let injector = Injector::open(None).unwrap();
                let flows = flows(&[&server], None);
                client.write_all(b"before ").unwrap();
                let mut got = [0; 7];
                server.read_exact(&mut got).unwrap();
                capture.arm(&flows.ports()).unwrap();
                let locked = std::time::Instant::now();
                let lock = NetLock::lock(server.try_clone().unwrap().into()).unwrap();
                client.write_all(b"during ").unwrap();
                client.write_all(&[7; 200_000]).unwrap();
                // Shorter than the time after which a sender probes whether its tail was lost (two ticks of the kernel).
                std::thread::sleep(Duration::from_millis(2));
                let delivered = deliver_unlocking(lock, &mut capture, &flows, &injector);
                assert!(delivered >= 3, "{delivered} packets");
                assert_eq!(capture.rest().unwrap(), 0);
                let mut all = vec![0; 7 + 200_000];
                server.read_exact(&mut all).unwrap();
                assert!(all.starts_with(b"during ") && all[7..].iter().all(|byte| *byte == 7));
                client.write_all(b"after").unwrap();
                server.read_exact(&mut all[..5]).unwrap();
                // On a machine that is slow at the wrong moment there is a probe, but no time-out.
                assert!(&all[..5] == b"after" && repeated() <= 1 && locked.elapsed() < Duration::from_millis(200));
                assert!(parse_address(&socket::local_address(server.as_fd()).unwrap()).is_some());
                drop(listener);
            }
        });
    }

    #[test]
    fn a_request_waits_for_its_listener() {
        in_a_network(|| {
            for address in ["127.0.0.1:0", "[::1]:0"] {
                let listener = TcpListener::bind(address).unwrap();
                let at = listener.local_addr().unwrap();
                let mut capture = Capture::open().unwrap();
                let injector = Injector::open(None).unwrap();
                let flows = flows(&[], Some(at));
                capture.arm(&flows.ports()).unwrap();
                let lock = NetLock::lock(listener.try_clone().unwrap().into()).unwrap();
                let asked = std::time::Instant::now();
                // A thread is in the namespace of the one that made it.
                let client = std::thread::spawn(move || TcpStream::connect(at).unwrap());
                std::thread::sleep(Duration::from_millis(30));
                assert!(!client.is_finished(), "nobody answers");
                assert!(deliver_unlocking(lock, &mut capture, &flows, &injector) >= 1);
                client.join().unwrap();
                assert!(asked.elapsed() < Duration::from_millis(900), "the request was not repeated");
                listener.accept().unwrap();
                assert_eq!(repeated(), 0);
            }
        });
    }

    #[test]
    fn nothing_is_kept_before_it_is_armed_nor_after_and_not_twice() {
        in_a_network(|| {
            let (_listener, mut client, mut server) = pair("127.0.0.1:0");
            let mut capture = Capture::open().unwrap();
            let flows = flows(&[&server], None);
            let mut say = |client: &mut TcpStream| {
                client.write_all(b"x").unwrap();
                server.read_exact(&mut [0]).unwrap();
            };
            say(&mut client);
            assert_eq!(capture.take(&flows, Reach::Open).unwrap().len(), 0);
            capture.arm(&flows.ports()).unwrap();
            say(&mut client);
            let packets = capture.take(&flows, Reach::Open).unwrap();
            assert_eq!(packets.len(), 1);
            // What we inject ourselves is not captured again.
            Injector::open(None).unwrap().packet(&packets[0]).unwrap();
            assert_eq!(capture.take(&flows, Reach::Open).unwrap().len(), 0);
            // Other ports are none of our business.
            let (_other, mut a, _b) = pair("127.0.0.1:0");
            a.write_all(b"x").unwrap();
            assert_eq!(capture.take(&Flows::default(), Reach::Open).unwrap().len(), 0);
            say(&mut client);
            capture.rest().unwrap();
            assert_eq!(capture.take(&flows, Reach::Open).unwrap().len(), 0);
        });
    }
}
