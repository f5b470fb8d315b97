//! Whatever any test is answered stands in the OpenAPI document: its status, and what comes with it.

use std::sync::LazyLock;

use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use serde_json::Value;

static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(&rayreel_server::api::document()).unwrap());

/// Fails if a documented operation gives an answer that is not documented.
pub(super) fn check(method: &Method, path: &str, status: StatusCode, headers: &HeaderMap) {
    let paths = DOCUMENT["paths"].as_object().unwrap();
    // Those without a placeholder first.
    let item = paths
        .get(path)
        .or_else(|| paths.iter().find(|(pattern, _)| fits(pattern, path)).map(|(_, item)| item));
    // HEAD is GET without a body.
    let name = if *method == Method::HEAD { "get" } else { &*method.as_str().to_lowercase() };
    let Some(operation) = item.and_then(|item| item.get(name)) else { return };
    let response = &operation["responses"][status.as_str()];
    assert!(response.is_object(), "{method} {path}: {status} is not documented");
    for name in ["Retry-After", "WWW-Authenticate"] {
        let documented = response["headers"].get(name).is_some();
        assert!(documented || !headers.contains_key(name), "{method} {path}: {status}: {name}");
    }
}

fn fits(pattern: &str, path: &str) -> bool {
    let (pattern, path) = (pattern.split('/'), path.split('/'));
    pattern.clone().count() == path.clone().count()
        && pattern.zip(path).all(|(of, is)| of == is || of.starts_with('{') && !is.is_empty())
}
