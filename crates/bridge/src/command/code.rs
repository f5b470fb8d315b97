//! Words that an interpreter takes for a program: `sh -c WORD`. A prompt in one would be run.

use super::template::{Part, Word};

/// A program that runs programs.
struct Interpreter {
    /// Version numbers behind a name do not matter.
    names: &'static [&'static str],
    /// The letters of options before a program, alone or behind others: `-lc`.
    letters: &'static [char],
    /// The same as a word.
    long: Option<&'static str>,
    /// Where a program finds the first argument after `--`, as no option of another one.
    argument: &'static str,
}

const INTERPRETERS: &[Interpreter] = &[
    Interpreter {
        names: &["sh", "bash", "dash", "ash", "zsh", "ksh"],
        letters: &['c'],
        long: None,
        argument: "--prompt=\"$1\"",
    },
    Interpreter { names: &["python"], letters: &['c'], long: None, argument: "sys.argv[2]" },
    Interpreter { names: &["perl"], letters: &['e', 'E'], long: None, argument: "$ARGV[0]" },
    Interpreter { names: &["ruby"], letters: &['e'], long: None, argument: "ARGV[0]" },
    Interpreter {
        names: &["node", "nodejs"],
        letters: &['e'],
        long: Some("--eval"),
        argument: "process.argv[1]",
    },
];

/// Says which word would be run with the user's text in it, and how to write it instead.
pub(super) fn check<'a>(
    program: &str,
    words: impl Iterator<Item = &'a Word>,
) -> Result<(), String> {
    // The interpreter whose options come, and its option before the program.
    let mut running = named(program);
    let mut option: Option<&str> = None;
    for word in words {
        let start = match word.parts.first() {
            Some(Part::Text(text)) => text.as_str(),
            _ => "",
        };
        let is_plain = word.placeholders().next().is_none();
        let text = word.placeholders().find(|own| own.is_free_text());
        let Some((name, interpreter)) = running else {
            running = is_plain.then(|| named(start)).flatten();
            continue;
        };
        let attached = interpreter.attached(start);
        if let Some(text) = text
            && let Some(option) = option.or(attached)
        {
            let (text, argument) = (text.name(), interpreter.argument);
            return Err(format!(
                "`{name} {option}` runs what follows as a program, and `{{{text}}}` in it with it: \
                 whoever sends a request could run anything. Write {argument} there, and the \
                 placeholder as an argument of its own: [\"{name}\", \"{option}\", \"… {} …\", \
                 \"--\", \"{{{text}}}\"]",
                argument.replace('"', "\\\"")
            ));
        }
        if start.starts_with('-') {
            if is_plain && interpreter.announces(start) {
                option = Some(start);
            } else if start == "-m" {
                // A module, and then its own arguments.
                running = None;
            }
        } else if option.is_some() || !is_plain || start.contains(['.', '/']) {
            // The program, in a word or in a file; its own arguments follow.
            (running, option) = (is_plain.then(|| named(start)).flatten(), None);
        } else if let Some(other) = named(start) {
            running = Some(other);
        }
        // Anything else may be the value of an option.
    }
    Ok(())
}

/// The interpreter that a word names, as it is written there.
fn named(word: &str) -> Option<(&str, &'static Interpreter)> {
    let name = word.rsplit('/').next().unwrap_or(word);
    let plain = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    INTERPRETERS.iter().find(|one| one.names.contains(&plain)).map(|one| (name, one))
}

impl Interpreter {
    /// Is the word after this one a program?
    fn announces(&self, word: &str) -> bool {
        let letters = word.strip_prefix('-').unwrap_or_default();
        self.long == Some(word)
            || letters.chars().all(|c| c.is_ascii_alphabetic()) && letters.contains(self.letters)
    }

    /// The option with which a word begins that has its program in it.
    fn attached<'a>(&'a self, start: &'a str) -> Option<&'a str> {
        let letter = start.strip_prefix('-').is_some_and(|rest| rest.starts_with(self.letters));
        let long = || {
            self.long.filter(|long| start.strip_prefix(long).is_some_and(|s| s.starts_with('=')))
        };
        if letter { start.get(..2) } else { long() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::command::template::Template;

    fn read(run: &Value) -> Result<Template, String> {
        Template::read(run.as_array().unwrap()).map_err(|wrong| wrong.to_string())
    }

    #[test]
    fn a_prompt_is_no_program() {
        for run in [
            json!(["sh", "-c", "gen '{prompt}'"]),
            json!(["/bin/bash", "-c", "gen {prompt} > {output}"]),
            json!(["bash", "-lc", "gen {prompt}"]),
            json!(["bash", "-o", "pipefail", "-c", "gen {prompt}"]),
            json!(["bash", "-c", "-e", "gen {prompt}"]),
            json!(["env", "A=1", "zsh", "-c", "gen {negative_prompt}"]),
            json!(["/usr/bin/env", "python3", "-u", "-c", "gen('{prompt}')"]),
            json!(["python3.12", "-cprint('{prompt}')"]),
            json!(["python", ["-c", "gen('{prompt}', '{image}')"]]),
            json!(["perl", "-e", "print '{prompt}'"]),
            json!(["ruby", "-e", "{prompt}"]),
            json!(["node", "--eval", "gen(`{prompt}`)"]),
            json!(["node", "--eval=gen(`{prompt}`)"]),
        ] {
            let wrong = read(&run).expect_err(&run.to_string());
            assert!(wrong.contains("runs what follows as a program"), "{run}: {wrong}");
        }
        let wrong = read(&json!(["/bin/sh", "-c", "gen {prompt}"])).unwrap_err();
        assert_eq!(
            wrong,
            "setting `run`: `sh -c` runs what follows as a program, and `{prompt}` in it with it: \
             whoever sends a request could run anything. Write --prompt=\"$1\" there, and the \
             placeholder as an argument of its own: [\"sh\", \"-c\", \"… --prompt=\\\"$1\\\" …\", \"--\", \"{prompt}\"]"
        );
    }

    #[test]
    fn a_prompt_is_an_argument() {
        for run in [
            json!(["sh", "-c", "gen \"$1\" > {output}", "--", "{prompt}"]),
            json!(["python3", "-c", "import sys", "--", "{prompt}"]),
            json!(["python3", "generate.py", "-c", "{prompt}"]),
            json!(["python3", "-m", "generate", "-e", "-c", "{prompt}"]),
            json!(["node", "{checkpoint}/generate", "-e", "{prompt}"]),
            json!(["generate", "-c", "{prompt}", "-e", "{negative_prompt}"]),
            json!(["bash", "-c", "exec python3 -c 'import sys'", "--", "-c", "{prompt}"]),
        ] {
            assert!(read(&run).is_ok(), "{run}: {:?}", read(&run));
        }
    }
}
