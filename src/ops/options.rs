//! What a person may choose, one plain struct for each use case: no parser's types, durations and bytes instead of words.
//!
//! `cli/` fills them from the command line and the configuration, other front ends fill them directly, starting from
//! `Default`. Each field says in the words of the command line which option it is. An option is here only when the engine honours it.

use super::cascade::Cascade;
use super::hooks::Hook;
use super::paths::Disjoint;
use super::words::{Address, Dest, Listen, SessionId, Target};
use crate::blocker::Code;
use crate::migration::common_pages::CommonId;
use crate::migration::source::Quorum;
use crate::migration::switchover::{ExitCondition, Step};
use crate::net::address::Place;
use crate::restore::clone::Identity;
use crate::transport::route::Route;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

mod evacuate;
pub(super) mod word;

pub use evacuate::EvacuateOptions;

/// Where an image is written to or read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImagePlace {
    /// `-D DIR`: a directory, made with mode 0700 by a dump.
    Dir(PathBuf),
    /// `--stream`: one self-checking stream on standard output (dump) or standard input (restore).
    Stream,
}

/// What a dump does with the target once the image is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AfterDump {
    /// It ends (the default).
    #[default]
    End,
    /// `--leave-running`.
    Run,
    /// `--leave-stopped`: stays as if by SIGSTOP.
    Stop,
}

/// `--track`: how dirty pages are found between rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Track {
    /// The best the kernel offers.
    #[default]
    Auto,
    /// `wp`: userfaultfd in asynchronous write-protect mode and PAGEMAP_SCAN (Linux 6.7).
    WriteProtect,
    /// Soft-dirty bits, by PAGEMAP_SCAN where the kernel has it.
    SoftDirty,
    /// Soft-dirty bits, entry by entry of the pagemap.
    SoftDirtyPagemap,
    /// Comparison by hash with the copy taken before.
    Hash,
}

/// `--compress`: what happens to pages on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Compress {
    /// As much as is faster than not compressing.
    #[default]
    Auto,
    /// None.
    Off,
    /// zstd at this level, 1 to 19.
    Level(u8),
}

/// The MEMORY group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryOptions {
    /// `--track`.
    pub track: Track,
    /// `--compress`.
    pub compress: Compress,
    /// `--bandwidth`, bytes a second; `None` = unlimited.
    pub bandwidth: Option<u64>,
    /// `--streams`: bulk channels or page workers; `None` = as many as pay.
    pub streams: Option<u16>,
}

/// `--cpu`: which features a destination's CPU must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cpu {
    /// All that the source's CPU shows.
    #[default]
    Superset,
    /// Only those the extended state of the target is using.
    Minimal,
}

/// `--pids`: which process ids a restored tree gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pids {
    /// The same if they are free, else a new PID namespace.
    #[default]
    Auto,
    /// The same; one in use is a blocker.
    Same,
    /// A new PID namespace with its own /proc.
    New,
}

/// `--files`: what is done about files that the target has open or mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Files {
    /// Nothing on the same file system; else what is read is compared, what is written to is copied. As `check` for an image,
    /// which holds no files.
    #[default]
    Auto,
    /// Compare; a difference is a blocker.
    Check,
    /// Copy what differs; code that differs is a blocker nevertheless.
    Copy,
    /// Take what has the same name.
    Skip,
}

/// `--tcp`: what becomes of established TCP connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tcp {
    /// They survive.
    #[default]
    Keep,
    /// The restored end finds them reset; the peer gets a reset.
    Close,
    /// One is a blocker.
    Refuse,
}

/// `--external-unix`: what becomes of UNIX sockets whose peer is outside the tree. Those to journal and syslog always reconnect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExternalUnix {
    /// One is a blocker.
    #[default]
    Refuse,
    /// Connect again by the peer's path.
    Reconnect,
    /// The restored end finds the peer gone.
    Close,
}

