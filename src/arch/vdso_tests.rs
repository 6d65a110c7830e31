use super::*;
use proptest::prelude::*;

const AT: u64 = 0x7ffd_1234_5000;
const NEAR: u64 = AT + (1 << 20);
const FAR: u64 = AT - (1 << 40);

/// Where code at an address leads, if it is one of our two jumps.
fn follow(code: &[u8], from: u64) -> Option<u64> {
    match code {
        [0xe9, a, b, c, d, ..] => {
            Some(from.wrapping_add(5).wrapping_add(i64::from(i32::from_le_bytes([*a, *b, *c, *d])) as u64))
        }
        [0x48, 0xb8, address @ ..] if address.get(8..10) == Some(&[0xff, 0xe0]) => {
            Some(u64::from_le_bytes(*address.first_chunk()?))
        }
        _ => None,
    }
}

/// Another kernel's text: ours, in which no function does anything.
fn other() -> Vec<u8> {
    let mut text = own_text().to_vec();
    for function in functions(own_text()) {
        text[function.offset..][..function.size].fill(0xcc);
    }
    text
}

/// A text whose symbol of this name has another one of equal length.
fn renamed(text: &[u8], name: &str, to: &str) -> Vec<u8> {
    assert_eq!(name.len(), to.len());
    let mut text = text.to_vec();
    let (old, new) = (format!("\0{name}\0"), format!("\0{to}\0"));
    let at = text.windows(old.len()).position(|w| w == old.as_bytes()).expect("it has this symbol");
    text[at..at + new.len()].copy_from_slice(new.as_bytes());
    text
}

#[test]
fn functions_of_this_kernel_are_found() {
    let names: Vec<_> = functions(own_text()).iter().map(|f| String::from_utf8_lossy(f.name).into_owned()).collect();
    for name in ["__vdso_clock_gettime", "clock_gettime", "__vdso_gettimeofday", "__vdso_time", "__vdso_getcpu"] {
        assert!(names.iter().any(|n| n == name), "{name} in {names:?}");
    }
    assert!(own().data.is_multiple_of(4096) && own().data > 0);
}

#[test]
fn every_function_leads_to_its_namesake() {
    for new_at in [NEAR, FAR] {
        let (old, new) = (other(), own_text());
        let done = redirect(&old, AT, new, new_at);
        assert!(done.stuck.is_empty(), "{:?}", done.stuck);
        for function in functions(&old) {
            let leads_to = follow(&done.text[function.offset..], AT + function.offset as u64);
            let target = functions(new).into_iter().find(|f| f.name == function.name).unwrap();
            let too_short = new_at == FAR && function.size < 12;
            assert!(too_short || leads_to == Some(new_at + target.offset as u64), "{function:?} {leads_to:x?}");
        }
    }
}

#[test]
fn a_redirected_text_is_recognised_and_redirected_again() {
    let once = redirect(&other(), AT, own_text(), NEAR).text;
    assert!(leads_to(&once, AT, own_text(), NEAR));
    // Elsewhere it would lead elsewhere; unchanged texts lead nowhere.
    assert!(!leads_to(&once, AT + 4096, own_text(), NEAR));
    assert!(!leads_to(&once, AT, own_text(), FAR));
    assert!(!leads_to(own_text(), AT, own_text(), NEAR));
    // What passes through a third kernel ends as what comes directly.
    let far = redirect(&other(), AT, own_text(), FAR);
    assert!(leads_to(&far.text, AT, own_text(), FAR));
    let again = redirect(&far.text, AT, own_text(), NEAR);
    for (begin, len) in again.pieces {
        assert_eq!(again.text[begin..begin + len], once[begin..begin + len]);
    }
}

#[test]
fn a_function_that_is_missing_here_becomes_a_system_call() {
    // The name without prefix is the end of the one with it.
    let old = renamed(&other(), "__vdso_getcpu", "__vdso_setcpu");
    let done = redirect(&other(), AT, &old, NEAR);
    let getcpu = functions(own_text()).into_iter().find(|f| f.name == b"__vdso_getcpu").unwrap();
    let code = [&[0xb8][..], &(libc::SYS_getcpu as u32).to_le_bytes(), &[0x0f, 0x05, 0xc3]].concat();
    assert_eq!(done.text[getcpu.offset..][..code.len()], code);
    // What only the old one has and nobody knows stays.
    let done = redirect(&old, AT, own_text(), NEAR);
    let left: std::collections::BTreeSet<&str> = done.left.iter().map(String::as_str).collect();
    assert_eq!(left, ["__vdso_setcpu", "setcpu"].into());
    assert_eq!(done.text[getcpu.offset..][..getcpu.size], old[getcpu.offset..][..getcpu.size]);
}

#[test]
fn without_a_block_here_everything_known_is_a_system_call() {
    let done = redirect(&other(), AT, &[], 0);
    assert!(done.stuck.is_empty(), "{:?}", done.stuck);
    assert!(done.pieces.len() >= 5);
    for (begin, _) in done.pieces {
        assert!(matches!(done.text[begin], 0xb8 | 0x49));
    }
}

#[test]
fn getrandom_answers_questions_about_its_state_as_an_old_kernel() {
    let code = instead(libc::SYS_getrandom);
    // cmp $-1,%r8; jne to the mov of the call's number.
    assert_eq!(code[..6], [0x49, 0x83, 0xf8, 0xff, 0x75, 0x08]);
    assert_eq!(code[6 + 8], 0xb8);
    assert_eq!(i32::from_le_bytes(*code[9..].first_chunk().unwrap()), -libc::ENOSYS);
}

#[test]
fn a_function_without_room_is_named() {
    let mut old = other();
    // st_size of every symbol becomes 3.
    let symbols = Symbols::of(&old).unwrap();
    let sizes: Vec<usize> = (1..symbols.count).map(|n| (symbols.symbols + n * Symbols::SYMBOL + 16) as usize).collect();
    for at in sizes {
        old[at..at + 8].copy_from_slice(&3u64.to_le_bytes());
    }
    let done = redirect(&old, AT, own_text(), NEAR);
    assert_eq!(done.text, old);
    assert!(done.stuck.iter().any(|name| name.contains("clock_gettime")));
}

proptest! {
    #[test]
    fn total_on_any_bytes(old in proptest::collection::vec(any::<u8>(), 0..9000), at: u64, new_at: u64) {
        check(&old, own_text(), at, new_at);
        check(own_text(), &old, at, new_at);
    }

    #[test]
    fn total_on_damaged_texts(damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..40), at: u64, new_at: u64) {
        let mut text = own_text().to_vec();
        // Headers, symbols and names are in the first part.
        let len = text.len().min(2048);
        for (index, byte) in damage {
            text[index.index(len)] = byte;
        }
        check(&text, own_text(), at, new_at);
        check(own_text(), &text, at, new_at);
    }
}

/// Whatever the texts are: nothing changes but pieces, each within a function.
fn check(old: &[u8], new: &[u8], at: u64, new_at: u64) {
    let done = redirect(old, at, new, new_at);
    assert_eq!(done.text.len(), old.len());
    let found = functions(old);
    for (begin, len) in &done.pieces {
        assert!(found.iter().any(|f| f.offset == *begin && *len <= f.size));
    }
    for (n, (was, is)) in old.iter().zip(&done.text).enumerate() {
        assert!(was == is || done.pieces.iter().any(|(begin, len)| (*begin..begin + len).contains(&n)));
    }
    let _ = leads_to(old, at, new, new_at);
    let _ = syscall_offset(old);
}
