//! What settings must be beyond their types: within bounds, and right with one another.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::Path;

use rayreel_bridge::Kind;
use rayreel_domain::request::{Images, Limits, MAX_MODEL_LORAS, ModelSpec};
use rayreel_domain::testcard;
use rayreel_domain::wire::api::SubmitBody;
use rayreel_domain::{ModelName, Request};

use super::read::{nearest, unknown};
use super::tree::Node;
use super::{BUILT_IN_ENGINES, Error, Model, Outbound, PYTHON_ENGINES, Pool, Settings, Tenant};
use crate::outbound;

const DAY: f64 = 86_400.0;

/// Most workers in one pool.
const MAX_WORKERS: u32 = 10_000;

pub(super) fn check(settings: &Settings, tree: &Node) -> Result<(), Error> {
    let at = Place::root(tree);
    check_data(&settings.data, &at.key("data"))?;
    if settings.python.as_ref().is_some_and(|python| !Path::new(python).is_absolute()) {
        return Err(at.key("python").wrong("must be an absolute path"));
    }
    at.key("max_body_bytes").within(settings.max_body_bytes, 65_536..=1 << 30)?;
    // One tenant alone gets half: enough for the longest body.
    at.key("max_bodies_bytes").within(settings.max_bodies_bytes, 131_072..=1 << 40)?;
    if settings.max_bodies_bytes / 2 < settings.max_body_bytes {
        return Err(at.key("max_bodies_bytes").wrong(format_args!(
            "{} is less than twice `max_body_bytes`, {}",
            settings.max_bodies_bytes, settings.max_body_bytes
        )));
    }
    if let Some(connections) = settings.max_connections {
        at.key("max_connections").within(connections, 16..=1_000_000)?;
    }
    at.key("max_stall_seconds").within(settings.max_stall_seconds.0, 0.1..=3600.0)?;
    at.key("max_queued").within(settings.max_queued, 1..=1_000_000_000)?;
    at.key("lease_seconds").within(settings.lease_seconds.0, 0.1..=3600.0)?;
    at.key("max_run_seconds").within(settings.max_run_seconds.0, 0.1..=30.0 * DAY)?;
    at.key("max_wait_seconds").within(settings.max_wait_seconds.0, 0.0..=3600.0)?;
    at.key("garbage_after_seconds").within(settings.garbage_after_seconds.0, 0.0..=30.0 * DAY)?;

    let (retry, at_retry) = (&settings.retry, at.key("retry"));
    at_retry.key("max_failures").within(retry.max_failures, 1..=1000)?;
    at_retry.key("max_losses").within(retry.max_losses, 1..=1000)?;
    at_retry.key("max_releases").within(retry.max_releases, 0..=1000)?;
    at_retry.key("backoff_seconds").within(retry.backoff_seconds.0, 0.0..=DAY)?;
    at_retry.key("max_backoff_seconds").within(retry.max_backoff_seconds.0, 0.0..=DAY)?;
    if retry.backoff_seconds > retry.max_backoff_seconds {
        return Err(at_retry.key("backoff_seconds").wrong(format_args!(
            "{} is above `retry.max_backoff_seconds`, {}",
            retry.backoff_seconds, retry.max_backoff_seconds
        )));
    }

    let at_schedule = at.key("schedule");
    at_schedule.key("max_lead_seconds").within(settings.schedule.max_lead_seconds.0, 0.0..=DAY)?;
    at_schedule.key("max_streak").within(settings.schedule.max_streak, 0..=1_000_000)?;

    for origin in &settings.cors_origins {
        check_origin(origin, &at.key("cors_origins"))?;
    }
    for (name, tenant) in &settings.tenants {
        check_tenant(tenant, &at.key("tenants").key(name.as_str()))?;
    }
    engine_settings(settings, tree)?;
    let (inputs, at_inputs) = (&settings.inputs, at.key("inputs"));
    at_inputs.key("max_pixels").within(inputs.max_pixels, 4_096..=1 << 28)?;
    at_inputs.key("file_seconds").within(inputs.file_seconds.0, 1.0..=3650.0 * DAY)?;
    at_inputs.key("max_tenant_bytes").within(inputs.max_tenant_bytes, 0..=1 << 50)?;
    check_outbound(&settings.outbound, &at.key("outbound"))?;
    settings.artifacts.check(settings.garbage_after_seconds, &at.key("artifacts"))?;
    for (name, pool) in &settings.pools {
        check_pool(pool, &at.key("pools").key(name.as_str()))?;
    }
    for (name, model) in &settings.models {
        let at = at.key("models").key(name.as_str());
        check_model(model, settings, &at)?;
        check_aliases(name, model, settings, &at.key("aliases"))?;
        if let Some(spec) = settings.model_spec(name) {
            check_defaults(&spec, &at.key("defaults"))?;
        }
        check_bridge(model, settings, &at)?;
        check_server(name, model, settings, &at.key("settings"))?;
    }
    if settings.canonical(&settings.default_model).is_none() {
        let models = settings.models.keys().map(|name| name.as_str());
        return Err(at.key("default_model").no_such(
            "model",
            settings.default_model.as_str(),
            models,
        ));
    }
    Ok(())
}