/// `--stdio`: what becomes of terminals and pipes whose other end is outside the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stdio {
    /// As `Attach` for a restore in the foreground, else as `Refuse`.
    #[default]
    Auto,
    /// Carried to where the command runs.
    Attach,
    /// /dev/null.
    Null,
    /// A log file beside the image, or in the state directory of the destination.
    Log,
    /// One is a blocker.
    Refuse,
}

/// `--cgroup`: which cgroup a restored tree runs in; never the one of the agent or the ssh session.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cgroup {
    /// A transient systemd scope, else /migrate/ID.
    #[default]
    Scope,
    /// The one of the same name.
    Same,
    /// This one, as a path below the mount of the hierarchy.
    Path(PathBuf),
}

/// `--supervisor`: what is done about a supervisor that would start the target again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Supervisor {
    /// It is a blocker.
    #[default]
    Refuse,
    /// A systemd unit is kept from starting it again, and from starting beside it.
    Hold,
    /// The person takes care of it.
    Ignore,
}

/// `--move-address IP/LEN@IF[:DEST_IF]`: an address that moves with the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveAddress {
    /// The address.
    pub ip: IpAddr,
    /// Length of its prefix, bits.
    pub prefix: u8,
    /// Interface that has it on the source.
    pub interface: String,
    /// Interface that gets it on the destination; the same name if not said.
    pub dest_interface: Option<String>,
}

/// The STATE group. What is `None` was not said: a restore then does what the image says, everybody else what is usual.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StateOptions {
    /// `--cpu`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// `--pids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<Pids>,
    /// `--files`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<Files>,
    /// `--tcp`.
    pub tcp: Tcp,
    /// `--external-unix`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_unix: Option<ExternalUnix>,
    /// `--stdio`.
    pub stdio: Stdio,
    /// `--move-address`, any number.
    pub move_addresses: Vec<MoveAddress>,
    /// `--cgroup`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<Cgroup>,
    /// `--supervisor`.
    pub supervisor: Supervisor,
    /// `--hook`, any number, of a move.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
    /// Of a copy of the target at one destination, who it is. It is no choice: `migrate clone` gives it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// The target comes from an image: no original of it holds process ids, ports or locks. It is no choice: `migrate restore --on`
    /// says so.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub from_image: bool,
}

/// `--mode`: how a target moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Mode {
    /// Pre-copy, as long as it pays.
    #[default]
    Auto,
    /// Rounds while the target runs, then a short pause.
    PreCopy,
    /// Everything inside the pause.
    StopAndCopy,
    /// Little inside the pause: memory follows when it runs.
    PostCopy,
    /// Rounds, and what they leave follows when it runs.
    Hybrid,
}

/// The MODE group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModeOptions {
    /// `--mode`.
    pub mode: Mode,
    /// `--max-downtime`: the pause to aim at.
    pub max_downtime: Duration,
    /// `--max-rounds`.
    pub max_rounds: u32,
    /// `--max-time` of the rounds.
    pub max_time: Duration,
    /// `--max-bytes` sent in rounds; `None` = unlimited.
    pub max_bytes: Option<u64>,
    /// `--exit-when`.
    pub exit_when: Vec<ExitCondition>,
    /// `--converge`.
    pub converge: Vec<Step>,
    /// `--fence-cmd`: switches the destination's host off.
    pub fence: Option<String>,
    /// `--recoverable`: so often a state of the target comes back while it lacks memory.
    pub recoverable: Option<Duration>,
}

impl Default for ModeOptions {
    fn default() -> Self {
        Self {
            mode: Mode::Auto,
            max_downtime: Duration::from_millis(50),
            max_rounds: 30,
            max_time: Duration::from_secs(600),
            max_bytes: None,
            exit_when: ExitCondition::DEFAULT.to_vec(),
            converge: Step::DEFAULT.to_vec(),
            fence: None,
            recoverable: None,
        }
    }
}

