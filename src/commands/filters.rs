//! The API's filters as flags, `--NAME VALUE`, among the flags of a command itself.

use serde_json::{Map, Value};

use super::client::Client;

/// Reads `--NAME VALUE` and `--NAME=VALUE` pairs. `own` takes the flags of the command: given a name and how
/// to get its value, it says whether the flag was its own. Flags of the client may stand among them, too.
pub(crate) fn read(
    words: &[String],
    client: &mut Client,
    mut own: impl FnMut(&str, &mut dyn FnMut() -> Result<String, String>) -> Result<bool, String>,
) -> Result<Map<String, Value>, String> {
    let mut filters = Map::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let name = word.strip_prefix("--").ok_or_else(|| format!("{word}: filters are --NAME VALUE"))?;
        let (name, mut given) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name, None),
        };
        let mut value = || {
            let value = given.take().or_else(|| words.next().cloned());
            value.ok_or_else(|| format!("--{name} needs a value"))
        };
        if client.take(name, &mut value)? || own(name, &mut value)? {
            continue;
        }
        let value = value()?;
        let name = if name.starts_with("key.") { name.to_owned() } else { name.replace('-', "_") };
        filters.insert(name, Value::from(value));
    }
    Ok(filters)
}