/// Checks what built-in engines are told; other programs read their settings themselves.
pub(super) fn engine_settings(settings: &Settings, tree: &Node) -> Result<(), Error> {
    let at = Place { tree, path: vec!["models"] };
    let mut models = settings.models.iter();
    models.try_for_each(|(name, model)| check_engine_settings(model, &at.key(name.as_str())))
}

fn check_engine_settings(model: &Model, at: &Place<'_>) -> Result<(), Error> {
    let settings = &model.settings;
    match model.engine.as_deref() {
        Some("testcard") => {
            testcard::Settings::read(settings).map(drop).map_err(|wrong| match wrong {
                testcard::Wrong::Unknown(key) => {
                    at.key("settings").unknown(&key, testcard::Settings::KEYS)
                }
                testcard::Wrong::Value(key, message) => at.key("settings").key(key).wrong(message),
            })
        }
        Some(name) => Kind::named(name)
            .map_or(Ok(()), |kind| rayreel_bridge::check(kind, settings))
            .map_err(|wrong| bridge_error(wrong, at)),
        None => Ok(()),
    }
}

/// Do the engine's settings go with the rest of its model?
fn check_bridge(model: &Model, settings: &Settings, at: &Place<'_>) -> Result<(), Error> {
    let Some(kind) = model.engine.as_deref().and_then(Kind::named) else {
        return Ok(());
    };
    let facts = rayreel_bridge::Model {
        checkpoint: model.checkpoint.as_deref(),
        images: model.images,
        has_loras: !model.loras.is_empty(),
        defaults: &model.defaults,
        grace: model.grace_seconds.duration(),
        max_run: settings.max_run_seconds.duration(),
    };
    rayreel_bridge::check_model(kind, &model.settings, &facts)
        .map_err(|wrong| bridge_error(wrong, at))
}

/// An engine server does one job at a time, so that its jobs must come from one worker. On other
/// machines the same address may be another server's.
fn check_server(
    name: &ModelName,
    model: &Model,
    settings: &Settings,
    at: &Place<'_>,
) -> Result<(), Error> {
    let url = |model: &Model| {
        let kind = model.engine.as_deref().and_then(Kind::named)?;
        rayreel_bridge::url(kind, &model.settings).filter(|_| settings.is_run_here(model))
    };
    let Some(own) = url(model) else {
        return Ok(());
    };
    if let Some(pool) = settings.pools.get(&model.pool)
        && pool.max > 1
    {
        return Err(at.key("url").wrong(format_args!(
            "`{own}` does one job at a time, and pool `{}` may have {} workers: give the model a pool \
             with `max = 1`",
            model.pool, pool.max
        )));
    }
    let mut before = settings.models.iter().take_while(|(other, _)| *other != name);
    match before.find(|(_, other)| other.pool != model.pool && url(other).as_ref() == Some(&own)) {
        None => Ok(()),
        Some((other, _)) => Err(at.key("url").wrong(format_args!(
            "`{own}` is the server of `{other}`, too, whose pool is another: two workers would hand \
             it jobs at once; give both models one pool"
        ))),
    }
}

/// `at` is the model.
fn bridge_error(wrong: rayreel_bridge::Wrong, at: &Place<'_>) -> Error {
    use rayreel_bridge::Wrong;
    let at_settings = at.key("settings");
    match wrong {
        Wrong::Unknown { path, key, allowed } => at_settings.keys(&path).unknown(&key, allowed),
        Wrong::Value { path, message } => at_settings.keys(&path).wrong(message),
        Wrong::Model { path, message } => {
            path.into_iter().fold(at.keys(&[]), |at, key| at.key(key)).wrong(message)
        }
    }
}

