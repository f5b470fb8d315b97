//! Delivery: webhooks with their secrets, and links that need no key.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::task::{State, Task};
use crate::webhook::{Attempt, Delivery, Standing};
use crate::wire::api::TaskBody;

/// Header names of Standard Webhooks.
pub const WEBHOOK_ID: &str = "webhook-id";
pub const WEBHOOK_TIMESTAMP: &str = "webhook-timestamp";
pub const WEBHOOK_SIGNATURE: &str = "webhook-signature";

/// Field `webhook` of a submit: `{"url": …}`, or the URL alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WebhookTarget {
    pub url: String,
}

impl<'de> Deserialize<'de> for WebhookTarget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Target;

        impl<'de> Visitor<'de> for Target {
            type Value = WebhookTarget;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a URL, or an object with a `url`")
            }

            fn visit_str<E: Error>(self, url: &str) -> Result<WebhookTarget, E> {
                Ok(WebhookTarget { url: url.to_string() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<WebhookTarget, A::Error> {
                let object = WebhookObject::deserialize(MapAccessDeserializer::new(map))?;
                Ok(WebhookTarget { url: object.url })
            }
        }

        deserializer.deserialize_any(Target)
    }
}

/// A URL, or an object with one.
#[cfg(feature = "openapi")]
#[derive(Serialize, utoipa::ToSchema)]
#[serde(untagged)]
#[schema(as = WebhookTarget)]
#[expect(dead_code, reason = "it only describes what is read")]
pub(super) enum WebhookForms {
    #[schema(example = "https://hooks.example.com/rayreel")]
    Url(String),
    Object(WebhookObject),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub(super) struct WebhookObject {
    #[cfg_attr(feature = "openapi", schema(example = "https://hooks.example.com/rayreel"))]
    url: String,
}

/// How telling the receiver of a task's end stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WebhookBody {
    pub url: String,
    /// `waiting` until the task ends, `pending` until it is `delivered`, or `failed` when it is given
    /// up.
    pub state: Standing,
    /// The newest calls of the receiver.
    pub attempts: Vec<WebhookAttempt>,
    /// When it is called next; null if it isn't, and while it is being called.
    pub next_attempt_at: Option<u64>,
}

/// One call of the receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WebhookAttempt {
    pub at: u64,
    /// Null if there was no answer.
    pub status: Option<u16>,
    /// Null if it was delivered.
    pub error: Option<String>,
}

impl WebhookBody {
    /// What there is to tell of a task's webhook, if it has one.
    pub fn new(task: &Task, delivery: Option<&Delivery>) -> Option<Self> {
        let webhook = task.webhook.as_ref()?;
        let fallback = if task.state.is_terminal() { Standing::Pending } else { Standing::Waiting };
        let attempts = delivery.map(|delivery| &*delivery.attempts).unwrap_or_default();
        Some(Self {
            url: webhook.url.clone(),
            state: delivery.map_or(fallback, |delivery| delivery.standing),
            attempts: attempts.iter().map(WebhookAttempt::new).collect(),
            next_attempt_at: delivery.and_then(|delivery| Some(delivery.next()?.unix_seconds())),
        })
    }
}

impl WebhookAttempt {
    fn new(attempt: &Attempt) -> Self {
        Self { at: attempt.at.unix_seconds(), status: attempt.status, error: attempt.error.clone() }
    }
}

/// Body of a webhook.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WebhookEvent {
    /// The same as the header `webhook-id`, and the same whenever it is sent: act on each once.
    #[cfg_attr(feature = "openapi", schema(example = "evt_018bcfe5680070707070707070707070"))]
    pub id: String,
    /// Always `event`.
    pub object: String,
    /// `video.completed`, or `video.failed` for a task that ended in any other way: `data.status`
    /// and `data.error.code` say in which.
    #[serde(rename = "type")]
    pub kind: String,
    /// When the task ended.
    pub created_at: u64,
    pub data: TaskBody,
}

impl WebhookEvent {
    /// Tells of a task that has ended.
    pub fn new(task: &Task, base: &str) -> Self {
        let kind = match task.state {
            State::Succeeded => "video.completed",
            _ => "video.failed",
        };
        let ended = task.finished_at.unwrap_or(task.created_at);
        let mut data = TaskBody::new(task, base, None, None, None);
        // How often it had to be sent is not what is sent.
        data.webhook = None;
        Self {
            id: task.id.to_string().replacen("task_", "evt_", 1),
            object: "event".to_string(),
            kind: kind.to_string(),
            created_at: ended.unix_seconds(),
            data,
        }
    }
}

/// The secret with which your webhooks are signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SecretBody {
    /// For the libraries of Standard Webhooks.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=")
    )]
    pub secret: String,
    pub created_at: u64,
    /// Until when those before it sign as well.
    pub previous: Vec<OldSecret>,
}

/// A secret that was replaced; its text is told no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OldSecret {
    pub expires_at: u64,
}

/// Body of `POST …/link`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LinkBody {
    /// Seconds: 1 to 604,800 (7 days); an hour when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 604_800, example = 3600))]
    pub expires_in: Option<u64>,
    /// `thumbnail`: the still instead of the video.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<LinkVariant>))]
    pub variant: Option<String>,
}

/// What a link may lead to instead of the video.
#[cfg(feature = "openapi")]
#[derive(Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "it only describes what is read")]
enum LinkVariant {
    Thumbnail,
}

/// A link to a file that needs no key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LinkAnswer {
    /// Absolute. Whoever has it gets the file.
    pub url: String,
    pub expires_at: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_str;

    #[test]
    fn a_webhook_is_a_url_or_an_object_with_one() {
        let expected = WebhookTarget { url: "https://a/".to_string() };
        for text in [r#""https://a/""#, r#"{"url":"https://a/"}"#] {
            assert_eq!(from_str::<WebhookTarget>(text).expect("read"), expected);
        }
        for (text, told) in [
            ("1", "expected a URL, or an object"),
            ("{}", "missing field `url`"),
            (r#"{"url":"a","url":"b"}"#, "duplicate field `url`"),
            (r#"{"uri":"a"}"#, "unknown field `uri`"),
            (r#"{"url":1}"#, "expected a string"),
        ] {
            let error = from_str::<WebhookTarget>(text).expect_err("refused").to_string();
            assert!(error.contains(told), "{error}");
        }
    }
}
