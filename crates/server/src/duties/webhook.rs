//! Tells tenants' receivers that their tasks have ended, from the store's outbox.
//!
//! A delivery is taken for a while, called, and reported on; see [`rayreel_domain::webhook`] for when
//! it is called again. So many are under way at once, and so many of one tenant: a receiver that
//! hangs keeps nobody else's waiting.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::body::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue};
use rayreel_domain::id::TenantName;
use rayreel_domain::time::Timestamp;
use rayreel_domain::webhook::{Attempt, Delivery, Report, Webhook};
use rayreel_domain::wire::delivery::{
    WEBHOOK_ID, WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP, WebhookEvent,
};
use tokio::task::JoinSet;

use crate::App;
use crate::outbound::Answer;
use crate::signing::{Secret, webhooks_of};
use crate::store::Room;

/// Most calls at once, and most of one tenant.
const CALLS: usize = 64;
const CALLS_PER_TENANT: usize = 8;
/// Longest pause between two looks: the wall clock may jump.
const LONGEST: Duration = Duration::from_secs(30);
/// Shortest pause between two looks: many ends that come at once are found by one.
const SHORTEST: Duration = Duration::from_millis(20);
/// What taking, reading, signing and reporting may add to a call before it is taken for dead.
const MARGIN_MS: u64 = 60_000;
/// How long calls that are under way may go on when the server stops.
const GRACE: Duration = Duration::from_secs(5);

pub(super) async fn run(app: Arc<App>) {
    let components = &app.components;
    let mut calls = JoinSet::new();
    let mut busy = BTreeMap::<TenantName, usize>::new();
    loop {
        let mut wait = LONGEST;
        if calls.len() < CALLS {
            let room = Room {
                total: CALLS - calls.len(),
                per_tenant: CALLS_PER_TENANT,
                busy: busy.clone(),
                hold_ms: app.settings.outbound.whole_seconds.ms() + MARGIN_MS,
            };
            match components.store.take_deliveries(&room).await {
                Ok(taken) => {
                    for delivery in taken.deliveries {
                        *busy.entry(delivery.tenant.clone()).or_default() += 1;
                        calls.spawn(call(Arc::clone(&app), delivery));
                    }
                    if let Some(next) = taken.next {
                        let ms = next.ms_since(components.clock.wall());
                        wait = Duration::from_millis(ms).min(LONGEST);
                    }
                }
                Err(error) => tracing::warn!(%error, "webhooks could not be looked at"),
            }
        }
        tokio::select! {
            () = app.stopping.cancelled() => break,
            () = tokio::time::sleep(SHORTEST) => {}
        }
        tokio::select! {
            () = app.stopping.cancelled() => break,
            () = components.feed.webhooks.notified() => {}
            () = tokio::time::sleep(wait) => {}
            Some(ended) = calls.join_next() => ended_call(&mut busy, ended),
        }
        while let Some(ended) = calls.try_join_next() {
            ended_call(&mut busy, ended);
        }
    }
    // Those that do not come to their end are made again: they fall due by themselves.
    let rest = async { while calls.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(GRACE, rest).await;
}

fn ended_call(
    busy: &mut BTreeMap<TenantName, usize>,
    ended: Result<TenantName, tokio::task::JoinError>,
) {
    match ended {
        Ok(tenant) => {
            if let Some(count) = busy.get_mut(&tenant) {
                *count -= 1;
                if *count == 0 {
                    busy.remove(&tenant);
                }
            }
        }
        Err(error) => tracing::error!(%error, "a webhook's call panicked"),
    }
}

/// Makes one delivery, and says whose it was.
async fn call(app: Arc<App>, delivery: Delivery) -> TenantName {
    let (task, number) = (delivery.task, delivery.number);
    match attempt(&app, &delivery).await {
        Ok(Some(report)) => {
            let Attempt { status, error, .. } = &report.attempt;
            tracing::info!(%task, tenant = %delivery.tenant, status, error, "webhook called");
            app.metrics.webhook(error.is_none());
            if let Err(error) = app.components.store.report_delivery(task, number, report).await {
                tracing::warn!(%error, %task, "what became of a webhook could not be stored");
            }
        }
        // Its task has been deleted meanwhile, and the delivery with it.
        Ok(None) => {}
        Err(error) => tracing::warn!(error, %task, "a webhook could not be sent"),
    }
    delivery.tenant
}

/// Calls the receiver; an error is ours.
async fn attempt(app: &App, delivery: &Delivery) -> Result<Option<Report>, String> {
    let components = &app.components;
    let text = |error: crate::store::Error| error.to_string();
    let view = components.store.get(&delivery.tenant, delivery.task).await.map_err(text)?;
    let Some(view) = view else { return Ok(None) };
    let Some(Webhook { url, base }) = &view.task.webhook else { return Ok(None) };
    let event = WebhookEvent::new(&view.task, base);
    let body = serde_json::to_vec(&event).map_err(|error| error.to_string())?;
    let now = components.clock.wall();
    let fresh = Secret::new(&components.random, now);
    let secret = components.store.secret(&webhooks_of(&delivery.tenant), fresh).await;
    let headers = headers(&secret.map_err(text)?, &event.id, &body, now)?;
    let answer = components.outbound.post(url, headers, Bytes::from(body)).await;
    let (status, error, retry_after_ms) = match answer {
        Ok(answer) if (200..300).contains(&answer.status) => (Some(answer.status), None, None),
        Ok(answer) => {
            let error = match answer.status {
                410 => "the receiver answered 410: it wants to hear no more of this".to_owned(),
                300..400 => {
                    format!("the receiver redirected ({}); that is not followed", answer.status)
                }
                status => format!("the receiver answered with status {status}"),
            };
            (Some(answer.status), Some(error), retry_after_ms(&answer, now))
        }
        Err(error) => (None, Some(error.to_string()), None),
    };
    let attempt = Attempt { at: now, status, error };
    Ok(Some(Report { attempt, retry_after_ms }))
}

fn headers(secret: &Secret, id: &str, body: &[u8], now: Timestamp) -> Result<HeaderMap, String> {
    let seconds = now.unix_seconds();
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in [
        (WEBHOOK_ID, id.to_owned()),
        (WEBHOOK_TIMESTAMP, seconds.to_string()),
        (WEBHOOK_SIGNATURE, secret.sign_webhook(id, seconds, body, now)),
    ] {
        let value = HeaderValue::try_from(value).map_err(|error| error.to_string())?;
        headers.insert(HeaderName::from_static(name), value);
    }
    Ok(headers)
}

/// How much patience the receiver asks for: seconds, or a date.
fn retry_after_ms(answer: &Answer, now: Timestamp) -> Option<u64> {
    let text = answer.headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Some(text.parse::<u64>().unwrap_or(u64::MAX).saturating_mul(1_000));
    }
    let at = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let at = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
    Some(Timestamp(at).ms_since(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_asked_for_in_seconds_or_by_a_date() {
        let asked = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().expect("a value"))]);
            let answer = Answer { status: 503, body: Bytes::new(), headers };
            retry_after_ms(&answer, Timestamp(784_111_777_000))
        };
        assert_eq!(asked("120"), Some(120_000));
        assert_eq!(asked("99999999999999999999999"), Some(u64::MAX));
        assert_eq!(asked("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60_000));
        assert_eq!(asked("Sun, 06 Nov 1994 08:49:36 GMT"), Some(0), "in the past");
        for nonsense in ["", "-1", "soon", "1.5"] {
            assert_eq!(asked(nonsense), None, "{nonsense}");
        }
    }
}
