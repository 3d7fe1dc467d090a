#!/usr/bin/env python3
"""Checks that every crate that xtee is built from may be used under a permissive licence.

Evaluates each crate's SPDX expression: an OR needs one acceptable side, an AND both. A crate that is
`LGPL-2.1-only OR BSD-2-Clause` (libbpf and libxdp) is therefore taken under BSD-2-Clause.
"""

import json
import re
import subprocess
import sys

PERMISSIVE = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "Unlicense",
    "Zlib",
}


def acceptable(expression):
    """Whether an SPDX expression can be satisfied by permissive licences alone."""
    # Before SPDX expressions crates wrote "MIT/Apache-2.0" for an OR.
    text = re.sub(r"\s+WITH\s+", "_WITH_", expression.replace("/", " OR "))
    tokens = [t.replace("_WITH_", " WITH ") for t in re.findall(r"[()]|[^\s()]+", text)]

    def alternatives():
        result = conjunction()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            right = conjunction()
            result = result or right
        return result

    def conjunction():
        result = licence()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            right = licence()
            result = result and right
        return result

    def licence():
        token = tokens.pop(0)
        if token == "(":
            result = alternatives()
            if not tokens or tokens.pop(0) != ")":
                raise ValueError("a parenthesis is not closed")
            return result
        return token in PERMISSIVE

    result = alternatives()
    if tokens:
        raise ValueError(f"unexpected {tokens[0]!r}")
    return result


def main():
    host = re.search(r"^host: (.*)$", subprocess.check_output(["rustc", "-vV"], text=True), re.M).group(1)
    metadata = json.loads(
        subprocess.check_output(["cargo", "metadata", "--format-version", "1", "--filter-platform", host])
    )
    used = {node["id"] for node in metadata["resolve"]["nodes"]} - set(metadata["workspace_members"])
    refused = []
    for package in metadata["packages"]:
        if package["id"] not in used:
            continue
        expression = package["license"]
        try:
            fine = expression is not None and acceptable(expression)
        except (ValueError, IndexError):
            fine = False
        if not fine:
            refused.append(f"{package['name']} {package['version']}: {expression or 'no licence given'}")
    for line in sorted(refused):
        print(f"licences: not permissive: {line}", file=sys.stderr)
    if refused:
        sys.exit(1)
    print(f"licences: {len(used)} crates, all of them permissive")


if __name__ == "__main__":
    main()
