//! What a payload is, before it is read.

use std::{borrow::Cow, fmt};

use serde::{
    Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::Value;

use super::InvalidEvent;
use crate::json;

/// What a payload is, by the first field that only one kind has.
pub(super) enum Kind {
    /// It has `detail-type`, with this value.
    Event(Option<String>),
    /// It has `Records`.
    Batch,
}

impl Kind {
    /// Reads no further than that field: most payloads are events, and have it near their beginning.
    pub(super) fn of(payload: &str) -> Result<Self, InvalidEvent> {
        struct Fields<'a>(&'a mut Option<Kind>);

        impl<'de> Visitor<'de> for Fields<'_> {
            type Value = ();

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
                while let Some(field) = fields.next_key::<Cow<str>>()? {
                    *self.0 = match &*field {
                        "detail-type" => Some(Kind::Event(fields.next_value::<Value>()?.as_str().map(str::to_owned))),
                        "Records" => Some(Kind::Batch),
                        _ => {
                            fields.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    return Ok(());
                }
                Ok(())
            }
        }

        let mut kind = None;
        let read = serde_json::Deserializer::from_str(payload).deserialize_map(Fields(&mut kind));
        // Where it was found, the rest of the payload is not read, which the deserializer calls an error.
        match (kind, read) {
            (Some(kind), _) => Ok(kind),
            (None, Ok(())) => Err(InvalidEvent::Unknown(None)),
            (None, Err(_)) => Err(InvalidEvent::Unknown(json::parse::<IgnoredAny>(payload, "").err())),
        }
    }
}
