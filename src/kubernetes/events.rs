//! What we read of Events: what components report of Jobs and pods.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;

/// An Event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Event {
    /// When it was created.
    pub metadata: Metadata,
    /// Of which object it is.
    pub involved_object: InvolvedObject,
    /// `Normal` or `Warning`.
    #[serde(rename = "type")]
    pub type_: String,
    /// One word, such as `FailedScheduling`.
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// When it was last repeated, by the clock of the component.
    pub last_timestamp: Option<Timestamp>,
}

/// When an Event was created.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Metadata {
    /// By the API server's clock.
    pub creation_timestamp: Option<Timestamp>,
}

/// The object of an Event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct InvolvedObject {
    /// Its uid.
    pub uid: String,
    /// The part of it, such as `spec.containers{agent}`.
    pub field_path: String,
}

/// Events by the uid of their object, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Events(BTreeMap<String, Vec<Event>>);

impl FromIterator<Event> for Events {
    fn from_iter<I: IntoIterator<Item = Event>>(events: I) -> Self {
        let mut by_uid = BTreeMap::<_, Vec<_>>::new();
        for event in events {
            by_uid.entry(event.involved_object.uid.clone()).or_default().push(event);
        }
        for events in by_uid.values_mut() {
            events.sort_by(|one, other| one.order().cmp(&other.order()));
        }
        Self(by_uid)
    }
}

impl Events {
    /// Those of an object.
    pub fn of(&self, uid: &str) -> &[Event] {
        self.0.get(uid).map_or(&[], Vec::as_slice)
    }
}

impl Event {
    /// Something is wrong.
    pub fn is_warning(&self) -> bool {
        self.type_ == "Warning"
    }

    /// It is of the container of that name.
    pub fn is_of_container(&self, name: &str) -> bool {
        let path = self.involved_object.field_path.strip_suffix('}').and_then(|path| path.split_once('{'));
        path.is_some_and(|(_, container)| container == name)
    }

    fn order(&self) -> (Option<Timestamp>, Option<Timestamp>, &str, &str) {
        (self.metadata.creation_timestamp, self.last_timestamp, &self.reason, &self.message)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn event(uid: &str, path: &str, created: &str) -> Event {
        from_value(json!({
            "metadata": {"name": "e", "creationTimestamp": created},
            "involvedObject": {"kind": "Pod", "uid": uid, "fieldPath": path},
            "type": "Warning", "reason": "Failed", "message": "m", "source": {"component": "kubelet"}, "eventTime": null,
        }))
        .unwrap()
    }

    #[test]
    fn events_are_found_by_the_uid_of_their_object_the_oldest_first() {
        let (early, late) = (event("a", "", "2026-01-15T10:00:05Z"), event("a", "", "2026-01-15T10:00:06Z"));
        let other = event("b", "", "2026-01-15T10:00:05Z");
        let events: Events = [late.clone(), other.clone(), early.clone()].into_iter().collect();
        assert_eq!((events.of("a"), events.of("b"), events.of("c")), (&[early, late][..], &[other][..], &[][..]));
    }

    #[test]
    fn an_event_is_of_the_container_that_its_path_names() {
        for (path, expected) in [
            ("spec.containers{agent}", true),
            ("spec.initContainers{agent}", true),
            ("spec.containers{agent-2}", false),
            ("spec.containers{my-agent}", false),
            ("agent", false),
            ("", false),
        ] {
            assert_eq!(event("a", path, "2026-01-15T10:00:05Z").is_of_container("agent"), expected, "{path}");
        }
    }
}
