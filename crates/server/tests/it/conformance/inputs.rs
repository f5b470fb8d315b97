//! Contents and files: each content once, and no longer than something names it.

use std::sync::Arc;
use std::time::Duration;

use rayreel_domain::TaskId;
use rayreel_domain::file::FileRecord;
use rayreel_domain::id::FileId;
use rayreel_domain::request::Input;
use rayreel_domain::task::Record;
use rayreel_domain::time::Timestamp;
use rayreel_server::clock::Clock;
use rayreel_server::store::{Error, FileQuery, Store};

use super::{Setup, Stores, task, tenant};

const HOUR: u64 = 3_600_000;
const MOST: u64 = 1 << 20;

fn content(digit: char) -> Input {
    let sha256 = digit.to_string().repeat(64);
    Input { place: None, sha256, media_type: "image/png".to_owned(), bytes: 70_000 }
}

struct Home<S: Stores> {
    home: S::Home,
    setup: Setup,
    store: Arc<dyn Store>,
}

impl<S: Stores> Home<S> {
    async fn new(stores: &S) -> Self {
        let (home, setup) = (stores.home(), Setup::new());
        let store = stores.open(&home, &setup).await;
        Self { home, setup, store }
    }

    /// The same, after a restart.
    async fn again(self, stores: &S) -> Self {
        let Self { home, setup, store } = self;
        drop(store);
        let store = stores.open(&home, &setup).await;
        Self { home, setup, store }
    }

    async fn hold(&self, owner: &str, digit: char) -> Input {
        self.store.hold_input(&tenant(owner), content(digit)).await.expect("held")
    }

    async fn submit(&self, owner: &str, input: &Input) -> Result<TaskId, Error> {
        let change = |record: &mut Record| {
            record.tenant = tenant(owner);
            record.request.image = Some(input.clone());
        };
        Ok(self.store.submit(task(&self.setup, change)).await?.task.id)
    }

    async fn put(&self, owner: &str, input: &Input, ms: u64) -> Result<FileRecord, Error> {
        let now = self.setup.clock.wall();
        let file = FileRecord {
            id: FileId::from_bytes(*self.setup.random.task_id(now).as_bytes()),
            tenant: tenant(owner),
            filename: "a.png".to_owned(),
            purpose: "vision".to_owned(),
            input: input.clone(),
            created_at: now,
            expires_at: now.plus_ms(ms),
        };
        self.store.put_file(file.clone(), MOST).await.map(|()| file)
    }

    async fn list(&self, owner: &str, change: impl FnOnce(&mut FileQuery)) -> Vec<FileId> {
        let mut query = FileQuery {
            tenant: tenant(owner),
            purpose: None,
            after: None,
            ascending: false,
            limit: 10,
        };
        change(&mut query);
        let page = self.store.files(&query).await.expect("listed");
        page.files.into_iter().map(|file| file.id).collect()
    }

    async fn wait(&self, ms: u64) {
        self.setup.clock.advance(Duration::from_millis(ms));
        while self.store.advance().await.expect("advanced").is_some_and(|at| at <= self.now()) {}
    }

    fn now(&self) -> Timestamp {
        self.setup.clock.wall()
    }

    /// Contents whose files may be deleted.
    async fn discarded(&self) -> Vec<String> {
        let garbage = self.store.garbage(100).await.expect("listed");
        let ids: Vec<_> = garbage.iter().map(|item| item.id).collect();
        self.store.collected(&ids).await.expect("collected");
        let contents = garbage.into_iter().map(|item| item.folder);
        contents.filter(|folder| folder.starts_with("tenant-")).collect()
    }

    async fn delete(&self, owner: &str, id: TaskId) {
        // The first call cancels.
        self.store.delete(&tenant(owner), id).await.expect("cancelled");
        assert!(self.store.delete(&tenant(owner), id).await.expect("deleted").deleted);
        self.wait(0).await;
    }
}

