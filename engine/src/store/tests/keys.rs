//! Replacing the store's key: old data stays readable, new data needs the new key.

use std::path::Path;
use std::sync::Arc;

use super::support::{Fixture, manual_clock, options};
use crate::config::settings::Secret;
use crate::files::SystemFiles;
use crate::host::{Keep as _, KeepFamily};
use crate::store::{OpenError, Options, Store};

fn with_keys(path: &Path, key: &str, old: &[&str]) -> Result<Store, OpenError> {
    let secret = |digits: &&str| Secret::new(digits.repeat(32));
    let options = Options {
        key: Some(secret(&key)),
        old_keys: old.iter().map(secret).collect(),
        encrypt_bodies: true,
        ..options(path)
    };
    Store::open(options, manual_clock(), Arc::new(SystemFiles))
}

#[tokio::test]
async fn what_a_replaced_key_sealed_is_read_with_the_old_one_and_the_rest_with_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let fixture = Fixture::on(with_keys(&path, "11", &[]).unwrap(), manual_clock(), folder);
    let first = fixture.receive("lis", "out", "sealed with the first key").await;
    fixture.store.put(KeepFamily::Token, "vendor", Some("first token".into())).await.unwrap();
    fixture.store.close().await.unwrap();

    assert!(matches!(with_keys(&path, "22", &[]), Err(OpenError::WrongKey { .. })));
    let store = with_keys(&path, "22", &["33", "11"]).unwrap();
    assert_eq!(store.get(KeepFamily::Token, "vendor").as_deref(), Some(&b"first token"[..]));
    store.put(KeepFamily::Token, "other", Some("second token".into())).await.unwrap();
    store.close().await.unwrap();

    // The old key alone opens nothing of what came after.
    assert!(matches!(with_keys(&path, "11", &[]), Err(OpenError::WrongKey { .. })));
    assert!(matches!(with_keys(&path, "22", &["xx"]), Err(OpenError::BadKey(_))));
    let store = with_keys(&path, "22", &["11"]).unwrap();
    assert_eq!(store.get(KeepFamily::Token, "other").as_deref(), Some(&b"second token"[..]));
    let body = store.body(store.header(first).unwrap().body_id.unwrap()).await.unwrap();
    assert_eq!(&body.bytes()[..], b"sealed with the first key");
}
