//! The wires of a play: pairs of streams, links over them, and cuts.

use super::*;

/// A pair of streams with a cable in between that is cut after so many bytes in one direction.
fn cable(cut_after: Option<(bool, i64)>) -> (Stream, Stream) {
    let Some((to_destination, bytes)) = cut_after else { return Stream::pair().unwrap() };
    let (a, source_end) = UnixStream::pair().unwrap();
    let (b, destination_end) = UnixStream::pair().unwrap();
    for (mut from, mut to, counted) in [
        (source_end.try_clone().unwrap(), destination_end.try_clone().unwrap(), to_destination),
        (destination_end, source_end, !to_destination),
    ] {
        let left = AtomicI64::new(bytes);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                let count = if counted {
                    (left.fetch_sub(count as i64, Ordering::SeqCst).max(0) as usize).min(count)
                } else {
                    count
                };
                if to.write_all(&buffer[..count]).is_err()
                    || count == 0
                    || (counted && left.load(Ordering::SeqCst) <= 0)
                {
                    break;
                }
            }
            let _ = from.shutdown(std::net::Shutdown::Both);
            let _ = to.shutdown(std::net::Shutdown::Both);
        });
    }
    (Stream::unix(a).unwrap(), Stream::unix(b).unwrap())
}

pub(super) fn patience() -> Patience {
    Patience { abort: Abort::new().unwrap(), silence: Duration::from_secs(20), deadline: None }
}

/// The two ends of a link; the cut counts from after the first exchange.
pub(in crate::migration) fn links(streams: u16, cut: Option<(bool, i64)>) -> (Link, Link) {
    links_over(cable(cut), streams)
}

pub(super) fn links_over((a, b): (Stream, Stream), streams: u16) -> (Link, Link) {
    // The first exchange is not what is tested here: about so many bytes.
    let grant = Grant {
        session: SessionNumber([1; 16]),
        streams_max: 8,
        max_memory_bytes: None,
        may_send: true,
        may_receive: true,
    };
    let (send, joins) = crossbeam_channel::bounded(8);
    let shared = patience();
    let for_joins = shared.clone();
    let server = std::thread::spawn(move || {
        Link::accept(Channel::new(b, "source", shared), &grant, &joins, Duration::from_secs(20))
    });
    let own = patience();
    let mut control = Channel::new(a, "destination", own.clone());
    control.receive_preamble(&mut Vec::new()).unwrap();
    let request = Request { purpose: Purpose::Send, streams };
    let client = Link::open(control, request, None, &mut |_| {
        let (a, b) = Stream::pair().unwrap();
        send.send(Channel::new(b, "source", for_joins.clone())).unwrap();
        Ok(Channel::new(a, "destination", own.clone()))
    });
    (client.unwrap(), server.join().unwrap().unwrap())
}