/// The PEER group: how the other host is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerOptions {
    /// `--rsh`: program and arguments; the host and the remote command follow.
    pub rsh: Vec<OsString>,
    /// `--remote`: how the program is called over there, a shell command.
    pub remote: String,
    /// `--bootstrap`: send our static binary where there is none of this version.
    pub bootstrap: bool,
    /// `--connect-timeout`.
    pub connect_timeout: Duration,
    /// `--peer-timeout`: silence of this length means the peer is lost.
    pub peer_timeout: Duration,
    /// `--allow-plain`: TCP without protection also beyond loopback.
    pub allow_plain: bool,
    /// `--route`: the ways to some destinations.
    pub routes: Vec<Pinned>,
    /// `--via`: proxies, the nearest first; none = destinations are connected to directly.
    #[serde(with = "word::list")]
    pub via: Vec<Dest>,
    /// `--fanout-tree`: destinations pass on what they get, to so many each.
    pub fanout_tree: Option<u8>,
}

/// The way to one destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// Where to.
    #[serde(with = "word")]
    pub dest: Dest,
    /// By this.
    pub route: Route,
}

impl PeerOptions {
    /// The way to this one, where it was named.
    pub fn route_to(&self, dest: &Dest) -> Option<&Route> {
        self.routes.iter().find(|pinned| pinned.dest == *dest).map(|pinned| &pinned.route)
    }
}

impl Default for PeerOptions {
    fn default() -> Self {
        Self {
            rsh: ["ssh", "-o", "BatchMode=yes"].map(OsString::from).to_vec(),
            remote: "migrate".to_owned(),
            bootstrap: false,
            connect_timeout: Duration::from_secs(10),
            peer_timeout: Duration::from_secs(30),
            allow_plain: false,
            routes: Vec::new(),
            via: Vec::new(),
            fanout_tree: None,
        }
    }
}

/// `migrate dump`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpOptions {
    /// Id of this session.
    pub session: SessionId,
    /// What to dump.
    pub target: Target,
    /// Where to.
    pub image: ImagePlace,
    /// `--parent`: the image this one adds to.
    pub parent: Option<PathBuf>,
    /// `--leave-running`, `--leave-stopped`.
    pub after: AfterDump,
    /// `--stop-first`: no rounds before the freeze.
    pub stop_first: bool,
    /// `--snapshot`: one instant, saved behind the running target; it runs on, whatever `after` says.
    pub snapshot: bool,
    /// MEMORY.
    pub memory: MemoryOptions,
    /// STATE.
    pub state: StateOptions,
    /// `--dry-run`: preflight only.
    pub dry_run: bool,
    /// `--force`: replace an image that is already there.
    pub force: bool,
}

impl DumpOptions {
    /// A dump with every default.
    pub fn new(target: Target, image: ImagePlace) -> Self {
        Self {
            session: SessionId::random(),
            target,
            image,
            parent: None,
            after: AfterDump::End,
            stop_first: false,
            snapshot: false,
            memory: MemoryOptions::default(),
            state: StateOptions::default(),
            dry_run: false,
            force: false,
        }
    }
}

/// `migrate pre-dump`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreDumpOptions {
    /// Id of this session; the tracker is known by it.
    pub session: SessionId,
    /// What to dump.
    pub target: Target,
    /// Where to.
    pub dir: PathBuf,
    /// `--parent`: the image this one adds to.
    pub parent: Option<PathBuf>,
    /// `--keep-tracking`: how long the tracker waits for the next dump.
    pub keep_tracking: Duration,
    /// MEMORY.
    pub memory: MemoryOptions,
}

impl PreDumpOptions {
    /// A pre-dump with every default.
    pub fn new(target: Target, dir: PathBuf) -> Self {
        Self {
            session: SessionId::random(),
            target,
            dir,
            parent: None,
            keep_tracking: Duration::from_secs(3600),
            memory: MemoryOptions::default(),
        }
    }
}

/// `migrate restore`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreOptions {
    /// Id of this session.
    pub session: SessionId,
    /// Where from.
    pub image: ImagePlace,
    /// `--detach`: return as soon as it runs; else stay its parent and end as it ends.
    pub detach: bool,
    /// `--pidfile`: gets the root's process id as this host sees it.
    pub pidfile: Option<PathBuf>,
    /// The root becomes a child of this program's parent (`criu --restore-sibling`).
    pub sibling: bool,
    /// `--leave-stopped`.
    pub leave_stopped: bool,
    /// `--lazy`: memory comes when it is needed; only from a directory.
    pub lazy: bool,
    /// STATE.
    pub state: StateOptions,
    /// `--dry-run`: would it run here?
    pub dry_run: bool,
}

