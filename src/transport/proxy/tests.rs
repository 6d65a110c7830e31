use super::super::connect::ConnectOptions;
use super::super::frame::HEADER_BYTES;
use super::super::hello::Purpose;
use super::super::link::{Grant, Link, Request};
use super::super::preamble::{ChannelRole, SessionNumber};
use super::super::stream::Stream;
use super::super::wait::{Abort, Patience};
use super::*;
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

const LIMIT: Duration = Duration::from_secs(30);

fn patience() -> Patience {
    Patience { abort: Abort::new().unwrap(), silence: LIMIT, deadline: None }
}

fn options() -> ConnectOptions {
    ConnectOptions {
        keys: "/nowhere".into(),
        peers: "/nowhere".into(),
        connect_timeout: LIMIT,
        peer_timeout: LIMIT,
        allow_plain: false,
        rsh: vec!["false".into()],
        remote: "migrate".into(),
        bootstrap: false,
        program: "/proc/self/exe".into(),
        route: None,
    }
}

/// Where somebody listens; every link goes to `serve`, in a thread of its own.
fn agent(serve: impl Fn(Link) + Send + Sync + 'static) -> PeerAddress {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = std::sync::Arc::new(serve);
    let (joins, joined): (Sender<Channel>, Receiver<Channel>) = unbounded();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let stream = Stream::tcp(socket.unwrap()).unwrap();
            let mut channel = Channel::new(stream, "a client", patience());
            match channel.receive_preamble(&mut Vec::new()).unwrap().check().unwrap().0 {
                ChannelRole::Bulk => joins.send(channel).unwrap(),
                ChannelRole::Control => {
                    let (serve, joined) = (serve.clone(), joined.clone());
                    let session = SessionNumber([3; 16]);
                    let (may_send, may_receive) = (true, true);
                    let grant = Grant { session, streams_max: 2, max_memory_bytes: None, may_send, may_receive };
                    // Who hangs up before that is served no further.
                    thread::spawn(move || Link::accept(channel, &grant, &joined, LIMIT).map(|link| serve(link)));
                }
            }
        }
    });
    PeerAddress::Plain { host: "127.0.0.1".into(), port }
}

fn proxy() -> PeerAddress {
    let own = Own { connects: options(), session: Err("this is a test".into()) };
    agent(move |link| drop(serve(link, &own)))
}

/// An agent that tells of the pages that it gets, and answers every message.
fn destination() -> (PeerAddress, Receiver<Vec<u8>>) {
    let (pages, got) = unbounded();
    let address = agent(move |link| {
        let Link { control, bulk, .. } = link;
        for mut channel in bulk.into_iter().chain([control]) {
            let pages = pages.clone();
            thread::spawn(move || {
                while let Ok(frame) = channel.receive() {
                    match frame.kind {
                        FrameKind::PAGES => pages.send(frame.body.to_vec()).unwrap(),
                        kind => {
                            let body = frame.body.to_vec();
                            channel.send(kind, &body).unwrap();
                        }
                    }
                }
            });
        }
    });
    (address, got)
}

fn link(trunk: &Trunk, to: &PeerAddress, streams: u16) -> Result<Link> {
    link_by(trunk, (to, &Branch::default()), streams)
}

fn link_by(trunk: &Trunk, to: (&PeerAddress, &Branch), streams: u16) -> Result<Link> {
    trunk.connect(to, &options(), Request { purpose: Purpose::Send, streams }, &Abort::new().unwrap())
}

/// Bytes that no two frames have alike.
fn pages(number: u32) -> Vec<u8> {
    (0..250_000u32).flat_map(|n| (n.wrapping_mul(2_654_435_761) ^ number).to_le_bytes()).collect()
}

fn begin(via: &[PeerAddress]) -> Trunk {
    Trunk::begin(via, &options(), &Abort::new().unwrap()).unwrap()
}

/// Sends this to all of them at once, and looks that each gets it, and answers.
fn sends_all(links: &mut [Link], got: &[Receiver<Vec<u8>>], frames: &[Vec<u8>]) {
    thread::scope(|scope| {
        for link in &mut *links {
            scope.spawn(|| frames.iter().for_each(|body| link.bulk[0].send(FrameKind::PAGES, body).unwrap()));
        }
    });
    for got in got {
        assert!(frames.iter().all(|body| got.recv_timeout(LIMIT).unwrap() == *body));
    }
    links.iter_mut().for_each(answers);
}

