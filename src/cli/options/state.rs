//! STATE: what becomes of things that reach beyond the tree.

use super::{Words, one_of};
use crate::ops::options::{Cgroup, Cpu, ExternalUnix, Files, MoveAddress, Pids, StateOptions, Stdio, Supervisor, Tcp};

const CPU: Words<Cpu> = &[
    ("superset", Cpu::Superset, "all features of the source's CPU"),
    ("minimal", Cpu::Minimal, "only those whose registers are in use"),
];
const PIDS: Words<Pids> = &[
    ("auto", Pids::Auto, "the same if they are free, else a new PID namespace"),
    ("same", Pids::Same, "the same, or none"),
    ("new", Pids::New, "the same, in a new PID namespace with its own /proc"),
];
const FILES: Words<Files> = &[
    (
        "auto",
        Files::Auto,
        "nothing where both sides see the same file system, else compare what is read, copy what is written to",
    ),
    ("check", Files::Check, "compare; refuse if one differs"),
    ("copy", Files::Copy, "copy what differs (a move only)"),
    ("skip", Files::Skip, "take what has the same name"),
];
const TCP: Words<Tcp> = &[
    ("keep", Tcp::Keep, "they survive"),
    ("close", Tcp::Close, "both ends see a reset"),
    ("refuse", Tcp::Refuse, "refuse to dump or move"),
];
const EXTERNAL_UNIX: Words<ExternalUnix> = &[
    ("refuse", ExternalUnix::Refuse, "refuse to dump or move"),
    ("reconnect", ExternalUnix::Reconnect, "connect again by the path of the peer"),
    ("close", ExternalUnix::Close, "the program sees its peer gone"),
];
const STDIO: Words<Stdio> = &[
    ("auto", Stdio::Auto, "attach for a restore in the foreground, else refuse"),
    ("attach", Stdio::Attach, "carry them to where this command runs"),
    ("null", Stdio::Null, "put /dev/null in their place"),
    ("log", Stdio::Log, "put a log file in their place"),
    ("refuse", Stdio::Refuse, "refuse to dump or move"),
];
const SUPERVISOR: Words<Supervisor> = &[
    ("refuse", Supervisor::Refuse, "refuse to go on"),
    ("hold", Supervisor::Hold, "keep a systemd unit from starting it again, or beside it"),
    ("ignore", Supervisor::Ignore, "you have taken care of it"),
];

/// The STATE group.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "State")]
pub struct StateArgs {
    /// Which CPU features the destination must have [default: superset]
    ///
    /// A dump notes this in the image, as --pids, --files and --cgroup: a restore that is not told otherwise does so.
    #[arg(long, value_name = "FEATURES", value_parser = one_of(CPU))]
    cpu: Option<Cpu>,
    /// Which process ids the restored tree gets [default: auto]
    #[arg(long, value_name = "WHICH", value_parser = one_of(PIDS))]
    pids: Option<Pids>,
    /// What is done about files that the target has open or mapped [default: auto]
    #[arg(long, value_name = "HOW", value_parser = one_of(FILES))]
    files: Option<Files>,
    /// What becomes of established TCP connections
    #[arg(long, value_name = "HOW", default_value = "keep", value_parser = one_of(TCP))]
    tcp: Tcp,
    /// What becomes of UNIX sockets connected to processes outside the tree [default: refuse]
    ///
    /// Those to the journal and to syslog always reconnect. A restore that is not told otherwise does as its dump was told.
    #[arg(long, value_name = "HOW", value_parser = one_of(EXTERNAL_UNIX))]
    external_unix: Option<ExternalUnix>,
    /// What becomes of terminals and pipes held outside the tree
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = one_of(STDIO))]
    stdio: Stdio,
    /// An address that moves with the target: IP/LEN@IF[:DEST_IF]; may be given several times
    ///
    /// With a dump it leaves this host when the target ends, and comes to the host where the image is restored.
    #[arg(long = "move-address", value_name = "ADDRESS")]
    move_addresses: Vec<MoveAddress>,
    /// Which cgroup the restored tree runs in: scope, same, or a path [default: scope]
    ///
    /// scope is a transient systemd scope, or /migrate/ID where there is no systemd. It is never the cgroup of the agent or of the ssh session.
    #[arg(long, value_name = "WHICH", value_parser = cgroup)]
    cgroup: Option<Cgroup>,
    /// What is done about a service manager that would start the target again
    ///
    /// Where it ends: its unit. Where it comes: the unit of the same name, which must not run there; hold masks it until the next boot or `systemctl unmask --runtime`. A target that is named by its unit is held.
    #[arg(long, value_name = "HOW", default_value = "refuse", value_parser = one_of(SUPERVISOR))]
    supervisor: Supervisor,
}

impl StateArgs {
    /// The choices as the engine takes them.
    pub fn options(&self) -> StateOptions {
        StateOptions {
            cpu: self.cpu,
            pids: self.pids,
            files: self.files,
            tcp: self.tcp,
            external_unix: self.external_unix,
            stdio: self.stdio,
            move_addresses: self.move_addresses.clone(),
            cgroup: self.cgroup.clone(),
            supervisor: self.supervisor,
            hooks: Vec::new(),
            identity: None,
            from_image: false,
        }
    }
}

fn cgroup(word: &str) -> Result<Cgroup, String> {
    match word {
        "scope" => Ok(Cgroup::Scope),
        "same" => Ok(Cgroup::Same),
        path if path.starts_with('/') && !path.split('/').any(|part| part == "..") => Ok(Cgroup::Path(path.into())),
        _ => Err("write scope, same, or a path that starts with / below the mount of the hierarchy".to_owned()),
    }
}
