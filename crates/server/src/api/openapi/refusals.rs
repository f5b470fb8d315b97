//! What every operation can answer, and which of them need a key: what follows from the kind of an
//! operation is added here, so that none can lack it. Handlers document what is theirs alone.

use rayreel_domain::wire::api::ErrorBody;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, Header, HeaderBuilder, OpenApi, Ref, RefOr, Required, Response,
};
use utoipa::{Modify, ToSchema};

use super::super::gate;

/// Name of the way in which callers prove who they are.
const KEY: &str = "key";

/// Writes them into the document.
pub(super) struct Refusals;

impl Modify for Refusals {
    fn modify(&self, document: &mut OpenApi) {
        let mut key = Http::new(HttpAuthScheme::Bearer);
        key.description = Some(
            "An API key, `rr_…`. Needed as soon as there is one; a link that is signed needs none."
                .to_owned(),
        );
        let components = document.components.get_or_insert_default();
        components.add_security_scheme(KEY, SecurityScheme::Http(key));
        for (path, item) in &mut document.paths.paths {
            let operations = [&mut item.get, &mut item.post, &mut item.delete];
            for operation in operations.into_iter().flatten() {
                complete(path, operation);
            }
        }
    }
}

fn complete(path: &str, operation: &mut Operation) {
    let open = gate::is_open(path);
    if !open {
        let none = path.ends_with("/content").then(SecurityRequirement::default);
        let key = SecurityRequirement::new(KEY, [""; 0]);
        operation.security = Some([key].into_iter().chain(none).collect());
    }
    if let Some(RefOr::T(body)) = &mut operation.request_body {
        // Everything in that of a link has a default.
        let needed = !path.ends_with("/link");
        body.required = Some(if needed { Required::True } else { Required::False });
    }
    let sends = operation.request_body.is_some();
    // The probes of the process itself read nothing.
    let stores = path.starts_with("/v1/") || path == "/generate";
    let responses = &mut operation.responses.responses;
    for (status, applies, description) in [
        (
            "400",
            true,
            "`invalid_request`: not HTTP as this server reads it. `unknown_field`: there is no such \
             query parameter here.",
        ),
        ("401", !open, "`unauthorized`: a key is needed, and this is none that is in force."),
        (
            "403",
            true,
            "`forbidden`: the Host or the Origin header is foreign. `scope_missing`: the key is not \
             good for this.",
        ),
        ("408", sends, "`invalid_request`: the body comes too slowly."),
        ("413", sends, "`body_too_large`"),
        ("414", true, "`invalid_request`: the URL is longer than this server reads."),
        ("431", true, "`invalid_request`: the headers are longer than this server reads."),
        ("415", sends, "`unsupported_media_type`: this route does not read such a body."),
        ("500", true, "`internal` or `store_corrupt`; the log has it under the request id."),
        (
            "503",
            stores && sends,
            "`server_busy`, `store_unavailable` or `outcome_unknown`; come back after Retry-After.",
        ),
        (
            "503",
            stores && !sends,
            "`store_unavailable` or `outcome_unknown`; come back after Retry-After.",
        ),
    ] {
        if applies {
            responses.entry(status.to_owned()).or_insert_with(|| RefOr::T(refusal(description)));
        }
    }
    for (status, response) in responses {
        let RefOr::T(response) = response else { continue };
        let (name, header) = match &**status {
            "401" => ("WWW-Authenticate", header(Type::String, "`Bearer`.")),
            "429" | "503" | "507" => {
                ("Retry-After", header(Type::Integer, "Seconds after which to try again."))
            }
            _ => continue,
        };
        response.headers.entry(name.to_owned()).or_insert(RefOr::T(header));
    }
}

fn refusal(description: &str) -> Response {
    let body = ContentBuilder::new().schema(Some(Ref::from_schema_name(ErrorBody::name()))).build();
    let mut response = Response::new(description);
    response.content.insert("application/json".to_owned(), RefOr::T(body));
    response
}

fn header(kind: Type, description: &str) -> Header {
    let schema = ObjectBuilder::new().schema_type(kind).build();
    HeaderBuilder::new().schema(Some(schema)).description(Some(description)).build()
}
