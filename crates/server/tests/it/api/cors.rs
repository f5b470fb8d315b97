//! Pages of other sites, in a browser.

use reqwest::Method;
use serde_json::json;

use super::client::{Answer, Server, TASKS};

const APP: &str = "https://app.example";

async fn ask(server: &Server, method: Method, origin: &str, preflight: bool) -> Answer {
    let mut request = server.request(method, TASKS).header("origin", origin);
    if preflight {
        request = request
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type");
    } else {
        request = request.json(&json!({"prompt": "p"}));
    }
    Answer::of(request).await
}

#[tokio::test]
async fn without_configured_origins_there_is_no_cors() {
    let server = Server::start().await;
    let answer = ask(&server, Method::OPTIONS, APP, true).await;
    answer.refused(403, "forbidden", None);
    let answer = ask(&server, Method::POST, APP, false).await;
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
    answer.refused(403, "forbidden", None);
}

#[tokio::test]
async fn a_configured_page_may_call_and_others_may_not() {
    let origins = r#"["https://app.example"]"#;
    let server = Server::with(&[("RAYREEL_CORS_ORIGINS", origins)]).await;
    let answer = ask(&server, Method::OPTIONS, APP, true).await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.headers["access-control-allow-origin"], APP);
    assert!(answer.headers["access-control-allow-methods"].to_str().unwrap().contains("POST"));
    // SDKs send headers of their own; the star does not stand for this one.
    assert_eq!(answer.headers["access-control-allow-headers"], "*, authorization");

    let answer = ask(&server, Method::POST, APP, false).await;
    assert_eq!(answer.status, 202);
    assert_eq!(answer.headers["access-control-allow-origin"], APP);
    assert!(
        answer.headers["access-control-expose-headers"].to_str().unwrap().contains("x-request-id")
    );
    assert_eq!(answer.headers["vary"], "Origin");
    // Refusals can be read too.
    let request = server.request(Method::GET, "/v1/nothing").header("origin", APP);
    let answer = Answer::of(request).await;
    assert_eq!(answer.headers["access-control-allow-origin"], APP);
    answer.refused(404, "route_not_found", None);

    // Nor does a cache give a page what it has got for somebody else.
    for path in ["/healthz", "/v1/nothing"] {
        let answer = server.get(path).await;
        assert_eq!(answer.headers["vary"], "Origin", "{path}");
        assert!(!answer.headers.contains_key("access-control-allow-origin"), "{path}");
    }

    for other in ["https://app.example.evil", "http://app.example", "null"] {
        let answer = ask(&server, Method::POST, other, false).await;
        assert!(!answer.headers.contains_key("access-control-allow-origin"));
        answer.refused(403, "forbidden", None);
    }
    assert_eq!(server.count().await, 1);
}

#[tokio::test]
async fn of_two_origins_no_one_hides_behind_the_other() {
    let origins = r#"["https://app.example"]"#;
    for settings in [&[][..], &[("RAYREEL_CORS_ORIGINS", origins)]] {
        let server = Server::with(settings).await;
        let own = format!("http://{}", server.address);
        for [first, second] in [
            [&*own, "https://evil.example"],
            ["https://evil.example", &*own],
            [APP, "https://evil.example"],
            ["https://evil.example", APP],
            [APP, APP],
        ] {
            let request = server.request(Method::POST, TASKS).header("origin", first);
            let request = request.header("origin", second).json(&json!({"prompt": "p"}));
            let answer = Answer::of(request).await;
            assert!(!answer.headers.contains_key("access-control-allow-origin"));
            answer.refused(403, "forbidden", None);
            let ask = server.request(Method::OPTIONS, TASKS).header("origin", first);
            let ask = ask.header("origin", second).header("access-control-request-method", "POST");
            Answer::of(ask).await.refused(403, "forbidden", None);
        }
        assert_eq!(server.count().await, 0);
    }
}
