//! Flows: steps, waits, faults.

mod faults;
mod waits;

use septet_engine::body::Body;
use serde_json::json;

use crate::support::{Bench, ORU};

fn flow(steps: &str) -> Bench {
    Bench::new(&format!("[processes.p]\ntype = \"flow\"\nsteps = [\n{steps}\n]\n{TYPES}"))
}

const TYPES: &str = r#"
[messages.Ask]
n    = "integer?"
text = "string?"
[messages.Answer]
n = "integer"
"#;

const LAB_RESULTS: &str = r#"
[processes.p]
type  = "flow"
steps = [
  { transform = "to_result", from = "request", into = "context.result" },
  { call = "vendor", message = "SubmitResult", with = "context.result", into = "context.reply" },
  { if = "context.reply.status !== 'accepted'", then = [ { alert = "vendor refused the result" } ] },
]
[messages.SubmitResult]
accession = "string"
mrn       = "string"
values    = "list"
note      = "string?"
[messages.SubmitResultReply]
status = "string"
[transforms.to_result]
to   = "SubmitResult"
set  = { accession = "OBR-3.1", mrn = "PID-3.1", note = { value = "from Septet" } }
code = "target.values = source.all('OBX').map(o => ({ code: o.get('OBX-3.1'), value: o.get('OBX-5') }))"
"#;