/// An origin as browsers send it: scheme, host, and the port unless it is the scheme's own.
fn check_origin(origin: &str, at: &Place<'_>) -> Result<(), Error> {
    let parsed = origin.parse::<http::Uri>().ok().map(http::Uri::into_parts);
    let right = parsed.is_some_and(|parts| {
        let scheme = parts.scheme.is_some_and(|scheme| matches!(scheme.as_str(), "http" | "https"));
        let bare = parts.path_and_query.is_none_or(|path| path == "/") && !origin.ends_with('/');
        scheme && bare && parts.authority.is_some_and(|host| !host.as_str().contains('@'))
    });
    if origin == "*" || right {
        return Ok(());
    }
    Err(at.wrong(format_args!(
        "`{origin}` is no origin: write scheme and host, such as https://app.example, or `*`"
    )))
}

fn check_tenant(tenant: &Tenant, at: &Place<'_>) -> Result<(), Error> {
    at.key("weight").within(tenant.weight, 0.001..=1000.0)?;
    if let Some(days) = tenant.keep_days {
        at.key("keep_days").within(days, 0.0..=36_500.0)?;
    }
    if let Some(seconds) = tenant.gpu_seconds_per_day {
        at.key("gpu_seconds_per_day").within(seconds, 0..=1_000_000_000_000)?;
    }
    Ok(())
}

fn check_data(data: &Path, at: &Place<'_>) -> Result<(), Error> {
    if data.starts_with("~") || data.to_str().is_some_and(|text| text.starts_with('~')) {
        return Err(at.wrong("`~` stands for nothing here; write the path out"));
    }
    if data.as_os_str().is_empty() || !data.is_absolute() {
        return Err(at.wrong("must be the path of a directory"));
    }
    Ok(())
}

fn check_outbound(outbound: &Outbound, at: &Place<'_>) -> Result<(), Error> {
    if outbound.ports.is_empty() || outbound.ports.contains(&0) {
        return Err(at.key("ports").wrong("must be a list of ports, such as [443]"));
    }
    at.key("connect_seconds").within(outbound.connect_seconds.0, 0.1..=600.0)?;
    at.key("whole_seconds").within(outbound.whole_seconds.0, 0.1..=600.0)?;
    if let Some(path) = &outbound.certificates {
        let at = at.key("certificates");
        if !path.is_absolute() {
            return Err(at.wrong("must be an absolute path"));
        }
        outbound::certificates(path)
            .map_err(|why| at.wrong(format_args!("{} {why}", path.display())))?;
    }
    Ok(())
}

fn check_pool(pool: &Pool, at: &Place<'_>) -> Result<(), Error> {
    at.key("max").within(pool.max, 0..=MAX_WORKERS)?;
    if pool.min > pool.max {
        return Err(at.key("min").wrong(format_args!(
            "{} is above `{}.max`, {}",
            pool.min,
            at.path.join("."),
            pool.max
        )));
    }
    at.key("target_wait_seconds").within(pool.target_wait_seconds.0, 0.1..=DAY)?;
    at.key("idle_timeout_seconds").within(pool.idle_timeout_seconds.0, 0.0..=30.0 * DAY)?;
    at.key("start_timeout_seconds").within(pool.start_timeout_seconds.0, 0.1..=DAY)?;
    check_gpus(pool, at)
}

/// There must be enough for every worker that may be started.
fn check_gpus(pool: &Pool, at: &Place<'_>) -> Result<(), Error> {
    at.key("gpus_per_worker").within(pool.gpus_per_worker, 1..=1024)?;
    for (index, gpu) in pool.gpus.iter().enumerate() {
        let named = |c: char| c.is_ascii_alphanumeric() || "-:./_".contains(c);
        // CUDA takes what stands before a -1, and no more.
        if gpu.is_empty() || gpu.starts_with('-') || !gpu.chars().all(named) {
            return Err(at.key("gpus").wrong(format_args!(
                "`{gpu}` names no GPU; write its number, such as \"0\", or its UUID"
            )));
        }
        if pool.gpus[..index].contains(gpu) {
            return Err(at.key("gpus").wrong(format_args!("`{gpu}` stands twice")));
        }
    }
    let needed = u64::from(pool.max) * u64::from(pool.gpus_per_worker);
    if pool.gpus.is_empty() && pool.gpus_per_worker > 1 && pool.max > 0 {
        return Err(at.key("gpus_per_worker").wrong(format_args!(
            "hands out what `gpus` lists, and that is nothing: list {needed}, such as gpus = {}",
            super::gpu_list(needed)
        )));
    }
    if !pool.gpus.is_empty() && (pool.gpus.len() as u64) < needed {
        return Err(at.key("gpus").wrong(format_args!(
            "lists {}, but {} workers (`max`) of {} (`gpus_per_worker`) need {needed}",
            pool.gpus.len(),
            pool.max,
            pool.gpus_per_worker
        )));
    }
    Ok(())
}

