//! Does a decoded model make sense? Everything a restore relies on is looked at before the first process is made: every
//! index is in range, parents come before children, nothing is its own ancestor, lists are in order and sizes sane.
//!
//! A model that passes cannot make a restore index out of bounds or loop; whether the kernel accepts each value is found
//! by asking it.

mod fds;
mod memory;
mod namespaces;
mod tasks;

use super::numa::{NODES, Policy};
use super::{Bytes, Model, limits, ns::NsKind};
use std::fmt::Write;

/// Flaws reported at most: a hostile model has as many as it likes.
const FLAWS: usize = 100;

/// Something in a model that cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// Where: `tasks[3].threads[0].fd_table`.
    pub path: String,
    /// What is wrong.
    pub what: String,
}

impl std::fmt::Display for Flaw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path, self.what)
    }
}

/// A model that does not make sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the model contradicts itself: {}", list(flaws))]
pub struct Unsound {
    /// What is wrong, at most 100 of it.
    pub flaws: Vec<Flaw>,
}

fn list(flaws: &[Flaw]) -> String {
    let mut text = String::new();
    for flaw in flaws.iter().take(3) {
        let _ = write!(text, "{}{flaw}", if text.is_empty() { "" } else { "; " });
    }
    if flaws.len() > 3 {
        let _ = write!(text, "; and {} more", flaws.len() - 3);
    }
    text
}

/// Checks a model.
///
/// # Errors
/// Everything that is wrong with it.
pub fn model(model: &Model) -> Result<(), Unsound> {
    let mut check = Checker { model, path: String::new(), flaws: Vec::new() };
    tasks::check(&mut check);
    memory::check(&mut check);
    fds::check(&mut check);
    namespaces::check(&mut check);
    if check.flaws.is_empty() { Ok(()) } else { Err(Unsound { flaws: check.flaws }) }
}

/// Walks the model and keeps the path to where it is.
struct Checker<'a> {
    model: &'a Model,
    path: String,
    flaws: Vec<Flaw>,
}

impl<'a> Checker<'a> {
    /// Goes one step down for the time of `f`.
    fn at(&mut self, step: impl std::fmt::Display, f: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        let _ = write!(self.path, "{step}");
        f(self);
        self.path.truncate(length);
    }

    /// Goes through a list.
    fn each<T>(&mut self, name: &str, list: &'a [T], mut f: impl FnMut(&mut Self, usize, &'a T)) {
        for (n, item) in list.iter().enumerate() {
            if self.flaws.len() >= FLAWS {
                return;
            }
            self.at(format_args!("{name}[{n}]"), |c| f(c, n, item));
        }
    }

    fn flaw(&mut self, step: &str, what: impl Into<String>) {
        if self.flaws.len() < FLAWS {
            let dot = if self.path.is_empty() || step.is_empty() { "" } else { "." };
            self.flaws.push(Flaw { path: format!("{}{dot}{step}", self.path), what: what.into() });
        }
    }

    /// Notes a flaw unless the condition holds.
    fn must(&mut self, holds: bool, step: &str, what: &str) {
        if !holds {
            self.flaw(step, what);
        }
    }

    /// An index into a list of the model.
    fn index(&mut self, n: usize, length: usize, step: &str) -> bool {
        if n >= length {
            self.flaw(step, format!("refers to number {n} of {length}"));
        }
        n < length
    }

    /// A NUMA policy.
    fn policy(&mut self, policy: &Policy, step: &str) {
        let in_order = policy.nodes.is_sorted_by(|a, b| a < b);
        let known = policy.nodes.last().is_none_or(|node| *node < NODES);
        self.must(policy.mode != 0 && in_order && known, step, "is no policy");
    }

    /// A namespace of a certain kind.
    fn namespace(&mut self, id: super::NsId, step: &str, kind: &str) {
        if self.index(id.at(), self.model.namespaces.len(), step) {
            let found = kind_name(&self.model.namespaces[id.at()].kind);
            if found != kind {
                self.flaw(step, format!("refers to a namespace of kind {found} instead of {kind}"));
            }
        }
    }

    /// A file by its path.
    fn path_ref(&mut self, path: &super::fd::PathRef, step: &str) {
        self.at(step, |c| {
            c.path_bytes(&path.path, "path");
            c.namespace(path.mnt, "mnt", "mnt");
        });
    }

    fn path_bytes(&mut self, path: &Bytes, step: &str) {
        self.must(path.0.first() == Some(&b'/'), step, "is not an absolute path");
        self.text(path, step, limits::PATH);
    }

    /// Bytes that end up as a C string.
    fn text(&mut self, bytes: &Bytes, step: &str, limit: usize) {
        self.must(!bytes.0.contains(&0), step, "has a NUL in it");
        if bytes.0.len() > limit {
            self.flaw(step, format!("is {} bytes long; at most {limit} are possible", bytes.0.len()));
        }
    }
}

fn kind_name(kind: &NsKind) -> &'static str {
    match kind {
        NsKind::Mnt(_) => "mnt",
        NsKind::Net(_) => "net",
        NsKind::Pid { .. } => "pid",
        NsKind::User(_) => "user",
        NsKind::Uts { .. } => "uts",
        NsKind::Ipc => "ipc",
        NsKind::Cgroup { .. } => "cgroup",
        NsKind::Time { .. } => "time",
    }
}

/// Does following `next` from any of `count` items come back to where it was? Gives an item on a circle.
fn circle(count: usize, next: impl Fn(usize) -> Option<usize>) -> Option<usize> {
    // 0 = not seen, 1 = on the way that is walked, 2 = known to end.
    let mut state = vec![0u8; count];
    for start in 0..count {
        let mut way = Vec::new();
        let mut at = Some(start);
        while let Some(n) = at.filter(|n| *n < count && state[*n] != 2) {
            if state[n] == 1 {
                return Some(n);
            }
            state[n] = 1;
            way.push(n);
            at = next(n);
        }
        for n in way {
            state[n] = 2;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::circle;

    #[test]
    fn circles_are_found() {
        assert_eq!(circle(4, |n| n.checked_sub(1)), None);
        assert_eq!(circle(3, |n| Some((n + 1) % 3)), Some(0));
        assert_eq!(circle(3, |n| (n == 2).then_some(2)), Some(2));
        assert_eq!(circle(2, |_| Some(99)), None, "out of range is another check's affair");
        assert_eq!(circle(0, |_| None), None);
    }
}
