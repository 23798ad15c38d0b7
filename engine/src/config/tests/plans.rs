//! What a plan says: the defaults, and which items a change concerns.

use std::path::Path;

use super::*;

#[test]
fn a_plan_has_the_defaults_of_the_contract() {
    let plan = plan(
        "[production]\nname = 'p'\ntimezone = 'Europe/Berlin'\n[services.in]\ntype = 'hl7.mllp'\nlisten = '127.0.0.1:1'\ntargets = ['out']\n[operations.out]\ntype = 'rest'\nurl = 'https://x'\norder_by = 'mrn'\n",
    );
    assert_eq!(plan.store.path, Path::new("/p/data"));
    assert_eq!((plan.store.segment_size, plan.store.memory), (64 << 20, 128 << 20));
    assert_eq!(plan.store.audit_retention.as_secs(), 2190 * 86_400);
    assert_eq!(plan.production.shutdown_timeout.as_secs(), 10);
    assert!(plan.admin.is_none());
    let out = &plan.item(&"out".into()).unwrap().common;
    assert!(out.enabled && out.failure_timeout.is_none() && out.suspend_limit == 5);
    assert_eq!(out.pool_size, crate::config::settings::PoolSize::Limited(1));
    assert_eq!(out.on_suspend, crate::config::settings::OnSuspend::HoldKey);
    assert_eq!((out.retry_interval.as_secs(), out.response_timeout.as_secs()), (5, 30));
    assert_eq!(out.idempotency_header, "Idempotency-Key");
    assert_eq!(out.reply_actions.as_ref().unwrap().action("503"), crate::reply::Action::Retry);
    let service = &plan.item(&"in".into()).unwrap().common;
    assert_eq!(service.on_suspend, crate::config::settings::OnSuspend::Pass);
}

#[test]
fn a_store_that_is_to_stay_small_has_small_files_unless_it_says_otherwise() {
    let size = |store: &str| {
        let text = "[services.in]\ntype = 'hl7.mllp'\nlisten = '127.0.0.1:1'\ntargets = ['out']\n\
                    [operations.out]\ntype = 'rest'\nurl = 'https://x'\n";
        plan(&format!("[production]\nname = 'p'\n[store]\n{store}\n{text}")).store.segment_size >> 20
    };
    assert_eq!(size("max_size = '20MiB'"), 2);
    assert_eq!(size("max_size = '100MiB'"), 12);
    assert_eq!(size("max_size = '1MiB'"), 1);
    assert_eq!(size("max_size = '512MiB'"), 64);
    assert_eq!(size("max_size = '100GiB'"), 64);
    assert_eq!(size("max_size = '20MiB'\nsegment_size = '64MiB'"), 64);
    assert_eq!(size("retention = '30d'"), 64);
}

#[test]
fn a_fingerprint_changes_with_all_that_an_item_depends_on_and_with_nothing_else() {
    let text = |secret: &str, field: &str, other: &str, note: &str| {
        around(&format!(
            "[operations.api]\ntype = 'rest'\nurl = 'https://x'\noauth = 'v'\nx-note = '{note}'\n\
             [operations.api.requests.M]\nmethod = 'POST'\npath = '/'\n[messages.M]\na = '{field}'\n\
             [messages.Other]\nb = '{other}'\n[oauth.v]\ngrant = 'client_credentials'\nclient_id = 'lab'\n\
             token_url = 'https://id.example/t'\nclient_secret = '{secret}'\n"
        ))
    };
    let print = |text: &str, item: &str| plan(text).item(&item.into()).unwrap().fingerprint.clone();
    let base = text("s", "string", "string", "");
    assert_eq!(print(&base, "api"), print(&text("s", "string", "list", "note"), "api"));
    assert_ne!(print(&base, "api"), print(&text("t", "string", "string", ""), "api"));
    assert_ne!(print(&base, "api"), print(&text("s", "integer", "string", ""), "api"));
    assert_eq!(print(&base, "in"), print(&text("t", "integer", "list", ""), "in"));
    assert_ne!(plan(&base).version, plan(&text("t", "string", "string", "")).version);
}
