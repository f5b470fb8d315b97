use std::cell::RefCell;
use std::io::{BufReader, Cursor, PipeWriter, Read as _};
use std::rc::Rc;

use rayreel_domain::wire::engine::{EngineRequest, Format, MAX_LINE};
use serde_json::{Map, Value, json};

use super::*;

/// An engine that does what the prompt says, and writes down what happens to it.
#[derive(Default)]
struct Puppet {
    /// The load ends only when it is dropped.
    slow_load: bool,
    worker: Option<PipeWriter>,
    journal: Rc<RefCell<Vec<String>>>,
}

struct Dropped(Rc<RefCell<Vec<String>>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.borrow_mut().push("dropped".into());
    }
}

impl Engine for Puppet {
    async fn load(&mut self, load: Load) -> Result<Ready, Failure> {
        let _dropped = Dropped(Rc::clone(&self.journal));
        if self.slow_load {
            tell(self.worker.as_mut(), &json!({"type": "exit"}));
            std::future::pending::<()>().await;
        }
        match load.model.as_str() {
            "bad" => Err(Failure::load_failed("no such weights")),
            model => Ok(Ready { engine: "puppet".into(), version: model.into() }),
        }
    }

    async fn generate(&mut self, job: &Job<'_>) -> Result<Made, Failure> {
        let _dropped = Dropped(Rc::clone(&self.journal));
        let worker = &mut self.worker;
        let mut say = |message: &Value| tell(worker.as_mut(), message);
        match job.generate.request.prompt.as_str() {
            "steps" => {
                let said = (0..=1000).filter(|step| job.progress("denoise", *step, 1000));
                assert_eq!(said.collect::<Vec<u32>>(), [0], "a thousand and one in no time");
            }
            "cancel me" => {
                say(&json!({"type": "cancel", "id": "another"}));
                say(&json!({"type": "cancel", "id": job.generate.id}));
                job.stopped().await;
                job.progress("denoise", 1, 2);
                tell(self.worker.as_mut(), &generate("b", "leave me"));
                return Err(Failure::failed("the program was killed"));
            }
            "interrupt me" => {
                say(&generate("b", "steps"));
                say(&json!({"type": "load", "protocol": 1, "model": "m"}));
                say(&json!({"type": "cancel", "id": "a"}));
                job.stopped().await;
                self.worker = None;
            }
            "leave me" => {
                self.worker = None;
                job.stopped().await;
                return Err(Failure::failed("stopped"));
            }
            "hang" => {
                self.worker = None;
                std::future::pending::<()>().await;
            }
            "garble" => {
                self.worker.as_mut().unwrap().write_all(b"hello\n").unwrap();
                job.stopped().await;
            }
            "long" => return Err(Failure::invalid("ä".repeat(3000))),
            _ => {}
        }
        Ok(Made { files: Vec::new(), metrics: BTreeMap::from([("run_ms".into(), 1.5)]) })
    }

    async fn leave(&mut self) {
        self.journal.borrow_mut().push("left".into());
    }
}

fn tell(worker: Option<&mut PipeWriter>, message: &Value) {
    let mut line = message.to_string();
    line.push('\n');
    worker.expect("the worker is there").write_all(line.as_bytes()).unwrap();
}

fn load(model: &str) -> Value {
    json!({"type": "load", "protocol": PROTOCOL, "model": model})
}

fn generate(id: &str, prompt: &str) -> Value {
    let request = EngineRequest {
        prompt: prompt.into(),
        negative_prompt: String::new(),
        width: 64,
        height: 64,
        frames: 1,
        fps: 1,
        steps: 1,
        guidance: None,
        guidance_2: None,
        seed: 0,
        format: Format::Png,
        image: None,
        last_image: None,
        loras: Vec::new(),
    };
    let generate = Generate { id: id.into(), output_dir: "/".into(), request };
    serde_json::to_value(ToEngine::Generate(generate)).unwrap()
}

/// Tells the engine all of this, and what it says and writes down until the conversation ends. The
/// worker leaves with `exit` unless a generation makes it leave.
fn talk(mut engine: Puppet, told: &[Value]) -> (io::Result<()>, Vec<Map<String, Value>>, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    engine.worker = Some(writer);
    let told: String = told.iter().map(|message| format!("{message}\n")).collect();
    let input = Cursor::new(told.into_bytes()).chain(BufReader::new(reader));
    let mut output = Vec::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let ended = runtime.block_on(async {
        let mut inbox = Inbox::open(input).unwrap();
        serve(&mut engine, &mut inbox, &mut output).await
    });
    let said = output.split_inclusive(|byte| *byte == b'\n');
    let said = said.map(|line| serde_json::from_slice(line).unwrap()).collect();
    let journal = engine.journal.borrow().join(", ");
    (ended, said, journal)
}

