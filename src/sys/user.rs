//! credentials(7) of this process: becoming somebody else for good.

use super::{Errno, Result, check};
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, getresuid, setgroups, setresgid, setresuid};

/// CAP_CHECKPOINT_RESTORE as a bit of a set (capabilities(7), Linux 5.9).
pub const CHECKPOINT_RESTORE: u64 = 1 << 40;

/// CAP_DAC_READ_SEARCH: every file may be read, every directory listed.
pub const READ_SEARCH: u64 = 1 << 2;

const VERSION_3: u32 = 0x2008_0522;

/// All threads take these ids; the calling one, which should be alone, keeps of its capabilities those in `keep` and no others.
/// There is no way back. /proc/self stays this process's own, but nobody without the capabilities kept may trace it.
///
/// # Errors
/// It cannot be done; then nothing may be done on the user's behalf.
pub fn become_for_good(uid: u32, gid: u32, groups: &[u32], keep: u64) -> Result<()> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    prctl::set_keepcaps(true)?;
    setgroups(&groups)?;
    setresgid(group, group, group)?;
    setresuid(user, user, user)?;
    prctl::set_keepcaps(false)?;
    set_capabilities(keep)?;
    // A change of ids makes /proc/self root's.
    prctl::set_dumpable(true)?;
    let ids = getresuid()?;
    let all_theirs = [ids.real, ids.effective, ids.saved].iter().all(|id| *id == user);
    let way_back = !user.is_root() && setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok();
    if all_theirs && !way_back { Ok(()) } else { Err(Errno::EPERM) }
}

/// The calling thread, and those that it begins from now on, have of root's capabilities only these; what it executes has all of them
/// again, as root's programs do. Nothing is done where that would not be so, and for who is not root. Whether it was done.
///
/// # Errors
/// capset(2) fails.
pub fn drop_until_exec(keep: u64) -> Result<bool> {
    const NO_ROOT: i64 = 1;
    // SAFETY: integers only.
    let bits = check(i64::from(unsafe { libc::prctl(libc::PR_GET_SECUREBITS, 0, 0, 0, 0) }))?;
    let comes_back = bits & NO_ROOT == 0 && !prctl::get_no_new_privs()?;
    if !nix::unistd::geteuid().is_root() || !comes_back {
        return Ok(false);
    }
    set_capabilities(capabilities()? & keep).map(|()| true)
}

/// capget(2): those that are permitted.
fn capabilities() -> Result<u64> {
    let header = [VERSION_3, 0];
    let mut data = [0u32; 6];
    // SAFETY: header and data are of the sizes that version 3 has, and live until the call returns.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) })?;
    Ok(u64::from(data[1]) | u64::from(data[4]) << 32)
}

/// capset(2): permitted and effective; inheritable and ambient become empty.
fn set_capabilities(set: u64) -> Result<()> {
    let header = [VERSION_3, 0];
    let (low, high) = (set as u32, (set >> 32) as u32);
    let data = [low, low, 0, high, high, 0];
    // SAFETY: header and data are of the sizes that version 3 has, and live until the call returns.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a process of its own: there is no way back.
    #[test]
    fn whoever_becomes_a_user_has_their_rights_and_no_others() {
        const CHILD: &str = "MIGRATE_TEST_BECOME";
        if !nix::unistd::geteuid().is_root() {
            crate::skip!("becoming a user: needs root");
            return;
        }
        if std::env::var_os(CHILD).is_none() {
            let name = "sys::user::tests::whoever_becomes_a_user_has_their_rights_and_no_others";
            let program = std::env::current_exe().unwrap();
            let args = ["--exact", name, "--test-threads=1", "--nocapture"];
            let output = std::process::Command::new(program).args(args).env(CHILD, "1").output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            return;
        }
        become_for_good(54321, 54322, &[54323], CHECKPOINT_RESTORE).unwrap();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(value("Uid:"), ["54321"; 4]);
        assert_eq!(value("Gid:"), ["54322"; 4]);
        assert_eq!(value("Groups:"), ["54323"]);
        for set in ["CapPrm:", "CapEff:"] {
            assert_eq!(value(set), [format!("{CHECKPOINT_RESTORE:016x}")], "{set}");
        }
        for set in ["CapInh:", "CapAmb:"] {
            assert_eq!(value(set), [format!("{:016x}", 0)], "{set}");
        }
        assert!(std::fs::File::open("/proc/1/environ").is_err());
        std::fs::File::open("/proc/self/environ").expect("its own");
    }
}