fn check_model(model: &Model, settings: &Settings, at: &Place<'_>) -> Result<(), Error> {
    match (&model.engine, &model.command) {
        (Some(_), Some(_)) => {
            return Err(at.key("command").wrong("give `engine` or `command`, not both"));
        }
        (None, None) => {
            return Err(at.wrong("`command`, the program that runs this model, is missing"));
        }
        (Some(engine), None) if !engines().any(|known| known == engine) => {
            return Err(at.key("engine").no_such("engine", engine, engines()));
        }
        (None, Some(command)) if command.first().is_none_or(|program| program.is_empty()) => {
            return Err(at.key("command").wrong("must be a program and its arguments"));
        }
        (None, Some(command)) if command.iter().any(|word| word.contains('\0')) => {
            return Err(at.key("command").wrong("must not contain a NUL character"));
        }
        _ => {}
    }
    if !settings.pools.contains_key(&model.pool) {
        let pools = settings.pools.keys().map(|name| name.as_str());
        return Err(at.key("pool").no_such("pool", model.pool.as_str(), pools));
    }
    for (key, path) in [("checkpoint", &model.checkpoint), ("python", &model.python)] {
        if path.as_ref().is_some_and(|path| !Path::new(path).is_absolute()) {
            return Err(at.key(key).wrong("must be an absolute path"));
        }
    }
    match model.python_engine() {
        Some(engine) if model.checkpoint.is_none() => {
            return Err(at.wrong(format_args!(
                "`checkpoint` is missing: the engine `{engine}` needs a directory in diffusers' \
                 format"
            )));
        }
        None if model.python.is_some() => {
            return Err(at.key("python").wrong(format_args!(
                "means nothing here: it is of the engines {}; with `command` it is the first word",
                PYTHON_ENGINES.join(" and ")
            )));
        }
        _ => {}
    }
    if model.image_required && model.images == Images::None {
        return Err(at.key("image_required").wrong("can't be, as `images` is \"none\""));
    }
    check_loras(model, &at.key("loras"))?;
    if let Some(estimate) = model.estimate_seconds {
        at.key("estimate_seconds").within(estimate.0, 0.001..=30.0 * DAY)?;
    }
    at.key("silence_seconds").within(model.silence_seconds.0, 0.1..=DAY)?;
    at.key("grace_seconds").within(model.grace_seconds.0, 0.0..=3600.0)?;
    check_limits(&model.limits, &at.key("limits"))
}

fn engines() -> impl Iterator<Item = &'static str> {
    BUILT_IN_ENGINES.iter().chain(PYTHON_ENGINES).copied()
}

/// Their files are on the machine of the worker: if that is this one, they are looked at with the
/// model's others.
fn check_loras(model: &Model, at: &Place<'_>) -> Result<(), Error> {
    if model.loras.len() > MAX_MODEL_LORAS {
        let count = model.loras.len();
        let message = format!("{count} LoRAs are too many; a model has at most {MAX_MODEL_LORAS}");
        return Err(at.wrong(message));
    }
    for (name, lora) in &model.loras {
        let at = at.key(name.as_str());
        for (key, path) in lora.paths() {
            if !Path::new(path).is_absolute() || path.contains('\0') {
                let message = "must be the absolute path of a file";
                return Err(match key {
                    Some(key) => at.key(key).wrong(message),
                    None => at.wrong(message),
                });
            }
        }
    }
    Ok(())
}

/// A name must mean one model.
fn check_aliases(
    name: &ModelName,
    model: &Model,
    settings: &Settings,
    at: &Place<'_>,
) -> Result<(), Error> {
    for (index, alias) in model.aliases.iter().enumerate() {
        if settings.models.contains_key(alias) {
            return Err(at.wrong(format_args!("`{alias}` is the name of a model")));
        }
        if model.aliases[..index].contains(alias) {
            return Err(at.wrong(format_args!("`{alias}` stands twice")));
        }
        let mut others = settings.models.iter().filter(|(other, _)| *other != name);
        if let Some((other, _)) = others.find(|(_, other)| other.aliases.contains(alias)) {
            return Err(at.wrong(format_args!("`{alias}` is an alias of `{other}`, too")));
        }
    }
    Ok(())
}

