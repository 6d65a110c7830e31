//! Several hosts have an address for a moment: those that stand ready to run a target, of which one will. Until it is known which
//! one, none of them answers neighbours that ask who has the address (ARP, RFC 826; neighbour solicitation, RFC 4861 7.2.4).
//!
//! A table of nf_tables in the families of ARP (Linux 3.14) and IPv6 drops the questions. It changes nothing while the address is
//! not here, so it is made long before: a transaction waits for a grace period, which has no place in a pause. Its name follows
//! from the addresses and the attempt, so that whoever has to do with the copy when its session is dead finds it. One that a session
//! has left that was killed before its copy was ready is removed when the address is to come here again.

use super::nft::{Batch, PREFIX, V6, leftovers, netlink, remove_from};
use super::{Result, failed};
use crate::sys::Errno;
use std::net::IpAddr;
use std::os::fd::AsFd;

/// `NFPROTO_ARP`.
const ARP: u8 = 3;
const FAMILIES: [u8; 2] = [ARP, V6];
/// `NF_ARP_IN`, `NF_INET_LOCAL_IN`.
const HOOKS: [u32; 2] = [0, 1];
const DROP: u32 = 0;
const ACCEPT: u32 = 1;

/// From here on nobody who asks for these addresses is answered from this thread's network namespace. Needs CAP_NET_ADMIN there.
///
/// # Errors
/// The kernel has no nf_tables for one of the families that are needed.
pub fn begin(addresses: &[IpAddr], attempt: &str) -> Result<()> {
    let name = name_of(addresses, attempt);
    let make = || -> std::result::Result<(), Errno> {
        for (family, hook) in FAMILIES.into_iter().zip(HOOKS) {
            let of_family: Vec<_> = addresses.iter().filter(|ip| ip.is_ipv4() == (family == ARP)).collect();
            if !of_family.is_empty() {
                table(family, hook, &name, &of_family).run(netlink()?.as_fd())?;
            }
        }
        Ok(())
    };
    make().map_err(failed("netfilter", "holding off neighbours' questions"))
}

/// They are answered again. Nothing held off is no error; says whether something was.
///
/// # Errors
/// The table cannot be removed.
pub fn end(addresses: &[IpAddr], attempt: &str) -> Result<bool> {
    remove_from(None, &name_of(addresses, attempt), &FAMILIES)
}

/// The same for whatever attempts have left.
///
/// # Errors
/// A table cannot be removed.
pub fn sweep(addresses: &[IpAddr]) -> Result<()> {
    let ours = name_of(addresses, "");
    for name in leftovers(None)?.iter().filter(|name| name.starts_with(&ours)) {
        remove_from(None, name, &FAMILIES)?;
    }
    Ok(())
}

fn name_of(addresses: &[IpAddr], attempt: &str) -> String {
    let mut lines: Vec<String> = addresses.iter().map(|ip| format!("{ip}\n")).collect();
    lines.sort_unstable();
    format!("{PREFIX}quiet-{:016x}-{attempt}", xxhash_rust::xxh3::xxh3_64(lines.concat().as_bytes()))
}

/// A table with a chain and a rule for each address.
fn table(family: u8, hook: u32, name: &str, addresses: &[&IpAddr]) -> Batch {
    let mut batch = Batch::new();
    batch.new_table(family, name, None);
    batch.new_chain(family, name, hook, ACCEPT);
    for address in addresses {
        batch.new_rule(family, name, &|m| {
            match address {
                // The address that is asked for, behind those of the sender and eight bytes of what it is about.
                IpAddr::V4(ip) => {
                    m.load_payload_at_once(1, 24, 4);
                    m.compare(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    m.load_meta(16);
                    m.compare(&[libc::IPPROTO_ICMPV6 as u8]);
                    m.load_payload_at_once(2, 0, 1);
                    m.compare(&[135]);
                    m.load_payload_at_once(2, 8, 16);
                    m.compare(&ip.octets());
                }
            }
            m.verdict(DROP);
        });
    }
    batch
}
