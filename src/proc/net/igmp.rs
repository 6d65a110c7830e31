//! `net/igmp`, `net/igmp6`: multicast groups that somebody listens to, by interface.

use crate::image::Bytes;
use crate::proc::{ProcDir, Result, Syntax, scan};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A group on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Number of the interface.
    pub index: u32,
    /// Its name.
    pub interface: Bytes,
    /// The group.
    pub address: IpAddr,
}

/// Reads `igmp`: a heading, then for each interface a line, and below it one for each group, further to the right.
///
/// # Errors
/// A line of another form.
pub fn parse(text: &[u8]) -> std::result::Result<Vec<Group>, Syntax> {
    let mut groups = Vec::new();
    let mut on: Option<(u32, Bytes)> = None;
    for (number, line) in scan::lines(text).skip(1) {
        let mut words = scan::words(line);
        let wrong = || Syntax::new(number, "expected an interface or a group", line);
        let first = words.next().ok_or_else(wrong)?;
        if line.starts_with(b"\t") {
            let digits = u32::try_from(scan::hex(first).ok_or_else(wrong)?).map_err(|_| wrong())?;
            let (index, interface) = on.clone().ok_or_else(wrong)?;
            groups.push(Group { index, interface, address: IpAddr::V4(Ipv4Addr::from(digits.to_ne_bytes())) });
        } else {
            on = Some((scan::dec32(first).ok_or_else(wrong)?, Bytes(words.next().ok_or_else(wrong)?.to_vec())));
        }
    }
    Ok(groups)
}

/// Reads `igmp6`: a line for each group.
///
/// # Errors
/// A line of another form.
pub fn parse_six(text: &[u8]) -> std::result::Result<Vec<Group>, Syntax> {
    let group = |line: &[u8]| {
        let mut words = scan::words(line);
        let (index, interface) = (scan::dec32(words.next()?)?, Bytes(words.next()?.to_vec()));
        let digits = words.next()?;
        let mut bytes = [0u8; 16];
        let pairs = digits.chunks_exact(2);
        for (byte, pair) in bytes.iter_mut().zip(pairs) {
            *byte = u8::try_from(scan::hex(pair)?).ok()?;
        }
        (digits.len() == 32).then(|| Group { index, interface, address: IpAddr::V6(Ipv6Addr::from(bytes)) })
    };
    let read = |(number, line)| group(line).ok_or_else(|| Syntax::new(number, "expected a group", line));
    scan::lines(text).map(read).collect()
}

impl ProcDir {
    /// All groups in the process's network namespace; none of a family that the kernel does not have.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`].
    pub fn multicast_groups(&self, buf: &mut Vec<u8>) -> Result<Vec<Group>> {
        let absent_is_empty = |read: Result<Vec<Group>>| match read {
            Err(e) if e.is_absent() => Ok(Vec::new()),
            other => other,
        };
        let mut groups = absent_is_empty(self.parsed("net/igmp", buf, parse))?;
        groups.extend(absent_is_empty(self.parsed("net/igmp6", buf, parse_six))?);
        Ok(groups)
    }
}

#[cfg(test)]
pub(in crate::proc) mod tests {
    use super::*;

    pub(in crate::proc) const SAMPLE: &[u8] = b"Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter
1\tlo        :     1      V3
\t\t\t\t010000E0     1 0:00000000\t\t0
4\teth0      :     2      V3
\t\t\t\tFB0000E0     1 0:00000000\t\t0
\t\t\t\t010000E0     1 0:00000000\t\t0\n";
    pub(in crate::proc) const SAMPLE_SIX: &[u8] =
        b"1    lo              ff020000000000000000000000000001     1 0000000C 0
4    eth0            ff0200000000000000000001ff000002     1 00000004 0\n";

    #[test]
    fn groups_belong_to_the_interface_above_them() {
        let groups = parse(SAMPLE).unwrap();
        let seen: Vec<_> = groups.iter().map(|g| (g.index, g.interface.to_string(), g.address.to_string())).collect();
        let of = |index, name: &str, address: &str| (index, name.to_owned(), address.to_owned());
        assert_eq!(seen, [of(1, "lo", "224.0.0.1"), of(4, "eth0", "224.0.0.251"), of(4, "eth0", "224.0.0.1")]);
        let groups = parse_six(SAMPLE_SIX).unwrap();
        assert_eq!((groups[1].index, groups[1].address), (4, "ff02::1:ff00:2".parse().unwrap()));
        assert!(parse(b"head\n\t\t010000E0\n").is_err() && parse_six(b"1 lo ff02\n").is_err());
    }

    #[test]
    fn a_group_of_ours_is_listed() {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let group = Ipv4Addr::new(239, 255, 41, 7);
        socket.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST).unwrap();
        let groups = ProcDir::of_self().unwrap().multicast_groups(&mut Vec::new()).unwrap();
        assert!(groups.iter().any(|g| g.address == group && g.interface.0 == b"lo"), "{groups:?}");
    }
}
