//! `/proc/PID/net/` (proc_pid_net(5)): sockets of the network namespace of a process, by inode.

pub mod igmp;
pub mod inet;
pub mod unix;
