//! The query of an address: known parameters, each at most once, nothing else.

use std::borrow::Cow;

use http::Uri;
use rayreel_domain::Code;

use super::body::nearest;
use super::error::Error;

/// The values of the known parameters, in their order.
pub(super) fn read<'u, const N: usize>(
    uri: &'u Uri,
    known: [&'static str; N],
) -> Result<[Option<Cow<'u, str>>; N], Error> {
    let mut values = [const { None }; N];
    let Some(query) = uri.query() else { return Ok(values) };
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let Some(index) = known.iter().position(|known| *known == name) else {
            let hint = nearest(&name, known.iter().copied());
            let message = format!("there is no query parameter `{name}` here{hint}");
            return Err(Error::new(Code::UnknownField, message).param(name.into_owned()));
        };
        if values[index].replace(value).is_some() {
            return Err(Error::invalid(known[index], format!("`{name}` stands twice")));
        }
    }
    Ok(values)
}

/// For addresses that have no query.
pub(super) fn none(uri: &Uri) -> Result<(), Error> {
    read(uri, []).map(|[]| ())
}

/// A whole number.
pub(super) fn number(
    name: &'static str,
    value: Option<Cow<'_, str>>,
    allowed: std::ops::RangeInclusive<u64>,
) -> Result<Option<u64>, Error> {
    let Some(text) = value else { return Ok(None) };
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(number) if digits && allowed.contains(&number) => Ok(Some(number)),
        _ => Err(Error::invalid(
            name,
            format!(
                "`{name}` must be a whole number from {} to {}",
                allowed.start(),
                allowed.end()
            ),
        )),
    }
}
