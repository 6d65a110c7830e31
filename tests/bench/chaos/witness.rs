//! The target, and the book of its tickets, which lies outside all hosts.
//!
//! The target takes one ticket after the other and writes each down with the time. A number that is there twice, or that goes
//! back, is a doubled target; one that is missing is a target that has run where nobody saw it, or from an old state. Before each
//! ticket it looks at pages of its memory, whose content follows from the number alone. It also answers a client outside all hosts,
//! over TCP ([`crate::client`]).

use std::path::PathBuf;
use std::time::Duration;

/// Arguments: `book`, appended to, a line a ticket: number, seconds since the epoch; and the address to answer at. Every step writes
/// one page at both of its ends, so that what any page must hold can be computed.
pub const TARGET: &str = "
import mmap, os, socket, struct, sys, time
os.closerange(3, 1024)
book = open(sys.argv[1], 'ab', buffering=0)
PAGES, STEP = 1024, 5
BACK = pow(STEP, -1, PAGES)
memory = mmap.mmap(-1, PAGES * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
def places(page):
    return page * 4096, page * 4096 + 4088
def wanted(page, n):
    return max(n - (n - page * BACK) % PAGES, 0)
listener = socket.create_server((sys.argv[2], 0))
listener.setblocking(False)
with open(sys.argv[1] + '.port.new', 'w') as port:
    port.write(str(listener.getsockname()[1]))
os.rename(sys.argv[1] + '.port.new', sys.argv[1] + '.port')
peers = {}
def answer(n):
    try:
        peer = listener.accept()[0]
        peer.setblocking(False)
        peers[peer] = b''
    except BlockingIOError:
        pass
    for peer in list(peers):
        try:
            said = peer.recv(4096)
            if said:
                *questions, peers[peer] = (peers[peer] + said).split(b'\\n')
                for question in questions:
                    peer.sendall(b'%s %d\\n' % (question, n))
                continue
        except BlockingIOError:
            continue
        except OSError:
            pass
        peer.close()
        del peers[peer]
n = 0
while True:
    for i in range(8):
        page = (n * 7 + i * 131) % PAGES
        for at in places(page):
            found = struct.unpack_from('<Q', memory, at)[0]
            if found != wanted(page, n):
                book.write(b'WRONG page %d at step %d: %d, not %d\\n' % (page, n, found, wanted(page, n)))
    n += 1
    for at in places(n * STEP % PAGES):
        struct.pack_into('<Q', memory, at, n)
    book.write(b'%d %.6f\\n' % (n, time.time()))
    answer(n)
    time.sleep(0.002)
";

/// The book.
#[derive(Debug, Clone)]
pub struct Book {
    pub path: PathBuf,
}

/// What is in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Read {
    /// Tickets taken.
    pub tickets: usize,
    /// A ticket is there twice, goes back, or is missing.
    pub doubled: bool,
    /// Pages that did not hold what they must.
    pub wrong: usize,
    /// The longest time between two tickets.
    pub stood: Duration,
}

impl Book {
    pub fn read(&self) -> Read {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        Read::of(&text)
    }

    /// How many tickets were taken.
    pub fn tickets(&self) -> usize {
        self.read().tickets
    }
}

impl Read {
    fn of(text: &str) -> Self {
        let mut read = Self::default();
        let mut last: Option<(u64, f64)> = None;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines() {
            let Some((number, time)) = line.split_once(' ').and_then(|(n, t)| Some((n.parse().ok()?, t.parse().ok()?)))
            else {
                read.wrong += 1;
                continue;
            };
            let (number, time): (u64, f64) = (number, time);
            if let Some((before, then)) = last {
                read.doubled |= number != before + 1;
                read.stood = read.stood.max(Duration::from_secs_f64((time - then).max(0.0)));
            }
            read.tickets += 1;
            last = Some((number, time));
        }
        read
    }

    /// The witness sees what it is to see; printed and checked before the first run.
    pub fn proves_itself() -> bool {
        let good = Self::of("1 0.5\n2 0.75\n3 2.75\n4 2.8");
        let is = Self { tickets: 3, doubled: false, wrong: 0, stood: Duration::from_secs(2) };
        good == is
            && Self::of("1 0.5\n2 0.6\n2 0.6\n").doubled
            && Self::of("1 0.5\n3 0.6\n").doubled
            && Self::of("1 0.5\nWRONG page 3\n2 0.6\n").wrong == 1
    }
}
