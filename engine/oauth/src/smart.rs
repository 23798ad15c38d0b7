//! SMART App Launch scopes, version 2 (`system/Observation.rs?category=laboratory`) and 1 (`.read`, `.write`),
//! against the FHIR interaction that a request asks for. Pure: method, path and query in, yes or no out.
//!
//! Nothing is filtered behind the scope's back, so what cannot be decided from the request is refused: a scope
//! with a query grants only searches that carry the same restriction, a `patient/` scope only what names the
//! patient of the token, and operations (`$…`), bundles and paths that are no FHIR need everything.

use std::fmt;

use serde_json::{Map, Value};
use url::form_urlencoded;

/// What a scope allows: create, read, update, delete, search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interaction {
    Create,
    Read,
    Update,
    Delete,
    Search,
}

use Interaction::{Create, Delete, Read, Search, Update};

const ALL: [Interaction; 5] = [Create, Read, Update, Delete, Search];

impl Interaction {
    fn letter(self) -> char {
        match self {
            Create => 'c',
            Read => 'r',
            Update => 'u',
            Delete => 'd',
            Search => 's',
        }
    }
}

/// One interaction with one type of resource, or with all.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Need {
    /// `None` is every type.
    resource: Option<String>,
    interaction: Interaction,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let resource = self.resource.as_deref().unwrap_or("*");
        write!(f, "system/{resource}.{}", self.interaction.letter())
    }
}

/// What a request asks for, in the terms of scopes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    needs: Vec<Need>,
    /// The patient whose compartment the path names.
    patient: Option<String>,
    /// Search parameters of the URL, decoded.
    parameters: Vec<(String, String)>,
}

impl Wanted {
    /// Of a FHIR REST request: its method, its path below the FHIR base, and its query.
    pub fn of(method: &str, path: &str, query: &str) -> Wanted {
        let path = path.strip_prefix('/').unwrap_or(path);
        let segments: Vec<&str> = if path.is_empty() { Vec::new() } else { path.split('/').collect() };
        let parameters: Vec<_> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let mut wanted = Wanted { parameters, ..Wanted::default() };
        let found = wanted.interactions(method, &segments);
        let (resource, interactions) = found.unwrap_or((None, ALL.to_vec()));
        let need = |interaction| Need { resource: resource.clone(), interaction };
        wanted.needs = interactions.into_iter().map(need).collect();
        if wanted.needs.iter().any(|need| need.interaction == Search) {
            let includes = |name: &str| name.starts_with("_include") || name.starts_with("_revinclude");
            if wanted.parameters.iter().any(|(name, _)| includes(name) || name == "_query") {
                wanted.needs.extend([Read, Search].map(|interaction| Need { resource: None, interaction }));
            }
        }
        wanted
    }

    /// FHIR R4 §3.1.0. `None` is what only a scope for everything covers.
    fn interactions(
        &mut self,
        method: &str,
        segments: &[&str],
    ) -> Option<(Option<String>, Vec<Interaction>)> {
        let typed = |name: &str| is_type(name).then(|| Some(name.to_owned()));
        let found = match (method, segments) {
            // What a server can do is no data of anybody.
            ("GET", ["metadata"] | [".well-known", ..]) => (None, Vec::new()),
            ("GET", [] | ["_history"]) | ("POST", ["_search"]) => (None, vec![Search]),
            ("GET", [name] | [name, "_history"]) | ("POST", [name, "_search"]) => {
                (typed(name)?, vec![Search])
            }
            ("POST", [name]) => (typed(name)?, vec![Create]),
            // Conditional: what does not match is created.
            ("PUT", [name]) => (typed(name)?, vec![Update, Create]),
            ("PATCH", [name]) => (typed(name)?, vec![Update]),
            ("DELETE", [name]) => (typed(name)?, vec![Delete]),
            ("GET", [name, id] | [name, id, "_history"]) if is_id(id) => {
                (self.instance(name, id)?, vec![Read])
            }
            ("GET", [name, id, "_history", version]) if is_id(id) && is_id(version) => {
                (self.instance(name, id)?, vec![Read])
            }
            ("PUT" | "PATCH", [name, id]) if is_id(id) => (self.instance(name, id)?, vec![Update]),
            ("DELETE", [name, id]) if is_id(id) => (self.instance(name, id)?, vec![Delete]),
            // A search within a compartment.
            ("GET", [name, id, inner]) | ("POST", [name, id, inner, "_search"]) if is_id(id) => {
                let resource = if *inner == "*" { None } else { typed(inner)? };
                self.instance(name, id)?;
                (resource, vec![Search])
            }
            _ => return None,
        };
        Some(found)
    }