fn answers(link: &mut Link) {
    link.control.send(FrameKind::MESSAGE, b"are you there").unwrap();
    assert_eq!(link.control.expect(FrameKind::MESSAGE, "an answer").unwrap(), b"are you there");
}

#[test]
fn what_is_for_several_leaves_once_and_everybody_gets_all() {
    for proxies in [1, 2] {
        let via: Vec<PeerAddress> = (0..proxies).map(|_| proxy()).collect();
        let trunk = begin(&via);
        let (all, got): (Vec<_>, Vec<_>) = (0..4).map(|_| destination()).unzip();
        let mut links: Vec<Link> = all.iter().map(|to| link(&trunk, to, 1).unwrap()).collect();
        assert!(links.iter().all(|link| link.bulk.len() == 1 && link.is_same_host()));
        sends_all(&mut links, &got, &(0..30).map(pages).collect::<Vec<_>>());
        let (sent, once) = (trunk.bytes_sent(), 30 * 1_000_000);
        assert!(sent > once && sent < once * 21 / 20, "{sent} bytes by way of {proxies}");
    }
}

/// Behind the first proxy the lanes part: two destinations there, and two behind a second one, to which everything goes once.
#[test]
fn where_lanes_part_each_link_carries_once_what_is_the_same() {
    let (carried, counted) = unbounded();
    let PeerAddress::Plain { port: behind, .. } = proxy() else { unreachable!() };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let second = PeerAddress::Plain { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
    // Counts what the first proxy has for the second.
    thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut from, _) = listener.accept().unwrap();
        let mut to = TcpStream::connect(("127.0.0.1", behind)).unwrap();
        let (mut back, mut answers) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        thread::spawn(move || std::io::copy(&mut answers, &mut back));
        let (mut total, mut buffer) = (0, vec![0; 1 << 16]);
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            total += count as u64;
            to.write_all(&buffer[..count]).unwrap();
        }
        let _ = to.shutdown(std::net::Shutdown::Write);
        carried.send(total).unwrap();
    });
    let trunk = begin(&[proxy()]);
    let (all, got): (Vec<_>, Vec<_>) = (0..4).map(|_| destination()).unzip();
    let far = Branch { by: vec![second], ends_there: false };
    let branches = [Branch::default(), Branch::default(), far.clone(), far];
    let mut links: Vec<Link> =
        all.iter().zip(&branches).map(|(to, branch)| link_by(&trunk, (to, branch), 1).unwrap()).collect();
    sends_all(&mut links, &got, &(0..20).map(pages).collect::<Vec<_>>());
    let (sent, once) = (trunk.bytes_sent(), 20 * 1_000_000);
    drop((links, trunk));
    for bytes in [sent, counted.recv_timeout(LIMIT).unwrap()] {
        assert!(bytes > once && bytes < once * 21 / 20, "{bytes} bytes");
    }
}

/// Who is behind a proxy that is not there is told so at once, all but the first, and is reached by the others all the same.
#[test]
fn a_proxy_behind_one_that_is_not_there_is_named_to_all_who_want_it() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let gone = PeerAddress::Plain { host: "127.0.0.1".into(), port: gone };
    let (trunk, (to, _got)) = (begin(&[proxy()]), destination());
    let far = Branch { by: vec![gone.clone()], ends_there: false };
    for _ in 0..2 {
        let error = link_by(&trunk, (&to, &far), 0).err().unwrap().to_string();
        assert!(error.contains(&gone.to_string()), "{error}");
    }
    assert!(link(&trunk, &to, 0).is_ok() && !trunk.is_lost());
}

#[test]
fn one_that_reads_nothing_holds_up_its_own_lane_only() {
    let trunk = begin(&[proxy()]);
    let (quick, got) = destination();
    let (still, _idle) = unbounded();
    let stuck = agent(move |link| still.send(link).unwrap());
    let (mut a, mut b) = (link(&trunk, &quick, 1).unwrap(), link(&trunk, &stuck, 1).unwrap());
    let filled = thread::spawn(move || {
        b.bulk[0].silence(Duration::from_secs(1));
        // Until nobody takes any more: queues of sockets, and the window.
        (0..u32::MAX).take_while(|n| b.bulk[0].send(FrameKind::PAGES, &pages(*n)).is_ok()).count()
    });
    for n in 100..160 {
        a.bulk[0].send(FrameKind::PAGES, &pages(n)).unwrap();
    }
    assert!((100..160).all(|n| got.recv_timeout(LIMIT).unwrap() == pages(n)));
    let bytes = filled.join().unwrap() as u64 * 1_000_000;
    assert!(bytes < 30 << 20, "{bytes} bytes were taken for one that reads nothing");
    answers(&mut a);
}

