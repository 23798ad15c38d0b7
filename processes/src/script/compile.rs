//! From the text of a script to a function of JavaScript, and syntax errors with their place in that text.
//!
//! The text stands on lines of its own inside the function, so that lines need one subtracted and columns
//! nothing. QuickJS counts columns in bytes; we give characters.

use rquickjs::context::EvalOptions;
use rquickjs::{CatchResultExt, CaughtError, Context, Ctx, Function, Runtime};
use thiserror::Error;

use super::{Script, ScriptKind};

/// A script that is no JavaScript, and where: 1-based line and column (in characters) of its text.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text} at line {line}, column {column}")]
pub struct ScriptError {
    /// 1-based.
    pub line: usize,
    /// 1-based, in characters.
    pub column: usize,
    /// What is wrong.
    pub text: String,
}

/// Checks the syntax of a script without running it.
pub fn check_script(kind: ScriptKind, code: &str) -> Result<(), ScriptError> {
    let script = Script {
        kind,
        transform: kind == ScriptKind::Transform,
        variables: Vec::new(),
        code: code.to_owned(),
        place: String::new(),
    };
    let none = || ScriptError { line: 1, column: 1, text: "the script engine is not available".into() };
    let runtime = Runtime::new().map_err(|_| none())?;
    runtime.set_memory_limit(64 << 20);
    let context = Context::full(&runtime).map_err(|_| none())?;
    context.with(|cx| compile(&cx, &script, "check").map(drop))
}

/// The function of a script. Its parameters are those of [`parameters`].
pub(crate) fn compile<'js>(cx: &Ctx<'js>, script: &Script, name: &str) -> Result<Function<'js>, ScriptError> {
    let code = &script.code;
    if script.kind == ScriptKind::Expression && code.trim().is_empty() {
        return Err(ScriptError { line: 1, column: 1, text: "an expression is missing".into() });
    }
    if let Some(nul) = code.find('\0') {
        let (line, column) = position(code, nul);
        return Err(ScriptError { line, column, text: "a NUL character".into() });
    }
    let parameters = parameters(script).join(",");
    let (before, after) = match script.kind {
        ScriptKind::Expression => ("return (", ")"),
        ScriptKind::Statements => ("", ""),
        ScriptKind::Transform => ("", ";return target"),
    };
    let source = format!("(function({parameters}){{\"use strict\";{before}\n{code}\n{after}}})");
    let mut options = EvalOptions::default();
    options.filename = Some(name.to_owned());
    cx.eval_with_options::<Function<'js>, _>(source, options).catch(cx).map_err(|caught| match caught {
        CaughtError::Exception(exception) => {
            let stack = exception.stack().unwrap_or_default();
            let text = exception.message().unwrap_or_default();
            let (line, column) = first_frame(&stack, name).unwrap_or((2, 1));
            within(code, line, column, text)
        }
        _ => ScriptError { line: 1, column: 1, text: "this is not a script".into() },
    })
}

/// What a script's function takes, in order: what is in scope, then the variables around it. A variable
/// hidden by an inner one of the same name keeps its place under a name that no script can write.
pub(crate) fn parameters(script: &Script) -> Vec<String> {
    let mut names: Vec<String> = ["request", "response", "context", "state"].map(str::to_owned).to_vec();
    if script.transform {
        names.extend(["source", "target"].map(str::to_owned));
    }
    for (index, variable) in script.variables.iter().enumerate() {
        let hidden = script.variables.iter().skip(index + 1).any(|inner| inner == variable);
        names.push(if hidden { format!("$hidden{index}") } else { variable.clone() });
    }
    names
}

/// Whether `name` can name a variable: an identifier that means nothing else.
pub(crate) fn is_variable(name: &str) -> bool {
    const WORDS: [&str; 51] = [
        "arguments",
        "await",
        "break",
        "case",
        "catch",
        "class",
        "const",
        "continue",
        "debugger",
        "default",
        "delete",
        "do",
        "else",
        "enum",
        "eval",
        "export",
        "extends",
        "false",
        "finally",
        "for",
        "function",
        "if",
        "implements",
        "import",
        "in",
        "instanceof",
        "interface",
        "let",
        "new",
        "null",
        "package",
        "private",
        "protected",
        "public",
        "return",
        "static",
        "super",
        "switch",
        "this",
        "throw",
        "true",
        "try",
        "typeof",
        "undefined",
        "var",
        "void",
        "while",
        "with",
        "yield",
        "NaN",
        "Infinity",
    ];
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !WORDS.contains(&name)
}

/// Line and column (as QuickJS counts) of the innermost frame in the script called `name`.
pub(crate) fn first_frame(stack: &str, name: &str) -> Option<(usize, usize)> {
    stack.lines().find_map(|frame| {
        let at = frame.rfind(&format!("{name}:"))?;
        let before = frame.get(..at)?.chars().next_back();
        if !matches!(before, Some('(' | ' ')) {
            return None;
        }
        let place = frame.get(at + name.len() + 1..)?.trim_end_matches(')');
        let (line, column) = place.split_once(':')?;
        Some((line.parse().ok()?, column.parse().ok()?))
    })
}

/// The place in a script's own text of a place in its function.
pub(crate) fn in_script(code: &str, line: usize, column: usize) -> Option<(usize, usize)> {
    let line = line.checked_sub(1)?;
    let text = code.split('\n').nth(line.checked_sub(1)?)?;
    let bytes = column.saturating_sub(1).min(text.len());
    let characters = text.char_indices().take_while(|(at, _)| *at < bytes).count();
    Some((line, characters + 1))
}

fn within(code: &str, line: usize, column: usize, text: String) -> ScriptError {
    match in_script(code, line, column) {
        Some((line, column)) => ScriptError { line, column, text },
        None => {
            let (line, column) = position(code, code.trim_end().len());
            ScriptError { line, column, text: format!("something is missing or too much up to here: {text}") }
        }
    }
}

fn position(code: &str, at: usize) -> (usize, usize) {
    let before = code.get(..at).unwrap_or(code);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: ScriptKind, code: &str) -> (usize, usize) {
        let error = check_script(kind, code).unwrap_err();
        (error.line, error.column)
    }

    #[test]
    fn syntax_errors_have_line_and_column_in_characters() {
        use ScriptKind::{Expression, Statements};
        assert_eq!(check(Statements, "let x = 1;\n  let y = = 2;"), (2, 11));
        assert_eq!(check(Expression, "'äöü' + = 1"), (1, 9));
        assert_eq!(check(Expression, "request.get('MSH-9.1'"), (1, 22));
        assert_eq!(check(Expression, "a b"), (1, 3));
        assert_eq!(check(Expression, "  "), (1, 1));
        assert_eq!(check(Statements, "if (x) {"), (1, 9));
    }

    #[test]
    fn braces_are_an_object_in_an_expression_and_a_block_in_statements() {
        check_script(ScriptKind::Expression, "{ a: 1, b: 2 }").unwrap();
        check_script(ScriptKind::Statements, "{ let a = 1 }").unwrap();
        check_script(ScriptKind::Expression, "request.type // what came").unwrap();
        assert!(check_script(ScriptKind::Statements, "{ a: 1, b: 2 }").is_err());
    }

    #[test]
    fn checking_runs_nothing() {
        check_script(ScriptKind::Statements, "while (true) {}").unwrap();
    }
}
