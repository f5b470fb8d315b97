//! Bodies as forms. A form has the fields of the same body in JSON, but files are files, nothing is
//! null, an object is sent by its entries, and a list is JSON text; so each form has a schema of its own, made here.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use utoipa::Modify;
use utoipa::openapi::encoding::{Encoding, EncodingBuilder};
use utoipa::openapi::path::ParameterStyle;
use utoipa::openapi::{Content, OpenApi, Ref, RefOr};

const FORM: &str = "multipart/form-data";
/// Fields that are files, of every form.
const FILES: [&str; 4] = ["file", "image", "last_image", "input_reference"];
const IMAGES: &str = "image/png, image/jpeg, image/webp";

/// Writes them into the document.
pub(super) struct Forms;

impl Modify for Forms {
    fn modify(&self, document: &mut OpenApi) {
        let schemas = &mut document.components.get_or_insert_default().schemas;
        for item in document.paths.paths.values_mut() {
            let body = item.post.as_mut().and_then(|post| post.request_body.as_mut());
            let Some(RefOr::T(body)) = body else { continue };
            let Some(RefOr::T(content)) = body.content.get_mut(FORM) else { continue };
            let Some(name) = name(content) else { continue };
            let mut plain = json!(schemas);
            let mut form = plain[&name].take();
            let encoding = rewrite(&mut form, &plain);
            // What stands in the document only as a form has its name already.
            let own = if name.ends_with("Form") { name } else { format!("{name}Form") };
            schemas.insert(own.clone(), serde_json::from_value(form).expect("still a schema"));
            content.schema = Some(Ref::from_schema_name(own).into());
            content.encoding = encoding;
        }
    }
}

/// The schema that a body refers to.
fn name(content: &Content) -> Option<String> {
    match &content.schema {
        Some(RefOr::Ref(schema)) => schema.ref_location.rsplit('/').next().map(str::to_owned),
        _ => None,
    }
}

/// Makes the schema of a form of one of a body in JSON, and says how its fields are sent.
fn rewrite(schema: &mut Value, all: &Value) -> BTreeMap<String, Encoding> {
    let mut encoding = BTreeMap::new();
    let fields = schema["properties"].as_object_mut().into_iter().flatten();
    for (name, field) in fields {
        let images = FILES.contains(&&**name);
        *field = if images { file(field) } else { plain(field, all) };
        let builder = EncodingBuilder::new();
        if images {
            encoding.insert(name.clone(), builder.content_type(Some(IMAGES.to_owned())).build());
        } else if target(field, all)["type"] == "object" {
            // `name[key]`, each.
            let style = builder.style(Some(ParameterStyle::DeepObject)).explode(Some(true));
            encoding.insert(name.clone(), style.build());
        }
    }
    encoding
}

fn description(field: &Value) -> Value {
    let of = |field: &Value| field.get("description").cloned();
    let forms = ["oneOf", "anyOf"].iter().filter_map(|kind| field[kind].as_array()).flatten();
    of(field).or_else(|| forms.filter_map(of).next()).unwrap_or_default()
}

fn file(field: &Value) -> Value {
    let mut told = description(field).as_str().unwrap_or_default().to_owned();
    if field["format"] != "binary" && !field["type"].is_null() {
        told += "\n\nHere it is the file itself, or one of these as a part of text without a file name.";
    }
    json!({"type": "string", "format": "binary", "description": told})
}

/// A field that is text on the wire.
fn plain(field: &Value, all: &Value) -> Value {
    let told = description(field);
    let mut field = field.clone();
    if let Some(kinds) = field["type"].as_array() {
        let one = kinds.iter().find(|kind| *kind != "null").cloned();
        field["type"] = one.unwrap_or_else(|| json!("string"));
    }
    if field["type"] == "array" {
        return json!({
            "type": "string", "contentMediaType": "application/json", "description": told,
        });
    }
    if field["type"].is_string() {
        return field;
    }
    let forms = field["oneOf"].as_array().into_iter().flatten();
    let named = forms.filter_map(|form| form["$ref"].as_str()).next();
    let named = named.map(|named| json!({"$ref": named, "description": told}));
    named
        // What has several forms in JSON has that of a text here.
        .filter(|named| target(named, all)["type"].is_string())
        .unwrap_or_else(|| json!({"type": "string", "description": told}))
}

/// The schema itself, where there is a reference to it.
fn target<'v>(field: &'v Value, all: &'v Value) -> &'v Value {
    match field["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        Some(name) => &all[name],
        None => field,
    }
}
