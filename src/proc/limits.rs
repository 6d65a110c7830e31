//! `/proc/PID/limits` (proc_pid_limits(5)): readable where `prlimit(2)` would need CAP_SYS_RESOURCE.

use super::{ProcDir, Result, Syntax, scan};
use crate::image::task::RLimit;

/// Names as the kernel prints them, by number (`RLIMIT_CPU` = 0 ...).
const NAMES: [&[u8]; 16] = [
    b"Max cpu time",
    b"Max file size",
    b"Max data size",
    b"Max stack size",
    b"Max core file size",
    b"Max resident set",
    b"Max processes",
    b"Max open files",
    b"Max locked memory",
    b"Max address space",
    b"Max file locks",
    b"Max pending signals",
    b"Max msgqueue size",
    b"Max nice priority",
    b"Max realtime priority",
    b"Max realtime timeout",
];

fn value(word: &[u8]) -> Option<u64> {
    if word == b"unlimited" { Some(u64::MAX) } else { scan::dec(word) }
}

/// Reads the table: soft and hard limits by number.
///
/// # Errors
/// A missing limit, or a value that is neither a number nor `unlimited`.
pub fn parse(text: &[u8]) -> std::result::Result<[RLimit; 16], Syntax> {
    let mut found = [None; 16];
    for (number, line) in scan::lines(text) {
        // No name is the beginning of another.
        let Some((at, rest)) = NAMES.iter().enumerate().find_map(|(n, name)| Some((n, line.strip_prefix(*name)?)))
        else {
            continue;
        };
        let mut words = scan::words(rest);
        let soft = words.next().and_then(value);
        let hard = words.next().and_then(value);
        let (Some(soft), Some(hard)) = (soft, hard) else {
            return Err(Syntax::new(number, "expected a soft and a hard limit", line));
        };
        found[at] = Some(RLimit { soft, hard });
    }
    let mut limits = [RLimit { soft: 0, hard: 0 }; 16];
    for (limit, found) in limits.iter_mut().zip(found) {
        *limit = found.ok_or_else(|| Syntax::new(0, "a limit is missing", text))?;
    }
    Ok(limits)
}

impl ProcDir {
    /// Reads `limits`: soft and hard by number.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`].
    pub fn limits(&self, buf: &mut Vec<u8>) -> Result<[RLimit; 16]> {
        self.parsed("limits", buf, parse)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::proc) const SAMPLE: &[u8] = b"\
Limit                     Soft Limit           Hard Limit           Units     
Max cpu time              unlimited            unlimited            seconds   
Max file size             unlimited            unlimited            bytes     
Max data size             unlimited            unlimited            bytes     
Max stack size            8388608              unlimited            bytes     
Max core file size        0                    unlimited            bytes     
Max resident set          unlimited            unlimited            bytes     
Max processes             96365                96365                processes 
Max open files            1024                 1048576              files     
Max locked memory         8388608              8388608              bytes     
Max address space         unlimited            unlimited            bytes     
Max file locks            unlimited            unlimited            locks     
Max pending signals       96365                96365                signals   
Max msgqueue size         819200               819200               bytes     
Max nice priority         0                    0                    
Max realtime priority     0                    0                    
Max realtime timeout      unlimited            unlimited            us        
";

    #[test]
    fn limits_come_by_number() {
        let limits = parse(SAMPLE).unwrap();
        assert_eq!(limits[libc::RLIMIT_STACK as usize], RLimit { soft: 8_388_608, hard: u64::MAX });
        assert_eq!(limits[libc::RLIMIT_NOFILE as usize], RLimit { soft: 1024, hard: 1_048_576 });
        assert_eq!(limits[libc::RLIMIT_RTTIME as usize], RLimit { soft: u64::MAX, hard: u64::MAX });
        assert_eq!(limits[libc::RLIMIT_NICE as usize], RLimit { soft: 0, hard: 0 });
    }

    #[test]
    fn agrees_with_getrlimit() {
        let limits = ProcDir::of_self().unwrap().limits(&mut Vec::new()).unwrap();
        let (soft, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(limits[libc::RLIMIT_NOFILE as usize], RLimit { soft, hard });
    }

    #[test]
    fn a_missing_line_is_an_error() {
        assert!(parse(&SAMPLE[..SAMPLE.len() / 2]).is_err());
    }
}
