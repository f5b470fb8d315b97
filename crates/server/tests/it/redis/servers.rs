//! Several servers over one store: each duty is done once, and goes on when a server dies.

use std::sync::Arc;
use std::time::Duration;

use rayreel_domain::task::State;
use rayreel_server::Components;
use rayreel_server::clock::{Clock, Random};
use rayreel_server::duties::LEASE;
use rayreel_server::feed::Feed;
use rayreel_server::store::Options;
use rayreel_server::store::redis::RedisStore;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::outage::eventually;
use super::server::Server;
use crate::world::World;

/// Components like those of `world`, over the store of all.
async fn components(world: &World, seed: u64) -> Components {
    let address = format!("{}?prefix=servers", Server::shared().url()).parse().unwrap();
    let settings = &world.app.settings;
    let feed = Arc::new(Feed::default());
    let random = Arc::new(Random::from_seed(seed));
    let options = Options {
        clock: Arc::clone(&world.clock) as Arc<dyn Clock>,
        random: Arc::clone(&random),
        feed: Arc::clone(&feed),
        rules: settings.rules(),
        locality: settings.locality(),
        max_queued: settings.max_queued,
        tenancy: Arc::new(settings.tenancy()),
        garbage_after_ms: settings.garbage_after_seconds.ms(),
        worker_silence_ms: rayreel_server::fleet::SILENT_MS,
    };
    let store = Arc::new(RedisStore::open(&address, options).await.expect("it opens"));
    Components { random, feed, store, ..world.app.components.clone() }
}

/// A server that runs until it is stopped, or killed by its handle.
async fn serve(
    world: &World,
    components: Components,
) -> (tokio::task::JoinHandle<()>, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (settings, stop) = (world.app.settings.clone(), CancellationToken::new());
    let stopped = stop.clone();
    let server = async move {
        rayreel_server::run(settings, components, listener, stopped).await.expect("it served");
    };
    (tokio::spawn(server), stop)
}

#[test]
fn duties_go_on_when_the_server_that_had_them_dies_or_stops() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let world = World::new(&[]);
        let (first, second, third) =
            tokio::join!(components(&world, 11), components(&world, 12), components(&world, 13));
        let store = Arc::clone(&third.store);
        // Whoever has the duty ends a task that is past its deadline.
        let expires = async |id: &str| {
            let now = world.clock.wall();
            let task = crate::conformance::task(&crate::conformance::Setup::new(), |record| {
                record.id = rayreel_domain::TaskId::new(now.0, [id.as_bytes()[0]; 10]);
                record.created_at = now;
                record.deadline = Some(now.plus_ms(10));
            });
            let task = store.submit(task).await.expect("stored").task;
            world.clock.advance(Duration::from_millis(10));
            let ended = async || {
                let view = store.get(&task.tenant, task.id).await.expect("answered");
                (view?.task.state == State::Expired).then_some(())
            };
            eventually(id, ended).await;
        };
        let (killed, _keep) = serve(&world, first).await;
        expires("a: the only server").await;
        let (_, stop) = serve(&world, second).await;
        killed.abort();
        let _ = killed.await;
        world.clock.advance(LEASE);
        expires("b: the lease of the dead one has run out").await;
        let (_last, _going) = serve(&world, third).await;
        stop.cancel();
        expires("c: it was given back").await;
    });
}
