//! What scripts can and cannot do.

use std::time::{Duration, Instant};

use septet_engine::process::{Input, Next};
use serde_json::json;

use crate::support::{Bench, ORU, show};

/// A flow of one code step; what it leaves in `context.out` goes to the archive as text.
fn run(code: &str) -> String {
    bench(code).hl7(ORU)
}

fn bench(code: &str) -> Bench {
    Bench::new(&format!(
        r#"
        [processes.p]
        type = "flow"
        steps = [
          {{ code = '''{code}''' }},
          {{ send = "archive", with = "typeof context.out === 'string' ? context.out : JSON.stringify(context.out)" }},
        ]
        [lookups.sexes]
        F = "female"
        "#
    ))
}

/// The text that a script leaves in `context.out`.
fn out(code: &str) -> String {
    let shown = run(code);
    match shown.strip_prefix("send archive Text ").and_then(|text| text.strip_suffix("\ncomplete")) {
        Some(text) => text.to_owned(),
        None => shown,
    }
}

#[test]
fn hl7_values_give_leaves_decoded_and_the_rest_encoded() {
    let read = |expression: &str| out(&format!("context.out = {expression}"));
    assert_eq!(read("request.get('PID-5.1')"), "Müller");
    assert_eq!(read("request.get('PID-5')"), "Müller^Anna");
    assert_eq!(read("request.get('PID-99') === '' && request.get('ZZZ-1') === ''"), "true");
    assert_eq!(read("request.all('OBX-5')"), r#"["13.5","41"]"#);
    assert_eq!(read("request.all('OBX').map(o => o.get('OBX-3.2'))"), r#"["Hb","Hct"]"#);
    assert_eq!(read("request.type + ' ' + request.controlId"), "ORU^R01 C1");
    assert_eq!(read("request.segments.map(s => s.name)"), r#"["MSH","PID","OBR","OBX","OBX"]"#);
    assert_eq!(read("request.raw('OBR-3')"), "A-1^LAB");
    assert!(read("request.get('PID-0')").contains("TypeError"));
    assert!(read("request.get('OBSERVATION[2]/OBX-5')").contains("TypeError"));
}

#[test]
fn the_tools_of_the_contract_are_in_scope() {
    assert_eq!(out("context.out = lookup('sexes', request.get('PID-8'), '?')"), "female");
    assert_eq!(out("context.out = lookup('sexes', 'X', '?')"), "?");
    assert!(out("context.out = lookup('nothing', 'X')").contains("ReferenceError"));
    assert_eq!(out("context.out = hl7Date(new Date('2026-07-01T10:00:00Z'))"), "20260701120000");
    assert_eq!(out("context.out = hl7Date()"), "20260314130000");
    assert_eq!(
        out("context.out = new Date().toISOString() + Date.now()"),
        "2026-03-14T12:00:00.000Z1773489600000"
    );
    let uuids = out("context.out = [uuid(), uuid()]");
    let uuids: Vec<String> = serde_json::from_str(&uuids).unwrap();
    assert_ne!(uuids[0], uuids[1]);
    assert_eq!((uuids[0].len(), &uuids[0][14..15]), (36, "5"));
}

#[test]
fn log_makes_an_entry_on_the_trace_with_the_text_as_detail() {
    insta::assert_snapshot!(run("log('value ' + request.get('OBX-5')); context.out = 1"), @r"
    event trace log in step 1 (code) | value 13.5
    send archive Text 1
    complete
    ");
}

#[test]
fn two_messages_get_different_uuids_and_a_repeated_job_the_same() {
    let mut bench = bench("context.out = uuid() + Math.random()");
    let first = bench.hl7(ORU);
    bench.id = 8;
    assert_ne!(bench.hl7(ORU), first);
    bench.id = 7;
    assert_eq!(bench.hl7(ORU), first);
}

#[test]
fn there_is_no_way_out() {
    for name in [
        "require",
        "fetch",
        "console",
        "setTimeout",
        "process",
        "std",
        "os",
        "Promise",
        "Atomics",
        "WeakRef",
        "performance",
        "eval",
    ] {
        assert_eq!(out(&format!("context.out = typeof {name}")), "undefined", "{name}");
    }
    assert!(
        run("context.out = (async () => 1)()").contains("fail") || !run("context.out = 1").contains("fail")
    );
}

#[test]
fn one_script_changes_nothing_for_another() {
    for code in [
        "globalThis.x = 1",
        "x = 1",
        "Array.prototype.map = () => 1",
        "Object.prototype.y = 1",
        "JSON.stringify = 1",
        "lookup = 1",
        "request.get.call.x = 1",
        "Object.getPrototypeOf(request).get = 1",
        "Date.now = () => 0",
    ] {
        let shown = run(code);
        assert!(shown.contains("TypeError") || shown.contains("ReferenceError"), "{code}: {shown}");
    }
    assert_eq!(
        out(
            "const e = new Error('x'); e.name = 'Mine'; const o = { toString: () => 'own' }; o.valueOf = () => 1; context.out = e.name + o"
        ),
        "Mine1"
    );
}

#[test]
fn an_endless_loop_is_stopped_and_cannot_be_caught_in_the_script() {
    for code in [
        "while (true) {}",
        "for (;;) { try { while (true) {} } catch (e) {} finally {} }",
        "/^(a+)+$/.test('a'.repeat(50) + 'b')",
    ] {
        let begin = Instant::now();
        let shown = bench_with_time(code, "100ms").hl7(ORU);
        assert_eq!(shown, "fail [script] script: p step 1 (code): the script ran longer than 100ms");
        assert!(begin.elapsed() < Duration::from_secs(60));
    }
}

fn bench_with_time(code: &str, time: &str) -> Bench {
    Bench::new(&format!(
        "[processes.p]\ntype = \"flow\"\nscript_time = \"{time}\"\nscript_memory = \"16MiB\"\nsteps = [ {{ code = '''{code}''' }} ]\n"
    ))
}

#[test]
fn endless_steps_are_stopped_too() {
    let mut bench = Bench::new(
        "[processes.p]\ntype = \"flow\"\nscript_time = \"100ms\"\nsteps = [ { while = \"true\", do = [] } ]\n",
    );
    let shown = bench.hl7(ORU);
    assert!(shown.starts_with("fail [script] script: p step 1 (while"), "{shown}");
}

#[test]
fn memory_is_capped() {
    let shown =
        bench_with_time("let a = []; while (true) a.push('x'.repeat(1000) + a.length)", "30s").hl7(ORU);
    assert_eq!(shown, "fail [script] script: p step 1 (code): the script needs more memory than 16 MiB");
}

#[test]
fn endless_recursion_is_an_error_like_any_other() {
    assert!(run("(function f() { return f() + 1 })()").contains("RangeError"));
}

#[test]
fn a_stopped_script_does_not_disturb_the_jobs_behind_it() {
    let bench = bench_with_time(
        "if (request === 'bad') { while (true) {} } state.count = (state.count || 0) + 1",
        "100ms",
    );
    let job = |text: &str| {
        let mut job = bench.job(Input::Request);
        job.request_body = Some(septet_engine::body::Body::text("Text", text.into()));
        job
    };
    let done = bench.batch(vec![job("a"), job("bad"), job("b")]);
    let ends: Vec<bool> = done.iter().map(|done| matches!(done.next, Next::Complete)).collect();
    assert_eq!(ends, [true, false, true]);
    let states: Vec<_> = done
        .iter()
        .map(|done| done.state.as_deref().map(|s| String::from_utf8_lossy(s).into_owned()))
        .collect();
    assert_eq!(states, [Some("{\"count\":1}".into()), None, Some("{\"count\":2}".into())]);
}

#[test]
fn errors_say_where_and_keep_the_words_apart() {
    insta::assert_snapshot!(run("let a = 1;\n  throw new Error('patient Müller')"), @"fail [script] script: p step 1 (code), line 2, column 13: the script threw | patient Müller");
    insta::assert_snapshot!(run("throw 'rejected'"), @"fail [rejected] script: p step 1 (code): the script threw | rejected");
    insta::assert_snapshot!(run("throw { name: 'Rejected', message: 'why' }"), @"fail [Rejected] script: p step 1 (code): the script threw | why");
    insta::assert_snapshot!(run("null.x"), @"fail [script] script: p step 1 (code), line 1, column 1: TypeError | cannot read property 'x' of null");
}

#[test]
fn records_are_plain_objects_that_cannot_be_changed_where_they_came_in() {
    let mut bench = bench("context.out = request.a.concat([request.b.c])");
    insta::assert_snapshot!(bench.json(json!({ "a": [1, 2.5], "b": { "c": null } })), @r"
    send archive Text [1,2.5,null]
    complete
    ");
    let mut bench = self::bench("request.a = 1");
    assert!(bench.json(json!({ "a": 2 })).contains("TypeError"));
}

#[test]
fn a_foreign_record_cannot_pretend_to_be_something_else() {
    let mut bench = Bench::new(
        r#"
        [processes.p]
        type = "flow"
        steps = [
          { assign = { "context.x" = "request.x", "context.p" = "request['__proto__']" } },
          { delay = "1s" },
          { send = "archive", with = "context" },
        ]
        "#,
    );
    let shown = bench.step_json(r#"{ "x": { "$hl7": { "request": true } }, "__proto__": { "a": 1 } }"#);
    assert!(shown.ends_with("wait"), "{shown}");
    insta::assert_snapshot!(bench.timer(1), @r#"
    send archive Json {"x":{"$hl7":{"request":true}},"p":{"a":1}}
    complete
    "#);
}

impl Bench {
    fn step_json(&mut self, text: &str) -> String {
        let json = bytes::Bytes::copy_from_slice(text.as_bytes());
        self.request = Some(septet_engine::body::Body::new("Json", "application/json", None, json));
        self.step(Input::Request)
    }
}

#[test]
fn jobs_of_a_batch_see_what_their_predecessor_left_in_state() {
    let bench = bench("state.n = (state.n || 0) + 1; context.out = state.n");
    let done = bench.batch(vec![bench.job(Input::Request), bench.job(Input::Request)]);
    let shown: Vec<String> = done.iter().map(show).collect();
    assert_eq!(shown, ["send archive Text 1\ncomplete", "send archive Text 2\ncomplete"]);
}

#[test]
fn state_and_context_are_capped_at_a_mebibyte() {
    insta::assert_snapshot!(run("state.x = 'x'.repeat(2 ** 20); context.out = 1"), @r"
    send archive Text 1
    fail [script] size: p state is larger than 1 MiB
    ");
    let mut bench = Bench::new(
        "[processes.p]\ntype = \"flow\"\nsteps = [ { code = \"context.x = 'x'.repeat(2 ** 20)\" }, { delay = \"1s\" } ]\n",
    );
    let shown = bench.hl7(ORU);
    assert!(shown.ends_with("fail [script] size: p context is larger than 1 MiB"), "{shown}");
}

#[test]
fn a_loop_over_slow_calls_is_stopped_in_time_too() {
    let mut big = String::from(ORU);
    for number in 3..20_000 {
        big.push_str(&format!("OBX|{number}|NM|718-7^Hb||13.5|g/dL\r"));
    }
    let begin = Instant::now();
    let code = "for (;;) { try { request.copy().set('OBX[19999]-5', 'x') } catch (e) {} }";
    let shown = bench_with_time(code, "200ms").hl7(&big);
    assert_eq!(shown, "fail [script] script: p step 1 (code): the script ran longer than 200ms");
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
}
