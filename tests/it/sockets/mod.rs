//! Sockets read and made again, in network namespaces of their own.

mod peers;
mod tcp;
mod tree;
mod udp;
mod unix;

/// Runs `test` on a thread with a network namespace of its own whose loopback device is up. Skips, and says so, where that
/// is not allowed.
pub fn in_new_net(test: impl FnOnce() + Send + 'static) {
    let outcome = std::thread::spawn(|| {
        if let Err(e) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            crate::skip!("a network namespace of its own: {e}");
            return;
        }
        migrate_engine::sys::packet::set_up("lo").expect("lo goes up");
        test();
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
