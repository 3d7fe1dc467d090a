#!/usr/bin/env bash
# Says clearly what is wrong with the Rust toolchain, or with the room for what it builds, if anything.
set -euo pipefail

fail() {
	printf 'toolchain: error: %s\n' "$1" >&2
	shift
	for line in "$@"; do printf '  %s\n' "$line" >&2; done
	exit 1
}

command -v cargo >/dev/null || fail "cargo is not on PATH" \
	"Rust from https://rustup.rs is needed (clippy and rustfmt are part of its default profile)" \
	"under sudo, keep your environment: sudo env \"PATH=\$PATH\" \"HOME=\$HOME\" make …"

version=$(cargo --version 2>&1) || fail "cargo does not run: $version" \
	"under sudo, keep your environment: sudo env \"PATH=\$PATH\" \"HOME=\$HOME\" make …"

# What `rust-version` in Cargo.toml asks for; cargo's own message comes late, in the middle of a build.
need=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)
have=$(awk '{ print $2 }' <<<"$version")
[ "$(printf '%s\n' "$need" "$have" | sort -V | head -n 1)" = "$need" ] ||
	fail "cargo is $have, at least $need is needed" "rustup update stable"

# A first build of all profiles takes about this much; later ones find most of it there.
target=${CARGO_TARGET_DIR:-target}
if [ ! -d "$target" ]; then
	free_mib=$(($(df -Pk . | awk 'NR == 2 { print $4 }') / 1024))
	[ "$free_mib" -ge 3072 ] || fail "$PWD has $free_mib MiB free, the build needs 3072 MiB"
fi