fn check_limits(limits: &Limits, at: &Place<'_>) -> Result<(), Error> {
    at.key("min_side").within(limits.min_side, 1..=16_384)?;
    at.key("max_side").within(limits.max_side, 1..=16_384)?;
    if limits.min_side > limits.max_side {
        return Err(at.key("min_side").wrong(format_args!(
            "{} is above `{}.max_side`, {}",
            limits.min_side,
            at.path.join("."),
            limits.max_side
        )));
    }
    at.key("max_pixels").within(limits.max_pixels, 1..=16_384 * 16_384)?;
    at.key("multiple").within(limits.multiple, 1..=1024)?;
    at.key("max_frames").within(limits.max_frames, 1..=100_001)?;
    if limits.max_frames % 4 != 1 {
        return Err(at.key("max_frames").wrong(format_args!(
            "must be 4n+1, as frames are: {} or {}",
            limits.max_frames.saturating_sub(1) / 4 * 4 + 1,
            limits.max_frames.saturating_sub(1) / 4 * 4 + 5,
        )));
    }
    at.key("max_fps").within(limits.max_fps, 1..=240)?;
    at.key("max_steps").within(limits.max_steps, 1..=10_000)
}

/// The defaults must make a request that the limits allow.
fn check_defaults(spec: &ModelSpec, at: &Place<'_>) -> Result<(), Error> {
    let defaults = &spec.defaults;
    let body = SubmitBody {
        prompt: Some("a check".to_owned()),
        size: Some(defaults.size.to_string()),
        frames: Some(defaults.frames),
        fps: Some(defaults.fps),
        steps: Some(defaults.steps),
        guidance: defaults.guidance,
        guidance_2: defaults.guidance_2,
        ..SubmitBody::default()
    };
    Request::resolve(&body, spec, 0)
        .map(drop)
        .map_err(|invalid| at.key(&invalid.param).wrong(invalid.message))
}

/// A key, and the tree in which its origin can be found.
pub(super) struct Place<'a> {
    tree: &'a Node,
    path: Vec<&'a str>,
}

impl<'a> Place<'a> {
    pub(super) fn root(tree: &'a Node) -> Self {
        Self { tree, path: Vec::new() }
    }

    pub(super) fn key(&self, key: &'a str) -> Place<'a> {
        Place { tree: self.tree, path: [self.path.as_slice(), &[key]].concat() }
    }

    fn keys(&self, keys: &'a [String]) -> Place<'a> {
        let keys = keys.iter().map(String::as_str);
        Place { tree: self.tree, path: self.path.iter().copied().chain(keys).collect() }
    }

    /// An error at this key, or, if it is absent, at the nearest table above it.
    pub(super) fn wrong(&self, message: impl Display) -> Error {
        let node = (0..=self.path.len()).rev().find_map(|len| self.tree.get(&self.path[..len]));
        let origin = node.map(|node| node.origin.clone());
        Error::new(origin, &self.path.join("."), message.to_string())
    }

    /// An error at a key below this one that does not exist.
    fn unknown(&self, key: &str, allowed: &[&str]) -> Error {
        let path = [self.path.as_slice(), &[key]].concat();
        let origin = self.tree.get(&path).map(|node| node.origin.clone());
        let path: Vec<String> = path.into_iter().map(str::to_owned).collect();
        unknown(&path, origin, allowed, None)
    }

    pub(super) fn within<T: PartialOrd + Display>(
        &self,
        value: T,
        allowed: RangeInclusive<T>,
    ) -> Result<(), Error> {
        if allowed.contains(&value) {
            return Ok(());
        }
        let (least, most) = (allowed.start(), allowed.end());
        Err(self.wrong(format_args!("{value} is not allowed; it must be from {least} to {most}")))
    }

    fn no_such<'b>(&self, what: &str, name: &str, known: impl Iterator<Item = &'b str>) -> Error {
        let known: Vec<&str> = known.collect();
        let hint = match nearest(name, known.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("there is {}", known.join(", ")),
        };
        self.wrong(format_args!("there is no {what} `{name}`; {hint}"))
    }
}
