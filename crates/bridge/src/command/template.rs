//! A command line with placeholders: `["generate", "--prompt={prompt}", ["--image={image}"]]`.
//!
//! Each word stays one word, whatever is put into it. A list within the list is a group, which is left
//! out when one of its placeholders has no value.

use serde_json::Value;

use super::code;
use crate::settings::{Wrong, text};

/// What may stand in braces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placeholder {
    Prompt,
    NegativePrompt,
    Width,
    Height,
    Size,
    Frames,
    Fps,
    Steps,
    Seed,
    Guidance,
    Guidance2,
    Loras,
    Image,
    LastImage,
    Format,
    Model,
    Checkpoint,
    RequestFile,
    Output,
    OutputDir,
}

impl Placeholder {
    pub(super) const ALL: &[Placeholder] = &[
        Placeholder::Prompt,
        Placeholder::NegativePrompt,
        Placeholder::Width,
        Placeholder::Height,
        Placeholder::Size,
        Placeholder::Frames,
        Placeholder::Fps,
        Placeholder::Steps,
        Placeholder::Seed,
        Placeholder::Guidance,
        Placeholder::Guidance2,
        Placeholder::Loras,
        Placeholder::Image,
        Placeholder::LastImage,
        Placeholder::Format,
        Placeholder::Model,
        Placeholder::Checkpoint,
        Placeholder::RequestFile,
        Placeholder::Output,
        Placeholder::OutputDir,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Placeholder::Prompt => "prompt",
            Placeholder::NegativePrompt => "negative_prompt",
            Placeholder::Width => "width",
            Placeholder::Height => "height",
            Placeholder::Size => "size",
            Placeholder::Frames => "frames",
            Placeholder::Fps => "fps",
            Placeholder::Steps => "steps",
            Placeholder::Seed => "seed",
            Placeholder::Guidance => "guidance",
            Placeholder::Guidance2 => "guidance_2",
            Placeholder::Loras => "loras",
            Placeholder::Image => "image",
            Placeholder::LastImage => "last_image",
            Placeholder::Format => "format",
            Placeholder::Model => "model",
            Placeholder::Checkpoint => "checkpoint",
            Placeholder::RequestFile => "request_file",
            Placeholder::Output => "output",
            Placeholder::OutputDir => "output_dir",
        }
    }

    /// What a request may have or not, and must not have in vain.
    pub(super) const WISHES: &[Placeholder] = &[
        Placeholder::NegativePrompt,
        Placeholder::Guidance,
        Placeholder::Guidance2,
        Placeholder::Loras,
        Placeholder::Image,
        Placeholder::LastImage,
    ];

    /// The environment variable that has the same value; none for what would be there twice, or may
    /// be longer than a variable.
    pub(super) fn variable(self) -> Option<String> {
        match self {
            Placeholder::Prompt | Placeholder::NegativePrompt | Placeholder::Size => None,
            Placeholder::RequestFile => Some("RAYREEL_REQUEST".into()),
            other => Some(format!("RAYREEL_{}", other.name().to_ascii_uppercase())),
        }
    }

    /// Is it text of the user's own choice?
    pub(super) fn is_free_text(self) -> bool {
        matches!(self, Placeholder::Prompt | Placeholder::NegativePrompt)
    }
}

/// Why there is no command line for a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// A word that is no part of a group needs this, and it has no value.
    Missing(Placeholder),
    /// The text of this begins with a dash, and stands where a program looks for options.
    Option(Placeholder),
}

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    program: String,
    items: Vec<Item>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    Word(Word),
    Group(Vec<Word>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) parts: Vec<Part>,
    /// It begins with the user's text, and no word before it is `--`.
    exposed: Option<Placeholder>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Text(String),
    Value(Placeholder),
}

