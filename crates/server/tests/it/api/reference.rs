//! The reference page.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::client::Server;

const FILES: [(&str, &str); 3] = [
    ("/docs", "text/html"),
    ("/docs/reference.js", "text/javascript"),
    ("/docs/reference.css", "text/css"),
];

#[tokio::test]
async fn the_page_is_for_everybody_and_may_load_nothing_from_elsewhere() {
    let server = Server::start().await;
    // From the first key on, all else needs one.
    assert_eq!(server.post("/v1/admin/keys", &json!({"name": "first"})).await.status, 201);
    for (path, media_type) in FILES {
        let answer = server.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.header("content-type").starts_with(media_type), "{path}");
        let policy = answer.header("content-security-policy");
        assert!(
            policy.starts_with("default-src 'none';") && !policy.contains("unsafe"),
            "{policy}"
        );
        assert!(!policy.contains("http") && !policy.contains('*'), "{policy}");
        let text = answer.text();
        assert!(!text.contains("://"), "{path} names another host");
        assert!(!text.contains("innerHTML") && !text.contains("eval("), "{path}");
    }
    server.get("/docs/other.js").await.refused(404, "route_not_found", None);
}

#[tokio::test]
async fn the_page_names_only_files_that_there_are() {
    let server = Server::start().await;
    let page = server.get("/docs").await.text();
    let named: BTreeSet<&str> = page
        .split(['"', '\''])
        .filter(|text| text.ends_with(".js") || text.ends_with(".css") || text.ends_with(".json"))
        .collect();
    assert_eq!(named.len(), 3);
    for path in named {
        assert_eq!(server.get(&format!("/{path}")).await.status, 200, "{path}");
    }
    let document: Value = server.get("/openapi.json").await.json();
    assert_eq!(document["openapi"], "3.1.0");
}
