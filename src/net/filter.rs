//! Classic socket filters (`SO_ATTACH_FILTER`): which packets a socket is shown. An instruction is a `struct sock_filter` in
//! memory order, as [`crate::sys::socket::attach_filter`] takes it.

use super::segment::PASS_MARK;

/// `ld #0xc114; ret #0`: drops everything, and can be told from a filter of the program's.
pub const DROP_ALL: [u64; 2] = [op(LOAD_CONST, 0, 0, PASS_MARK), op(RETURN, 0, 0, 0)];

/// Lets in what bears our mark: segments that we inject.
pub const ONLY_MARKED: [u64; 4] =
    [op(LOAD_WORD, 0, 0, MARK), op(JUMP_EQUAL, 0, 1, PASS_MARK), op(RETURN, 0, 0, u32::MAX), op(RETURN, 0, 0, 0)];

/// For a listening TCP socket: nobody begins a connection, those begun go on. `ldb [13]; and #0x12; jeq #0x02`.
pub const NO_SYNS: [u64; 5] = [
    op(LOAD_BYTE, 0, 0, 13),
    op(AND, 0, 0, 0x12),
    op(JUMP_EQUAL, 0, 1, 0x02),
    op(RETURN, 0, 0, 0),
    op(RETURN, 0, 0, u32::MAX),
];

/// Filters that are ours, and never a program's own.
pub fn is_ours(filter: &[u64]) -> bool {
    filter == DROP_ALL || filter == ONLY_MARKED || filter == NO_SYNS
}

/// More ports than this are not told apart in the kernel: a filter has at most 4096 instructions.
const PORTS_MAX: usize = 1500;

/// For a packet socket that sees packets of one IP version from their IP header on: TCP segments to this host and one of
/// these local ports, but for those that bear our mark. IPv4 fragments and IPv6 extension headers are not looked into.
pub fn to_ports(v6: bool, ports: impl ExactSizeIterator<Item = u16>) -> Vec<u64> {
    let mut program = Vec::with_capacity(16 + 2 * ports.len());
    let unless = |program: &mut Vec<u64>, equal: u32| {
        program.extend([op(JUMP_EQUAL, 1, 0, equal), op(RETURN, 0, 0, 0)]);
    };
    program.extend([op(LOAD_WORD, 0, 0, MARK), op(JUMP_EQUAL, 0, 1, PASS_MARK), op(RETURN, 0, 0, 0)]);
    program.push(op(LOAD_WORD, 0, 0, PACKET_TYPE));
    unless(&mut program, PACKET_HOST);
    if v6 {
        program.push(op(LOAD_BYTE, 0, 0, 6));
        unless(&mut program, libc::IPPROTO_TCP as u32);
        program.push(op(LOAD_HALF, 0, 0, 42));
    } else {
        program.push(op(LOAD_BYTE, 0, 0, 9));
        unless(&mut program, libc::IPPROTO_TCP as u32);
        program.extend([op(LOAD_HALF, 0, 0, 6), op(JUMP_BITS, 0, 1, 0x3fff), op(RETURN, 0, 0, 0)]);
        program.extend([op(LOAD_HEADER_LENGTH, 0, 0, 0), op(LOAD_HALF_INDEXED, 0, 0, 2)]);
    }
    if ports.len() > PORTS_MAX {
        program.push(op(RETURN, 0, 0, u32::MAX));
    } else {
        for port in ports {
            program.extend([op(JUMP_EQUAL, 0, 1, port.into()), op(RETURN, 0, 0, u32::MAX)]);
        }
        program.push(op(RETURN, 0, 0, 0));
    }
    program
}

/// An instruction: code, jump if true, jump if false, operand.
const fn op(code: u16, yes: u8, no: u8, k: u32) -> u64 {
    let (c, k) = (code.to_ne_bytes(), k.to_ne_bytes());
    u64::from_ne_bytes([c[0], c[1], yes, no, k[0], k[1], k[2], k[3]])
}

const LOAD_CONST: u16 = 0x00;
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF_INDEXED: u16 = 0x48;
/// `ldxb 4*([k]&0xf)`.
const LOAD_HEADER_LENGTH: u16 = 0xb1;
const AND: u16 = 0x54;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_BITS: u16 = 0x45;
const RETURN: u16 = 0x06;
/// `SKF_AD_OFF + SKF_AD_PKTTYPE`, `SKF_AD_OFF + SKF_AD_MARK`.
const PACKET_TYPE: u32 = (-0x1000i32 + 4) as u32;
const MARK: u32 = (-0x1000i32 + 20) as u32;
/// `PACKET_HOST`.
const PACKET_HOST: u32 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_are_told_from_a_programs() {
        assert!(is_ours(&DROP_ALL) && is_ours(&ONLY_MARKED) && is_ours(&NO_SYNS));
        assert!(!is_ours(&[]) && !is_ours(&DROP_ALL[1..]));
        // As versions before this one left it behind.
        assert_eq!(DROP_ALL, [0x0000_c114_0000_0000, 0x0000_0000_0000_0006]);
    }

    #[test]
    fn too_many_ports_are_not_told_apart() {
        let few = to_ports(false, vec![80, 443].into_iter());
        let many = to_ports(true, (0..2000u16).collect::<Vec<_>>().into_iter());
        assert!(few.len() > 16 && many.len() < 16);
        assert!(to_ports(false, (0..PORTS_MAX as u16).collect::<Vec<_>>().into_iter()).len() <= 4096);
    }
}
