//! What goes wrong in a flow: which handler a fault finds, what is undone, and how an instance ends.

use super::*;

#[test]
fn a_call_that_fails_is_caught_by_name_and_the_rest_goes_on() {
    let mut bench = flow(
        r#"
        { scope = [
          { call = "vendor" },
          { send = "other" },
        ], catch = [
          { fault = "timeout", do = [ { throw = "'wrong handler'" } ] },
          { fault = "call", do = [ { alert = "no luck: {fault.code} {fault.detail}" } ] },
          { any = true, do = [ { throw = "'wrong handler'" } ] },
        ] },
        { send = "archive" },
        "#,
    );
    bench.hl7(ORU);
    insta::assert_snapshot!(bench.fault(1, "call", "404"), @r"
    event trace caught 404: the peer refused | foreign words
    alert no luck: {fault.code} {fault.detail} | no luck: 404 foreign words
    send archive the request
    complete
    ");
}

#[test]
fn an_uncaught_fault_ends_the_instance() {
    let mut bench = flow(r#"{ call = "vendor" }, { send = "archive" }"#);
    bench.hl7(ORU);
    insta::assert_snapshot!(bench.fault(1, "call", "404"), @"fail [call] 404: the peer refused | foreign words");
    let mut bench = flow(r#"{ throw = "'no ' + request.get('PID-5.1')" }"#);
    insta::assert_snapshot!(bench.hl7(ORU), @"fail [no Müller] throw: p step 1 (throw): thrown | no Müller");
    let mut bench = flow(r#"{ throw = "{ name: 'Refused', message: 'because' }" }"#);
    insta::assert_snapshot!(bench.hl7(ORU), @"fail [Refused] throw: p step 1 (throw): thrown | because");
}

#[test]
fn thrown_names_and_engine_faults_find_their_handlers() {
    let caught = |step: &str, fault: &str| {
        let catch = format!(r#"catch = [ {{ fault = "{fault}", do = [ {{ trace = "here" }} ] }} ]"#);
        let mut bench = flow(&format!("{{ scope = [ {step} ], {catch} }}"));
        bench.hl7(ORU).ends_with("event trace here | here\ncomplete")
    };
    assert!(caught(r#"{ throw = "'mine'" }"#, "mine"));
    assert!(!caught(r#"{ throw = "'mine'" }"#, "script"));
    assert!(caught(r#"{ code = "throw 'mine'" }"#, "mine"));
    assert!(caught(r#"{ code = "throw 'mine'" }"#, "script"));
    assert!(caught(r#"{ code = "null.x" }"#, "script"));
    assert!(caught(r#"{ send = "archive", message = "Ask", with = "{ x: 1 }" }"#, "message"));
    assert!(caught(r#"{ send = "archive", message = "Ask", with = "{ n: 'x' }" }"#, "message"));
    assert!(!caught(r#"{ send = "archive", message = "Ask", with = "{ n: 'x' }" }"#, "script"));
}

#[test]
fn a_fault_in_a_handler_goes_to_the_scope_around() {
    let mut bench = flow(
        r#"
        { scope = [
          { scope = [ { throw = "'inner'" } ], catch = [ { any = true, do = [ { throw = "'second'" } ] } ] },
        ], catch = [ { fault = "second", do = [ { trace = "outer" } ] } ] },
        "#,
    );
    assert!(bench.hl7(ORU).ends_with("event trace outer | outer\ncomplete"));
}

#[test]
fn a_fault_inside_a_loop_leaves_the_loop() {
    let mut bench = flow(
        r#"
        { foreach = "[1, 2, 3]", as = "n", do = [
          { scope = [ { foreach = "['a', 'b']", as = "m", do = [ { if = "n === 2 && m === 'b'", then = [ { throw = "'odd'" } ] }, { trace = "{n}{m}" } ] } ],
            catch = [ { fault = "odd", do = [ { trace = "{n} {fault.name}" } ] } ] },
        ] },
        "#,
    );
    let shown = bench.hl7(ORU);
    let details: Vec<&str> = shown.lines().filter_map(|line| line.split(" | ").nth(1)).collect();
    assert_eq!(details, ["1a", "1b", "2a", "odd", "2 odd", "3a", "3b"]);
}

#[test]
fn a_fault_in_a_branch_ends_the_others() {
    let mut bench = flow(
        r#"
        { scope = [ { parallel = [ [ { call = "vendor" } ], [ { delay = "1h" } ], [ { call = "other", timeout = "5s" } ] ] } ],
          catch = [ { fault = "call", do = [ { trace = "caught" } ] } ] },
        "#,
    );
    bench.hl7(ORU);
    insta::assert_snapshot!(bench.fault(1, "call", "500"), @r"
    cancel timer 1
    cancel call 2
    cancel timer 2
    event trace caught 500: the peer refused | foreign words
    event trace caught | caught
    complete
    ");
}

#[test]
fn compensations_run_newest_first_before_the_handler() {
    let mut bench = flow(
        r#"
        { scope = [
          { foreach = "['a', 'b']", as = "x", do = [
            { send = "archive", compensate = [ { call = "other", message = "Ask", with = "{ text: x }" }, { trace = "undone {x}" } ] },
          ] },
          { call = "vendor", compensate = [ { trace = "never: the call did not complete" } ] },
        ], catch = [ { any = true, do = [ { trace = "handler" } ] } ] },
        { trace = "after" },
        "#,
    );
    insta::assert_snapshot!(bench.hl7(ORU), @r"
    send archive the request
    send archive the request
    call 1 vendor the request
    wait
    ");
    insta::assert_snapshot!(bench.fault(1, "call", "500"), @r#"
    call 2 other Ask {"text":"b"}
    wait
    "#);
    insta::assert_snapshot!(bench.reply(2, "Answer", json!({ "n": 1 })), @r#"
    event trace undone {x} | undone b
    call 3 other Ask {"text":"a"}
    wait
    "#);
    insta::assert_snapshot!(bench.reply(3, "Answer", json!({ "n": 1 })), @r"
    event trace undone {x} | undone a
    event trace caught 500: the peer refused | foreign words
    event trace handler | handler
    event trace after | after
    complete
    ");
}

#[test]
fn the_fault_of_a_callee_is_a_failed_call_except_for_message() {
    let caught = |name: &str, handler: &str| {
        let mut bench = flow(&format!(
            r#"{{ scope = [ {{ call = "vendor" }} ], catch = [ {{ fault = "{handler}", do = [] }} ] }}"#
        ));
        bench.hl7(ORU);
        bench.fault(1, name, "x").ends_with("complete")
    };
    assert!(caught("call", "call"));
    assert!(caught("script", "call") && !caught("script", "script"));
    assert!(caught("message", "message") && !caught("message", "call"));
    assert!(caught("refused", "refused") && caught("refused", "call"));
}

#[test]
fn a_discarded_request_is_a_failed_call() {
    let mut bench = flow(r#"{ call = "vendor" }"#);
    bench.hl7(ORU);
    insta::assert_snapshot!(bench.answer(1, None, None), @"fail [call] discarded: the request ended without a response");
}