fn exit() -> Value {
    json!({"type": "exit"})
}

/// The answers in a few words.
fn words(said: &[Map<String, Value>]) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let keys = ["type", "id", "code", "message"];
    said.iter()
        .map(|one| {
            let words: Vec<String> = keys.iter().filter_map(|k| one.get(*k)).map(text).collect();
            words.join(" ")
        })
        .collect()
}

#[test]
fn a_model_is_loaded_once_and_generates_as_often_as_asked() {
    let told = [
        generate("early", ""),
        json!({"type": "load", "protocol": 2, "model": "m"}),
        load("bad"),
        load("m"),
        load("m"),
        generate("a", ""),
        json!({"type": "cancel", "id": "a"}),
        generate("b", ""),
        exit(),
    ];
    let (ended, said, journal) = talk(Puppet::default(), &told);
    ended.unwrap();
    assert_eq!(
        words(&said),
        [
            "error early failed no model is loaded",
            "error load_failed the worker speaks version 2 of the engine protocol, this engine \
             version 1",
            "error load_failed no such weights",
            "ready",
            "error load_failed a model is loaded already",
            "done a",
            "done b",
        ]
    );
    assert_eq!(said[3]["version"], "m");
    assert_eq!(said[5]["metrics"], json!({"run_ms": 1.5}));
    assert_eq!(journal, "dropped, dropped, dropped, dropped, left");
}

#[test]
fn a_cancel_of_this_generation_stops_it_whatever_comes_of_it() {
    let (_, said, _) = talk(Puppet::default(), &[load("m"), generate("a", "cancel me")]);
    assert_eq!(
        words(&said),
        ["ready", "error a cancelled cancelled", "error b cancelled cancelled"]
    );
}

#[test]
fn what_comes_in_the_middle_is_refused_by_its_id() {
    let told = [load("m"), generate("a", "interrupt me"), generate("c", "")];
    let (ended, said, _) = talk(Puppet::default(), &told);
    ended.unwrap();
    let busy = "the engine is at work on something else";
    assert_eq!(
        words(&said),
        [
            "ready".to_owned(),
            format!("error c failed {busy}"),
            format!("error b failed {busy}"),
            format!("error failed {busy}"),
            "done a".into(),
        ]
    );
}

#[test]
fn steps_are_reported_ten_times_a_second_at_most() {
    let told = [load("m"), generate("a", "steps"), generate("b", "leave me")];
    let (_, said, _) = talk(Puppet::default(), &told);
    let steps: Vec<_> = said.iter().filter(|one| one["type"] == "progress").collect();
    // A thousand and one steps in no time.
    assert_eq!(steps.len(), 1);
    assert_eq!((&steps[0]["step"], &steps[0]["steps"]), (&json!(0), &json!(1000)));
}

#[test]
fn a_generation_that_hangs_does_not_outlive_its_worker() {
    let (ended, said, journal) = talk(Puppet::default(), &[load("m"), generate("a", "hang")]);
    ended.unwrap();
    assert_eq!(words(&said), ["ready"]);
    assert_eq!(journal, "dropped, dropped, left");
}

#[test]
fn a_load_ends_when_the_worker_leaves() {
    let engine = Puppet { slow_load: true, ..Puppet::default() };
    let (ended, said, journal) = talk(engine, &[load("m"), load("n"), generate("a", "")]);
    ended.unwrap();
    let busy = "the engine is at work on something else";
    assert_eq!(words(&said), [format!("error failed {busy}"), format!("error a failed {busy}")]);
    assert_eq!(journal, "dropped, left");
}

#[test]
fn a_worker_that_breaks_the_protocol_is_left() {
    let (ended, said, journal) = talk(Puppet::default(), &[load("m"), generate("a", "garble")]);
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("no message"), "{error}");
    assert_eq!(words(&said)[0], "ready");
    assert_eq!(journal, "dropped, dropped, left");

    let (ended, ..) = talk(Puppet::default(), &[json!("x".repeat(MAX_LINE))]);
    assert!(ended.unwrap_err().to_string().contains("more than 1048576 bytes"));
}

#[test]
fn a_message_is_cut_to_what_is_kept() {
    let told = [load("m"), generate("a", "long"), generate("b", "leave me")];
    let (_, said, _) = talk(Puppet::default(), &told);
    assert_eq!(said[1]["message"], "ä".repeat(2000));
}
