//! Keyed hashes of what is searched for by equality. Search keys are patient data: without the secret a
//! copy of an index file does not tell which values are in it. Two values with one hash do no harm, because
//! the row that a hash leads to is compared.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher24;

use crate::event::Event;
use crate::header::Header;
use crate::id::SessionId;
use crate::store::search::folded;

/// The secret of a store's index.
#[derive(Clone, Copy)]
pub(in crate::store) struct Secret([u8; 16]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// A secret of 128 bits.
    pub(in crate::store) fn new(secret: [u8; 16]) -> Self {
        Secret(secret)
    }

    fn hash(&self, domain: u8, parts: [&[u8]; 2]) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.0);
        hasher.write(&[domain]);
        for part in parts {
            hasher.write(&(part.len() as u64).to_le_bytes());
            hasher.write(part);
        }
        hasher.finish()
    }

    /// Tells one secret from another.
    pub(super) fn check(&self) -> u64 {
        self.hash(0, [b"septet index", b""])
    }

    pub(super) fn session(&self, session: SessionId) -> u64 {
        self.hash(1, [&session.0.to_le_bytes(), b""])
    }

    pub(super) fn control_id(&self, control_id: &str) -> u64 {
        self.hash(2, [control_id.as_bytes(), b""])
    }

    /// `value` is folded already.
    pub(super) fn key(&self, name: &str, value: &str) -> u64 {
        self.hash(3, [name.as_bytes(), value.as_bytes()])
    }

    /// Everything a header is found by.
    pub(super) fn header(&self, header: &Header, mut each: impl FnMut(u64)) {
        each(self.session(header.session));
        if !header.control_id.is_empty() {
            each(self.control_id(&header.control_id));
        }
        for (name, value) in header.keys.iter() {
            each(self.key(name, &folded(value)));
        }
    }

    /// Everything an event is found by.
    pub(super) fn event(&self, event: &Event, mut each: impl FnMut(u64)) {
        if let Some(session) = event.session {
            each(self.session(session));
        }
    }
}
