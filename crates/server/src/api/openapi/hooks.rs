//! The calls that the server makes: webhooks, as OpenAPI 3.1 has them.

use rayreel_domain::wire::delivery::{
    WEBHOOK_ID, WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP, WebhookEvent,
};
use serde_json::Value;
use utoipa::openapi::path::{
    HttpMethod, Operation, OperationBuilder, ParameterBuilder, ParameterIn, PathItem,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{ContentBuilder, OpenApi, Paths, Ref, Required, Response};
use utoipa::{Modify, ToSchema};

use super::examples;

/// Writes them into the document.
pub(super) struct Hooks;

impl Modify for Hooks {
    fn modify(&self, document: &mut OpenApi) {
        let mut hooks = Paths::new();
        for (kind, summary, example) in [
            ("video.completed", "A task has succeeded.", examples::completed()),
            (
                "video.failed",
                "A task has failed, was cancelled, or has expired.",
                examples::failed(),
            ),
        ] {
            let item = PathItem::new(HttpMethod::Post, call(kind, summary, example));
            hooks.paths.insert(kind.to_owned(), item);
        }
        document.webhooks = Some(hooks);
    }
}

fn call(kind: &str, summary: &str, example: Value) -> Operation {
    let body = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(WebhookEvent::name())))
        .example(Some(example))
        .build();
    let body = RequestBodyBuilder::new()
        .content("application/json", body)
        .required(Some(Required::True))
        .build();
    let mut operation = OperationBuilder::new()
        .operation_id(Some(format!("webhook_{}", kind.replace('.', "_"))))
        .tag("webhooks")
        .summary(Some(summary))
        .description(Some(
            "Sent to the `webhook` of the submit. It is made at least once, and again, for sixteen \
             hours, as long as it fails: act on each `webhook-id` once. Redirects are not followed.\n\n\
             Verify it, over the bytes of the body as they came, with a library of Standard \
             Webhooks and the secret of `GET /v1/webhooks/secret`.",
        ))
        .request_body(Some(body))
        .response("2XX", Response::new("Heard: it is delivered. The body is not read."))
        .response("410", Response::new("Given up at once: it is wanted no more."))
        .response(
            "default",
            Response::new("Not heard: it is sent again, not before a Retry-After is over."),
        )
        .build();
    operation.parameters = Some(
        [
            (WEBHOOK_ID, "Id of the event; the same whenever it is sent.", "evt_018bcfe5680070707070707070707070"),
            (WEBHOOK_TIMESTAMP, "Unix time in seconds of this call; refuse what is old.", "1700000042"),
            (
                WEBHOOK_SIGNATURE,
                "`v1,` and the HMAC-SHA256, in base64, of id, timestamp and body with a dot between \
                 them; for a day after a rotation one more, behind a space.",
                "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
            ),
        ]
        .map(|(name, description, example)| {
            let schema = ObjectBuilder::new().schema_type(Type::String).build();
            ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Header)
                .required(Required::True)
                .description(Some(description))
                .schema(Some(schema))
                .example(Some(example.into()))
                .build()
                .into()
        })
        .into(),
    );
    operation
}