impl Template {
    /// Reads the setting `run`.
    pub(super) fn read(list: &[Value]) -> Result<Template, Wrong> {
        let wrong = |why: String| Wrong::value("run", why);
        let (program, arguments) = list
            .split_first()
            .ok_or_else(|| wrong("must be a program and its arguments".into()))?;
        let program = text(program).map_err(|why| wrong(format!("the program {why}")))?;
        let mut open = true;
        let program = match Word::read(program, &mut open).map_err(wrong)?.parts.as_slice() {
            [Part::Text(program)] => program.clone(),
            _ => return Err(wrong("the program must not contain a placeholder".into())),
        };
        let word = |value: &Value, number: usize, open: &mut bool| {
            let text = value.as_str().ok_or_else(|| {
                wrong(format!("word {number} must be text, or a list of words, not `{value}`"))
            })?;
            if text.contains('\0') {
                return Err(wrong(format!("word {number} must not contain a NUL character")));
            }
            Word::read(text, open).map_err(wrong)
        };
        let mut items = Vec::with_capacity(arguments.len());
        for (value, number) in arguments.iter().zip(2..) {
            items.push(match value {
                Value::Array(group) => {
                    // A `--` in it may be left out with it.
                    let mut open = open;
                    let words: Result<Vec<Word>, Wrong> =
                        group.iter().map(|value| word(value, number, &mut open)).collect();
                    let words = words?;
                    if !words.iter().any(|word| word.placeholders().next().is_some()) {
                        let why = format!(
                            "the group that is word {number} has no placeholder, so it would never \
                             be left out; write its words without the list"
                        );
                        return Err(wrong(why));
                    }
                    Item::Group(words)
                }
                value => Item::Word(word(value, number, &mut open)?),
            });
        }
        let template = Template { program, items };
        code::check(&template.program, template.words()).map_err(wrong)?;
        Ok(template)
    }

    fn words(&self) -> impl Iterator<Item = &Word> {
        self.items.iter().flat_map(|item| match item {
            Item::Word(word) => std::slice::from_ref(word),
            Item::Group(words) => words,
        })
    }

    pub(super) fn program(&self) -> &str {
        &self.program
    }

    /// Does a command line with these values have the placeholder's, or the whole request?
    pub(super) fn tells(
        &self,
        placeholder: Placeholder,
        value: &impl Fn(Placeholder) -> Option<String>,
    ) -> bool {
        let told = |word: &Word| {
            word.placeholders().any(|own| own == placeholder || own == Placeholder::RequestFile)
        };
        self.items.iter().any(|item| match item {
            Item::Word(word) => told(word),
            Item::Group(words) => words.iter().any(told) && is_whole(words, value),
        })
    }

    /// Is there no command line without the placeholder's value?
    pub(super) fn needs(&self, placeholder: Placeholder) -> bool {
        self.items.iter().any(|item| match item {
            Item::Word(word) => word.placeholders().any(|own| own == placeholder),
            Item::Group(_) => false,
        })
    }

    /// The arguments, with the values put in.
    pub(super) fn fill(
        &self,
        value: &impl Fn(Placeholder) -> Option<String>,
    ) -> Result<Vec<String>, Unfit> {
        let mut filled = Vec::new();
        for item in &self.items {
            match item {
                Item::Word(word) => filled.push(word.fill(value)?),
                Item::Group(words) => {
                    if is_whole(words, value) {
                        for word in words {
                            filled.push(word.fill(value)?);
                        }
                    }
                }
            }
        }
        Ok(filled)
    }
}

/// Has each placeholder of a group a value?
fn is_whole(words: &[Word], value: &impl Fn(Placeholder) -> Option<String>) -> bool {
    words.iter().flat_map(Word::placeholders).all(|own| value(own).is_some())
}

impl Word {
    /// `open`: no `--` has come so far, so that the program still looks for options.
    fn read(text: &str, open: &mut bool) -> Result<Word, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let brace = &rest[at..];
            if let Some(after) = brace.strip_prefix("{{") {
                plain.push('{');
                rest = after;
            } else if let Some(after) = brace.strip_prefix("}}") {
                plain.push('}');
                rest = after;
            } else if let Some((name, after)) =
                brace.strip_prefix('{').and_then(|inside| inside.split_once('}'))
            {
                let placeholder = named(name)?;
                if !plain.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                }
                parts.push(Part::Value(placeholder));
                rest = after;
            } else {
                return Err(format!(
                    "`{text}` has a brace alone; write `{{{{` or `}}}}` where one is meant"
                ));
            }
        }
        plain.push_str(rest);
        if !plain.is_empty() || parts.is_empty() {
            parts.push(Part::Text(plain));
        }
        let exposed = match parts.first() {
            Some(Part::Value(first)) if *open && first.is_free_text() => Some(*first),
            _ => None,
        };
        if text == "--" {
            *open = false;
        }
        Ok(Word { parts, exposed })
    }

    pub(super) fn placeholders(&self) -> impl Iterator<Item = Placeholder> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Value(placeholder) => Some(*placeholder),
        })
    }

    fn fill(&self, value: &impl Fn(Placeholder) -> Option<String>) -> Result<String, Unfit> {
        let mut word = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => word.push_str(text),
                Part::Value(placeholder) => match value(*placeholder) {
                    Some(text) => word.push_str(&text),
                    // No negative prompt is an empty one.
                    None if *placeholder == Placeholder::NegativePrompt => {}
                    None => return Err(Unfit::Missing(*placeholder)),
                },
            }
        }
        match self.exposed {
            Some(placeholder) if word.starts_with('-') => Err(Unfit::Option(placeholder)),
            _ => Ok(word),
        }
    }
}

