//! Sources whose place cannot be: no namespace, two of them, or one where a span cannot be.

use super::refused::refused;
use super::*;

#[test]
fn places() {
    let kind = |kind: &str, name: &str| {
        format!("[[source]]\nkind = \"{kind}\"\ninterface = \"{name}\"\n{TARGET}")
    };
    refused(
        &kind("tap", "eth0@shop"),
        3,
        "source.interface",
        "`shop` is not a network namespace",
        "/run/netns/NAME, or pid:N",
    );
    for interface in ["default-route", "eth0@/run/netns/shop"] {
        refused(
            &kind("span", interface),
            3,
            "source.interface",
            "a span ",
            "kind = \"tap\"",
        );
    }
    let two = format!(
        "[[source]]\nkind = \"tap\"\ninterface = \"eth0@pid:7\"\nnamespace = \"pid:8\"\n{TARGET}"
    );
    refused(
        &two,
        4,
        "source.namespace",
        "names another namespace",
        "one of the two",
    );
}
