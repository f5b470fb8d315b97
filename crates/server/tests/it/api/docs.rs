//! Documents that are generated and committed: `UPDATE=1 cargo test -p rayreel-server` writes them.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use rayreel_domain::code::{Entry, TABLE};
use rayreel_domain::wire::delivery::WebhookEvent;
use serde_json::{Value, json};

use super::client::Server;

/// An id of no task.
const UNKNOWN: &str = "task_018bcfe5680070707070707070707070";

/// Compares a committed document with what it should be, or writes it.
fn compare(path: &str, should: &str) {
    let path = root().join(path);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, should).unwrap();
        return;
    }
    let is = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        is == should,
        "{} is out of date: run `UPDATE=1 cargo test -p rayreel-server api::docs` and commit it",
        path.display()
    );
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn the_openapi_document_is_up_to_date() {
    compare("docs/api/openapi.json", &rayreel_server::api::document());
}

#[test]
fn every_error_code_has_its_page_and_no_other_page_exists() {
    for entry in TABLE {
        compare(&format!("docs/errors/{}.md", entry.name), &page(entry));
    }
    compare("docs/errors/README.md", &index());
    let pages = std::fs::read_dir(root().join("docs/errors")).unwrap().count();
    assert_eq!(pages, TABLE.len() + 1, "docs/errors has a page of a code that does not exist");
}

fn yes(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

fn page(entry: &Entry) -> String {
    format!(
        "# {}\n\n{}\n\n{}\n\n| | |\n|---|---|\n| HTTP status | {} |\n| type | `{}` |\n\
         | exit status of the command line | {} |\n| may the same call succeed later | {} |\n",
        entry.name,
        entry.meaning,
        entry.remedy,
        entry.status,
        entry.kind.as_str(),
        entry.exit,
        yes(entry.retryable),
    )
}

fn index() -> String {
    let mut text = String::from(
        "# Error codes\n\nGenerated from the table in `crates/domain/src/code.rs`. A refusal has \
         the body `{\"error\": {\"code\", \"message\", \"param\", \"type\", \"request_id\"}}`; a \
         task that failed has its code in `error`.\n\n\
         | code | HTTP | exit | retry | meaning |\n|---|---|---|---|---|\n",
    );
    for entry in TABLE {
        let name = entry.name;
        let _ = writeln!(
            text,
            "| [{name}]({name}.md) | {} | {} | {} | {} |",
            entry.status,
            entry.exit,
            yes(entry.retryable),
            entry.meaning
        );
    }
    text
}

fn document() -> Value {
    serde_json::from_str(&rayreel_server::api::document()).unwrap()
}

/// Every operation of the document, with its path.
fn operations() -> Vec<(String, Value)> {
    let document = document();
    let paths = document["paths"].as_object().unwrap();
    let operations = paths.iter().flat_map(|(path, item)| {
        let methods = item.as_object().unwrap().iter();
        methods.map(move |(method, operation)| (format!("{method} {path}"), operation.clone()))
    });
    operations.collect()
}

#[test]
fn every_operation_has_a_name_of_its_own_and_says_what_it_does() {
    let mut names = BTreeSet::new();
    for (at, operation) in operations() {
        let name = operation["operationId"].as_str().unwrap_or_default().to_owned();
        assert!(!name.is_empty() && names.insert(name.clone()), "{at}: {name}");
        assert!(operation["summary"].as_str().is_some_and(|text| text.ends_with('.')), "{at}");
    }
}

#[test]
fn every_request_has_an_example() {
    for (at, operation) in operations() {
        let bodies = operation["requestBody"]["content"].as_object().into_iter().flatten();
        for (media_type, body) in bodies {
            let given = !body["example"].is_null() || !body["examples"].is_null();
            assert!(given, "{at}: the body in {media_type} has no example");
        }
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let given = parameter["in"] != "path" || !parameter["example"].is_null();
            assert!(given, "{at}: {} has no example", parameter["name"]);
        }
    }
}

#[test]
fn every_operation_lists_all_that_its_kind_can_answer() {
    for (at, operation) in operations() {
        let mut expected = vec!["400", "403", "500"];
        if operation["requestBody"].is_object() {
            expected.extend(["408", "413", "415", "503"]);
            let required = !at.ends_with("/link");
            assert_eq!(operation["requestBody"]["required"], required, "{at}");
        }
        if operation["security"].is_array() {
            expected.push("401");
        }
        let responses = operation["responses"].as_object().unwrap();
        for status in expected {
            assert!(responses.contains_key(status), "{at}: {status}");
        }
        for (status, response) in responses.iter().filter(|(status, _)| ***status >= *"400") {
            let schema = &response["content"]["application/json"]["schema"]["$ref"];
            assert_eq!(schema, "#/components/schemas/ErrorBody", "{at}: {status}");
            let told = response["description"].as_str().unwrap();
            let header = match &**status {
                "401" => "WWW-Authenticate",
                "429" | "503" | "507" => "Retry-After",
                _ => continue,
            };
            assert!(response["headers"][header].is_object(), "{at}: {status}: {told}");
        }
    }
}

