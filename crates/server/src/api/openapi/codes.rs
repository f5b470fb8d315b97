//! The table of error codes, as the description of a tag: readers of the document need no other page.

use std::fmt::Write;

use rayreel_domain::code::TABLE;
use utoipa::Modify;
use utoipa::openapi::OpenApi;

/// The tag whose description it is.
const TAG: &str = "errors";

/// Writes it into the document.
pub(super) struct Codes;

impl Modify for Codes {
    fn modify(&self, document: &mut OpenApi) {
        let tags = document.tags.iter_mut().flatten();
        for tag in tags.filter(|tag| tag.name == TAG) {
            tag.description = Some(table());
        }
    }
}

fn table() -> String {
    let mut text = String::from(
        "What `code` in a refusal, and in the `error` of a task that failed, means, with the HTTP \
         status of such a refusal, and what to do. Some are of the command line and of workers \
         only. New ones may come: act on those that you know, and on the status of the others.\n",
    );
    for entry in TABLE {
        let again = if entry.retryable { " The same call may succeed later." } else { "" };
        let (name, status, meaning, remedy) =
            (entry.name, entry.status, entry.meaning, entry.remedy);
        let _ = write!(text, "\n- `{name}` ({status}): {meaning} {remedy}{again}");
    }
    text
}
