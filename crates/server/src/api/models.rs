//! The models that requests may name.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use http::{StatusCode, Uri};
use rayreel_domain::Code;
use rayreel_domain::id::ModelName;
use rayreel_domain::request::ModelSpec;
use rayreel_domain::wire::api::ErrorBody;
use rayreel_domain::wire::models::{ModelBody, ModelList};

use super::error::Error;
use super::{Api, Tenant, json, query};

/// Lists the models.
///
/// OpenAI's shape, with each model's aliases, limits and defaults.
#[utoipa::path(get, path = "/v1/models", tag = "models", operation_id = "list_models",
    responses(
        (status = 200, description = "Every model.", body = ModelList),
        (status = 400, description = "`unknown_field`: there are no query parameters here.", body = ErrorBody),
    ))]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Tenant(_): Tenant,
    uri: Uri,
) -> Result<Response, Error> {
    query::none(&uri)?;
    let data = api.models.values().map(|model| api.describe(model)).collect();
    json(StatusCode::OK, &ModelList { object: "list".to_owned(), data })
}

/// Shows a model.
#[utoipa::path(get, path = "/v1/models/{name}", tag = "models", operation_id = "show_model",
    params(("name" = String, Path, description = "Name of the model, or an alias.")),
    responses(
        (status = 200, description = "The model.", body = ModelBody),
        (status = 400, description = "`unknown_field`: there are no query parameters here.", body = ErrorBody),
        (status = 404, description = "`unknown_model`; the message lists those that there are.", body = ErrorBody),
    ))]
pub(super) async fn show(
    State(api): State<Arc<Api>>,
    Tenant(_): Tenant,
    path: Result<Path<String>, axum::extract::rejection::PathRejection>,
    uri: Uri,
) -> Result<Response, Error> {
    query::none(&uri)?;
    // What is not UTF-8 names no model.
    let name = path.map(|Path(name)| name).unwrap_or_default();
    let model = api.model(Some(&name)).map_err(|error| error.with_status(StatusCode::NOT_FOUND))?;
    json(StatusCode::OK, &api.describe(model))
}

impl Api {
    /// The model that was asked for, by its name or an alias, or the default one.
    pub(super) fn model(&self, asked: Option<&str>) -> Result<&ModelSpec, Error> {
        let settings = &self.app.settings;
        let name = match asked {
            None => Some(&settings.default_model),
            Some(called) => called.parse().ok().and_then(|called| settings.canonical(&called)),
        };
        name.and_then(|name| self.models.get(name)).ok_or_else(|| {
            let models = self.model_names();
            let message =
                format!("there is no model `{}`; there are: {models}", asked.unwrap_or_default());
            Error::new(Code::UnknownModel, message).param("model")
        })
    }

    /// Every model, each with its aliases behind it.
    pub(super) fn model_names(&self) -> String {
        let named = self.app.settings.models.iter().map(|(name, model)| {
            let aliases: Vec<&str> = model.aliases.iter().map(ModelName::as_str).collect();
            if aliases.is_empty() {
                return name.to_string();
            }
            format!("{name} (or {})", aliases.join(", "))
        });
        named.collect::<Vec<_>>().join(", ")
    }

    fn describe(&self, spec: &ModelSpec) -> ModelBody {
        let settings = &self.app.settings;
        let model = settings.models.get(&spec.name);
        let aliases = model.map(|model| model.aliases.as_slice()).unwrap_or_default();
        ModelBody {
            id: spec.name.to_string(),
            object: "model".to_owned(),
            created: 0,
            owned_by: "rayreel".to_owned(),
            aliases: aliases.iter().map(ToString::to_string).collect(),
            default: spec.name == settings.default_model,
            test_pattern: model.is_some_and(|model| model.is_test_pattern()),
            images: spec.images,
            image_required: spec.image_required,
            loras: spec.loras.iter().map(ToString::to_string).collect(),
            limits: spec.limits.clone(),
            defaults: spec.defaults.clone(),
        }
    }
}
