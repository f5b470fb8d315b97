//! `POST /generate`: clients of services around Wan2.2's `generate.py` go on as they are.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use rayreel_domain::task::State;
use rayreel_domain::wire::api::{CancelBody, TaskBody};
use reqwest::Method;
use serde_json::{Value, json};

use super::client::{Answer, Server, TASKS, video};
use super::uploads::{files, png};

const GENERATE: &str = "/generate";

/// The call by which such a service is tried, as its manual has it; not a byte is ours.
const MANUAL: &str = r#"curl -X POST -H "Content-Type: application/json" \
-d '{
  "task": "i2v-A14B",
  "prompt": "a beautiful cat",
  "ckpt_dir": "/data/Wan2.2-I2V-A14B",
  "image": "/path/in/pod/to/image.jpg",
  "size": "832*480"
}' \
http://localhost:8000/generate"#;

/// A server that knows the names and paths of that manual, and its folder of pictures.
struct House {
    server: Server,
    folder: tempfile::TempDir,
}

impl House {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pictures = folder.path().join("pictures");
        std::fs::create_dir_all(pictures.join("to")).unwrap();
        std::fs::write(pictures.join("to/image.jpg"), png()).unwrap();
        let own = folder.path().join("own");
        std::fs::create_dir(&own).unwrap();
        std::fs::write(own.join("image.png"), png()).unwrap();
        let roots =
            json!([format!("/path/in/pod={}", pictures.display()), own.display().to_string()]);
        let server = Server::with(&[
            ("RAYREEL_MODELS__TESTCARD__ALIASES", r#"["i2v-A14B"]"#),
            ("RAYREEL_MODELS__TESTCARD__CHECKPOINT", "/data/Wan2.2-I2V-A14B"),
            ("RAYREEL_MODELS__OTHER__COMMAND", r#"["engine"]"#),
            ("RAYREEL_MODELS__OTHER__CHECKPOINT", "/data/Other/"),
            ("RAYREEL_DEFAULT_MODEL", "testcard"),
            ("RAYREEL_MAX_BODY_BYTES", "65536"),
            ("RAYREEL_INPUT_ROOTS", &roots.to_string()),
        ])
        .await;
        Self { server, folder }
    }

    /// A path in the folder that requests call as it is called here.
    fn own(&self, name: &str) -> PathBuf {
        self.folder.path().join("own").join(name)
    }

    async fn generate(&self, fields: &Value) -> Answer {
        let mut body = json!({"prompt": "p"});
        for (name, value) in fields.as_object().unwrap() {
            body[name] = value.clone();
        }
        self.server.post(GENERATE, &body).await
    }

    async fn with_image(&self, image: impl AsRef<Path>) -> Answer {
        self.generate(&json!({"image": image.as_ref().to_str().unwrap()})).await
    }
}

/// Runs a curl command as it stands, but at the server's port; answers the body and the status.
async fn run(server: &Server, command: &'static str) -> (String, String) {
    let home = tempfile::tempdir().unwrap();
    let settings = format!(
        "silent\nnoproxy = \"*\"\nconnect-to = \"localhost:8000:{}\"\nwrite-out = \"|%{{http_code}}\"\n",
        server.address
    );
    std::fs::write(home.path().join(".curlrc"), settings).unwrap();
    let run =
        move || Command::new("sh").args(["-c", command]).env("CURL_HOME", home.path()).output();
    let output = tokio::task::spawn_blocking(run).await.unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('|').unwrap();
    (body.to_owned(), status.to_owned())
}

#[tokio::test]
async fn the_manuals_curl_gets_a_task_id_at_once_and_its_video_in_the_end() {
    let house = House::new().await;
    let server = &house.server;
    let (body, status) = run(server, MANUAL).await;
    assert_eq!(status, "200", "{body}");
    let answer: Value = serde_json::from_str(&body).unwrap();
    let id = answer["task_id"].as_str().unwrap();
    assert_eq!(answer["status"], "QUEUED");
    assert_eq!(answer["urls"]["get"], format!("http://localhost:8000{TASKS}/{id}"));

    let path = format!("{TASKS}/{id}");
    let status = async || server.get(&path).await.json::<Value>()["status"].clone();
    assert_eq!(status().await, "QUEUED");
    let task = server.task(id).await;
    assert_eq!((&*task.model, &*task.request.prompt), ("testcard", "a beautiful cat"));
    assert_eq!((&*task.request.size, task.request.image), ("832x480", true));

    let worker = server.worker("w").await;
    let assignment = worker.take(1).await;
    assert_eq!(assignment.request.image.unwrap().media_type, "image/png");
    assert_eq!(status().await, "RUNNING");
    worker.finish(assignment.fence, &[(video(b"cat"), b"cat")]).await;
    assert_eq!(status().await, "SUCCEEDED");
    let result = server.task(id).await.result.unwrap();
    assert_eq!(Answer::of(server.http.get(result.url)).await.text(), "cat");
}

#[tokio::test]
async fn such_a_task_is_cancelled_and_deleted_by_delete() {
    let house = House::new().await;
    let answer = house.generate(&json!({"task": "i2v-A14B"})).await;
    assert_eq!(answer.header("x-rayreel-test-pattern"), "true");
    let task: TaskBody = answer.json();
    let path = format!("{TASKS}/{}", task.task_id);
    assert_eq!(answer.header("location"), task.urls.get);
    for (cancelled, deleted) in [(true, false), (false, true)] {
        let done: CancelBody = house.server.delete(&path).await.json();
        assert_eq!((done.status, done.cancelled), (State::Cancelled, cancelled));
        assert_eq!(done.deleted, deleted);
    }
    house.server.get(&path).await.refused(404, "task_not_found", None);
}

#[tokio::test]
async fn a_checkpoint_is_named_by_its_model_or_its_path() {
    let house = House::new().await;
    for (fields, model) in [
        (json!({}), "testcard"),
        (json!({"task": "other"}), "other"),
        (json!({"ckpt_dir": "other"}), "other"),
        (json!({"ckpt_dir": "/data/Other"}), "other"),
        (json!({"task": "other", "ckpt_dir": "/data/x/..//./Other/"}), "other"),
        (json!({"task": "i2v-A14B", "ckpt_dir": "/data/Wan2.2-I2V-A14B/"}), "testcard"),
        (json!({"task": "testcard", "ckpt_dir": "i2v-A14B"}), "testcard"),
    ] {
        let answer = house.generate(&fields).await;
        assert_eq!(answer.status, 200, "{fields}: {}", answer.text());
        assert_eq!(answer.json::<TaskBody>().model, model, "{fields}");
    }
}

#[tokio::test]
async fn no_other_checkpoint_is_loaded() {
    let house = House::new().await;
    for (fields, told) in [
        (
            json!({"task": "i2v-A14B", "ckpt_dir": "/data/Other"}),
            "`task` means the model `testcard`, but `ckpt_dir` the model `other`",
        ),
        (
            json!({"task": "i2v-A14B", "ckpt_dir": "other"}),
            "`task` means the model `testcard`, but `ckpt_dir` the model `other`",
        ),
        (
            json!({"task": "i2v-A14B", "ckpt_dir": "/data/Mine"}),
            "`ckpt_dir` `/data/Mine` is neither the name nor the checkpoint of a model; `task` \
             means `testcard`; there are: other, testcard (or i2v-A14B)",
        ),
        (json!({"ckpt_dir": "/data"}), "`/data` is neither"),
        (json!({"ckpt_dir": "data/Other"}), "`data/Other` is neither"),
        (json!({"ckpt_dir": ""}), "`` is neither"),
        (json!({"ckpt_dir": "/data/other"}), "`/data/other` is neither"),
    ] {
        let refusal = house.generate(&fields).await.refused(400, "invalid_value", Some("ckpt_dir"));
        assert!(refusal.message.contains(told), "{}", refusal.message);
    }
    let answer = house.generate(&json!({"task": "t2v-1.3B"})).await;
    let refusal = answer.refused(400, "unknown_model", Some("task"));
    assert!(refusal.message.contains("there are: other, testcard"), "{}", refusal.message);
    assert_eq!(house.server.count().await, 0);
}

#[tokio::test]
async fn an_image_is_a_path_below_a_configured_folder_or_a_data_uri() {
    let house = House::new().await;
    symlink("image.png", house.own("link.png")).unwrap();
    let uri = super::uploads::with_image()["image"].as_str().unwrap().to_owned();
    for image in [
        "/path/in/pod/to/image.jpg".to_owned(),
        "/path/./in//pod/to/image.jpg".to_owned(),
        house.own("image.png").display().to_string(),
        house.own("link.png").display().to_string(),
        uri,
    ] {
        let answer = house.generate(&json!({"image": image})).await;
        assert_eq!(answer.status, 200, "{image}: {}", answer.text());
        assert!(answer.json::<TaskBody>().request.image);
    }
    assert_eq!(files(&house.server).len(), 1, "it is the same picture");
}

#[tokio::test]
async fn nothing_else_of_the_machine_is_read() {
    let house = House::new().await;
    let outside = house.folder.path().join("secret.png");
    std::fs::write(&outside, png()).unwrap();
    symlink(&outside, house.own("absolute.png")).unwrap();
    symlink("../secret.png", house.own("relative.png")).unwrap();
    symlink("..", house.own("up")).unwrap();
    symlink("/proc/self", house.own("self")).unwrap();
    std::fs::create_dir(house.folder.path().join("own-not")).unwrap();
    std::fs::write(house.folder.path().join("own-not/image.png"), png()).unwrap();
    std::fs::create_dir(house.own("folder.png")).unwrap();
    std::fs::write(house.own("text.png"), b"not a picture").unwrap();
    std::fs::write(house.own("long.png"), vec![0; 65_537]).unwrap();
    let pipe = Command::new("mkfifo").arg(house.own("pipe.png")).status().unwrap();
    assert!(pipe.success());

    let not_below = "not below one of the server's `input_roots`";
    let link = "leads out of its folder by a link";
    let missing = "no file at the path";
    for (image, told) in [
        (outside.clone(), not_below),
        (house.folder.path().join("own-not/image.png"), not_below),
        (PathBuf::from("/etc/passwd"), not_below),
        (PathBuf::from("/path/in/image.jpg"), not_below),
        (PathBuf::from("/"), not_below),
        (house.own("../secret.png"), "without `..`"),
        (house.own("up/../image.png"), "without `..`"),
        (PathBuf::from("/path/in/pod/to/../to/image.jpg"), "without `..`"),
        (house.own("absolute.png"), link),
        (house.own("relative.png"), link),
        (house.own("up/secret.png"), link),
        (house.own("self/environ"), link),
        (house.own("none.png"), missing),
        (house.own("image.png/x"), missing),
        (house.own("a\0b.png"), missing),
        (house.own(""), missing),
        (house.own("folder.png"), "not a regular file"),
        (house.own("pipe.png"), "not a regular file"),
        (house.own("long.png"), "longer than 65536 bytes"),
        (house.own("text.png"), "no image that is known"),
        (PathBuf::from("image.png"), "must be a whole path"),
        (PathBuf::from("http://127.0.0.1/image.png"), "not a public address"),
        (PathBuf::from("https://10.0.0.1/image.png"), "not a public address"),
        (PathBuf::from("file:///etc/passwd"), "`file:` URLs are not called"),
    ] {
        let refusal = house.with_image(&image).await.refused(400, "invalid_value", Some("image"));
        assert!(refusal.message.contains(told), "{}: {}", image.display(), refusal.message);
        let insides = house.folder.path().to_str().unwrap();
        assert!(!refusal.message.contains(insides), "{}", refusal.message);
    }
    assert_eq!(house.server.count().await, 0);
    assert!(files(&house.server).is_empty());
}

#[tokio::test]
async fn without_configured_folders_no_path_is_read() {
    let server = Server::start().await;
    let body = json!({"prompt": "p", "image": "/etc/hostname"});
    let refusal = server.post(GENERATE, &body).await.refused(400, "invalid_value", Some("image"));
    assert!(refusal.message.contains("`input_roots`"), "{}", refusal.message);
}

#[tokio::test]
async fn it_is_as_strict_as_the_native_submit() {
    let house = House::new().await;
    for (fields, code, param) in [
        (json!({"prompt": null}), "missing_field", "prompt"),
        (json!({"prompt": 5}), "invalid_value", "prompt"),
        (json!({"size": "832"}), "invalid_value", "size"),
        (json!({"size": "833*480"}), "invalid_value", "size"),
        (json!({"sizes": "832*480"}), "unknown_field", "sizes"),
    ] {
        house.generate(&fields).await.refused(400, code, Some(param));
    }
    let text = house.server.request(Method::POST, GENERATE).body("{}");
    Answer::of(text).await.refused(415, "unsupported_media_type", Some("Content-Type"));
    house.server.get(GENERATE).await.refused(405, "method_not_allowed", None);
    let query = house.server.post(&format!("{GENERATE}?n=2"), &json!({"prompt": "p"})).await;
    query.refused(400, "unknown_field", Some("n"));
    assert_eq!(house.server.count().await, 0);
}

#[tokio::test]
async fn the_same_key_is_the_same_task() {
    let house = House::new().await;
    let submit = async |prompt: &str| {
        let request = house.server.request(Method::POST, GENERATE).header("idempotency-key", "k");
        let body = json!({"prompt": prompt, "image": house.own("image.png").to_str().unwrap()});
        Answer::of(request.json(&body)).await
    };
    let first: TaskBody = submit("a").await.json();
    assert_eq!(submit("a").await.json::<TaskBody>().id, first.id);
    submit("b").await.refused(409, "idempotency_mismatch", Some("Idempotency-Key"));
    assert_eq!(files(&house.server).len(), 1);
}
