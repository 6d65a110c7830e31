//! The catalogue of blockers for a reader.

use super::json::Object;
use super::style::{Style, paint};
use super::{Settings, Stream, result};
use crate::blocker::{Entry, GROUPS};

/// Width of the text, columns.
const WIDTH: usize = 96;

/// Prints entries.
pub fn print(entries: &[&Entry], settings: &Settings) {
    let codes = entries.iter().map(|entry| object(entry)).collect();
    let coloured = settings.coloured(Stream::Out);
    let blocks: Vec<_> = entries.iter().map(|entry| block(entry, coloured)).collect();
    result(settings, "explain", Object::default().list("codes", codes), &blocks.join("\n"));
}

fn object(entry: &Entry) -> Object {
    Object::default()
        .with("code", entry.code.to_string())
        .with("title", entry.title)
        .with("object", entry.object)
        .with("why", entry.why)
        .with("remedy", entry.remedy)
        .with("kernel", entry.kernel)
}

fn block(entry: &Entry, coloured: bool) -> String {
    let group = GROUPS.iter().find(|(number, _)| *number == entry.code.group()).map_or("", |(_, name)| name);
    let heading = paint(&entry.code.to_string(), Style::Strong, coloured);
    let mut text = format!("{heading}  {} ({group})\n", entry.title);
    for (name, words) in
        [("object", entry.object), ("why", entry.why), ("remedy", entry.remedy), ("kernels", entry.kernel)]
    {
        text += &paragraph(name, words);
    }
    text
}

/// `  name     words`, wrapped, the following lines below the first word.
fn paragraph(name: &str, words: &str) -> String {
    let mut lines = vec![format!("  {name:<8}")];
    for word in words.split_whitespace() {
        let last = lines.last_mut().expect("it began with one line");
        if last.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push(format!("{:10} {word}", ""));
        } else {
            last.push(' ');
            last.push_str(word);
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocker::{codes, entries};

    #[test]
    fn text_is_wrapped_and_complete() {
        let text = block(codes::DOES_NOT_STOP.entry().unwrap(), false);
        assert!(text.starts_with("M0102  does not stop (tasks)\n  object   a task in state D"), "{text}");
        for entry in entries() {
            let text = block(entry, false);
            assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
            for word in entry.why.split_whitespace() {
                assert!(text.contains(word));
            }
        }
    }
}
