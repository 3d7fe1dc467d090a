//! Compiles the BPF programs, generates their skeletons and the drop reasons into OUT_DIR.
//!
//! Writes nothing outside OUT_DIR. Needs clang; says so where it is missing.

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use libbpf_cargo::SkeletonBuilder;

const HEADERS: [&str; 13] = [
    "abi.h",
    "control_maps.h",
    "copy.h",
    "count.h",
    "flow.h",
    "link.h",
    "maps.h",
    "match.h",
    "offload.h",
    "own.h",
    "parse.h",
    "sensitive.h",
    "slice.h",
];

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for name in HEADERS {
        println!("cargo:rerun-if-changed=bpf/{name}");
    }
    for program in ["tap", "steer"] {
        let source = format!("bpf/{program}.bpf.c");
        println!("cargo:rerun-if-changed={source}");
        SkeletonBuilder::new()
            .source(&source)
            .obj(out.join(format!("{program}.bpf.o")))
            .clang_args(clang_arguments())
            .build_and_generate(out.join(format!("{program}.skel.rs")))
            .unwrap_or_else(|error| {
                panic!("{source} did not compile (clang 12 or newer is needed): {error:#}")
            });
    }
    fs::write(out.join("reason.rs"), reasons(Path::new("bpf/abi.h"))).expect("OUT_DIR is writable");
}

/// UAPI headers include <asm/types.h>, which Debian keeps under the multiarch triple.
fn clang_arguments() -> Vec<OsString> {
    let mut arguments: Vec<OsString> = [
        "-O2",
        "-mcpu=v3",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unused-parameter",
        "-Wno-missing-field-initializers",
    ]
    .iter()
    .map(OsString::from)
    .collect();
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let triple = Command::new("gcc")
        .arg("-dumpmachine")
        .output()
        .ok()
        .filter(|o| o.status.success());
    let triple = match triple {
        Some(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        None => format!("{architecture}-linux-gnu"),
    };
    arguments.push(format!("-I/usr/include/{triple}").into());
    arguments
}

/// The Rust enum from the X-macro `XTEE_DROP_REASONS` in abi.h, so that there is one list.
fn reasons(header: &Path) -> String {
    let text = fs::read_to_string(header).expect("bpf/abi.h is readable");
    let list = text
        .split("#define XTEE_DROP_REASONS(X)")
        .nth(1)
        .expect("abi.h defines XTEE_DROP_REASONS");
    let mut entries = Vec::new();
    for line in list.lines() {
        let line = line.trim().trim_end_matches('\\').trim();
        if let Some(inner) = line
            .strip_prefix("X(")
            .and_then(|rest| rest.strip_suffix(')'))
        {
            let (name, text) = inner.split_once(", ").expect("X(name, \"text\")");
            entries.push((name.to_owned(), text.trim().trim_matches('"').to_owned()));
        } else if !line.is_empty() {
            break;
        }
    }
    assert!(
        !entries.is_empty(),
        "XTEE_DROP_REASONS in abi.h has no entries"
    );
    render(&entries)
}

fn render(entries: &[(String, String)]) -> String {
    let camel = |name: &str| -> String {
        name.split('_')
            .map(|part| part[..1].to_uppercase() + &part[1..])
            .collect()
    };
    let mut code = String::from(
        "/// Why a matched packet was not copied, or a copy did not leave.\n\
         #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]\n#[repr(usize)]\npub enum Reason {\n",
    );
    for (name, text) in entries {
        let _ = writeln!(code, "    /// {text}\n    {},", camel(name));
    }
    let _ = write!(code, "}}\n\nimpl Reason {{\n    /// How many reasons there are.\n    pub const COUNT: usize = {};\n", entries.len());
    let _ = write!(
        code,
        "    /// Every reason, in the order of its number.\n    pub const ALL: [Reason; {}] = [",
        entries.len()
    );
    for (name, _) in entries {
        let _ = write!(code, "Reason::{}, ", camel(name));
    }
    code.push_str("];\n    /// The name in `xtee status` and in the balance.\n    #[must_use]\n    pub const fn name(self) -> &'static str {\n        match self {\n");
    for (name, _) in entries {
        let _ = writeln!(code, "            Reason::{} => \"{name}\",", camel(name));
    }
    code.push_str("        }\n    }\n    /// The reason in words.\n    #[must_use]\n    pub const fn text(self) -> &'static str {\n        match self {\n");
    for (name, text) in entries {
        let _ = writeln!(code, "            Reason::{} => \"{text}\",", camel(name));
    }
    code.push_str("        }\n    }\n}\n");
    code
}
