//! OpenAI's shapes, so that its clients work unchanged: [`videos`] and [`images`]. They make and
//! show the same tasks as the native API, by the same rules; only names differ.

pub(super) mod images;
pub(super) mod videos;

use rayreel_domain::wire::openai::SPELLINGS;

use super::error::Error;

/// What a field is called in the native API.
fn native(field: &str) -> &str {
    SPELLINGS.iter().find(|(name, _)| *name == field).map_or(field, |(_, native)| native)
}

/// A refusal of the native request, in the caller's names.
fn spelt(error: Error) -> Error {
    SPELLINGS.iter().fold(error, |error, (name, native)| error.spelt(native, name))
}
