//! Settings whose text has a form of its own.

use http::Uri;
use serde::{Deserialize, Deserializer};

/// The address of a server, without a slash at its end.
pub(super) fn public_url<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let web = |url: &Uri| {
        matches!(url.scheme_str(), Some("http" | "https"))
            && url.authority().is_some_and(|authority| !authority.as_str().contains('@'))
    };
    if text.contains(['?', '#']) || !text.parse().is_ok_and(|url| web(&url)) {
        return Err(serde::de::Error::custom(format_args!(
            "`{text}` is not the address of a server; write it as https://video.example.com"
        )));
    }
    Ok(Some(text.trim_end_matches('/').to_owned()))
}
