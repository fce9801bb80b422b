//! Server-side apply for objects without lists: who owns which field, and who may change it.
//!
//! Rules: <https://kubernetes.io/docs/reference/using-api/server-side-apply/>. A manager owns what it last applied. A field of equal
//! value is shared, one of another value is a conflict. A field that a manager no longer applies is removed, unless another manager owns it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// The path of a field from the root of the object.
type Path = Vec<String>;

/// Fields that identify the object; they have no owner.
const IDENTITY: [&[&str]; 4] = [&["apiVersion"], &["kind"], &["metadata", "name"], &["metadata", "namespace"]];

/// An object and the owners of its fields.
#[derive(Clone, Default)]
pub(super) struct Applied {
    pub(super) object: Value,
    owners: BTreeMap<String, BTreeSet<Path>>,
}

/// A field that another manager owns and that was applied with another value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    pub(super) manager: String,
    /// Such as `.data.token`.
    pub(super) field: String,
}

impl Applied {
    /// An object of which no field was applied.
    pub(super) fn created(object: Value) -> Self {
        Self { object, owners: BTreeMap::new() }
    }

    /// Applies what a manager wants; returns whether that changed the object. `force` takes fields over from other managers.
    pub(super) fn apply(&mut self, manager: &str, wanted: &Value, force: bool) -> Result<bool, Vec<Conflict>> {
        let wanted = fields(wanted);
        let conflicts = self.conflicts(manager, &wanted);
        if !conflicts.is_empty() && !force {
            return Err(conflicts
                .into_iter()
                .map(|(manager, path)| Conflict { manager, field: text(&path) })
                .collect());
        }
        for (other, path) in conflicts {
            self.owners.entry(other).or_default().remove(&path);
        }

        let before = self.object.clone();
        let owned = wanted.keys().cloned().collect();
        let dropped = self.owners.insert(manager.to_owned(), owned).unwrap_or_default();
        for path in dropped {
            if !self.owners.values().any(|owned| owned.contains(&path)) {
                remove(&mut self.object, &path);
            }
        }
        for (path, value) in wanted {
            set(&mut self.object, &path, value);
        }
        Ok(self.object != before)
    }

    fn conflicts(&self, manager: &str, wanted: &BTreeMap<Path, Value>) -> Vec<(String, Path)> {
        let others = self.owners.iter().filter(|(other, _)| *other != manager);
        others
            .flat_map(|(other, owned)| owned.iter().map(move |path| (other, path)))
            .filter(|(_, path)| wanted.get(*path).is_some_and(|value| get(&self.object, path) != Some(value)))
            .map(|(other, path)| (other.clone(), path.clone()))
            .collect()
    }
}

/// The leaves of an object, without those that identify it.
fn fields(object: &Value) -> BTreeMap<Path, Value> {
    let mut fields = BTreeMap::new();
    collect(object, &mut Vec::new(), &mut fields);
    fields.retain(|path, _| !IDENTITY.contains(&path.iter().map(String::as_str).collect::<Vec<_>>().as_slice()));
    fields
}

fn collect(value: &Value, path: &mut Path, fields: &mut BTreeMap<Path, Value>) {
    let Value::Object(children) = value else {
        fields.insert(path.clone(), value.clone());
        return;
    };
    for (name, child) in children {
        path.push(name.clone());
        collect(child, path, fields);
        path.pop();
    }
}

fn text(path: &Path) -> String {
    path.iter().fold(String::new(), |text, name| text + "." + name)
}

fn get<'a>(object: &'a Value, path: &Path) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, name| value.get(name))
}

fn set(object: &mut Value, path: &Path, value: Value) {
    *path.iter().fold(object, |parent, name| child(parent, name)) = value;
}

fn remove(object: &mut Value, path: &Path) {
    if let Some((name, parents)) = path.split_last()
        && let Value::Object(fields) = parents.iter().fold(object, |parent, name| child(parent, name))
    {
        fields.remove(name);
    }
}

fn child<'a>(parent: &'a mut Value, name: &str) -> &'a mut Value {
    if !parent.is_object() {
        *parent = Value::Object(Map::new());
    }
    &mut parent[name]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn token(value: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "labels": {"a": "b"}}, "data": {"token": value}})
    }

    #[test]
    fn equal_values_are_shared_and_other_values_conflict() {
        let mut secret = Applied::default();
        assert_eq!(secret.apply("one", &token("x"), false), Ok(true), "made");
        assert_eq!(secret.apply("one", &token("x"), false), Ok(false), "the same again");
        assert_eq!(secret.apply("two", &token("x"), false), Ok(false), "shared");
        assert_eq!(
            secret.apply("three", &token("y"), false),
            Err(["one", "two"].map(|name| Conflict { manager: name.into(), field: ".data.token".into() }).into()),
        );
        assert_eq!(secret.object["data"]["token"], "x", "a conflict changes nothing");
    }

    #[test]
    fn force_takes_a_field_over() {
        let mut secret = Applied::default();
        secret.apply("one", &token("x"), false).unwrap();
        assert_eq!(secret.apply("two", &token("y"), true), Ok(true));
        assert_eq!(secret.object["data"]["token"], "y");
        assert_eq!(secret.apply("two", &token("z"), false), Ok(true), "it is no longer shared");
        assert!(secret.apply("one", &token("x"), false).is_err(), "the first owner lost it");
    }

    #[test]
    fn what_is_no_longer_applied_goes_with_its_last_owner() {
        let both = json!({"data": {"a": "1", "b": "1"}});
        let only_a = json!({"data": {"a": "1"}});
        let mut secret = Applied::default();
        secret.apply("one", &both, false).unwrap();
        secret.apply("two", &both, false).unwrap();
        assert_eq!(secret.apply("one", &only_a, false), Ok(false), "another owner keeps it");
        assert_eq!(secret.apply("two", &only_a, false), Ok(true));
        assert_eq!(secret.object, only_a);
    }
}
