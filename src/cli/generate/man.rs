//! One man page a verb.

use super::Generated;
use super::examples::{EXAMPLES, Example};
use clap_mangen::Man;

/// Defines the string `Aq`, an apostrophe; the renderer puts it before every section.
const PREAMBLE: &str = ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n";

/// The pages of section 1, one for each verb.
pub fn pages() -> Vec<Generated> {
    let command = crate::cli::command();
    command
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set())
        .map(|verb| {
            let name = verb.get_name();
            Generated { path: format!("man/migrate-{name}.1"), text: page(verb.clone()) }
        })
        .collect()
}

fn page(verb: clap::Command) -> String {
    let name = verb.get_name().to_owned();
    let usage = usage(&name);
    // The options of every verb are in migrate(1): only those of this verb are listed.
    let verb = verb.display_name(format!("migrate-{name}")).bin_name(format!("migrate {name}"));
    let man = Man::new(verb.disable_help_flag(true)).section("1");
    let mut text = ".\\\" Made from the definitions in src/cli/; UPDATE_GENERATED=1 cargo test generated\n".to_owned();
    text += PREAMBLE;
    let version = env!("CARGO_PKG_VERSION");
    text += &format!(".TH MIGRATE\\-{} 1 \"\" \"migrate {version}\" \"User Commands\"\n", name.to_uppercase());
    text += &rendered(|out| man.render_name_section(out));
    text += &format!(".SH SYNOPSIS\n{}\n", escaped(&usage));
    text += &rendered(|out| man.render_description_section(out));
    text += &rendered(|out| man.render_options_section(out));
    text += ".PP\nOptions of every verb, words such as SIZE, TIME and DEST, exit codes and files: see migrate(1).\n";
    let examples = EXAMPLES.iter().filter(|(verb, _)| *verb == name).flat_map(|(_, list)| *list);
    let examples: Vec<_> = examples.filter(|(_, line)| works(line)).collect();
    if !examples.is_empty() {
        text += ".SH EXAMPLES\n";
        text += &examples.into_iter().map(example).collect::<String>();
    }
    text +=
        ".SH SEE ALSO\nmigrate(1), migrate-workflows(7), migrate-image(5), migrate-events(5), migrate-security(7)\n";
    text
}

/// `migrate dump [OPTIONS] TARGET`, as the parser writes it.
fn usage(verb: &str) -> String {
    let mut command = crate::cli::command();
    command.build();
    let verb = command.find_subcommand_mut(verb).expect("the name came from the same definitions");
    let usage = verb.render_usage().to_string();
    usage.trim_start_matches("Usage:").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether everything in a command line works already.
fn works(line: &str) -> bool {
    let ours = line.split('|').next().unwrap_or_default();
    let words: Vec<String> = ours.split_whitespace().map(str::to_owned).collect();
    crate::cli::understands(&words).is_ok()
}

fn rendered(render: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>) -> String {
    let mut text = Vec::new();
    render(&mut text).expect("writing to memory does not fail");
    String::from_utf8(text).expect("the renderer writes UTF-8").replace(PREAMBLE, "")
}

fn example((words, line): &Example) -> String {
    format!(".PP\n{}\n.RS 4\n.nf\n$ {}\n.fi\n.RE\n", escaped(words), escaped(line))
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}
