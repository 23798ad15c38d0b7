//! Routers.

use serde_json::json;

use crate::support::{Bench, ORU};

const EXAMPLE: &str = r#"
[processes.p]
type = "router"
[[processes.p.rules]]
name = "lab results"
when = { "MSH-9.1" = "ORU", "MSH-9.2" = ["R01", "R03"] }
send = ["vendor"]
[[processes.p.rules]]
name = "orders go on"
if   = "request.get('MSH-9.1') === 'ORM' && request.get('PV1-2') !== 'T'"
send = ["other", "archive"]
[[processes.p.rules]]
name = "everything else"
when = {}
send = ["archive"]
"#;

fn router(rules: &str) -> Bench {
    Bench::new(&format!("[processes.p]\ntype = \"router\"\n{rules}"))
}

fn rule(text: &str) -> String {
    format!("[[processes.p.rules]]\n{text}\n")
}

#[test]
fn the_first_rule_that_matches_wins() {
    let mut bench = Bench::new(EXAMPLE);
    insta::assert_snapshot!(bench.hl7(ORU), @r#"
    event rule rule "lab results" matched
    send vendor the request
    complete
    "#);
    insta::assert_snapshot!(bench.hl7("MSH|^~\\&|||||||ORM^O01|2\rPV1||I\r"), @r#"
    event rule rule "orders go on" matched
    send other the request
    send archive the request
    complete
    "#);
    insta::assert_snapshot!(bench.hl7("MSH|^~\\&|||||||ORM^O01|3\rPV1||T\r"), @r#"
    event rule rule "everything else" matched
    send archive the request
    complete
    "#);
}

#[test]
fn a_router_without_scripts_runs_inline() {
    assert!(!Bench::new(EXAMPLE).is_inline());
    assert!(router(&rule("when = {}\nsend = \"archive\"")).is_inline());
}

#[test]
fn all_entries_must_hold_and_any_of_the_values_may() {
    let rules = rule("when = { \"MSH-9.1\" = \"ORU\", \"PID-8\" = [\"M\", \"F\"] }\nsend = \"vendor\"");
    let mut bench = router(&rules);
    assert!(bench.hl7(ORU).contains("send vendor"));
    assert!(!bench.hl7(&ORU.replace("|F\r", "|U\r")).contains("send"));
}

#[test]
fn a_star_in_a_path_matches_any_occurrence_and_no_index_only_the_first() {
    let mut any = router(&rule("when = { \"OBX[*]-3.1\" = \"4544-3\" }\nsend = \"vendor\""));
    assert!(any.hl7(ORU).contains("send vendor"));
    let mut first = router(&rule("when = { \"OBX-3.1\" = \"4544-3\" }\nsend = \"vendor\""));
    assert!(!first.hl7(ORU).contains("send vendor"));
}

#[test]
fn records_are_matched_by_their_fields() {
    let mut bench = router(&rule("when = { \"patient.sex\" = \"F\", \"count\" = \"3\" }\nsend = \"vendor\""));
    assert!(bench.json(json!({ "patient": { "sex": "F" }, "count": 3 })).contains("send vendor"));
    assert!(!bench.json(json!({ "patient": { "sex": "M" }, "count": 3 })).contains("send vendor"));
    assert!(!bench.text("F").contains("send vendor"));
}

#[test]
fn continue_goes_on_to_the_next_rule() {
    let rules = rule("name = \"copy\"\nwhen = {}\nsend = \"archive\"\ncontinue = true")
        + &rule("when = {}\nsend = \"vendor\"");
    insta::assert_snapshot!(router(&rules).hl7(ORU), @r#"
    event rule rule "copy" matched
    event rule rule 2 matched
    send archive the request
    send vendor the request
    complete
    "#);
}

#[test]
fn a_message_that_fits_no_rule_is_completed_with_an_event_or_suspended() {
    let rules = rule("when = { \"MSH-9.1\" = \"ADT\" }\nsend = \"vendor\"");
    insta::assert_snapshot!(router(&rules).hl7(ORU), @r"
    event message.unmatched no rule matched
    complete
    ");
    insta::assert_snapshot!(router(&format!("unmatched = \"suspend\"\n{rules}")).hl7(ORU), @r"
    event message.unmatched no rule matched
    suspend [message] unmatched: no rule matched
    ");
}

#[test]
fn a_caller_gets_the_only_targets_reply_or_a_generated_one() {
    let mut one = router(&rule("when = {}\nsend = \"vendor\""));
    one.wants_reply = true;
    insta::assert_snapshot!(one.hl7(ORU), @r"
    event rule rule 1 matched
    call 1 vendor the request
    wait
    ");
    insta::assert_snapshot!(one.reply(1, "Json", json!({ "status": "ok" })), @r"
    reply body 101
    complete
    ");

    let mut two = router(&rule("when = {}\nsend = [\"vendor\", \"archive\"]"));
    two.wants_reply = true;
    insta::assert_snapshot!(two.hl7(ORU), @r"
    event rule rule 1 matched
    send vendor the request
    send archive the request
    reply nothing
    complete
    ");
}

#[test]
fn reply_from_names_whose_reply_is_handed_on_fault_included() {
    let mut bench = router(&rule("when = {}\nsend = [\"archive\", \"vendor\"]\nreply_from = \"vendor\""));
    bench.wants_reply = true;
    insta::assert_snapshot!(bench.hl7(ORU), @r"
    event rule rule 1 matched
    send archive the request
    call 1 vendor the request
    wait
    ");
    insta::assert_snapshot!(bench.fault(1, "call", "AE"), @r"
    reply nothing with [call] AE: the peer refused | foreign words
    complete
    ");
    assert_eq!(bench.facts.calls, ["vendor".into()]);
    bench.wants_reply = false;
    assert!(!bench.hl7(ORU).contains("call"), "nobody waits, so the router does not either");
}

#[test]
fn the_first_reply_is_taken_and_the_others_are_still_sent() {
    let mut bench = router(&rule("when = {}\nsend = [\"archive\", \"vendor\"]\nreply_from = \"first\""));
    bench.wants_reply = true;
    assert!(bench.hl7(ORU).ends_with("wait"));
    insta::assert_snapshot!(bench.reply(2, "Json", json!({})), @r"
    reply body 102
    cancel call 1, leave
    complete
    ");
}

#[test]
fn a_rule_may_send_what_a_transform_makes() {
    let rules = rule("when = {}\nsend = \"vendor\"\ntransform = \"t\"")
        + "[transforms.t]\nset = { \"MSH-5\" = { value = \"NEW\" } }\n";
    let shown = router(&rules).hl7(ORU);
    assert!(shown.contains("send vendor ORU^R01 MSH|^~\\&|LAB|HOSP|NEW|HOSP|"), "{shown}");
}

#[test]
fn a_condition_that_throws_fails_the_message_with_its_place() {
    let rules = rule("name = \"r\"\nif = \"request.nothing.here\"\nsend = \"vendor\"");
    insta::assert_snapshot!(router(&rules).hl7(ORU), @r#"fail [script] script: p rule "r", if, line 1, column 1: TypeError | cannot read property 'here' of undefined"#);
}

#[test]
fn an_inline_router_leaves_the_instances_of_a_flow_to_a_lane() {
    let inline = router(&rule("when = {}\nsend = \"archive\""));
    let other = router(&rule("when = {}\nsend = \"vendor\""));
    let flow = Bench::new("[processes.p]\ntype = \"flow\"\nsteps = [ { delay = \"1s\" } ]\n");
    assert!(inline.knows(&inline.definition()) && inline.knows(&other.definition()));
    assert!(!inline.knows(&flow.definition()));
}
