//! A model without one of its fields, for the test that asks whether anybody would notice (`MIGRATE_FORGET`).

use super::Model;
use serde_json::Value;

/// Every field of a model that says something, as a path with `[*]` for any index: `tasks[*].threads[*].nice`. A number
/// that is 0, an empty text or list, `false` and nothing say nothing: a restore that forgets them does no harm.
pub fn fields(model: &Model) -> Vec<String> {
    let mut found = std::collections::BTreeSet::new();
    if let Ok(value) = serde_json::to_value(model) {
        walk(&value, &mut String::new(), &mut found);
    }
    found.into_iter().collect()
}

fn walk(value: &Value, path: &mut String, found: &mut std::collections::BTreeSet<String>) {
    let length = path.len();
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(name);
                walk(value, path, found);
                path.truncate(length);
            }
        }
        Value::Array(values) => {
            if values.iter().all(Value::is_number) && !values.is_empty() {
                found.insert(path.clone());
            }
            path.push_str("[*]");
            values.iter().filter(|value| !value.is_number()).for_each(|value| walk(value, path, found));
            path.truncate(length);
        }
        leaf if *leaf != forgotten(leaf) => {
            found.insert(path.clone());
        }
        _ => {}
    }
}

/// The model with a field forgotten wherever it occurs; `None` if there would be no model then.
pub fn forget(model: &Model, field: &str) -> Option<Model> {
    let value = serde_json::to_value(model).ok()?;
    let steps: Vec<&str> =
        field.split(['.', '[']).map(|step| step.trim_end_matches(']')).filter(|step| !step.is_empty()).collect();
    // Where there may be nothing, that is what is left; else what says nothing.
    let without = |forgotten: fn(&Value) -> Value| {
        let mut value = value.clone();
        clear(&mut value, &steps, forgotten);
        serde_json::from_value(value).ok()
    };
    without(|_| Value::Null).or_else(|| without(forgotten))
}

fn clear(value: &mut Value, steps: &[&str], forgotten: fn(&Value) -> Value) {
    match (steps, value) {
        ([], Value::Array(values)) if values.iter().all(Value::is_number) => {
            values.iter_mut().for_each(|value| *value = 0.into());
        }
        ([], value) => *value = forgotten(value),
        (["*", rest @ ..], Value::Array(values)) => values.iter_mut().for_each(|value| clear(value, rest, forgotten)),
        ([name, rest @ ..], Value::Object(fields)) => {
            if let Some(value) = fields.get_mut(*name) {
                clear(value, rest, forgotten);
            }
        }
        _ => {}
    }
}

fn forgotten(value: &Value) -> Value {
    match value {
        Value::Number(_) => 0.into(),
        Value::Bool(_) => false.into(),
        Value::String(_) => "".into(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_forgotten_everywhere() {
        let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let mut model = value(r#"{"a":[{"b":3,"c":"x"},{"b":0,"c":"y"}],"d":[1,2],"e":true}"#);
        let mut found = std::collections::BTreeSet::new();
        walk(&model, &mut String::new(), &mut found);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["a[*].b", "a[*].c", "d", "e"]);
        clear(&mut model, &["a", "*", "b"], forgotten);
        clear(&mut model, &["d"], forgotten);
        clear(&mut model, &["e"], forgotten);
        assert_eq!(model, value(r#"{"a":[{"b":0,"c":"x"},{"b":0,"c":"y"}],"d":[0,0],"e":false}"#));
    }
}
