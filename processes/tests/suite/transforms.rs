//! Named transforms.

use serde_json::json;

use crate::support::{Bench, ORU};

/// A flow that runs the transform `t` and sends what it made.
fn bench(transform: &str) -> Bench {
    Bench::new(&format!(
        r#"
        [processes.p]
        type = "flow"
        steps = [
          {{ transform = "t", from = "request", into = "context.out" }},
          {{ send = "archive", with = "context.out" }},
        ]
        [messages.Result]
        accession = "string"
        count     = "integer?"
        at        = "datetime?"
        values    = "list?"
        extra     = "object?"
        pin       = "secret?"
        [transforms.t]
        {transform}
        "#
    ))
}

#[test]
fn set_comes_before_code_and_the_result_is_checked_against_its_type() {
    let mut bench = bench(
        r#"to = "Result"
        set = { accession = "OBR-3.1", "extra.source" = { value = "LAB" }, count = { expr = "source.all('OBX').length" } }
        code = "target.values = source.all('OBX').map(o => ({ code: o.get('OBX-3.1'), value: o.get('OBX-5') })); target.count += 1""#,
    );
    insta::assert_snapshot!(bench.hl7(ORU), @r#"
    send archive Result {"accession":"A-1","count":3,"values":[{"code":"718-7","value":"13.5"},{"code":"4544-3","value":"41"}],"extra":{"source":"LAB"}}
    complete
    "#);
}

#[test]
fn a_missing_required_field_is_a_fault_that_names_it() {
    let mut bench = bench(
        r#"to = "Result"
        set = { accession = "OBR-3.1" }"#,
    );
    insta::assert_snapshot!(bench.hl7("MSH|^~\\&|||||||ORU^R01|1\rOBR|1\r"), @"fail [transform] transform: p step 1 (transform t), transform t: Result.accession is missing");
}

#[test]
fn hl7_values_are_read_as_the_fields_type() {
    let mut bench = bench(
        r#"to = "Result"
        set = { accession = "OBR-3.1", count = "OBX[2]-5", at = "MSH-7", values = "OBX[*]-5" }"#,
    );
    insta::assert_snapshot!(bench.hl7(ORU), @r#"
    send archive Result {"accession":"A-1","count":41,"at":"2026-03-14T11:00:00Z","values":["13.5","41"]}
    complete
    "#);
    insta::assert_snapshot!(bench.hl7(&ORU.replace("|41|", "|n/a|")), @"fail [transform] transform: p step 1 (transform t), transform t: Result.count must be integer");
}

#[test]
fn hl7_to_hl7_starts_as_a_copy_and_touches_nothing_else() {
    let mut bench = bench(
        r#"set = { "PID-5" = "PID-3", "PID-8" = { value = "A&B" }, "MSH-6" = { expr = "'X' + source.type" } }
        code = "target.remove('OBX[2]'); target.append('NTE|1||a note'); target.all('OBX')[0].set('OBX-5', 14)""#,
    );
    insta::assert_snapshot!(bench.hl7(ORU), @r"
    send archive ORU^R01 MSH|^~\&|LAB|HOSP|EHR|XORU\S\R01|20260314120000||ORU^R01|C1|P|2.5.1⏎PID|1||4711^^^HOSP^MR||4711^^^HOSP^MR||19700101|A\T\B⏎OBR|1||A-1^LAB|718-7⏎OBX|1|NM|718-7^Hb||14|g/dL⏎NTE|1||a note⏎
    complete
    ");
}

#[test]
fn the_source_is_read_only() {
    let mut bench = bench("code = \"source.set('PID-8', 'U')\"");
    insta::assert_snapshot!(bench.hl7(ORU), @"fail [transform] transform: p transform t, code, line 1, column 8: TypeError | this message is read-only; edit a copy() of it");
}

#[test]
fn records_are_transformed_by_field_names() {
    let mut bench = bench(
        r#"to = "Result"
        set = { accession = "order.number", pin = { value = "1234" } }"#,
    );
    insta::assert_snapshot!(bench.json(json!({ "order": { "number": "A-9" } })), @r#"
    send archive Result {"accession":"A-9","pin":"•••"}
    complete
    "#);
}

#[test]
fn an_undeclared_field_is_refused() {
    let mut bench = bench(
        r#"to = "Result"
        code = "target.accession = 'x'; target.colour = 'red'""#,
    );
    insta::assert_snapshot!(bench.hl7(ORU), @"fail [transform] transform: p step 1 (transform t), transform t: Result has no field colour");
}

#[test]
fn code_may_make_a_new_target() {
    let mut bench = bench(
        r#"to = "Result"
        code = "target = { accession: 'new' }""#,
    );
    assert!(bench.hl7(ORU).contains(r#"Result {"accession":"new"}"#));
}

#[test]
fn copying_nothing_makes_no_segment() {
    let shown = bench(r#"set = { "PV1-3" = "PID-18", "PID-8" = "PID-19" }"#).hl7(ORU);
    assert!(!shown.contains("PV1") && shown.contains("||19700101|⏎OBR"), "{shown}");
}