#[test]
fn the_lab_results_flow_submits_and_alerts_when_refused() {
    let mut bench = Bench::new(LAB_RESULTS);
    insta::assert_snapshot!(bench.hl7(ORU), @r#"
    call 1 vendor SubmitResult {"accession":"A-1","mrn":"4711","values":[{"code":"718-7","value":"13.5"},{"code":"4544-3","value":"41"}],"note":"from Septet"}
    wait
    "#);
    insta::assert_snapshot!(bench.reply(1, "SubmitResultReply", json!({ "status": "accepted" })), @"complete");
    bench.hl7(ORU);
    insta::assert_snapshot!(bench.reply(1, "SubmitResultReply", json!({ "status": "refused" })), @r"
    alert vendor refused the result | vendor refused the result
    complete
    ");
}

const TOKEN: &str = r#"
[processes.p]
type = "flow"
steps = [
  { if = "!state.token || state.expires_at <= Date.now()", then = [
    { call = "other", message = "GetBearerToken", with = "{ client_secret: lookup('secrets', 'vendor') }", into = "context.token" },
    { assign = { "state.token" = "context.token.access_token", "state.expires_at" = "Date.now() + (context.token.expires_in - 5) * 1000" } },
  ] },
  { call = "vendor", message = "SubmitResult", with = "{ mrn: request.get('PID-3.1'), token: state.token }", into = "context.reply" },
]
[lookups.secrets]
vendor = "s3cret"
[messages.GetBearerToken]
client_secret = "secret"
[messages.BearerToken]
access_token = "secret"
expires_in   = "integer"
[messages.SubmitResult]
mrn   = "string"
token = "secret"
"#;

#[test]
fn a_bearer_token_is_fetched_by_hand_kept_in_state_and_fetched_again_when_expired() {
    let mut bench = Bench::new(TOKEN);
    insta::assert_snapshot!(bench.hl7(ORU), @r#"
    call 1 other GetBearerToken {"client_secret":"•••"}
    wait
    "#);
    let waiting = String::from_utf8(bench.instance.clone().unwrap().to_vec()).unwrap();
    assert!(!waiting.contains("s3cret"));
    insta::assert_snapshot!(bench.reply(1, "BearerToken", json!({ "access_token": "t0ken", "expires_in": 60 })), @r#"
    call 2 vendor SubmitResult {"mrn":"4711","token":"•••"}
    wait
    "#);
    assert!(!String::from_utf8_lossy(bench.state.as_ref().unwrap()).contains("t0ken"));
    insta::assert_snapshot!(bench.state(), @r#"{"token":"•••","expires_at":1773489655000}"#);
    insta::assert_snapshot!(bench.reply(2, "Json", json!({})), @"complete");

    // The next message uses the token that is there; the one after its end fetches again.
    assert!(bench.hl7(ORU).contains("call 1 vendor"));
    bench.instance = None;
    bench.now = "2026-03-14T12:00:55Z".parse().unwrap();
    assert!(bench.hl7(ORU).contains("call 1 other"));
}

#[test]
fn what_goes_to_the_peer_is_the_secret_itself() {
    use septet_engine::process::{Effect, Input, Outgoing};
    let mut bench = Bench::new(TOKEN);
    bench.request = Some(Body::hl7(septet_hl7::Message::parse(ORU.into()).unwrap()));
    let done = bench.batch(vec![bench.job(Input::Request)]);
    let Some(Effect::Call { body: Outgoing::New(body), .. }) = done[0].effects.first() else { panic!() };
    let revealed = body.as_record().unwrap().reveal(bench.vault()).unwrap();
    assert_eq!(revealed, json!({ "client_secret": "s3cret" }));
}

#[test]
fn loops_survive_waits_inside_them() {
    let mut bench = flow(
        r#"
        { assign = { "context.sum" = "0" } },
        { foreach = "request.all('OBX')", as = "obx", do = [
          { foreach = "[1, 2]", as = "n", do = [
            { call = "vendor", message = "Ask", with = "{ text: obx.get('OBX-3.2') + n }", into = "context.last" },
            { assign = { "context.sum" = "context.sum + response.n" } },
          ] },
        ] },
        { send = "archive", message = "Ask", with = "{ n: context.sum, text: context.last.n + '' }" },
        "#,
    );
    assert_eq!(bench.hl7(ORU), "call 1 vendor Ask {\"text\":\"Hb1\"}\nwait");
    assert_eq!(bench.reply(1, "Answer", json!({ "n": 1 })), "call 2 vendor Ask {\"text\":\"Hb2\"}\nwait");
    assert_eq!(bench.reply(2, "Answer", json!({ "n": 10 })), "call 3 vendor Ask {\"text\":\"Hct1\"}\nwait");
    assert_eq!(bench.reply(3, "Answer", json!({ "n": 100 })), "call 4 vendor Ask {\"text\":\"Hct2\"}\nwait");
    assert_eq!(
        bench.reply(4, "Answer", json!({ "n": 1000 })),
        "send archive Ask {\"n\":1111,\"text\":\"1000\"}\ncomplete"
    );
}

#[test]
fn values_come_back_from_a_wait_as_they_were() {
    let mut bench = flow(
        r#"
        { code = '''
          context.date = new Date(5);
          context.request = request;
          context.obx = request.all('OBX')[1];
          context.copy = request.copy();
          context.copy.set('PID-8', 'U');
          context.odd = { a: [undefined, NaN], u: undefined, $date: 1 };
          state.copy = context.copy;
        ''' },
        { delay = "1s" },
        { trace = "{context.date.getTime()} {context.obx.get('OBX-5')} {context.copy.get('PID-8')} {JSON.stringify(context.odd)} {state.copy.get('PID-5.1')}" },
        { send = "archive", with = "context.request" },
        { code = "context.copy.set('PID-8', 'X')" },
        { send = "archive", with = "context.copy.get('PID-8')" },
        "#,
    );
    assert_eq!(bench.hl7(ORU), "timer 1 at 2026-03-14T12:00:01Z\nwait");
    assert!(
        bench.instance.as_ref().unwrap().len() < 2 * ORU.len() + 1500,
        "the request is kept by reference"
    );
    insta::assert_snapshot!(bench.timer(1), @r#"
    event trace {context.date.getTime()} {context.obx.get('OBX-5')} {context.copy.get('PID-8')} {JSON.stringify(context.odd)} {state.copy.get('PID-5.1')} | 5 41 U {"a":[null,null],"$date":1} Müller
    send archive the request
    send archive Text X
    complete
    "#);
}

#[test]
fn without_message_and_with_the_request_itself_is_sent() {
    let mut bench = flow(
        r#"{ call = "vendor", into = "context.ack" }, { send = ["archive", "other"], with = "context.ack" }"#,
    );
    insta::assert_snapshot!(bench.hl7(ORU), @r"
    call 1 vendor the request
    wait
    ");
    let ack = septet_hl7::Message::parse("MSH|^~\\&|||||||ACK|1\rMSA|AA|C1\r".into()).unwrap();
    insta::assert_snapshot!(bench.answer(1, Some(Body::hl7(ack)), None), @r"
    send archive ACK MSH|^~\&|||||||ACK|1⏎MSA|AA|C1⏎
    send other ACK MSH|^~\&|||||||ACK|1⏎MSA|AA|C1⏎
    complete
    ");
}

#[test]
fn replies_go_out_early_and_only_once() {
    let mut bench = flow(r#"{ reply = "{ status: 'taken' }" }, { call = "vendor" }, { reply = "'again'" }"#);
    bench.wants_reply = true;
    insta::assert_snapshot!(bench.hl7(ORU), @r#"
    reply Json {"status":"taken"}
    call 1 vendor the request
    wait
    "#);
    insta::assert_snapshot!(bench.reply(1, "Answer", json!({ "n": 1 })), @"complete");
    let mut silent = flow(r#"{ send = "archive" }"#);
    silent.wants_reply = true;
    insta::assert_snapshot!(silent.hl7(ORU), @r"
    send archive the request
    reply nothing
    complete
    ");
}

#[test]
fn switch_takes_the_first_true_case() {
    let mut bench = flow(
        r#"
        { switch = [
          { case = "request.get('PID-8') === 'M'", do = [ { trace = "m" } ] },
          { case = "request.get('PID-8') === 'F'", do = [ { trace = "f" } ] },
          { default = true, do = [ { trace = "?" } ] },
        ] },
        "#,
    );
    assert_eq!(bench.hl7(ORU), "event trace f | f\ncomplete");
    assert_eq!(bench.hl7(&ORU.replace("|F\r", "|U\r")), "event trace ? | ?\ncomplete");
}

#[test]
fn if_else_and_while() {
    let mut bench = flow(
        r#"
        { assign = { "context.n" = "0" } },
        { while = "context.n < 3", do = [
          { if = "context.n % 2", then = [ { trace = "odd {context.n}" } ], else = [ { trace = "even {context.n}" } ] },
          { assign = { "context.n" = "context.n + 1" } },
        ] },
        "#,
    );
    let shown = bench.hl7(ORU);
    let details: Vec<&str> = shown.lines().filter_map(|line| line.split(" | ").nth(1)).collect();
    assert_eq!(details, ["even 0", "odd 1", "even 2"]);
}

#[test]
fn an_instance_goes_on_with_the_definition_it_started_with() {
    let mut old = flow(r#"{ delay = "1s" }, { trace = "old" }"#);
    let new = flow(r#"{ trace = "new" }"#);
    assert_ne!(old.definition().hash, new.definition().hash);
    assert_eq!(old.definition().hash, flow(r#"{ delay = "1s" }, { trace = "old" }"#).definition().hash);
    old.hl7(ORU);
    // A lane that has only ever seen the new definition.
    let job = old.job(septet_engine::process::Input::Timer { timer: 1 });
    let done = new.batch(vec![job]);
    assert!(crate::support::show(&done[0]).contains("event trace old"));
}

#[test]
fn secrets_are_masked_in_texts_and_unreadable_in_scripts() {
    let mut bench = flow(r#"{ call = "vendor", into = "context.t" }, { trace = "{context.t} {context.t.access_token}" }, { trace = "{'Bearer ' + context.t.access_token}" }
    ] # "#.trim_end_matches("] # "));
    bench.hl7(ORU);
    let token = bench.vault().seal_json("t0ken").unwrap();
    let shown = bench.reply(1, "Json", json!({ "access_token": token }));
    assert!(shown.contains(r#"| {"access_token":"•••"} •••"#), "{shown}");
    assert!(shown.contains("a secret cannot be read by scripts"), "{shown}");
}

#[test]
fn facts_tell_the_engine_who_is_called() {
    let bench = flow(r#"{ call = "vendor" }, { send = "archive" }, { reply = "1" }"#);
    assert_eq!((bench.facts.calls.len(), bench.facts.sends.len()), (1, 1));
    assert!(bench.facts.waits && bench.facts.answers);
}

#[test]
fn a_record_keeps_its_message_type_over_waits_and_is_checked_when_it_is_sent_on() {
    let mut bench = Bench::new(&LAB_RESULTS.replace(
        r#"  { call = "vendor", message = "SubmitResult", with = "context.result", into = "context.reply" },
"#,
        r#"  { delay = "1s" },
  { call = "vendor", with = "context.result", into = "context.reply" },
  { send = "archive", with = "context.reply" },
  { send = "archive", with = "{ ...context.reply }" },
  { code = "context.result.extra = 1" },
  { reply = "context.result" },
"#,
    ));
    bench.hl7(ORU);
    assert!(bench.timer(1).starts_with("call 1 vendor SubmitResult {"));
    insta::assert_snapshot!(bench.reply(1, "SubmitResultReply", json!({ "status": "accepted" })), @r#"
    send archive SubmitResultReply {"status":"accepted"}
    send archive Json {"status":"accepted"}
    fail [message] message: p step 7 (reply): SubmitResult has no field extra
    "#);
}
