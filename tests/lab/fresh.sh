#!/usr/bin/env bash
# Runs a make target of this repository in an empty Debian 12: proof that the two commands of the README
# need nothing but root and Rust. Started by hand, not by CI: it takes minutes and a gigabyte or two.
#
#   tests/lab/fresh.sh [--dirty] TARGET…       for instance: tests/lab/fresh.sh demo
#
# --dirty takes the files of the work tree as they are; without it HEAD is cloned.
# The system is made by debootstrap from this machine's own Debian archive. All mounts live in a mount
# namespace of their own, so that nothing stays mounted, whatever ends the script.
set -euo pipefail

repository=$(cd "$(dirname "$0")/../.." && pwd)
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0" | grep -v ^set >&2; exit 2; }
fail() { printf 'fresh: error: %s\n' "$*" >&2; exit 1; }
step() { printf '[%3ds] fresh: %s\n' "$SECONDS" "$*"; }

if [ "${1:-}" = --inside ]; then
	# The second half: in the new mount namespace. $2 is the root of the new system, then the targets.
	root=$2
	shift 2
	# `ip netns exec` makes / a slave mount, which needs / to be a mount point.
	mount --bind "$root" "$root"
	mount -t proc proc "$root/proc"
	mount --rbind /dev "$root/dev"
	mount -t sysfs sysfs "$root/sys"
	mount -t bpf bpf "$root/sys/fs/bpf"
	mount --bind /sys/fs/cgroup "$root/sys/fs/cgroup"
	mount -t tmpfs tmpfs "$root/run"
	mount -t tmpfs tmpfs "$root/tmp"
	mount --bind "$FRESH_RUSTUP" "$root/opt/rustup"
	mount -o remount,bind,ro "$root/opt/rustup"
	# The kernel's modules, so that modprobe in there loads what the kernel has.
	if [ -d /lib/modules ]; then
		mkdir -p "$root/lib/modules"
		mount --bind /lib/modules "$root/lib/modules"
	fi
	exec chroot "$root" /usr/bin/env -i HOME=/root TERM="${TERM:-dumb}" RUSTUP_HOME=/opt/rustup \
		CARGO_HOME=/opt/cargo CARGO_HTTP_CAINFO=/opt/authorities.crt PATH=/opt/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
		make -C /root/xtee "$@"
fi

dirty=''
[ "${1:-}" != --dirty ] || { dirty=yes && shift; }
[ "$#" -gt 0 ] || usage
[ "$(id -u)" -eq 0 ] || fail "not root"
command -v debootstrap >/dev/null || fail "no debootstrap: apt-get install debootstrap"
cargo_home=${CARGO_HOME:-$HOME/.cargo}
FRESH_RUSTUP=${RUSTUP_HOME:-$HOME/.rustup}
export FRESH_RUSTUP
[ -x "$cargo_home/bin/cargo" ] || fail "no $cargo_home/bin/cargo"
[ -d "$FRESH_RUSTUP" ] || fail "no $FRESH_RUSTUP"

# What apt would ask for bookworm's index: this machine's own Debian archive, in whatever format it is set.
archive=$(apt-get update --print-uris 2>/dev/null |
	sed -n "s#^'\([^']*\)/dists/bookworm/\(In\)\{0,1\}Release' .*#\1#p" | head -n 1)
[ -n "$archive" ] || fail "this machine's apt sources have no Debian 12 (bookworm)"

base=$(mktemp -d /var/tmp/xtee-fresh.XXXXXX)
root=$base/root
# --one-file-system: should something be mounted in there after all, it is left alone.
trap 'rm -rf --one-file-system -- "$base"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step "debootstrap bookworm into $root"
# `make` is what the newcomer types, so it is the one package that is there before.
debootstrap --variant=minbase --include=make bookworm "$root" "$archive" >"$base/debootstrap.log" 2>&1 ||
	fail "debootstrap: $(tail -n 5 "$base/debootstrap.log")"

step "Rust toolchain, apt settings and the repository"
mkdir -p "$root/opt/rustup" "$root/opt/cargo" "$root/root/xtee"
cp -a "$cargo_home/bin" "$root/opt/cargo/"
for setting in config.toml config registry; do
	[ ! -e "$cargo_home/$setting" ] || cp -a --reflink=auto "$cargo_home/$setting" "$root/opt/cargo/"
done
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
cp -L /etc/hosts "$root/etc/hosts"
# How this machine reaches registry and archive (certificate authorities, proxy), not what it installs.
authorities=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
[ -e "$authorities" ] || fail "no $authorities: apt-get install ca-certificates"
cp -L "$authorities" "$root/opt/authorities.crt"
for setting in /etc/apt/apt.conf.d/*; do
	! grep -qE '^[[:space:]]*Acquire' "$setting" || cp "$setting" "$root/etc/apt/apt.conf.d/"
done
if [ -n "$dirty" ]; then
	(cd "$repository" && git ls-files -z --cached --others --exclude-standard |
		tar --null --ignore-failed-read -T - -cf -) | tar -C "$root/root/xtee" -xf -
else
	git clone -q --no-hardlinks "$repository" "$root/root/xtee"
fi

status=0
for target in "$@"; do
	step "make $target"
	unshare --mount --propagation private "$repository/tests/lab/fresh.sh" --inside "$root" "$target" || status=$?
	[ "$status" -eq 0 ] || { step "make $target FAILED (exit code $status)"; break; }
	step "make $target passed"
done
exit "$status"
