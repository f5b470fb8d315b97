//! API keys, and addresses that others can reach. (127.0.0.5 is this machine's own, but no name under
//! which the API is open without a key.)

use std::io::{BufRead, BufReader};

use rustix::process::Signal;

use crate::{Place, Started, text};

const OTHERS: &str = "127.0.0.5:0";

/// A server that others can reach, and its address.
fn serve(place: &Place, admin_key: Option<&str>) -> (Started, String) {
    let mut command = place.command(&format!("serve --listen {OTHERS}"));
    if let Some(key) = admin_key {
        command.env("RAYREEL_ADMIN_KEY", key);
    }
    let mut server = Started::new(command);
    let mut line = String::new();
    let mut stdout = BufReader::new(server.child.stdout.take().expect("it is piped"));
    stdout.read_line(&mut line).expect("readable");
    let address = line.strip_prefix("rayreel serves ").and_then(|rest| rest.split(',').next());
    (server, address.expect("its address").to_owned())
}

fn stop(server: Started) {
    server.signal(Signal::TERM);
    assert_eq!(server.end().0, Some(0));
}

/// Asks a named server, with this token; the exit status.
fn ask(place: &Place, address: &str, token: Option<&str>) -> Option<i32> {
    let mut command = place.command(&format!("list --server {address}"));
    command.env_remove("RAYREEL_DATA");
    if let Some(token) = token {
        command.env("RAYREEL_TOKEN", token);
    }
    command.output().expect("it starts").status.code()
}

#[test]
fn others_are_served_only_when_there_is_a_key() {
    let place = Place::new();
    let output = place.run(&format!("serve --listen {OTHERS}"));
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("rayreel keys create") && said.contains("RAYREEL_ADMIN_KEY"), "{said}");

    // Made without a server, on the store.
    let made = place.json("keys create --name shop --tenant acme --expires-in-days 9");
    let key = made["key"].as_str().expect("shown once").to_owned();
    let (server, address) = serve(&place, None);
    assert_eq!(ask(&place, &address, None), Some(5));
    assert_eq!(ask(&place, &address, Some("rr_nonsense")), Some(5));
    assert_eq!(ask(&place, &address, Some(&key)), Some(0));

    // Whoever owns the data directory needs no key.
    let listed = place.json("keys list");
    assert_eq!(listed["data"][0]["name"], "shop");
    assert_eq!(listed["data"][0]["tenant"], "acme");
    let id = listed["data"][0]["id"].as_str().expect("an id");
    assert!(key.starts_with(&format!("rr_{id}_")));
    let table = text(&place.run("keys list").stdout);
    assert!(table.contains(id) && table.contains("submit, read") && table.contains("live"));

    let revoked = text(&place.run(&format!("keys revoke {id}")).stdout);
    assert_eq!(revoked, format!("key {id} of tenant acme is revoked\n"));
    assert_eq!(ask(&place, &address, Some(&key)), Some(5));
    assert_eq!(place.run("keys revoke nobody").status.code(), Some(4));
    stop(server);
}

#[test]
fn the_operators_own_key_opens_everything_and_is_not_stored() {
    let place = Place::new();
    let key = "0123456789abcdef0123456789abcdef";
    let (server, address) = serve(&place, Some(key));
    assert_eq!(ask(&place, &address, Some(key)), Some(0));
    assert_eq!(ask(&place, &address, Some(&key.to_uppercase())), Some(5));
    let listed = place.json("keys list");
    assert_eq!((&listed["data"], &listed["locked"]), (&serde_json::json!([]), &true.into()));
    let said = text(&place.run("keys list").stderr);
    assert!(said.contains("RAYREEL_ADMIN_KEY, which is not stored"), "{said}");
    stop(server);

    // Without it nothing is open again, here or to others.
    let said = text(&place.run("keys list").stderr);
    assert!(said.contains("every request needs it"), "{said}");
    let output = place.run(&format!("serve --listen {OTHERS}"));
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));

    let mut short = place.command(&format!("serve --listen {OTHERS}"));
    let output = short.env("RAYREEL_ADMIN_KEY", "secret").output().expect("it starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("RAYREEL_ADMIN_KEY"));
}

#[test]
fn a_key_is_alone_on_standard_output() {
    let place = Place::new();
    let output = place.run("keys create --scopes admin,read");
    let said = text(&output.stdout);
    assert_eq!(said.trim_end().len(), 56, "{said}");
    assert!(text(&output.stderr).contains("good for read, admin; it is shown this once"));
    assert_eq!(place.run("keys create --scopes root").status.code(), Some(2));
}
