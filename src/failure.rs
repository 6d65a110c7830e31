//! What a command says when it could not do its work: object, causes, remedy, and the state the target is in.

use crate::blocker::{Blocker, Code};
use serde::{Deserialize, Serialize};

/// The result of every operation that can fail.
pub type Result<T> = std::result::Result<T, Failure>;

/// A failed operation, ready to be shown to a person or a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What failed, one sentence that names the object.
    pub what: String,
    /// Why, outermost cause first.
    pub causes: Vec<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// The state the target is in now.
    pub target: TargetState,
    /// Decides the exit code.
    pub kind: FailureKind,
    /// What `migrate explain` says more about, where that is no blocker.
    pub code: Option<Code>,
    /// Everything that stands in the way, when `kind` is [`FailureKind::Blocked`].
    pub blockers: Vec<Blocker>,
}

/// The state a target is left in. Every failure ends with one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetState {
    /// Nothing was stopped or started.
    Untouched,
    /// Runs where it was, unharmed.
    Running,
    /// Stopped (state T) where it was, unharmed.
    Stopped,
    /// Held frozen on this host.
    Held,
    /// Runs on this other host.
    RunningOn(String),
    /// Held frozen on this other host.
    HeldOn(String),
    /// Not known which host owns it: `migrate status`.
    InDoubt,
    /// It has ended, with the reason.
    Ended(String),
    /// Nothing was started (restore).
    NotStarted,
}

/// Classes of failure; the discriminant is the exit code (cli.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum FailureKind {
    /// Failed, the target is unharmed where it was, or nothing was started.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// Blocked before anything was stopped.
    Blocked = 3,
    /// A person is needed.
    NeedsPerson = 4,
    /// Peer, transport or authentication.
    Peer = 5,
    /// Partly done.
    Partly = 6,
    /// Image damaged, incomplete or of an unknown version.
    Image = 7,
    /// Failure of ours before the restored target ran (`restore` in the foreground).
    BeforeRun = 125,
    /// Rolled back after SIGHUP.
    HangUp = 129,
    /// Rolled back after SIGINT.
    Interrupted = 130,
    /// Rolled back after SIGTERM.
    Terminated = 143,
}

impl Failure {
    /// A failure of kind [`FailureKind::Failed`] without causes yet.
    pub fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            causes: Vec::new(),
            hint: None,
            target: TargetState::Untouched,
            kind: FailureKind::Failed,
            code: None,
            blockers: Vec::new(),
        }
    }

    /// A failure whose causes are an error and its sources.
    pub fn of(what: impl Into<String>, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut failure = Self::new(what);
        let mut cause = Some(error);
        while let Some(e) = cause {
            failure.causes.push(e.to_string());
            cause = e.source();
        }
        failure
    }

    /// Blocked: everything that stands in the way.
    pub fn blocked(what: impl Into<String>, blockers: Vec<Blocker>) -> Self {
        Self { kind: FailureKind::Blocked, blockers, ..Self::new(what) }
    }

    /// Adds a remedy.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// States what became of the target.
    pub fn target(mut self, target: TargetState) -> Self {
        self.target = target;
        self
    }

    /// Sets the class.
    pub fn kind(mut self, kind: FailureKind) -> Self {
        self.kind = kind;
        self
    }

    /// Names what `migrate explain` says more about.
    pub fn code(mut self, code: impl Into<Option<Code>>) -> Self {
        self.code = code.into();
        self
    }

    /// What `migrate explain` says more about: the code of the failure, or of the first of its blockers.
    pub fn explained(&self) -> Option<Code> {
        self.code.or_else(|| self.blockers.first().map(|blocker| blocker.code))
    }

    /// The exit code of the command.
    pub fn exit_code(&self) -> u8 {
        self.kind as u8
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)?;
        for cause in &self.causes {
            write!(f, ": {cause}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

impl std::fmt::Display for TargetState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Untouched => f.write_str("untouched"),
            Self::Running => f.write_str("still running, unchanged"),
            Self::Stopped => f.write_str("stopped where it was, unchanged"),
            Self::Held => f.write_str("held frozen on this host, unchanged"),
            Self::RunningOn(host) => write!(f, "running on {host}"),
            Self::HeldOn(host) => write!(f, "held frozen on {host}"),
            Self::InDoubt => f.write_str("in doubt: see `migrate status`"),
            Self::Ended(why) => write!(f, "ended ({why})"),
            Self::NotStarted => f.write_str("not started"),
        }
    }
}
