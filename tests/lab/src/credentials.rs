//! The keys that a function gets and that the stand-ins accept.

use base64::{Engine, prelude::BASE64_STANDARD};
use uuid::Builder;

/// The credentials of an assumed role.
#[derive(Clone)]
pub struct Credentials {
    /// Identifies the key; not secret.
    pub access_key_id: String,
    /// Signs requests.
    pub secret_access_key: String,
    /// Sent with each request; 1,000 characters long, like a real one.
    pub session_token: String,
}

impl Credentials {
    /// New in each run, so that a test can search for a leak.
    pub(crate) fn random() -> Self {
        Self {
            access_key_id: format!("ASIA{}", random_hex::<8>().to_uppercase()),
            secret_access_key: BASE64_STANDARD.encode(random_bytes::<30>()),
            session_token: BASE64_STANDARD.encode(random_bytes::<750>()),
        }
    }
}

pub(crate) fn random_hex<const N: usize>() -> String {
    hex::encode(random_bytes::<N>())
}

pub(crate) fn random_uuid() -> String {
    Builder::from_random_bytes(random_bytes()).into_uuid().to_string()
}

/// They follow from the seed of this thread's generator, if a test has set it.
fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fastrand::fill(&mut bytes);
    bytes
}