/// Plays what is promised of contents.
pub async fn keeps_contents(stores: &impl Stores) {
    let home = Home::new(stores).await;
    let a = home.hold("anna", 'a').await;
    assert!(a.place.is_some());
    assert_eq!(home.hold("anna", 'a').await, a, "the same bytes have the same place");
    assert_ne!(home.hold("bert", 'a').await.place, a.place, "but not for somebody else");
    let folder = |owner: &str, input: &Input| input.folder(&tenant(owner)).expect("it has a place");

    // Two tasks name it: it goes with the second.
    let (first, second) = (home.submit("anna", &a).await, home.submit("anna", &a).await);
    home.wait(HOUR - 1).await;
    assert_eq!(home.discarded().await, [""; 0], "it is held");
    home.wait(1).await;
    assert_eq!(home.discarded().await.len(), 1, "what was held, and then not named, is gone");
    let home = home.again(stores).await;
    home.delete("anna", first.expect("queued")).await;
    assert_eq!(home.discarded().await, [""; 0]);
    home.delete("anna", second.expect("queued")).await;
    assert_eq!(home.discarded().await, [folder("anna", &a)]);

    // The same bytes come again: elsewhere, for the garbage may not be collected yet.
    assert_eq!(home.submit("anna", &a).await.err(), Some(Error::InputGone));
    let again = home.hold("anna", 'a').await;
    assert!(again.place > a.place, "a place is never given again");
    let stolen = home.submit("bert", &again).await;
    assert_eq!(stolen.err(), Some(Error::InputGone), "a place is its tenant's");
    let id = home.submit("anna", &again).await.expect("queued");
    home.delete("anna", id).await;
    assert_eq!(home.discarded().await, [""; 0], "still held");
    // A new hold while it is waiting to be looked at keeps it.
    home.wait(HOUR / 2).await;
    assert_eq!(home.hold("anna", 'a').await, again);
    home.wait(HOUR - 1).await;
    assert_eq!(home.discarded().await, [""; 0]);
    home.wait(1).await;
    assert_eq!(home.discarded().await, [folder("anna", &again)]);

    // All tasks of one request, or none, whichever of their frames is gone.
    let gone = home.hold("anna", 'b').await;
    home.wait(HOUR).await;
    let frames = [(Some(gone.clone()), None), (None, Some(gone))];
    for (image, last_image) in frames {
        let tasks = [(None, None), (image, last_image)].map(|(image, last_image)| {
            task(&home.setup, |record| {
                record.tenant = tenant("anna");
                record.request.image = image;
                record.request.last_image = last_image;
            })
        });
        let ids = tasks.clone().map(|task| task.id);
        let refused = home.store.submit_all(tasks.to_vec()).await;
        assert_eq!(refused.err(), Some(Error::InputGone));
        for id in ids {
            assert!(home.store.get(&tenant("anna"), id).await.expect("answered").is_none());
        }
    }
    assert_eq!(home.store.check().await, Ok(vec![]));
}

/// Plays what is promised of contents that were held for nothing.
pub async fn lets_contents_go(stores: &impl Stores) {
    let home = Home::new(stores).await;
    let anna = tenant("anna");
    let release = async |input: &Input| {
        home.store.release_input(&anna, input.clone()).await.expect("released");
        home.wait(0).await;
    };
    // Two hold it: it goes with the second, at once.
    let a = home.hold("anna", 'a').await;
    assert_eq!(home.hold("anna", 'a').await, a);
    release(&a).await;
    assert_eq!(home.discarded().await, [""; 0], "another one holds it");
    home.store.release_input(&tenant("bert"), a.clone()).await.expect("it is not his");
    home.wait(0).await;
    assert_eq!(home.discarded().await, [""; 0]);
    release(&a).await;
    assert_eq!(home.discarded().await, [a.folder(&anna).expect("it has a place")]);
    release(&a).await;
    assert_eq!(home.submit("anna", &a).await.err(), Some(Error::InputGone));

    // A task or a file names it: it stays with them.
    let b = home.hold("anna", 'b').await;
    let task = home.submit("anna", &b).await.expect("queued");
    release(&b).await;
    home.wait(HOUR).await;
    assert_eq!(home.discarded().await, [""; 0], "the task needs it");
    home.delete("anna", task).await;
    assert_eq!(home.discarded().await.len(), 1);
    let c = home.hold("anna", 'c').await;
    home.put("anna", &c, 2 * HOUR).await.expect("there is room");
    release(&c).await;
    home.wait(2 * HOUR - 1).await;
    assert_eq!(home.discarded().await, [""; 0], "the file needs it");
    home.wait(1).await;
    assert_eq!(home.discarded().await.len(), 1);

    // Where a restart forgets who held it, it has its hour.
    let d = home.hold("anna", 'd').await;
    let home = home.again(stores).await;
    home.store.release_input(&anna, d).await.expect("answered");
    if stores.forgets() {
        home.wait(HOUR - 1).await;
        assert_eq!(home.discarded().await, [""; 0]);
        home.wait(1).await;
    } else {
        home.wait(0).await;
    }
    assert_eq!(home.discarded().await.len(), 1);
    assert_eq!(home.store.check().await, Ok(vec![]));
}

