//! What a person may get wrong, and what the answer is.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use serde_json::Value;

use crate::{Place, terminal, text};

/// Runs a command that is refused; gives its exit status and what it says.
fn refused(place: &Place, words: &str) -> (Option<i32>, String) {
    let output = place.run(words);
    assert_eq!(text(&output.stdout), "", "{words}");
    (output.status.code(), text(&output.stderr))
}

#[test]
fn an_option_that_means_nothing_to_a_command_is_refused() {
    let place = Place::new();
    let (status, said) = refused(&place, "serve --server http://127.0.0.1:9");
    assert_eq!(status, Some(2));
    assert!(
        said.starts_with(
            "error: `--server` means nothing to `rayreel serve`, which is a server itself: \
             --listen says where\n"
        ),
        "{said}"
    );
    let (status, said) = refused(&place, "config check --server http://127.0.0.1:9 --json");
    assert_eq!(status, Some(2));
    let body: Value = serde_json::from_str(&said).expect("one JSON document");
    assert_eq!(body["error"]["code"], "invalid_value");

    // A variable speaks to the commands that it means something to.
    let shown = place.command("config show").env("RAYREEL_SERVER", "http://127.0.0.1:9").output();
    assert_eq!(shown.expect("it starts").status.code(), Some(0));
    let list = place.command("list --data x").env("RAYREEL_SERVER", "http://127.0.0.1:9").output();
    let said = text(&list.expect("it starts").stderr);
    assert!(said.contains("the server that RAYREEL_SERVER names"), "{said}");
}

#[test]
fn a_port_in_use_is_told_as_such() {
    let place = Place::new();
    let other = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = other.local_addr().expect("bound");
    let (status, said) = refused(&place, &format!("serve --listen {address}"));
    assert_eq!(status, Some(6));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        lines,
        [
            &*format!(
                "error[address_in_use]: {address} is in use: another program, or another rayreel, \
                 listens there"
            ),
            "  help: Stop what listens there, or choose another address with `--listen`; port 0 \
             takes a free one.",
        ]
    );
}

#[test]
fn a_directory_of_somebody_else_is_told_with_its_owner() {
    let place = Place::new();
    let mut command = place.command("list --data /rayreel-of-nobody");
    if rustix::process::geteuid().is_root() {
        // From where another user may start it. Copied by another process: one that another test
        // starts meanwhile would inherit a file open for writing, which cannot be executed.
        let program = place.path("rayreel");
        let copied = std::process::Command::new("cp")
            .args([Path::new(env!("CARGO_BIN_EXE_rayreel")), &program])
            .status();
        assert!(copied.expect("it starts").success());
        let open = Permissions::from_mode(0o755);
        fs::set_permissions(place.path("."), open).expect("it is ours");
        let mut other = std::process::Command::new(program);
        other.args(command.get_args()).env_clear().env("HOME", "/").current_dir("/").uid(65_534);
        command = other;
    }
    let output = command.output().expect("it starts");
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        [
            "error[invalid_config]: /rayreel-of-nobody can't be created: this user may not do \
             that; / belongs to root",
            "  help: Run it as the owner, or name another directory with --data.",
        ]
    );
}

#[test]
fn files_that_can_not_be_used_are_refused_before_anything_is_submitted() {
    let place = Place::new();
    fs::create_dir(place.path("folder")).expect("made");
    fs::write(place.path("notes.txt"), "x").expect("written");
    for (words, message) in [
        (
            "generate x -o missing/x.mp4",
            "missing/x.mp4 can't be written: there is no folder missing",
        ),
        ("generate x -o missing/", "missing/ can't be written: there is no folder missing/"),
        (
            "generate x -o notes.txt/x.mp4",
            "notes.txt/x.mp4 can't be written: notes.txt is no folder",
        ),
        ("submit x --image missing.png", "missing.png can't be the first frame: it does not exist"),
        ("submit x --image folder", "folder can't be the first frame: it is a directory"),
        (
            "generate x --image notes.txt",
            "notes.txt can't be the first frame: it is no PNG, JPEG or WebP file",
        ),
    ] {
        let (status, said) = refused(&place, words);
        assert_eq!(status, Some(2), "{words}");
        assert!(said.starts_with(&format!("error[invalid_value]: {message}\n")), "{said}");
    }
    let (_near, far) = terminal();
    let output = place.command("generate x -o -").stdout(far).output().expect("it starts");
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(said.starts_with("error[invalid_value]: a terminal can't show the file\n"), "{said}");
    assert!(!place.path("data").exists(), "nothing was started");
}

#[test]
fn a_variable_for_engines_is_no_mistake() {
    let place = Place::new();
    fs::write(
        place.path("rayreel.toml"),
        "[models.x]\nengine = \"server\"\n[models.x.settings]\nadapter = \"sglang\"\n\
         url = \"http://127.0.0.1:30010\"\nheaders.authorization = \"RAYREEL_ENGINE_KEY\"\n",
    )
    .expect("written");
    for words in ["config check", "models check", "list --data data"] {
        let output =
            place.command(words).env("RAYREEL_ENGINE_KEY", "Bearer secret").output().expect("runs");
        let said = text(&output.stderr);
        assert!(!said.contains("RAYREEL_ENGINE_KEY"), "{words}: {said}");
        assert_ne!(output.status.code(), Some(2), "{words}: {said}");
    }
    let (status, said) = refused(&place, "config check");
    assert_eq!(status, Some(2));
    assert!(
        said.contains("line 6: models.x.settings.headers.authorization: the environment has no"),
        "{said}"
    );
}