impl RestoreOptions {
    /// A restore with every default.
    pub fn new(image: ImagePlace) -> Self {
        Self {
            session: SessionId::random(),
            image,
            detach: false,
            pidfile: None,
            sibling: false,
            leave_stopped: false,
            lazy: false,
            state: StateOptions::default(),
            dry_run: false,
        }
    }
}

/// `migrate restore --on`: where an image is restored instead of here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteOptions {
    /// `--on`: of several hosts the first that is ready, unless there are to be copies.
    pub dests: Vec<Dest>,
    /// `--count`: so many copies, on the hosts in turn.
    pub count: Option<u16>,
    /// PEER.
    pub peer: PeerOptions,
    /// `--lease`: what a host waits for this one when it hears nothing.
    pub lease: Duration,
}

/// `migrate move`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveOptions {
    /// Id of this session.
    #[serde(with = "word")]
    pub session: SessionId,
    /// What moves.
    #[serde(with = "word")]
    pub target: Target,
    /// Where to; of several the first that is ready.
    #[serde(with = "word::list")]
    pub dests: Vec<Dest>,
    /// MODE.
    pub mode: ModeOptions,
    /// MEMORY.
    pub memory: MemoryOptions,
    /// STATE.
    pub state: StateOptions,
    /// `--with`: directories that go along as a whole.
    pub with: Vec<PathBuf>,
    /// `--base`: directory of an image at the destination whose pages need not be sent.
    pub base: Option<PathBuf>,
    /// PEER.
    pub peer: PeerOptions,
    /// `--lease`: what the destination waits for a source that says nothing.
    pub lease: Duration,
    /// `--quorum`: of several destinations, how many the exit condition has to hold for.
    pub quorum: Quorum,
    /// `--dry-run`: preflight on both sides only.
    pub dry_run: bool,
    /// `--then`: where it goes on to.
    pub then: Cascade,
    /// `migrate clone`: a copy on every destination.
    #[serde(default)]
    pub clones: Option<CloneOptions>,
    /// Of one tree of an evacuation: what it shares with the others. It is no choice: `migrate evacuate` gives it.
    #[serde(default)]
    pub common: Option<CommonId>,
}

/// What `migrate clone` has beyond `migrate move`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CloneOptions {
    /// `--end-source`: the target ends here once a copy runs.
    pub end_source: bool,
    /// `--address`: that of each copy, in the order of the destinations; those that are left have none.
    pub addresses: Vec<Place>,
    /// `--connections`: the destination that the target itself goes to, with its connections, while the others start clones; `None`:
    /// no copy has any.
    #[serde(with = "word::option")]
    pub connections: Option<Dest>,
    /// Destinations that were asked for and are not among those of this attempt (`--disjoint-paths`).
    pub left_out: usize,
}

impl MoveOptions {
    /// A move with every default.
    pub fn new(target: Target, dest: Dest) -> Self {
        Self {
            session: SessionId::random(),
            target,
            dests: vec![dest],
            mode: ModeOptions::default(),
            memory: MemoryOptions::default(),
            state: StateOptions::default(),
            with: Vec::new(),
            base: None,
            peer: PeerOptions::default(),
            lease: crate::migration::destination::LEASE,
            quorum: Quorum::default(),
            dry_run: false,
            clones: None,
            common: None,
            then: Cascade::default(),
        }
    }

    /// What is started there comes from an image, not from a tree that runs.
    pub fn is_image(&self) -> bool {
        matches!(self.target, Target::Image(_))
    }
}

/// `--cpu-share` when nobody chose one, percent.
pub const CPU_SHARE: u8 = 25;

