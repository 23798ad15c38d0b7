//! What a flow waits for: responses in time and late, several at once, branches, moments.

use super::*;

#[test]
fn a_call_times_out_and_a_late_response_is_nobodys() {
    let mut bench = flow(
        r#"
        { scope = [ { call = "vendor", timeout = "30s" } ], catch = [ { fault = "timeout", do = [ { trace = "late" } ] } ] },
        { delay = "1m" },
        { send = "archive" },
        "#,
    );
    insta::assert_snapshot!(bench.hl7(ORU), @r"
    call 1 vendor the request
    timer 1 at 2026-03-14T12:00:30Z
    wait
    ");
    insta::assert_snapshot!(bench.timer(1), @r"
    cancel call 1
    event trace caught timeout: p step 1.scope.1 (call vendor): no response in time
    event trace late | late
    timer 2 at 2026-03-14T12:01:00Z
    wait
    ");
    assert_eq!(bench.reply(1, "Answer", json!({ "n": 1 })), "wait");
    assert_eq!(bench.timer(2), "send archive the request\ncomplete");
}

#[test]
fn a_response_in_time_cancels_the_timer() {
    let mut bench = flow(r#"{ call = "vendor", timeout = "30s", on_timeout = "leave" }"#);
    bench.hl7(ORU);
    assert_eq!(bench.reply(1, "Answer", json!({ "n": 1 })), "cancel timer 1\ncomplete");
    bench.hl7(ORU);
    assert!(bench.timer(1).starts_with("cancel call 1, leave\nfail [timeout] timeout"));
}

#[test]
fn asynchronous_calls_are_gathered_by_sync() {
    let mut bench = flow(
        r#"
        { call = "vendor", async = true, into = "context.a", name = "first" },
        { call = "other", async = true, into = "context.b" },
        { sync = ["first", "other"], timeout = "10s" },
        { send = "archive", message = "Ask", with = "{ n: context.a.n + context.b.n }" },
        "#,
    );
    insta::assert_snapshot!(bench.hl7(ORU), @r"
    call 1 vendor the request
    call 2 other the request
    timer 1 at 2026-03-14T12:00:10Z
    wait
    ");
    assert_eq!(bench.reply(2, "Answer", json!({ "n": 2 })), "wait");
    assert_eq!(
        bench.reply(1, "Answer", json!({ "n": 1 })),
        "cancel timer 1\nsend archive Ask {\"n\":3}\ncomplete"
    );

    bench.hl7(ORU);
    assert_eq!(bench.reply(2, "Answer", json!({ "n": 2 })), "wait");
    insta::assert_snapshot!(bench.timer(1), @r"
    cancel call 1
    fail [timeout] timeout: p step 3 (sync): not all responses in time
    ");
}

#[test]
fn sync_any_goes_on_with_the_first_and_raises_what_failed() {
    let mut bench = flow(
        r#"
        { call = "vendor", async = true }, { call = "other", async = true },
        { sync = ["vendor", "other"], any = true },
        { trace = "one" },
        { sync = ["vendor", "other"] },
        { trace = "both" },
        "#,
    );
    bench.hl7(ORU);
    assert_eq!(bench.reply(2, "Answer", json!({ "n": 2 })), "event trace one | one\nwait");
    insta::assert_snapshot!(bench.fault(1, "call", "500"), @r"
    event trace asynchronous call vendor failed: 500: the peer refused | foreign words
    fail [call] 500: the peer refused | foreign words
    ");
}

#[test]
fn what_nobody_waits_for_is_left_at_the_end() {
    let mut bench = flow(r#"{ call = "vendor", async = true, timeout = "5s" }"#);
    insta::assert_snapshot!(bench.hl7(ORU), @r"
    call 1 vendor the request
    timer 1 at 2026-03-14T12:00:05Z
    cancel call 1, leave
    cancel timer 1
    complete
    ");
}

#[test]
fn branches_interleave_at_their_waits_and_join() {
    let mut bench = flow(
        r#"
        { parallel = [
          [ { call = "vendor" }, { trace = "vendor" } ],
          [ { call = "other" }, { trace = "other" }, { delay = "1s" }, { trace = "waited" } ],
          [ { trace = "at once" } ],
        ] },
        { trace = "joined" },
        "#,
    );
    insta::assert_snapshot!(bench.hl7(ORU), @r"
    call 1 vendor the request
    call 2 other the request
    event trace at once | at once
    wait
    ");
    insta::assert_snapshot!(bench.reply(2, "Answer", json!({ "n": 1 })), @r"
    event trace other | other
    timer 1 at 2026-03-14T12:00:01Z
    wait
    ");
    assert_eq!(bench.reply(1, "Answer", json!({ "n": 1 })), "event trace vendor | vendor\nwait");
    assert_eq!(bench.timer(1), "event trace waited | waited\nevent trace joined | joined\ncomplete");
}

#[test]
fn a_delay_may_be_an_expression_and_a_past_time_does_not_wait() {
    let mut bench = flow(
        r#"{ delay = "new Date(Date.now() - 1)" }, { delay = "request.get('MSH-7')" }, { delay = "Date.now() + 1500" }"#,
    );
    insta::assert_snapshot!(bench.hl7(ORU), @r"
    timer 1 at 2026-03-14T12:00:01.5Z
    wait
    ");
    assert_eq!(bench.timer(1), "complete");
}
