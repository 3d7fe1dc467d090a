//! Which module may name which, read from the source text: the data plane never imports control,
//! `unsafe` and the two bindings stay where they belong, and files stay small.
//!
//! Tests inside src may import what they like.

use std::fs;
use std::path::{Path, PathBuf};

const DATA: [&str; 7] = [
    "packet", "mirror", "loss", "source", "worker", "transmit", "xsk",
];
const CONTROL: [&str; 6] = ["cli", "config", "host", "control", "telemetry", "bpf"];
/// Pure: bytes in, decisions and bytes out.
const PURE: [&str; 3] = ["packet", "mirror", "loss"];
const MACHINERY: [&str; 4] = ["source", "worker", "transmit", "xsk"];
const MAY_BE_UNSAFE: [&str; 5] = ["xsk", "bpf", "source", "transmit", "host"];
const MAX_LINES: usize = 600;

/// What is wrong with one file. `file` is its path below src.
fn complaints(file: &Path, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let lines = text.lines().count();
    if lines > MAX_LINES {
        complaints.push(format!("{lines} lines, at most {MAX_LINES}"));
    }
    let module = module_of(file);
    for (number, line) in code_lines(file, text) {
        let mut complain = |what: String| complaints.push(format!("line {number}: {what}"));
        for imported in imports(&line) {
            let forbidden = DATA.contains(&module) && CONTROL.contains(&imported.as_str())
                || PURE.contains(&module) && MACHINERY.contains(&imported.as_str());
            if forbidden {
                complain(format!("{module} imports {imported}"));
            }
        }
        if has_word(&line, "unsafe") && !MAY_BE_UNSAFE.contains(&module) {
            complain("unsafe".to_owned());
        }
        if has_word(&line, "xsk_rs") && module != "xsk" {
            complain("xsk_rs outside of xsk".to_owned());
        }
        if has_word(&line, "libbpf_rs") && module != "bpf" {
            complain("libbpf_rs outside of bpf".to_owned());
        }
        if has_word(&line, "libbpf_sys") && !["bpf", "host", "xsk"].contains(&module) {
            complain("libbpf_sys outside of bpf, host and xsk".to_owned());
        }
    }
    complaints
}

/// The first folder below src, or the file's own name.
fn module_of(file: &Path) -> &str {
    let first = file
        .components()
        .next()
        .and_then(|part| part.as_os_str().to_str())
        .unwrap_or("");
    first.trim_end_matches(".rs")
}

/// The lines that are code of the product, numbered from 1: without comments, strings and tests.
fn code_lines(file: &Path, text: &str) -> Vec<(usize, String)> {
    if is_test_file(file) {
        return Vec::new();
    }
    let mut code = Vec::new();
    let mut skipped_until: Option<String> = None;
    let mut test_follows = false;
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(end) = &skipped_until {
            if line.trim_end() == end {
                skipped_until = None;
            }
            continue;
        }
        let trimmed = line.trim_start();
        if trimmed.starts_with("#[cfg(test)]") {
            test_follows = true;
            continue;
        }
        if test_follows && trimmed.starts_with("#[") {
            continue;
        }
        if std::mem::take(&mut test_follows) {
            // rustfmt closes an item with a brace that is indented like its first line.
            if trimmed.ends_with('{') {
                let indent = &line[..line.len() - trimmed.len()];
                skipped_until = Some(format!("{indent}}}"));
            }
            continue;
        }
        code.push((number, without_comments_and_strings(line)));
    }
    code
}

fn is_test_file(file: &Path) -> bool {
    file.components().any(|part| {
        let name = part
            .as_os_str()
            .to_str()
            .unwrap_or("")
            .trim_end_matches(".rs");
        name == "tests" || name == "testing" || name.ends_with("_tests")
    })
}

/// Strings become empty and what follows `//` goes. Blind for strings of several lines, which is the
/// strict side: their text counts as code.
fn without_comments_and_strings(line: &str) -> String {
    let mut code = String::new();
    let mut characters = line.chars().peekable();
    let mut in_string = false;
    while let Some(character) = characters.next() {
        match character {
            '\\' if in_string => {
                characters.next();
            }
            '"' => {
                // '"' is a character, not the start of a string.
                if code.ends_with('\'') && characters.peek() == Some(&'\'') {
                    continue;
                }
                in_string = !in_string;
            }
            '/' if !in_string && characters.peek() == Some(&'/') => break,
            _ if !in_string => code.push(character),
            _ => {}
        }
    }
    code
}

fn is_identifier(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|character| !is_identifier(character))
        .any(|part| part == word)
}

/// The top-level modules that a line names by `crate::…` or `crate::{…, …}`.
fn imports(line: &str) -> Vec<String> {
    let mut imports = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        if line[..at].chars().next_back().is_some_and(is_identifier) {
            continue;
        }
        let rest = &line[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => imports.push(identifier(rest)),
            Some(group) => imports.extend(group_members(group)),
        }
    }
    imports
}

