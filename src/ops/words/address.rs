//! Addresses that move with a target.

use super::WordError;
use crate::ops::options::MoveAddress;
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

/// Longest name of an interface, bytes: IFNAMSIZ without its NUL.
const INTERFACE_MAX: usize = 15;

fn is_interface(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= INTERFACE_MAX
        && name != "."
        && name != ".."
        && !name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '/' || c == ':')
}

impl FromStr for MoveAddress {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        let wrong = |why: &str| WordError::new("address to move", word, why);
        let form = "write IP/LEN@IF or IP/LEN@IF:DEST_IF, as in 10.0.0.7/24@eth0";
        let (address, interfaces) = word.split_once('@').ok_or_else(|| wrong(form))?;
        let (ip, prefix) = address.split_once('/').ok_or_else(|| wrong(form))?;
        let ip: std::net::IpAddr = ip.parse().map_err(|_| wrong("that is no IP address"))?;
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        let prefix = prefix
            .parse()
            .ok()
            .filter(|prefix| *prefix <= longest)
            .ok_or_else(|| wrong("the length of the prefix is out of range"))?;
        let (interface, dest) = match interfaces.split_once(':') {
            Some((interface, dest)) => (interface, Some(dest)),
            None => (interfaces, None),
        };
        if !is_interface(interface) || !dest.is_none_or(is_interface) {
            return Err(wrong("that is no name of an interface"));
        }
        Ok(Self { ip, prefix, interface: interface.to_owned(), dest_interface: dest.map(str::to_owned) })
    }
}

impl Display for MoveAddress {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.ip, self.prefix, self.interface)?;
        self.dest_interface.as_ref().map_or(Ok(()), |dest| write!(f, ":{dest}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wrong_addresses_are_refused() {
        for wrong in [
            "",
            "10.0.0.1",
            "10.0.0.1@eth0",
            "10.0.0.1/33@eth0",
            "::1/129@lo",
            "10.0.0.1/24@",
            "10.0.0.1/24@a/b",
            "10.0.0.1/24@eth0:",
            "x/24@eth0",
        ] {
            assert!(wrong.parse::<MoveAddress>().is_err(), "{wrong}");
        }
        assert_eq!("fd00::7/64@eth0".parse::<MoveAddress>().unwrap().prefix, 64);
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(ip: std::net::IpAddr, prefix in 0u8..=32, interface in "[a-z0-9.]{3,15}", dest in proptest::option::of("[a-z]{1,15}")) {
            let address = MoveAddress { ip, prefix, interface, dest_interface: dest };
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }
    }
}