/// Plays what is promised of the two contents of a task with a first and a last frame.
pub async fn keeps_both_frames(stores: &impl Stores) {
    let home = Home::new(stores).await;
    let anna = tenant("anna");
    let folder = |input: &Input| input.folder(&anna).expect("it has a place");
    let submit = async |home: &Home<_>, first: &Input, last: &Input| {
        let submitted = home.store.submit(task(&home.setup, |record| {
            record.tenant = anna.clone();
            record.request.image = Some(first.clone());
            record.request.last_image = Some(last.clone());
        }));
        submitted.await.expect("queued").task.id
    };
    let (a, b) = (home.hold("anna", 'a').await, home.hold("anna", 'b').await);
    let forth = submit(&home, &a, &b).await;
    let back = submit(&home, &b, &a).await;
    let still = submit(&home, &b, &b).await;
    home.wait(HOUR).await;
    let home = home.again(stores).await;
    assert_eq!(home.discarded().await, [""; 0], "tasks need both");
    home.delete("anna", forth).await;
    assert_eq!(home.discarded().await, [""; 0], "another needs them the other way round");
    home.delete("anna", back).await;
    assert_eq!(home.discarded().await, [folder(&a)], "the last who had it was its last frame");
    home.delete("anna", still).await;
    assert_eq!(home.discarded().await, [folder(&b)], "once, though it was both frames");
    assert_eq!(home.store.check().await, Ok(vec![]));
}

/// Plays what is promised of files.
pub async fn keeps_files(stores: &impl Stores) {
    let home = Home::new(stores).await;
    let (anna, bert) = (tenant("anna"), tenant("bert"));
    let input = home.hold("anna", 'a').await;
    let file = home.put("anna", &input, 2 * HOUR).await.expect("stored");
    let later = home.put("anna", &input, 3 * HOUR).await.expect("stored");
    let home = home.again(stores).await;
    assert_eq!(home.store.file(&anna, file.id).await, Ok(Some(file.clone())));
    for other in [&bert, &tenant("nobody")] {
        assert_eq!(home.store.file(other, file.id).await, Ok(None));
        assert_eq!(home.store.delete_file(other, file.id).await, Ok(false));
    }
    assert_eq!(home.list("bert", |_| ()).await, []);
    assert_eq!(home.list("anna", |_| ()).await, [later.id, file.id], "newest first");
    assert_eq!(home.list("anna", |query| query.ascending = true).await, [file.id, later.id]);
    assert_eq!(home.list("anna", |query| query.limit = 1).await, [later.id]);
    assert_eq!(home.list("anna", |query| query.after = Some(later.id)).await, [file.id]);
    let purpose =
        |text: &'static str| move |query: &mut FileQuery| query.purpose = Some(text.to_owned());
    assert_eq!(home.list("anna", purpose("vision")).await.len(), 2);
    assert_eq!(home.list("anna", purpose("batch")).await, []);
    let foreign = FileQuery {
        tenant: bert.clone(),
        purpose: None,
        after: Some(file.id),
        ascending: false,
        limit: 1,
    };
    assert_eq!(home.store.files(&foreign).await.err(), Some(Error::NotFound));

    // A file expires to the millisecond; what was made with it stays.
    let task = home.submit("anna", &input).await.expect("queued");
    home.setup.clock.advance(Duration::from_millis(2 * HOUR));
    assert_eq!(home.store.file(&anna, file.id).await, Ok(None), "expired, and not deleted yet");
    assert_eq!(home.store.delete_file(&anna, file.id).await, Ok(false));
    assert_eq!(home.list("anna", |_| ()).await, [later.id]);
    home.wait(0).await;
    assert_eq!(home.store.delete_file(&anna, later.id).await, Ok(true));
    assert_eq!(home.store.delete_file(&anna, later.id).await, Ok(false));
    home.wait(HOUR).await;
    assert_eq!(home.discarded().await, [""; 0], "the task needs it");
    home.delete("anna", task).await;
    assert_eq!(home.discarded().await, [input.folder(&anna).expect("it has a place")]);

    // A tenant's files have a limit; another's do not count.
    let input = home.hold("anna", 'a').await;
    let fits = MOST / input.bytes;
    for _ in 0..fits {
        home.put("anna", &input, HOUR).await.expect("there is room");
    }
    let full = Error::FilesFull { allowed: MOST, retry_ms: Some(HOUR) };
    assert_eq!(home.put("anna", &input, HOUR).await.err(), Some(full.clone()));
    let admits =
        async |owner: &str, bytes: u64| home.store.admits_file(&tenant(owner), bytes, MOST).await;
    assert_eq!(admits("anna", input.bytes).await, Err(full));
    assert_eq!(admits("bert", MOST).await, Ok(()));
    let never = Error::FilesFull { allowed: MOST, retry_ms: None };
    assert_eq!(admits("bert", MOST + 1).await, Err(never));
    let other = home.hold("bert", 'a').await;
    home.put("bert", &other, HOUR).await.expect("there is room");
    let bytes = async |home: &Home<_>| -> Vec<(String, u64)> {
        let uses = home.store.usage().await.expect("answered");
        uses.into_iter().map(|one| (one.tenant.to_string(), one.file_bytes)).collect()
    };
    let used = [("anna".to_owned(), fits * input.bytes), ("bert".to_owned(), other.bytes)];
    assert_eq!(bytes(&home).await, used);
    home.wait(HOUR).await;
    let input = home.hold("anna", 'a').await;
    home.put("anna", &input, HOUR).await.expect("there is room again");
    assert_eq!(home.store.check().await, Ok(vec![]));
}