fn named(name: &str) -> Result<Placeholder, String> {
    let found = Placeholder::ALL.iter().find(|placeholder| placeholder.name() == name);
    found.copied().ok_or_else(|| {
        let names = Placeholder::ALL.iter().map(|placeholder| placeholder.name());
        let near = names.clone().map(|own| (strsim::damerau_levenshtein(name, own), own)).min();
        let hint = match near {
            Some((far, meant)) if far <= 2 => format!("did you mean `{{{meant}}}`?"),
            _ => format!("there is {}", names.collect::<Vec<_>>().join(", ")),
        };
        format!("there is no placeholder `{{{name}}}`; {hint}")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(run: Value) -> Result<Template, String> {
        Template::read(run.as_array().unwrap()).map_err(|wrong| wrong.to_string())
    }

    fn value(placeholder: Placeholder) -> Option<String> {
        match placeholder {
            Placeholder::Prompt => Some("--help \"a\"\n{seed} $(b)".into()),
            Placeholder::Image | Placeholder::NegativePrompt | Placeholder::Guidance => None,
            other => Some(other.name().to_uppercase()),
        }
    }

    fn filled(run: Value) -> Result<Vec<String>, Unfit> {
        read(run).unwrap().fill(&value)
    }

    #[test]
    fn a_word_stays_one_word_whatever_is_put_into_it() {
        let words = filled(json!(["p", "--prompt={prompt}", "{width}x{height}", "{{{seed}}}", ""]));
        let prompt = "--prompt=--help \"a\"\n{seed} $(b)";
        assert_eq!(words.unwrap(), [prompt, "WIDTHxHEIGHT", "{SEED}", ""]);
    }

    #[test]
    fn a_group_is_left_out_when_one_of_its_values_is_absent() {
        let run = json!([
            "p",
            ["--image", "{image}"],
            ["--guidance={guidance}", "--seed={seed}"],
            ["--not={negative_prompt}"],
            ["-s", "{seed}"],
            "--not={negative_prompt}"
        ]);
        assert_eq!(filled(run).unwrap(), ["-s", "SEED", "--not="]);
    }

    #[test]
    fn a_request_without_what_a_plain_word_needs_does_not_fit() {
        let unfit = filled(json!(["p", "{image}"])).unwrap_err();
        assert_eq!(unfit, Unfit::Missing(Placeholder::Image));
    }

    #[test]
    fn a_prompt_is_no_option() {
        let unfit = Err(Unfit::Option(Placeholder::Prompt));
        assert_eq!(filled(json!(["p", "{prompt}"])), unfit);
        assert_eq!(filled(json!(["p", "--prompt", "{prompt}"])), unfit);
        assert_eq!(filled(json!(["p", ["--", "{image}"], "{prompt}"])), unfit);
        assert!(filled(json!(["p", "--", "{prompt}"])).is_ok());
        assert!(filled(json!(["p", "--prompt={prompt}"])).is_ok());
    }

    #[test]
    fn what_is_wrong_is_said_with_what_is_right() {
        for (run, message) in [
            (json!([]), "must be a program and its arguments"),
            (json!([1]), "the program must be text, not `1`"),
            (json!([""]), "the program must not be empty"),
            (json!(["{model}"]), "the program must not contain a placeholder"),
            (json!(["p", 5]), "word 2 must be text, or a list of words, not `5`"),
            (json!(["p", "a\0"]), "word 2 must not contain a NUL character"),
            (json!(["p", ["a"]]), "the group that is word 2 has no placeholder"),
            (json!(["p", "{promt}"]), "no placeholder `{promt}`; did you mean `{prompt}`?"),
            (json!(["p", "{mood}"]), "no placeholder `{mood}`; there is prompt, negative_prompt"),
            (json!(["p", "a{b"]), "`a{b` has a brace alone; write `{{` or `}}`"),
        ] {
            let wrong = read(run.clone()).unwrap_err();
            assert!(
                wrong.starts_with("setting `run`") && wrong.contains(message),
                "{run}: {wrong}"
            );
        }
    }

    #[test]
    fn every_placeholder_is_known_by_its_name() {
        for placeholder in Placeholder::ALL {
            assert_eq!(named(placeholder.name()), Ok(*placeholder));
        }
    }
}
