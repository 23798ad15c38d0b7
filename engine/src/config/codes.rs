//! The stable codes of diagnostics: what each means and what to do. `S00` files, `S01` keys and values, `S02`
//! names and what belongs together, `S03` settings of hosts, `S04` hints about a production that would run,
//! `S05` OAuth, `S06` store, access and secrets.

/// One code.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// `S0102`.
    pub code: &'static str,
    /// What it is, in a few words.
    pub title: &'static str,
    /// When it is reported.
    pub explanation: &'static str,
    /// What to do.
    pub fix: &'static str,
}

/// The entry of a code.
pub fn find(code: &str) -> Option<&'static Code> {
    CODES.iter().find(|known| known.code.eq_ignore_ascii_case(code))
}

const fn code(code: &'static str, title: &'static str, explanation: &'static str, fix: &'static str) -> Code {
    Code { code, title, explanation, fix }
}

/// All codes, in order.
pub const CODES: &[Code] = &[
    code(
        "S0001",
        "a file cannot be read",
        "The production file, or a file it includes, is not there, may not be read, is no UTF-8 text or is too large.",
        "Check the path and its permissions.",
    ),
    code(
        "S0002",
        "not TOML",
        "The text is no TOML at this place. Further checks may have been left out.",
        "Correct the line; strings need quotes, tables are [name].",
    ),
    code(
        "S0003",
        "include finds nothing",
        "A file named in `include` is not there (an error), or a pattern with * or ? matches no file (a warning).",
        "Paths in `include` are relative to the file that holds them.",
    ),
    code(
        "S0004",
        "defined twice",
        "The same thing is defined in two places: in two files, or as two items of one name. Item names are unique over services, processes and operations.",
        "Rename or remove one of them; the text names the other place.",
    ),
    code(
        "S0101",
        "variable not set",
        "A value refers to an environment variable that is not set and has no default.",
        "Set it, or write ${env:NAME:-default}.",
    ),
    code(
        "S0102",
        "unknown key",
        "The key is not known where it stands. Unknown keys are errors, so that a misspelt setting is not silently the default.",
        "Correct it, or begin it with x- if it is a note of your own.",
    ),
    code("S0103", "a key is missing", "A setting without a default is not there.", "Add it."),
    code(
        "S0104",
        "wrong kind of value",
        "The value is of another kind than the setting takes, is out of range, or is not one of the texts it takes.",
        "See septet doc TYPE for what each setting takes.",
    ),
    code(
        "S0105",
        "malformed value",
        "A duration, size, address or hours of another form than needed.",
        "Durations are like \"5s\", \"250ms\", \"30d\"; sizes like \"16MiB\"; listeners like \"127.0.0.1:2575\"; hours like \"Mon-Fri 07:00-19:00\".",
    ),
    code(
        "S0106",
        "no such file",
        "A file that a setting names is not there or cannot be read.",
        "Relative paths are relative to the file that holds them.",
    ),
    code("S0107", "value not accepted", "The setting does not take this value.", "The text says why."),
    code(
        "S0108",
        "unknown field type",
        "A field of a typed message has a type that does not exist.",
        "Types are string, integer, number, boolean, datetime, object, list, any and secret, each with ? when optional.",
    ),
    code(
        "S0110",
        "a referenced file cannot be read",
        "A value refers to a file by ${file:path}, and the file is not there, may not be read, is no UTF-8 text or is larger than 1 MiB.",
        "The path is relative to the file that holds the reference.",
    ),
    code(
        "S0111",
        "malformed reference",
        "A value has ${…} that is neither ${env:NAME} nor ${file:path}.",
        "Write $${ where the text itself has ${.",
    ),
    code(
        "S0112",
        "an override with several productions",
        "A variable such as SEPTET__STORE__PATH is set while several productions run in one process; it could only mean one of them.",
        "Unset it, and use ${env:NAME} in each production file.",
    ),
    code(
        "S0113",
        "a variable overrides nothing",
        "A variable beginning SEPTET__ names no setting of [store], [admin] or [log].",
        "Only these sections are overridden from the environment.",
    ),
    code(
        "S0201",
        "unknown item",
        "Something is sent to an item that does not exist or is a service.",
        "Name a process or an operation.",
    ),
    code(
        "S0202",
        "unknown message type",
        "A message type is used that is not declared.",
        "Declare it as [messages.NAME].",
    ),
    code(
        "S0203",
        "unknown transform",
        "A transform is used that is not declared.",
        "Declare it as [transforms.NAME].",
    ),
    code(
        "S0204",
        "unknown OAuth client",
        "An OAuth client is used that is not declared.",
        "Declare it as [oauth.NAME].",
    ),
    code(
        "S0205",
        "unknown item type",
        "There is no service, process or operation of this type; types belong to one of the three.",
        "See septet doc for all types.",
    ),
    code(
        "S0207",
        "illegal name",
        "An item's name begins with a letter and has letters, digits, _ and -; the types Alert, Json and Text are the engine's own.",
        "Rename it.",
    ),
    code(
        "S0208",
        "whose reply?",
        "A service that waits for a reply has several targets.",
        "Say whose reply is the answer: reply_from = \"ITEM\".",
    ),
    code(
        "S0209",
        "reply from elsewhere",
        "reply_from names an item that is not among the targets.",
        "Name one of the targets.",
    ),
    code(
        "S0210",
        "targets",
        "A service that brings messages in has no targets, so that they would go nowhere; or one that brings none in has targets.",
        "Set targets = [\"ITEM\"].",
    ),
    code(
        "S0211",
        "calls in a circle",
        "Items call each other in a circle; each would wait for the other.",
        "Replace one of the calls by send.",
    ),
    code(
        "S0212",
        "address taken",
        "Two listeners want the same address and port. HTTP services may share one where their paths differ. A warning where one of them is disabled.",
        "Choose another port or path.",
    ),
    code(
        "S0213",
        "bad HL7 path",
        "A path is no HL7 path.",
        "Paths are like PID-3.1, OBX[2]-5, PID-3[2].4.1; all positions count from 1.",
    ),
    code(
        "S0214",
        "bad reply code",
        "reply_actions has a code that this kind of operation never sees, or one code twice.",
        "MLLP and hl7.http see AA, AE, AR, CA, CE, CR, none, fault; HTTP sees 404, 4xx, fault; * is all others.",
    ),
    code("S0215", "unlimited pool", "Only a process can have pool_size = \"unlimited\".", "Give a number."),
    code(
        "S0216",
        "undeclared field",
        "A transform sets a field that its message type does not declare.",
        "Declare or correct it.",
    ),
    code("S0217", "target twice", "An item is named twice among the targets.", "Remove one."),
    code(
        "S0301",
        "script error",
        "A script is no JavaScript. Expressions stand in if, while, with, from, case, reply, throw, foreach, assign and { expr }; statements in code.",
        "Correct it at the place named; there is no await, and no I/O.",
    ),
    code("S0312", "empty transform", "A transform has neither set nor code.", "Say what it sets."),
    code(
        "S0320",
        "a rule that cannot be used",
        "A rule of a router has no condition, an empty list of values, the same target twice, or a reply_from that it does not send to.",
        "Correct the rule; when = {} always matches.",
    ),
    code(
        "S0330",
        "a step that cannot be used",
        "A step of a flow is a table with one verb and the keys of that verb.",
        "See septet doc flow for the verbs and their keys.",
    ),
    code(
        "S0331",
        "a URL that cannot be used",
        "The URL of an operation must be http or https with a host, without user name, password or fragment, and its host cannot come from the message.",
        "Write it as https://host/path; credentials go into headers or an OAuth client.",
    ),
    code(
        "S0332",
        "a token or secret without TLS",
        "An OAuth token, a password or a secret would travel to another machine over plain http or plain SMTP.",
        "Use https, or starttls or tls for mail; or say allow_plain_http (allow_plain) = true where the network is trusted.",
    ),
    code(
        "S0333",
        "TLS settings that do not fit together",
        "cert and key belong together, server_name needs ca, and a pin is sha256: with 64 hex digits.",
        "Complete the tls table.",
    ),
    code(
        "S0334",
        "no message is mapped",
        "A rest operation sends only messages whose type has an entry in its requests.",
        "Add [operations.NAME.requests.TYPE].",
    ),
    code(
        "S0335",
        "a request that cannot be made",
        "The method is unknown, or method, body, message type and token placement exclude each other.",
        "See the text; placement = \"header\" goes with every request.",
    ),
    code(
        "S0336",
        "a header that cannot be sent",
        "The name is no name of an HTTP header, or the header is set by the engine.",
        "Correct or drop it.",
    ),
    code(
        "S0337",
        "a template that no message fills",
        "A {name} is not closed, or names no field of the message type or no HL7 path.",
        "Correct the name; {{ and }} stand for the braces themselves.",
    ),
    code(
        "S0338",
        "a create that may happen twice",
        "A FHIR create without if_none_exist makes a second resource when it is sent again, for example after a lost reply.",
        "Give if_none_exist = \"identifier=…\", or send an update with a condition.",
    ),
    code(
        "S0341",
        "a path that cannot be served",
        "The path of an HTTP service begins with / and has no {, ?, # or dots in it.",
        "Write it as /name or /name/name.",
    ),
    code(
        "S0342",
        "a method that is not served",
        "An HTTP service serves GET, POST, PUT, PATCH and DELETE.",
        "Name one or more of them in capitals.",
    ),
    code(
        "S0343",
        "a limit of zero",
        "With this limit no request could ever be taken.",
        "Write a larger one.",
    ),
    code(
        "S0351",
        "not a template",
        "Braces in a template do not pair, or hold no name.",
        "Write {name}; {{ and }} stand for the braces themselves.",
    ),
    code(
        "S0352",
        "no file name",
        "The path of a file operation ends where its file name should be.",
        "End it in a name, for example {id}.hl7.",
    ),
    code(
        "S0353",
        "one name for all files",
        "The path of a file operation is the same for every message: all but the first get -1, -2 … in their name.",
        "Put {id} into the name.",
    ),
    code(
        "S0354",
        "any acknowledgement counts",
        "With match_ack = \"any\" a late acknowledgement is credited to the wrong message.",
        "Leave it at \"control_id\" unless the peer sends no MSA-2.",
    ),
    code(
        "S0355",
        "unknown charset",
        "The charset is none that is known here.",
        "Use \"auto\" or a name of HL7 Table 0211, for example \"8859/1\" or \"UNICODE UTF-8\".",
    ),
    code(
        "S0356",
        "must be more than zero",
        "With zero of it the service could take nothing.",
        "Give more, or leave it out.",
    ),
    code(
        "S0357",
        "no mail address",
        "An address of a mail is written name@example.org or Name <name@example.org>, one address an entry.",
        "Correct it.",
    ),
    code(
        "S0358",
        "a sign-in that cannot be",
        "A mail operation cannot greet or sign in as it should: plain and login need a username and a password, xoauth2 an OAuth client, and hello is a host name or an address in brackets.",
        "Complete it, or say auth = \"none\".",
    ),
    code(
        "S0401",
        "unreachable item",
        "Nothing sends to this process or operation.",
        "Send to it, or remove it.",
    ),
    code(
        "S0402",
        "disabled item",
        "The item does not run; its queue takes messages and waits.",
        "Set enabled = true when it should.",
    ),
    code(
        "S0403",
        "a waiting process with one place",
        "A process that waits (a delay, a call without timeout) has pool_size = 1: while one message waits, all behind it do.",
        "Raise pool_size; use order_by where order matters.",
    ),
    code(
        "S0404",
        "a pool smaller than its callee's",
        "A process has a smaller pool than an item it calls, which can then never be fully used.",
        "Raise the pool of the caller.",
    ),
    code(
        "S0405",
        "a required field is never set",
        "A transform without code does not set a field that its message type requires: every message would fail.",
        "Set it, or make it optional with ?.",
    ),
    code(
        "S0501",
        "an OAuth setting is missing",
        "The chosen grant or client authentication needs a setting that is not there.",
        "Add it; see septet doc oauth.",
    ),
    code(
        "S0502",
        "an OAuth setting cannot be",
        "A setting of an OAuth client cannot be used.",
        "The text says why.",
    ),
    code(
        "S0504",
        "authorization server without clients",
        "An `oauth.server` service gives tokens to its clients, and it has none.",
        "Add [services.NAME.clients.ID] with a secret.",
    ),
    code(
        "S0601",
        "a secret in clear text",
        "A secret stands in the production file itself, where it is read by everybody who reads the file and its history.",
        "Write ${env:NAME} or ${file:path}.",
    ),
    code(
        "S0602",
        "an open admin API",
        "The admin API listens on more than this machine and has no accounts.",
        "Add [admin.users.NAME], [admin.tokens.NAME] or [admin.auth], or listen on 127.0.0.1.",
    ),
    code(
        "S0603",
        "an admin API without TLS",
        "The admin API listens on more than this machine, and passwords and patient data would travel in clear text.",
        "Add tls = { cert, key }, or behind_proxy = true where a proxy in front ends TLS.",
    ),
    code(
        "S0604",
        "not available yet",
        "This part is not in this version.",
        "The text names the alternative.",
    ),
    code(
        "S0605",
        "nothing is purged",
        "Neither retention nor max_size is set: the store grows until the disk is full.",
        "Set retention = \"30d\" or max_size = \"100GiB\".",
    ),
    code(
        "S0606",
        "bad store key",
        "The store's key is no 256-bit key.",
        "Make one with: openssl rand -hex 32.",
    ),
    code(
        "S0607",
        "encrypted bodies without a key",
        "encrypt_bodies protects nothing while the key lies beside the store.",
        "Set store.key from outside, for example ${file:/etc/septet/store.key}.",
    ),
    code(
        "S0609",
        "bad password or token hash",
        "An account needs the hash of a password or token, not the password or token.",
        "septet hash-password makes the hash of a password; sha256sum that of a token.",
    ),
    code(
        "S0610",
        "hosts without accounts",
        "admin.hosts is used only where there are accounts.",
        "Remove it or add accounts.",
    ),
    code(
        "S0611",
        "one store for two",
        "Two productions of one process name the same store; a store belongs to one production.",
        "Give each its own path.",
    ),
    code(
        "S0620",
        "tokens for anybody",
        "The admin API accepts bearer tokens of an issuer without looking at their audience: a token that was made for another service opens it, too.",
        "Set admin.auth.audience to what tokens for this engine name in aud.",
    ),
    code(
        "S0621",
        "a certificate that cannot be used",
        "A file of a tls table holds no certificate or key, the certificate has expired or is not valid yet, or the key belongs to another certificate: every peer would refuse it.",
        "Renew the certificate, or name the right file. Files that change while the engine runs are read again.",
    ),
    code(
        "S0622",
        "a certificate about to expire",
        "The certificate expires within thirty days.",
        "Renew it; the file is read again when it changes.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_well_formed_and_in_order() {
        for pair in CODES.windows(2) {
            assert!(pair[0].code < pair[1].code, "{} comes before {}", pair[0].code, pair[1].code);
        }
        for code in CODES {
            let digits = code.code.strip_prefix('S').unwrap();
            assert!(digits.len() == 4 && digits.chars().all(|c| c.is_ascii_digit()), "{}", code.code);
            assert!(!code.title.is_empty() && code.explanation.ends_with('.') && code.fix.ends_with('.'));
        }
        assert_eq!(find("s0102").unwrap().title, "unknown key");
    }
}
