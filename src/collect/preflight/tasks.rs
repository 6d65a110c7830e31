//! Kinds of programs and confinements that cannot be saved.

use super::{Member, reach::object};
use crate::{
    blocker::{Blocker, codes},
    kernel::{Answer, Probe},
    proc::Result,
};
use std::io::Read;

/// `ELFCLASS32` in the fifth byte of a program.
const ELF_CLASS_32: &[u8] = b"\x7fELF\x01";

pub(super) fn look(member: &Member<'_>, buf: &mut Vec<u8>, found: &mut Vec<Blocker>) -> Result<()> {
    if is_32bit(member) {
        found.push(Blocker::new(codes::TASK_32BIT, object(member.row)));
    }
    let status = member.dir.status(buf)?;
    if status.x86_thread_features.iter().any(|feature| feature == "shstk") {
        found.push(Blocker::new(codes::SHADOW_STACK, object(member.row)));
    }
    if status.seccomp == 2
        && let Answer::No(why) = Probe::SuspendSeccomp.answer()
    {
        let own = crate::kernel::facts().own_seccomp_filters;
        let code = if own { codes::TRACER_SECCOMP } else { codes::SECCOMP_FILTER };
        found.push(Blocker::new(code, object(member.row)).because(why.clone()));
    }
    found.extend(label(member, buf));
    let cwd = format!("{}: its working directory", object(member.row));
    found.extend(crate::collect::task::gone_with_its_process(member.dir, &cwd)?);
    Ok(())
}

fn is_32bit(member: &Member<'_>) -> bool {
    let mut head = [0; 5];
    let file = member.dir.open_file("exe", nix::fcntl::OFlag::O_RDONLY).map(std::fs::File::from);
    file.is_ok_and(|mut file| file.read_exact(&mut head).is_ok()) && head == ELF_CLASS_32
}

/// A profile or domain of a security module that confines the task.
fn label(member: &Member<'_>, buf: &mut Vec<u8>) -> Option<Blocker> {
    // EINVAL where no module keeps labels.
    let text = member.dir.read_into("attr/current", buf).ok()?;
    let text = String::from_utf8_lossy(text);
    let text = text.trim_end_matches(['\n', '\0']);
    is_confining(text).then(|| Blocker::new(codes::LSM_LABEL, format!("{}: {text}", object(member.row))))
}

/// AppArmor shows `PROFILE (enforce)` or `unconfined`; SELinux `user:role:type:level`; Smack a word of its own, `_` by default.
fn is_confining(label: &str) -> bool {
    let selinux_type = label.split(':').nth(2);
    match selinux_type {
        Some(kind) => !matches!(kind, "unconfined_t" | "unconfined_service_t" | "kernel_t" | "init_t"),
        None => !matches!(label, "" | "unconfined" | "_" | "kernel") && !label.ends_with("(complain)"),
    }
}

#[cfg(test)]
mod tests {
    use super::is_confining;

    #[test]
    fn labels() {
        for free in ["", "unconfined", "_", "unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023", "x (complain)"] {
            assert!(!is_confining(free), "{free}");
        }
        for confined in
            ["docker-default (enforce)", "system_u:system_r:container_t:s0:c1,c2", "/usr/sbin/ntpd (enforce)"]
        {
            assert!(is_confining(confined), "{confined}");
        }
    }
}