    fn instance(&mut self, name: &str, id: &str) -> Option<Option<String>> {
        if name == "Patient" {
            self.patient = Some(id.to_owned());
        }
        is_type(name).then(|| Some(name.to_owned()))
    }

    /// Whether the scopes grant all of it; the error is what they do not, as scopes that would.
    pub(crate) fn granted(&self, scopes: &[String], claims: &Map<String, Value>) -> Result<(), String> {
        let patient = claims.get("patient").and_then(Value::as_str);
        let scopes: Vec<Scope> = scopes.iter().filter_map(|scope| Scope::parse(scope)).collect();
        let granted = |need: &Need| scopes.iter().any(|scope| scope.grants(need, self, patient));
        let missing: Vec<String> =
            self.needs.iter().filter(|need| !granted(need)).map(ToString::to_string).collect();
        if missing.is_empty() { Ok(()) } else { Err(missing.join(" ")) }
    }

    /// Whether the request says itself that it is about this patient only.
    fn is_about(&self, patient: &str, need: &Need) -> bool {
        if let Some(named) = &self.patient {
            return named == patient;
        }
        let is_patient = |value: &str| value.strip_prefix("Patient/").unwrap_or(value) == patient;
        let of_patient = need.resource.as_deref() == Some("Patient");
        let names =
            |name: &str| if of_patient { name == "_id" } else { matches!(name, "patient" | "subject") };
        need.interaction == Search
            && self.parameters.iter().any(|(name, value)| names(name) && is_patient(value))
    }

    /// Whether the search carries a restriction at least as narrow as `name=allowed`.
    fn is_within(&self, name: &str, allowed: &str) -> bool {
        let fits = |value: &str| {
            allowed.split(',').any(|allowed| {
                let code = value.rsplit_once('|').map_or(value, |(_, code)| code);
                value == allowed || (!allowed.contains('|') && code == allowed)
            })
        };
        let narrow = |value: &str| !value.is_empty() && value.split(',').all(fits);
        self.parameters.iter().any(|(found, value)| found == name && narrow(value))
    }
}

/// The name of a type of resource.
fn is_type(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.len() <= 64
        && name.bytes().all(|byte| byte.is_ascii_alphabetic())
}

/// A logical id (FHIR R4 §2.24.0.1), and no step up a path.
fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && !matches!(id, "." | "..")
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
}

/// Whose data a scope is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Context {
    Patient,
    User,
    System,
}

/// One scope, understood.
struct Scope {
    context: Context,
    /// `None` is every type.
    resource: Option<String>,
    interactions: Vec<Interaction>,
    /// All of these must be among the parameters of a search.
    query: Vec<(String, String)>,
}

impl Scope {
    /// `None` is a scope about something else.
    fn parse(scope: &str) -> Option<Scope> {
        let (context, rest) = scope.split_once('/')?;
        let context = match context {
            "patient" => Context::Patient,
            "user" => Context::User,
            "system" => Context::System,
            _ => return None,
        };
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
        let (resource, permissions) = rest.split_once('.')?;
        let interactions = match permissions {
            "read" => vec![Read, Search],
            "write" => vec![Create, Update, Delete],
            "*" => ALL.to_vec(),
            letters => cruds(letters)?,
        };
        let query: Vec<_> = query
            .map(|query| form_urlencoded::parse(query.as_bytes()).into_owned().collect())
            .unwrap_or_default();
        let resource = if resource == "*" { None } else { Some(resource.to_owned()).filter(|r| is_type(r)) };
        (resource.is_some() || rest.starts_with("*.")).then_some(Scope {
            context,
            resource,
            interactions,
            query,
        })
    }