/// `migrate warm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmOptions {
    /// What moves, and where to, once somebody says so.
    pub moves: MoveOptions,
    /// `--cpu-share`: percent of one processor.
    pub cpu_share: u8,
    /// `--standby`: how often destinations are brought a state of the target that they keep.
    pub standby: Option<Duration>,
    /// `--disjoint-paths`.
    pub disjoint: Option<Disjoint>,
}

/// `migrate switch`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchOptions {
    /// The session, or a unique beginning of its id.
    pub session: String,
    /// To one of these; none = all that are warm.
    pub dests: Vec<Dest>,
    /// `--now`: whether or not the exit condition holds.
    pub now: bool,
    /// `--timeout`: how long the exit condition is waited for; `None` = as long as it takes.
    pub timeout: Option<Duration>,
    /// `--mode`; post-copy waits for nothing.
    pub mode: Mode,
}

/// `migrate check`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Trees to examine; none = this host only.
    pub targets: Vec<Target>,
    /// `--to`: hosts to examine as well.
    pub to: Vec<Dest>,
    /// PEER.
    pub peer: PeerOptions,
}

/// `migrate list`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// `--to`: hosts to ask whether things could go there.
    pub to: Vec<Dest>,
    /// PEER.
    pub peer: PeerOptions,
}

/// `migrate show`, `migrate verify`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageOptions {
    /// The image.
    pub dir: PathBuf,
}

/// `migrate explain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainOptions {
    /// Which codes; none = all.
    pub codes: Vec<Code>,
}

/// How an agent is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentPlace {
    /// `--listen`, one or more.
    Listen(Vec<Listen>),
    /// `--stdio`: one session over standard input and output (what ssh starts).
    Stdio,
}

/// `migrate agent`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentOptions {
    /// `--listen`, `--stdio`.
    pub place: AgentPlace,
    /// `--peers`; `None` = the usual file.
    pub peers: Option<PathBuf>,
    /// `--max-memory` of one incoming target, bytes; `None` = what is free.
    pub max_memory: Option<u64>,
    /// `--max-sessions` at a time.
    pub max_sessions: u32,
    /// `--metrics`: where it tells a monitoring system of moves.
    pub metrics: Option<Address>,
    /// `--allow-plain`: `tcp+plain://` also beyond loopback.
    pub allow_plain: bool,
    /// `--refuse-then`: no target that comes is moved on from here.
    pub refuse_then: bool,
}

impl AgentOptions {
    /// An agent with every default.
    pub fn new(place: AgentPlace) -> Self {
        Self {
            place,
            peers: None,
            max_memory: None,
            max_sessions: 16,
            metrics: None,
            allow_plain: false,
            refuse_then: false,
        }
    }
}

/// `migrate keygen`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeygenOptions {
    /// `--name`; `None` = the host's name.
    pub name: Option<String>,
    /// `--force`: replace the key that is there.
    pub force: bool,
}

/// `migrate demo`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DemoOptions {
    /// `--mode`.
    pub mode: Mode,
    /// `--kill`: what is cut off in the moment of handing over.
    pub kill: Option<Kill>,
    /// `--keep`: leave namespaces, logs and images for inspection.
    pub keep: bool,
}

/// `demo --kill`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kill {
    /// The program that moves the target.
    Source,
    /// The session that takes it.
    Destination,
    /// What is between them.
    Link,
}

/// `migrate status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusOptions {
    /// The session, or a beginning of its id.
    pub session: Option<String>,
    /// Also those that are over.
    pub all: bool,
}

/// `migrate resolve`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolveOptions {
    /// The session, or a unique beginning of its id.
    pub session: String,
    /// What becomes of this host's copy.
    pub choice: crate::migration::handover::Choice,
    /// The risk is known.
    pub yes: bool,
}

/// `migrate promote`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromoteOptions {
    /// The session, or a unique beginning of its id.
    pub session: String,
    /// `--fence-cmd`: switches the source's host off.
    pub fence: Option<String>,
    /// The risk is known.
    pub yes: bool,
}

/// `migrate cancel`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelOptions {
    /// The session, or a unique beginning of its id.
    pub session: String,
}
