//! JSON Schema (2020-12) of what goes in and out, generated from the types. `schemas/` holds the results; a test
//! compares. Pure.

use crate::document::Document;
use crate::outline::Outline;
use crate::reply::Reply;
use crate::state::State;

/// A schema that can be rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schema {
    /// The document on stdin.
    Document,
    /// The reply on stdout.
    Reply,
    /// The state file.
    State,
    /// What `virt-v2v-wrapper plan --json` prints.
    Plan,
}

impl Schema {
    /// All of them.
    pub const ALL: [Schema; 4] = [Schema::Document, Schema::Reply, Schema::State, Schema::Plan];

    /// The word on the command line, and the name of the file in `schemas/` before `.schema.json`.
    pub fn name(self) -> &'static str {
        match self {
            Schema::Document => "document",
            Schema::Reply => "reply",
            Schema::State => "state",
            Schema::Plan => "plan",
        }
    }

    /// The schema of this name.
    pub fn from_name(name: &str) -> Option<Schema> {
        Self::ALL.into_iter().find(|schema| schema.name() == name)
    }
}

/// The schema as indented JSON that ends with a newline.
pub fn render(which: Schema) -> String {
    let schema = match which {
        Schema::Document => schemars::schema_for!(Document),
        Schema::Reply => schemars::schema_for!(Reply),
        Schema::State => schemars::schema_for!(State),
        Schema::Plan => schemars::schema_for!(Outline),
    };
    format!("{:#}\n", schema.as_value())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_what_the_types_say() {
        for schema in Schema::ALL {
            let file = format!("{}/schemas/{}.schema.json", env!("CARGO_MANIFEST_DIR"), schema.name());
            if std::env::var_os("UPDATE_SCHEMAS").is_some() {
                std::fs::write(&file, render(schema)).unwrap();
            }
            assert!(
                std::fs::read_to_string(&file).unwrap_or_default() == render(schema),
                "{file} is old: run `UPDATE_SCHEMAS=1 cargo test schema` and commit the result"
            );
        }
    }

    #[test]
    fn every_key_is_described() {
        for schema in Schema::ALL {
            let value: serde_json::Value = serde_json::from_str(&render(schema)).unwrap();
            assert_eq!(value["$schema"], "https://json-schema.org/draft/2020-12/schema");
            for (key, property) in value["properties"].as_object().unwrap() {
                assert!(property["description"].is_string(), "{key}");
            }
        }
    }

    #[test]
    fn the_schema_takes_what_the_program_takes() {
        let schema: serde_json::Value = serde_json::from_str(&render(Schema::Document)).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        for (document, valid) in [
            (serde_json::json!({"vm_name": "a", "transport_method": "vddk", "foo": 1, "warm": null}), true),
            (serde_json::json!({"osp_environment": {"os-a": 3, "OS_B": "x", "os_c": true}}), true),
            (serde_json::json!({"network_mappings": [{"source": "a", "destination": "b", "x": 1}]}), true),
            (serde_json::json!({"iteration_seconds": "60", "nbd_export_only": {"/dev/x": 10809}}), true),
            (serde_json::json!({"vm_uuid": 7, "vmware_password": "x", "backend": {"a": []}}), true),
            (serde_json::json!({"vm_name": 1}), false),
            (serde_json::json!({"network_mappings": [1]}), false),
            (serde_json::json!([]), false),
        ] {
            assert_eq!(validator.is_valid(&document), valid, "{document}");
            let parsed = crate::document::parse(&serde_json::to_vec(&document).unwrap());
            assert_eq!(parsed.is_ok(), valid, "{document}");
        }
    }
}
