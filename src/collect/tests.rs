//! A live process is collected twice, unharmed, with equal models.

use super::*;
use crate::trace::freeze::Frozen;
use std::process::{Child, Command, Stdio};

struct Target(Child);

impl Drop for Target {
    fn drop(&mut self) {
        let pid = Pid(self.0.id() as i32);
        let children = crate::proc::ProcDir::open(pid).and_then(|d| d.children_of_all_threads(&mut Vec::new()));
        for child in children.unwrap_or_default() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.0), nix::sys::signal::SIGKILL);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn target() -> Target {
    // Descriptors that whoever runs the tests has leaked to us would be somebody else's pipes.
    let script = "for f in /proc/self/fd/*; do n=${f##*/}; [ $n -gt 2 ] && eval \"exec $n>&-\"; done 2>/dev/null
        sleep 1000 & trap 'echo hi' USR1; wait";
    let mut command = Command::new("/bin/bash");
    command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().expect("/bin/sh runs");
    std::thread::sleep(std::time::Duration::from_millis(200));
    Target(child)
}

fn collected(pid: Pid) -> Collection {
    let policy = Policy { allow_external_stdio: true, ..Policy::default() };
    let mut frozen = Frozen::tree(pid).unwrap();
    let collection = collect(&mut frozen, &policy, Default::default(), &mut |_, _| {}).unwrap();
    frozen.thaw().unwrap();
    collection
}

#[test]
fn twice_gives_equal_models() {
    let target = target();
    let pid = Pid(target.0.id() as i32);
    let first = collected(pid);
    let second = collected(pid);
    assert_eq!(first.model.tasks.len(), 2);
    assert!(first.blockers.is_empty(), "{:?}", first.blockers);
    for (before, after) in first.model.tasks.iter().zip(&second.model.tasks) {
        assert_eq!((&before.rlimits, &before.state, &before.mm), (&after.rlimits, &after.state, &after.mm));
        assert_eq!(before.threads[0].regs.xstate, after.threads[0].regs.xstate);
        assert_eq!(before.threads[0].blocked, after.threads[0].blocked);
        let all_but_orig_rax = |t: &crate::image::task::Task| {
            let mut regs = t.threads[0].regs.general.clone();
            // A second stop shows `restart_syscall` where the first showed the call itself.
            regs[15] = 0;
            regs
        };
        assert_eq!(all_but_orig_rax(before), all_but_orig_rax(after));
    }
    assert_eq!(first.model.mms, second.model.mms);
    assert_eq!(first.model.sighands[0].actions[9].handler, second.model.sighands[0].actions[9].handler);
    assert!(first.model.sighands[0].actions[9].handler > 1, "the shell's trap is a handler");
}