/// With a proxy, and with another one behind that.
#[test]
fn one_that_is_not_read_holds_up_its_own_lane_only() {
    let far = Branch { by: vec![proxy()], ends_there: false };
    for branch in [Branch::default(), far] {
        let (trunk, said) = (begin(&[proxy()]), Arc::new(AtomicU32::new(0)));
        let ((quick, _got), counts) = (destination(), said.clone());
        let talker = agent(move |mut link| {
            while link.control.send(FrameKind::PAGES, &pages(counts.load(Ordering::Relaxed))).is_ok() {
                counts.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut a = link_by(&trunk, (&quick, &branch), 0).unwrap();
        let mut b = link_by(&trunk, (&talker, &branch), 0).unwrap();
        // Until it is stuck: queues of sockets, and the window.
        let mut before = u32::MAX;
        while said.load(Ordering::Relaxed) != before {
            before = said.load(Ordering::Relaxed);
            thread::sleep(Duration::from_millis(500));
        }
        assert!(before > 0 && before < 60, "{before} MB were taken that nobody reads");
        (0..100).for_each(|_| answers(&mut a));
        // All of it comes, and more, once it is read.
        assert!((0..before + 20).all(|n| b.control.expect(FrameKind::PAGES, "pages").unwrap() == pages(n)));
        assert!(!trunk.is_lost());
    }
}

#[test]
fn what_was_said_last_arrives() {
    let trunk = begin(&[proxy()]);
    for n in 0..10 {
        let (to, got) = destination();
        let mut link = link(&trunk, &to, 0).unwrap();
        link.control.send(FrameKind::PAGES, &pages(n)).unwrap();
        drop(link);
        assert!(got.recv_timeout(LIMIT).unwrap() == pages(n));
    }
    assert!(!trunk.is_lost());
}

#[test]
fn a_destination_that_hangs_up_is_heard_to_the_end() {
    let trunk = begin(&[proxy()]);
    let brief = agent(|mut link| {
        link.control.send(FrameKind::MESSAGE, b"last words").unwrap();
        // Whoever closes with something unread resets the connection.
        let _ = link.control.receive();
    });
    let mut link = link(&trunk, &brief, 0).unwrap();
    assert_eq!(link.control.expect(FrameKind::MESSAGE, "words").unwrap(), b"last words");
    link.control.send(FrameKind::MESSAGE, b"so be it").unwrap();
    assert!(matches!(link.control.receive(), Err(TransportError::Closed { .. })));
    assert!(!trunk.is_lost(), "others go on");
}

#[test]
fn a_lost_proxy_ends_every_lane_and_one_that_is_not_there_is_named() {
    let (sockets, taken) = unbounded::<TcpStream>();
    // Passes bytes on until it is told not to.
    let PeerAddress::Plain { port: behind, .. } = proxy() else { unreachable!() };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (a, _) = listener.accept().unwrap();
        let b = TcpStream::connect(("127.0.0.1", behind)).unwrap();
        sockets.send(a.try_clone().unwrap()).unwrap();
        let (mut a, mut b) = (Stream::tcp(a).unwrap(), Stream::tcp(b).unwrap());
        let _ = super::super::pump::pump(&mut a, &mut b, "test");
    });
    let trunk = begin(&[PeerAddress::Plain { host: "127.0.0.1".into(), port }]);
    let (to, _got) = destination();
    let mut links = [link(&trunk, &to, 0).unwrap(), link(&trunk, &to, 0).unwrap()];
    taken.recv().unwrap().shutdown(std::net::Shutdown::Both).unwrap();
    for link in &mut links {
        assert!(link.control.receive().is_err_and(|error| error.is_link_lost()));
    }
    assert!(trunk.is_lost() && link(&trunk, &to, 0).is_err());
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let gone = PeerAddress::Plain { host: "127.0.0.1".into(), port: gone };
    let trunk = begin(&[proxy()]);
    let error = link(&trunk, &gone, 0).err().unwrap().to_string();
    assert!(error.contains(&format!("Cannot connect to {gone}")), "{error}");
    assert!(link(&trunk, &to, 1).is_ok(), "the proxy serves on");
    let error = Trunk::begin(&[proxy(), gone.clone()], &options(), &Abort::new().unwrap()).err().unwrap().to_string();
    assert!(error.contains(&format!("the proxy {gone} cannot be reached")), "{error}");
}

#[test]
fn who_breaks_the_rules_is_cut_off() {
    let to = proxy();
    let request = Request { purpose: Purpose::Relay, streams: 0 };
    let connect = || {
        let mut control = connect::connect(&to, &options(), request, &Abort::new().unwrap()).unwrap().control;
        send(&mut control, &ToProxy::Through { on: Vec::new(), manner: Manner::of(&options()), tells_read: true })
            .unwrap();
        assert_eq!(receive::<FromProxy>(&mut control).unwrap(), FromProxy::Ready { heeds_read: true });
        control
    };
    use super::super::connect;
    let mut unknown = connect();
    send(&mut unknown, &ToProxy::Same { lane: 0, number: 0, checksum: 0 }).unwrap();
    assert!(unknown.receive().is_err());
    let (idle, _) = destination();
    let mut much = connect();
    let mut refusal = |lane, address: PeerAddress, by: Vec<PeerAddress>| {
        send(&mut much, &ToProxy::Open { lane, address, session: None, by }).unwrap();
        let FromProxy::HungUp { reason, .. } = receive(&mut much).unwrap() else { panic!("nobody is there") };
        send(&mut much, &ToProxy::HangUp { lane }).unwrap();
        reason
    };
    let unix = PeerAddress::Unix("/nowhere".into());
    for (lane, address, by, says) in [
        (1, unix, Vec::new(), "no other host"),
        (3, PeerAddress::Local, Vec::new(), "this is a test"),
        (4, idle.clone(), vec![idle.clone(); PROXIES_MAX + 1], "in a row"),
    ] {
        let reason = refusal(lane, address, by);
        assert!(reason.contains(says), "{reason}");
    }
    send(&mut much, &ToProxy::Open { lane: 2, address: idle, session: None, by: Vec::new() }).unwrap();
    assert_eq!(receive::<FromProxy>(&mut much).unwrap(), FromProxy::Opened { lane: 2 });
    let header_only = vec![0; HEADER_BYTES];
    send_carried(&mut much, 7, &header_only).unwrap();
    send(&mut much, &ToProxy::HangUp { lane: 2 }).unwrap();
    assert!(matches!(receive(&mut much).unwrap(), FromProxy::HungUp { lane: 2, .. }), "a frame of no lane is dropped");
}

#[test]
fn messages_are_read_as_written() {
    let through = ToProxy::Through { on: vec![proxy()], manner: Manner::of(&options()), tells_read: true };
    let open = ToProxy::Open {
        lane: 7,
        address: PeerAddress::Ssh { user: Some("u".into()), host: "h".into(), port: None },
        session: Some([1; 16]),
        by: vec![PeerAddress::Local],
    };
    for message in [through, open, ToProxy::Same { lane: 1, number: 2, checksum: u64::MAX }] {
        assert_eq!(decode::<ToProxy>(&hello::encode(&message), "x").unwrap(), message);
    }
    assert!(decode::<ToProxy>(b"{}", "x").is_err());
    let ready = decode::<FromProxy>(br#"{"message":"ready"}"#, "x").unwrap();
    assert_eq!(ready, FromProxy::Ready { heeds_read: false }, "of an earlier version");
    let earlier = br#"{"message":"open","lane":1,"address":"local","session":null}"#;
    assert!(
        matches!(decode(earlier, "x").unwrap(), ToProxy::Open { by, .. } if by.is_empty()),
        "of an earlier version"
    );
    let own = ConnectOptions { rsh: vec!["own".into()], ..options() };
    let wanted = ConnectOptions { rsh: vec!["other".into()], allow_plain: true, ..options() };
    let made = Manner::of(&wanted).options(&own);
    assert_eq!((made.rsh, made.allow_plain), (own.rsh, true), "whom a proxy runs is its own choice");
}
