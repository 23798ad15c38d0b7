# The recipes. `.ci/run` calls the same ones and nothing else.

# Format and lints, warnings denied.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# The README's test command.
test:
    cargo test --workspace

# The productions' own tests.
accept:
    cargo run --quiet -- test productions/*/

# The main job.
run:
    cargo run --release -- run productions/lab-results productions/vendor

# Benchmarks, each printed as a ratio within one run.
bench:
    cargo bench --workspace

# A million mutated messages through the HL7 core.
fuzz:
    SEPTET_FUZZ_ROUNDS=1000000 cargo test --release -p septet-hl7

# Thousands of kill -9 rounds and power cuts.
crash:
    SEPTET_CRASH_ROUNDS=2000 SEPTET_POWER_ROUNDS=20000 cargo test --release --test end_to_end crash
    SEPTET_POWER_ROUNDS=20000 SEPTET_MODEL_CASES=20000 cargo test --release -p septet-engine --lib store::tests

# Licences, advisories, duplicates (needs cargo-deny).
deny:
    cargo deny check