fn identifier(text: &str) -> String {
    text.chars()
        .take_while(|&character| is_identifier(character))
        .collect()
}

/// The members of `{a::b, c::{d, e}}`, without what is nested in them.
fn group_members(group: &str) -> Vec<String> {
    let mut members = Vec::new();
    let mut depth = 0;
    let mut start = true;
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => start = true,
            _ if start && depth == 0 && is_identifier(character) => {
                members.push(identifier(&group[at..]));
                start = false;
            }
            _ => {}
        }
    }
    members
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let path = entry.expect("directory entry").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Joins what rustfmt breaks: a `use crate::{` that goes on for lines is one line to the checks. Empty
/// lines take the place of the others, so that numbers stay right.
fn with_joined_imports(text: &str) -> String {
    let mut joined = String::new();
    let mut swallowed = 0;
    for line in text.lines() {
        joined.push_str(line);
        let begins = line.trim_start().contains("use crate::{");
        if (begins || swallowed > 0) && !line.contains(';') {
            swallowed += 1;
        } else {
            joined.push_str(&"\n".repeat(swallowed + 1));
            swallowed = 0;
        }
    }
    joined
}

#[test]
fn modules_keep_to_their_layer() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    files(&source, &mut found);
    assert!(found.len() > 30, "src was read: {}", found.len());
    let mut all = Vec::new();
    for path in found {
        let text = fs::read_to_string(&path).expect("source text");
        let below = path.strip_prefix(&source).expect("below src");
        for complaint in complaints(below, &with_joined_imports(&text)) {
            all.push(format!("src/{}: {complaint}", below.display()));
        }
    }
    assert!(all.is_empty(), "\n{}", all.join("\n"));
}

fn of(file: &str, text: &str) -> Vec<String> {
    complaints(Path::new(file), &with_joined_imports(text))
}

#[test]
fn bad_lines_are_found() {
    for (file, line) in [
        ("packet/mod.rs", "use crate::config::Plan;"),
        (
            "mirror/path.rs",
            "use crate::{packet::Direction, host::route};",
        ),
        (
            "mirror/path.rs",
            "use crate::{\n    packet::{a, b},\n    bpf::skel,\n};",
        ),
        ("worker/tap.rs", "    crate::telemetry::count(1);"),
        ("source/ring.rs", "use super::x; use crate::bpf;"),
        ("transmit/udp.rs", "pub(in crate::control) fn f() {}"),
        ("xsk/port.rs", "use crate::cli::args;"),
        ("packet/mod.rs", "use crate::xsk::Umem;"),
        ("mirror/rules.rs", "    let x = unsafe { y() };"),
        ("control/run.rs", "unsafe fn f() {}"),
        ("worker/span.rs", "use xsk_rs::FrameDesc;"),
        ("host/link.rs", "use libbpf_rs::MapHandle;"),
        ("control/run.rs", "    libbpf_sys::bpf_link_create();"),
        ("cli/mod.rs", "let a = '\"'; unsafe { b() } // '\"'"),
        ("lib.rs", "#[cfg(test)]\nmod tests;\nuse xsk_rs::Umem;"),
        (
            "config/a.rs",
            "#[cfg(test)]\nmod tests {\n    fn a() {}\n}\nunsafe fn f() {}",
        ),
    ] {
        assert_eq!(
            of(file, line).len(),
            1,
            "{file}: {line}: {:?}",
            of(file, line)
        );
    }
    let long = "\n".repeat(MAX_LINES + 1);
    assert_eq!(of("control/mod.rs", &long).len(), 1);
}

#[test]
fn good_lines_are_let_be() {
    for (file, line) in [
        ("worker/tap.rs", "use crate::packet::Packets;"),
        ("worker/tap.rs", "// never crate::control, never unsafe"),
        ("worker/tap.rs", "let a = \"unsafe crate::host\";"),
        ("control/run.rs", "use crate::{bpf::tap::Tap, host::link};"),
        ("bpf/tap.rs", "use libbpf_rs::Object; unsafe { x() }"),
        ("host/bpf_syscall.rs", "libbpf_sys::BPF_XDP"),
        ("xsk/umem.rs", "use xsk_rs::Umem;"),
        ("packet/mod.rs", "#![forbid(unsafe_code)]"),
        (
            "source/ring.rs",
            "#[cfg(test)]\nmod tests {\n    use crate::bpf::skel::Record;\n}",
        ),
        ("mirror/tables_tests.rs", "use crate::config::Plan;"),
        ("packet/segment/tests/special.rs", "unsafe { x() }"),
        ("worker/tap.rs", "use other_crate::config;"),
    ] {
        assert_eq!(of(file, line), Vec::<String>::new(), "{file}: {line}");
    }
}