#[test]
fn every_error_code_is_explained_in_the_document_itself() {
    let document = document();
    let tags = document["tags"].as_array().unwrap();
    let tag = tags.iter().find(|tag| tag["name"] == "errors").unwrap();
    let text = tag["description"].as_str().unwrap();
    for entry in TABLE {
        let line = text.lines().find(|line| line.starts_with(&format!("- `{}` (", entry.name)));
        let line = line.unwrap_or_else(|| panic!("{}", entry.name));
        assert!(line.contains(entry.meaning) && line.contains(entry.remedy), "{line}");
    }
    assert!(!document["info"]["description"].as_str().unwrap().contains("docs/errors"));
}

#[test]
fn a_form_has_a_schema_of_its_own_in_which_files_are_files() {
    let document = document();
    let mut files = BTreeSet::new();
    for (at, operation) in operations() {
        let content = &operation["requestBody"]["content"]["multipart/form-data"];
        let Some(name) = content["schema"]["$ref"].as_str() else { continue };
        let name = name.rsplit('/').next().unwrap();
        assert!(name.ends_with("Form"), "{at}: {name}");
        for (field, schema) in
            document["components"]["schemas"][name]["properties"].as_object().unwrap()
        {
            let place = format!("{at}: {field}: {schema}");
            assert!(!schema.to_string().contains("null"), "{place}");
            assert!(schema["description"].is_string(), "{place}");
            if schema["format"] == "binary" {
                assert!(content["encoding"][field]["contentType"].is_string(), "{place}");
                files.insert(field.clone());
            }
            if schema["additionalProperties"].is_object() {
                assert_eq!(content["encoding"][field]["style"], "deepObject", "{place}");
            }
        }
    }
    assert_eq!(Vec::from_iter(files), ["file", "image", "input_reference", "last_image"]);
}

#[test]
fn webhooks_stand_in_the_document_with_their_headers() {
    let document = document();
    let hooks = document["webhooks"].as_object().unwrap();
    assert_eq!(Vec::from_iter(hooks.keys()), ["video.completed", "video.failed"]);
    for (kind, item) in hooks {
        let call = &item["post"];
        let headers = call["parameters"].as_array().unwrap().iter().map(|one| &one["name"]);
        let headers: Vec<&str> = headers.map(|name| name.as_str().unwrap()).collect();
        assert_eq!(headers, ["webhook-id", "webhook-timestamp", "webhook-signature"]);
        let body = &call["requestBody"]["content"]["application/json"];
        assert_eq!(body["schema"]["$ref"], "#/components/schemas/WebhookEvent");
        assert_eq!(body["example"]["type"], **kind);
        let event = serde_json::from_value::<WebhookEvent>(body["example"].clone());
        assert_eq!(event.unwrap().kind, **kind);
    }
}

/// A refusal of a name that is like none lists those that there are: the document has the same.
#[tokio::test]
async fn every_field_that_is_taken_is_in_the_schema_and_no_other() {
    let server = Server::start().await;
    for (at, operation) in operations() {
        let content = &operation["requestBody"]["content"]["application/json"];
        let Some(name) = content["schema"]["$ref"].as_str() else { continue };
        let name = name.rsplit('/').next().unwrap();
        let path = at.split_once(' ').unwrap().1.replace("{id}", UNKNOWN);
        let refusal = server.post(&path, &json!({"~~~~~~~~": 1})).await.refusal();
        assert_eq!(refusal.code, "unknown_field", "{at}");
        let taken: BTreeSet<&str> = refusal.message.split('`').skip(3).step_by(2).collect();
        let schema = &document()["components"]["schemas"][name];
        let listed = schema["properties"].as_object().unwrap();
        assert_eq!(taken, listed.keys().map(|key| &**key).collect(), "{at}: {}", refusal.message);
        for field in ["user", "quality", "style", "background", "moderation"] {
            let told = listed.get(field).map(|schema| &schema["description"]);
            assert!(told.is_none_or(|told| told == "Taken and ignored."), "{at}: {field}");
        }
        // What is required can't be null.
        for field in schema["required"].as_array().into_iter().flatten() {
            assert!(listed[field.as_str().unwrap()]["type"].is_string(), "{at}: {field}");
        }
    }
}
