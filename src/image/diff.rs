//! The difference of two models, field by field: `tasks[0].threads[1].sched.nice: 0 != 5`.
//!
//! Works on anything that serde can take apart, so a new field of the model is compared without a line here.

use serde::Serialize;
use serde_json::Value;
use std::fmt;

/// Longest text of a value in a message, characters.
const SHOWN: usize = 120;

/// One field that differs.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Where: `tasks[0].threads[1].sched.nice`; empty = the whole.
    pub path: String,
    /// The value in the first, `None` where it has no such element.
    pub left: Option<Value>,
    /// The value in the second, `None` where it has no such element.
    pub right: Option<Value>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} != {}", self.path, shown(self.left.as_ref()), shown(self.right.as_ref()))
    }
}

fn shown(value: Option<&Value>) -> String {
    let text = value.map_or_else(|| "nothing".into(), Value::to_string);
    match text.char_indices().nth(SHOWN) {
        None => text,
        Some((at, _)) => format!("{}... ({} bytes)", &text[..at], text.len()),
    }
}

/// Paths to leave out of a comparison.
///
/// A rule is a path in which `*` stands for one step (a name or an index) and `**` for any number of steps, none
/// included: `tasks[*].threads[*].regs`, `**.mtime_ns`. What lies below a path that fits is left out as well.
#[derive(Debug, Clone, Default)]
pub struct Ignore(Vec<Vec<String>>);

impl Ignore {
    /// Leaves out what fits any of the rules.
    pub fn new<I: IntoIterator<Item: AsRef<str>>>(rules: I) -> Self {
        Self(rules.into_iter().map(|rule| steps(rule.as_ref())).collect())
    }

    /// Does this path, or one above it, fit a rule?
    pub fn covers(&self, path: &str) -> bool {
        let path = steps(path);
        self.0.iter().any(|rule| fits(rule, &path))
    }
}

/// `a[3].b` as `a`, `3`, `b`.
fn steps(path: &str) -> Vec<String> {
    path.split(['.', '[']).map(|step| step.trim_end_matches(']')).filter(|s| !s.is_empty()).map(str::to_owned).collect()
}

/// Does a rule fit the path or a beginning of it?
fn fits(rule: &[String], path: &[String]) -> bool {
    match (rule.first().map(String::as_str), path.first()) {
        (None, _) => true,
        (Some("**"), first) => fits(&rule[1..], path) || (first.is_some() && fits(rule, &path[1..])),
        (Some(_), None) => false,
        (Some(step), Some(found)) => (step == "*" || step == found) && fits(&rule[1..], &path[1..]),
    }
}

/// Every field in which two values differ and that no rule leaves out.
///
/// # Errors
/// A value that cannot be shown as JSON (a map with keys that are no strings); the model has none.
pub fn diff<T: Serialize>(left: &T, right: &T, ignore: &Ignore) -> Result<Vec<Difference>, serde_json::Error> {
    let (left, right) = (serde_json::to_value(left)?, serde_json::to_value(right)?);
    Ok(values(&left, &right, ignore))
}

/// The same for values that are JSON already.
pub fn values(left: &Value, right: &Value, ignore: &Ignore) -> Vec<Difference> {
    let mut walk = Walk { ignore, path: String::new(), found: Vec::new() };
    walk.compare(Some(left), Some(right));
    walk.found
}

struct Walk<'a> {
    ignore: &'a Ignore,
    path: String,
    found: Vec<Difference>,
}

impl Walk<'_> {
    fn compare(&mut self, left: Option<&Value>, right: Option<&Value>) {
        if left == right || self.ignore.covers(&self.path) {
            return;
        }
        match (left, right) {
            (Some(Value::Array(a)), Some(Value::Array(b))) => {
                for n in 0..a.len().max(b.len()) {
                    self.step(format_args!("[{n}]"), a.get(n), b.get(n));
                }
            }
            (Some(Value::Object(a)), Some(Value::Object(b))) => {
                let dot = if self.path.is_empty() { "" } else { "." };
                let only_right = b.keys().filter(|k| !a.contains_key(*k));
                for key in a.keys().chain(only_right) {
                    self.step(format_args!("{dot}{key}"), a.get(key), b.get(key));
                }
            }
            _ => self.found.push(Difference { path: self.path.clone(), left: left.cloned(), right: right.cloned() }),
        }
    }

    fn step(&mut self, step: fmt::Arguments<'_>, left: Option<&Value>, right: Option<&Value>) {
        let length = self.path.len();
        self.path.push_str(&step.to_string());
        self.compare(left, right);
        self.path.truncate(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn paths(left: Value, right: Value, rules: &[&str]) -> Vec<String> {
        values(&left, &right, &Ignore::new(rules)).into_iter().map(|d| d.to_string()).collect()
    }

    #[test]
    fn names_every_field_that_differs() {
        let left = json!({"tasks": [{"pid": 1, "threads": [{"nice": 0}, {"nice": 0}]}], "x": null});
        let right = json!({"tasks": [{"pid": 1, "threads": [{"nice": 0}, {"nice": 5}, {"nice": 1}]}], "y": 2});
        assert_eq!(
            paths(left, right, &[]),
            [
                "tasks[0].threads[1].nice: 0 != 5",
                "tasks[0].threads[2]: nothing != {\"nice\":1}",
                "x: null != nothing",
                "y: nothing != 2",
            ]
        );
        assert_eq!(paths(json!([1]), json!({"a": 1}), &[]), [": [1] != {\"a\":1}"]);
    }

    #[test]
    fn rules_leave_out_what_they_name_and_nothing_else() {
        let make = |n: u64| json!({"a": [{"regs": {"rax": n}, "b": n}, {"clock_ns": n}], "clock_ns": n});
        let all = paths(make(1), make(2), &[]);
        assert_eq!(all.len(), 4);
        let left = |rules| paths(make(1), make(2), rules).len();
        assert_eq!(left(&["a[*].regs"]), 3);
        assert_eq!(left(&["a[1].regs"]), 4);
        assert_eq!(left(&["**.clock_ns"]), 2);
        assert_eq!(left(&["clock_ns"]), 3);
        assert_eq!(left(&["a.*.b", "a[0].regs.rax"]), 2);
        assert_eq!(left(&["**"]), 0);
        assert_eq!(left(&["a[*].reg", "b"]), 4);
    }

    #[test]
    fn long_values_are_cut() {
        let text = Difference { path: "x".into(), left: Some(json!("é".repeat(500))), right: None }.to_string();
        assert!(text.contains("... (1002 bytes) != nothing"), "{text}");
    }
}
