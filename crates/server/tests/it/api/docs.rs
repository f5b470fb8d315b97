//! Documents that are generated and committed: `UPDATE=1 cargo test -p rayreel-server` writes them.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use rayreel_domain::code::{Entry, TABLE};
use serde_json::Value;

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

/// Every operation of the document, with its path.
fn operations() -> Vec<(String, Value)> {
    let document: Value = serde_json::from_str(&rayreel_server::api::document()).unwrap();
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
