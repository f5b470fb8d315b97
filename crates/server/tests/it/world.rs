//! A server's parts over a real store in a folder of their own, with a clock that stands still.

use std::sync::Arc;

use rayreel_domain::request::Request;
use rayreel_domain::task::{Record, Task};
use rayreel_domain::time::Timestamp;
use rayreel_domain::wire::api::SubmitBody;
use rayreel_domain::{ModelName, TaskId};
use rayreel_server::artifacts::Artifacts;
use rayreel_server::clock::{Clock, ManualClock, Random};
use rayreel_server::config::{Settings, Sources};
use rayreel_server::feed::Feed;
use rayreel_server::fleet::{Death, Provider};
use rayreel_server::keyring::Credentials;
use rayreel_server::store::Options;
use rayreel_server::store::sqlite::SqliteStore;
use rayreel_server::store::{Launch, View};
use rayreel_server::{App, Components, outbound};

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) app: Arc<App>,
    pub(crate) clock: Arc<ManualClock>,
    _folder: Arc<tempfile::TempDir>,
}

/// For tests in which no worker may be started.
struct Nobody;

#[async_trait::async_trait]
impl Provider for Nobody {
    async fn launch(&self, _: Launch, _: &str) -> Result<Launch, String> {
        Err("no worker in this test".to_owned())
    }

    async fn probe(&self, _: &Launch) -> Result<(), Death> {
        Err(Death { reason: "never started".to_owned(), clean: true })
    }

    async fn stop(&self, _: &Launch, _: bool) {}

    async fn forget(&self, _: &Launch) {}
}

impl World {
    /// Settings are given as environment variables.
    pub(crate) fn new(settings: &[(&str, &str)]) -> Self {
        Self::with_provider(settings, Arc::new(Nobody))
    }

    pub(crate) fn with_provider(settings: &[(&str, &str)], provider: Arc<dyn Provider>) -> Self {
        Self::build(settings, provider, None)
    }

    /// One whose files are elsewhere.
    pub(crate) fn with_artifacts(settings: &[(&str, &str)], artifacts: Artifacts) -> Self {
        Self::build(settings, Arc::new(Nobody), Some(artifacts))
    }

    fn build(
        settings: &[(&str, &str)],
        provider: Arc<dyn Provider>,
        artifacts: Option<Artifacts>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sources = Sources {
            data: Some(folder.path().to_owned()),
            directory: folder.path().to_owned(),
            variables: settings.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            ..Sources::default()
        };
        let settings = Settings::load(&sources).unwrap();
        let clock = Arc::new(ManualClock::at(Timestamp(1_800_000_000_000)));
        let random = Arc::new(Random::from_seed(1));
        let feed = Arc::new(Feed::default());
        let options = Options {
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            random: Arc::clone(&random),
            feed: Arc::clone(&feed),
            rules: settings.rules(),
            locality: settings.locality(),
            max_queued: settings.max_queued,
            tenancy: Arc::new(settings.tenancy()),
            garbage_after_ms: settings.garbage_after_seconds.ms(),
            worker_silence_ms: rayreel_server::fleet::SILENT_MS,
        };
        let store = SqliteStore::open(folder.path().join("tasks.db"), options).unwrap();
        let components = Components {
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            random,
            store: Arc::new(store),
            feed,
            artifacts: artifacts
                .unwrap_or_else(|| Artifacts::open(folder.path().join("artifacts")).unwrap()),
            outbound: Arc::new(outbound::Client::new(
                settings.outbound.options(),
                Arc::new(outbound::SystemResolver),
            )),
            provider,
            credentials: Credentials {
                worker_token: "secret".to_owned(),
                client_token: "client-secret".to_owned(),
                admin_key: None,
            },
        };
        let app = App::new(settings, components);
        Self { app: Arc::new(app), clock, _folder: Arc::new(folder) }
    }

    /// Queues a task of the default model.
    pub(crate) async fn submit(&self, prompt: &str) -> TaskId {
        let components = &self.app.components;
        let model: ModelName = self.app.settings.default_model.clone();
        let spec = self.app.settings.model_spec(&model).unwrap();
        let body = SubmitBody { prompt: Some(prompt.to_owned()), ..SubmitBody::default() };
        let now = components.clock.wall();
        let (id, tenant) = (components.random.task_id(now), "default".parse().unwrap());
        let request = Request::resolve(&body, &spec, 1).unwrap();
        let record = Record::new(id, tenant, spec.pool.clone(), model, request, now);
        let task = Task::new(Record { estimate_ms: 1_000, ..record });
        components.store.submit(task).await.unwrap().task.id
    }

    pub(crate) async fn get(&self, id: TaskId) -> View {
        let tenant = "default".parse().unwrap();
        self.app.components.store.get(&tenant, id).await.unwrap().expect("the task exists")
    }
}
