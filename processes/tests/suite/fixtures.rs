//! What earlier Septets left on disk must keep running: a waiting instance with the definition it started
//! with. The files were written once, by the flow in the comment of each test, and never change.

use std::sync::Arc;

use bytes::Bytes;
use septet_engine::body::Body;
use septet_engine::process::{Definition, Input};
use serde_json::json;

use crate::support::{Bench, ORU, show};

const DEFINITION: &[u8] = include_bytes!("fixtures/flow-1.definition.json");
const INSTANCE: &[u8] = include_bytes!("fixtures/flow-1.instance.json");

/// Written by: see [`the_flow`], stopped where it waits for call 2 and timer 1.
#[test]
fn a_flow_of_format_1_goes_on() {
    let bench = Bench::new("[processes.p]\ntype = \"flow\"\nsteps = []\n");
    let mut job = bench.job(Input::Request);
    job.definition =
        Arc::new(Definition { hash: "of the fixture".into(), bytes: Bytes::from_static(DEFINITION) });
    job.instance = Some(Bytes::from_static(INSTANCE));
    job.request_body = Some(Body::hl7(septet_hl7::Message::parse(ORU.into()).unwrap()));
    job.input = Input::Response {
        call: 2,
        header: None,
        body: None,
        fault: Some(septet_engine::fault::Fault::new("call", "500", "the peer refused")),
    };
    let done = bench.batch(vec![job]);
    insta::assert_snapshot!(show(&done[0]), @r#"
    cancel timer 1
    event trace undo {obx.get('OBX-1')} | undo 1
    event trace caught 500: the peer refused
    alert {fault.code} {context.copy.get('PID-5.1')} {context.when.getTime()} | 500 Müller 0
    send archive Ask {"text":"A-1!"}
    complete
    "#);
}

/// What is written today reads the same as the fixture; where this fails because something was added, write
/// a new fixture beside the old one.
#[test]
fn todays_format_is_that_of_the_fixture() {
    let bench = the_flow();
    assert_eq!(bench.definition().bytes, DEFINITION);
    assert_eq!(bench.instance.as_deref(), Some(INSTANCE));
}

fn the_flow() -> Bench {
    let mut bench = Bench::new(
        r#"
        [processes.p]
        type = "flow"
        steps = [
          { assign = { "context.copy" = "request.copy()", "context.when" = "new Date(0)", "state.n" = "1" } },
          { transform = "t", into = "context.ask" },
          { scope = [
            { parallel = [
              [ { foreach = "request.all('OBX')", as = "obx", do = [
                { call = "vendor", message = "Ask", with = "{ text: obx.get('OBX-5') }", compensate = [ { trace = "undo {obx.get('OBX-1')}" } ] },
              ] } ],
              [ { delay = "1h" } ],
            ] },
          ], catch = [ { fault = "call", do = [
            { switch = [ { case = "false", do = [] }, { default = true, do = [ { alert = "{fault.code} {context.copy.get('PID-5.1')} {context.when.getTime()}" } ] } ] },
            { send = "archive", with = "context.ask" },
          ] } ] },
        ]
        [messages.Ask]
        text = "string"
        [transforms.t]
        to   = "Ask"
        set  = { text = "OBR-3.1" }
        code = "target.text += lookup('names', 'x', '!')"
        [lookups.names]
        y = "z"
        "#,
    );
    bench.hl7(ORU);
    bench.reply(1, "Json", json!({ "n": 1 }));
    bench
}