    fn grants(&self, need: &Need, wanted: &Wanted, patient: Option<&str>) -> bool {
        let covers = self.resource.is_none() || self.resource == need.resource;
        let narrow = || {
            need.interaction == Search && self.query.iter().all(|(name, value)| wanted.is_within(name, value))
        };
        let theirs = || patient.is_some_and(|patient| wanted.is_about(patient, need));
        covers
            && self.interactions.contains(&need.interaction)
            && (self.query.is_empty() || narrow())
            && (self.context != Context::Patient || theirs())
    }
}

/// Letters of `cruds`, each at most once and in this order (SMART App Launch 2, "Scopes for requesting FHIR
/// resources").
fn cruds(letters: &str) -> Option<Vec<Interaction>> {
    let mut rest = ALL.iter();
    let found: Option<Vec<_>> =
        letters.chars().map(|letter| rest.find(|known| known.letter() == letter).copied()).collect();
    found.filter(|found| !found.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn granted(scopes: &str, request: &str) -> bool {
        let (method, url) = request.split_once(' ').unwrap();
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let scopes: Vec<String> = scopes.split(' ').map(str::to_owned).collect();
        let claims = json!({ "patient": "p1" });
        Wanted::of(method, path, query).granted(&scopes, claims.as_object().unwrap()).is_ok()
    }

    fn check(scopes: &str, allowed: &[&str], refused: &[&str]) {
        for request in allowed {
            assert!(granted(scopes, request), "{scopes} should grant {request}");
        }
        for request in refused {
            assert!(!granted(scopes, request), "{scopes} should not grant {request}");
        }
    }

    #[test]
    fn each_letter_grants_its_interactions_and_no_other() {
        let requests = [
            ("c", vec!["POST /Observation"]),
            ("r", vec!["GET /Observation/1", "GET /Observation/1/_history", "GET /Observation/1/_history/2"]),
            ("u", vec!["PUT /Observation/1", "PATCH /Observation/1", "PATCH /Observation?code=x"]),
            ("d", vec!["DELETE /Observation/1", "DELETE /Observation?code=x"]),
            (
                "s",
                vec![
                    "GET /Observation",
                    "GET /Observation?code=x",
                    "POST /Observation/_search",
                    "GET /Observation/_history",
                    "GET /Patient/p1/Observation",
                    "POST /Patient/p1/Observation/_search",
                ],
            ),
        ];
        for (letter, allowed) in &requests {
            for (other, urls) in &requests {
                for url in urls {
                    for scope in [format!("system/Observation.{letter}"), format!("user/*.{letter}")] {
                        assert_eq!(granted(&scope, url), letter == other, "{scope} and {url}");
                    }
                }
            }
            assert!(allowed.iter().all(|url| granted("system/Observation.cruds", url)));
            assert!(!allowed.iter().any(|url| granted("system/Condition.cruds", url)));
        }
        check("system/Observation.cu", &["PUT /Observation?code=x"], &[]);
        check("system/Observation.u", &[], &["PUT /Observation?code=x"]);
        // Two scopes together grant what neither does alone.
        check("system/Observation.c user/Observation.u", &["PUT /Observation?code=x"], &[]);
    }

    #[test]
    fn scopes_of_version_1_mean_what_they_meant() {
        check(
            "system/Observation.read",
            &["GET /Observation/1", "GET /Observation?code=x"],
            &["POST /Observation", "PUT /Observation/1", "DELETE /Observation/1"],
        );
        check(
            "user/Observation.write",
            &["POST /Observation", "PUT /Observation/1", "DELETE /Observation/1"],
            &["GET /Observation/1", "GET /Observation"],
        );
        check("user/*.*", &["POST /", "GET /Patient/1/$everything", "GET /"], &[]);
    }

    #[test]
    fn a_scope_with_a_query_grants_only_searches_that_carry_it() {
        check(
            "system/Observation.rs?category=laboratory",
            &[
                "GET /Observation?category=laboratory",
                "GET /Observation?code=x&category=http%3A%2F%2Fhl7.example%7Claboratory",
                "GET /Observation?category=vital-signs&category=laboratory",
                "POST /Observation/_search?category=laboratory",
            ],
            &[
                "GET /Observation",
                "GET /Observation?category=vital-signs",
                "GET /Observation?category=laboratory,vital-signs",
                "GET /Observation?category=",
                "GET /Observation?category:not=laboratory",
                "GET /Observation?Category=laboratory",
                "GET /Observation/1",
                "GET /Condition?category=laboratory",
                "GET /?category=laboratory",
                "GET /Observation?category=laboratory&_include=Observation:subject",
                "GET /Observation?category=laboratory&_revinclude:iterate=Provenance:target",
            ],
        );
        check(
            "system/Observation.s?category=http://hl7.example|laboratory&status=final,amended",
            &["GET /Observation?status=final&category=http://hl7.example|laboratory"],
            &[
                "GET /Observation?status=final&category=laboratory",
                "GET /Observation?category=http://hl7.example|laboratory",
                "GET /Observation?status=final,preliminary&category=http://hl7.example|laboratory",
            ],
        );
    }

    #[test]
    fn a_patient_scope_grants_what_names_the_patient_of_the_token() {
        check(
            "patient/*.cruds",
            &[
                "GET /Patient/p1",
                "GET /Patient/p1/Observation",
                "GET /Observation?patient=p1",
                "GET /Observation?subject=Patient/p1",
                "GET /Patient?_id=p1",
            ],
            &[
                "GET /Patient/p2",
                "GET /Patient/p2/Observation?patient=p1",
                "GET /Observation?patient=p1,p2",
                "GET /Observation",
                "GET /Observation/1",
                "POST /Observation",
                "GET /Patient",
                "GET /Patient?patient=p1",
            ],
        );
        let wanted = Wanted::of("GET", "/Patient/p1", "");
        assert!(wanted.granted(&["patient/*.rs".into()], &Map::new()).is_err(), "no patient, no grant");
    }

    #[test]
    fn what_is_no_plain_interaction_needs_everything() {
        let requests = [
            "POST /",
            "POST ",
            "GET /Patient/1/$everything",
            "GET /$export",
            "POST /Patient/$match",
            "GET //Patient/1",
            "GET /Patient//1",
            "GET /Patient/..",
            "GET /Patient/%2e%2e/Observation",
            "GET /patient/1",
            "GET /Patient/1/Observation/2",
            "TRACE /Patient/1",
        ];
        for request in requests {
            assert!(granted("system/*.cruds", request), "{request}");
            assert!(!granted("system/*.crus system/Patient.cruds", request), "{request}");
        }
        check("system/Nothing.r", &["GET /metadata", "GET /.well-known/smart-configuration"], &[]);
    }

    #[test]
    fn scopes_that_are_none_grant_nothing() {
        for scope in [
            "",
            "openid",
            "system/Observation",
            "system/Observation.",
            "system/Observation.sr",
            "system/Observation.rr",
            "system/Observation.READ",
            "system/.rs",
            "system/Obs*.rs",
            "System/Observation.rs",
            "admin/Observation.rs",
            "system/*Observation.rs",
            "Observation.rs",
        ] {
            assert!(!granted(scope, "GET /Observation/1") && !granted(scope, "GET /Observation"), "{scope}");
        }
    }

    #[test]
    fn a_refusal_names_the_scope_that_is_missing() {
        let missing = |request: &str| {
            let (method, path) = request.split_once(' ').unwrap();
            Wanted::of(method, path, "").granted(&["system/Observation.rs".into()], &Map::new()).unwrap_err()
        };
        assert_eq!(missing("POST /Observation"), "system/Observation.c");
        assert_eq!(missing("GET /Patient/1"), "system/Patient.r");
        assert_eq!(missing("GET /"), "system/*.s");
    }
}
