//! A field of a manifest with its path, so that a problem names where it is.

use serde_json::Value;

use super::definition::Problem;
use crate::text::excerpt;

/// Where it is, and what is there: null if it is absent.
#[derive(Clone)]
pub(super) struct Field<'a> {
    pub path: String,
    pub value: &'a Value,
}

impl Field<'_> {
    /// The field of this name below it.
    pub fn get(&self, name: &str) -> Self {
        let path = match &*self.path {
            "" => name.to_owned(),
            parent if name.contains(['.', '/']) => format!("{parent}[{}]", excerpt(name)),
            parent => format!("{parent}.{}", excerpt(name)),
        };
        Self { path, value: &self.value[name] }
    }

    /// The items of a list, or the fields of a map.
    pub fn each(&self) -> Vec<Self> {
        match self.value {
            Value::Array(items) => {
                let path = |place| format!("{}[{place}]", self.path);
                items.iter().enumerate().map(|(place, value)| Self { path: path(place), value }).collect()
            }
            Value::Object(fields) => fields.keys().map(|name| self.get(name)).collect(),
            _ => Vec::new(),
        }
    }

    /// The fields that a pattern matches: names separated by blanks, from the outer to the inner one. `a|b` matches both
    /// names, `*` each item of a list or field of a map.
    pub fn select(&self, pattern: &str) -> Vec<Self> {
        let step = |fields: Vec<Self>, names: &str| {
            let below = |field: Self| match names {
                "*" => field.each(),
                names => names.split('|').map(|name| field.get(name)).collect(),
            };
            fields.into_iter().flat_map(below).collect()
        };
        pattern.split(' ').fold(vec![self.clone()], step)
    }

    /// `text` says what it must be, and what it is.
    pub fn problem(&self, text: impl Into<String>) -> Problem {
        Problem { field: self.path.clone(), problem: text.into() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pattern_selects_fields_and_their_paths() {
        let manifest = json!({"spec": {"a": [{"x": 1}, {"x": 2}], "b": [{}], "labels": {"a.example/b": 3, "c": 4}}});
        let cases: [(&str, &[(&str, Value)]); 7] = [
            ("spec a * x", &[("spec.a[0].x", json!(1)), ("spec.a[1].x", json!(2))]),
            ("spec a|b * x", &[("spec.a[0].x", json!(1)), ("spec.a[1].x", json!(2)), ("spec.b[0].x", json!(null))]),
            ("spec labels *", &[("spec.labels[a.example/b]", json!(3)), ("spec.labels.c", json!(4))]),
            ("spec labels a.example/b", &[("spec.labels[a.example/b]", json!(3))]),
            ("absent field", &[("absent.field", json!(null))]),
            ("absent *", &[]),
            ("spec labels c *", &[]),
        ];
        for (pattern, expected) in cases {
            let selected = Field { path: String::new(), value: &manifest }.select(pattern);
            let selected: Vec<_> = selected.iter().map(|field| (&*field.path, field.value.clone())).collect();
            assert_eq!(selected, expected, "{pattern}");
        }
    }
}
