#!/usr/bin/env bash
# Installs what building, linting, testing and showing xtee needs, and nothing that is there already.
#
#   tests/install.sh [build] [lint] [run]
#
# Called by the Makefile before each target. With nothing missing it takes some milliseconds and
# prints nothing. It changes no apt configuration: the backports archive that Suricata comes from is
# added for the length of one apt call, by a temporary sources directory.
set -euo pipefail

# package | how a system without dpkg (or with an own build) shows that it has it
packages_build='
ca-certificates  file:/etc/ssl/certs/ca-certificates.crt
clang            command:clang
gcc              command:cc
libc6-dev        file:/usr/include/stdio.h
libclang-dev     package-only
libelf-dev       pkg-config:libelf
linux-libc-dev   file:/usr/include/linux/bpf.h
llvm             command:llvm-strip
m4               command:m4
make             command:make
binutils         command:ld
pkg-config       command:pkg-config
zlib1g-dev       pkg-config:zlib
'
packages_lint='
clang-format     command:clang-format
python3          command:python3
shellcheck       command:shellcheck
'
packages_run='
bind9-dnsutils   command:dig
curl             command:curl
dnsmasq-base     command:dnsmasq
ethtool          command:ethtool
iperf3           command:iperf3
iproute2         command:tc
iputils-ping     command:ping
jq               command:jq
kmod             command:modprobe
nftables         command:nft
procps           command:sysctl
python3          command:python3
suricata         command:suricata
tcpdump          command:tcpdump
tshark           command:tshark
util-linux       command:unshare
'

started=$SECONDS
step() { printf '[%3ds] install: %s\n' "$((SECONDS - started))" "$*"; }
fail() {
	printf 'install: error: %s\n' "$1" >&2
	shift
	[ "$#" -eq 0 ] || printf '%s\n' "$@" | sed 's/^/  /' >&2
	exit 1
}

# Sets `missing` to the packages of the given lists that this machine lacks. One dpkg-query for all.
find_missing() {
	local table="$1" installed package probe
	missing=()
	installed=' '
	if command -v dpkg-query >/dev/null; then
		# shellcheck disable=SC2046 # one argument per package is what is wanted
		installed=" $(dpkg-query -W -f '${db:Status-Status}=${binary:Package} ' \
			$(awk 'NF { print $1 }' <<<"$table") 2>/dev/null || true)"
	fi
	while read -r package probe; do
		[ -n "$package" ] || continue
		case "$installed" in *" installed=$package "* | *" installed=$package:"*) continue ;; esac
		case "$probe" in
		command:*) PATH="$PATH:/usr/sbin:/sbin" command -v "${probe#command:}" >/dev/null && continue ;;
		file:*) [ -e "${probe#file:}" ] && continue ;;
		pkg-config:*) pkg-config --exists "${probe#pkg-config:}" 2>/dev/null && continue ;;
		esac
		missing+=("$package")
	done < <(sort -u <<<"$table")
}

# The Debian archive as apt itself understands this machine's sources (.list, .sources, mirrors,
# disabled entries): the address that apt would ask for this release's main index. Nothing is fetched.
archive_of_release() {
	apt-get update --print-uris 2>/dev/null |
		sed -n "s#^'\([^']*\)/dists/$1/\(In\)\{0,1\}Release' .*#\1#p" | head -n 1
}

require_space() {
	local directory="$1" need_mib="$2" free_kib
	free_kib=$(df -Pk "$directory" | awk 'NR == 2 { print $4 }')
	[ "$((free_kib / 1024))" -ge "$need_mib" ] ||
		fail "$directory has $((free_kib / 1024)) MiB free, $need_mib MiB are needed" \
			"make room there and run it again"
}

# apt-get with its output in the log and a line for every fifth of the work.
apt_with_progress() {
	local shown=-20 phase='' kind percent rest
	"$@" -o APT::Status-Fd=3 3>&1 >>"$log" 2>&1 </dev/null | while IFS=: read -r kind _ percent rest; do
		percent=${percent%%.*}
		case "$kind" in dlstatus) kind=downloading ;; pmstatus) kind='unpacking and configuring' ;; *) continue ;; esac
		[ "$kind" = "$phase" ] || { phase=$kind shown=-20; }
		[ "$percent" -ge $((shown + 20)) ] || continue
		shown=$percent
		step "$kind, $percent %"
	done
}

apt_failed() {
	fail "$1" "the end of $log:" "$(tail -n 8 "$log" | sed 's/^/  /')"
}

clean_up() {
	[ -z "$own_policy" ] || rm -f /usr/sbin/policy-rc.d
	[ -z "$scratch" ] || rm -rf "$scratch"
}

# Package scripts start daemons unless policy-rc.d says no: Suricata would begin to listen on eth0.
forbid_service_starts() {
	[ -e /usr/sbin/policy-rc.d ] && return
	own_policy=yes
	printf '#!/bin/sh\n# temporary, made by the installation of xtee'"'"'s tools\nexit 101\n' >/usr/sbin/policy-rc.d
	chmod 755 /usr/sbin/policy-rc.d
}

# Adds the release's backports to a copy of the sources: sets `apt_sources` to the options for apt.
add_backports() {
	local archive keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	archive=$(archive_of_release "$codename")
	[ -n "$archive" ] || return 1
	mkdir -p "$scratch/sources"
	find /etc/apt/sources.list.d -maxdepth 1 \( -name '*.list' -o -name '*.sources' \) \
		-exec ln -s -t "$scratch/sources" {} +
	{
		printf 'Types: deb\nURIs: %s\nSuites: %s-backports\nComponents: main\n' "$archive" "$codename"
		[ ! -e "$keyring" ] || printf 'Signed-By: %s\n' "$keyring"
	} >"$scratch/sources/xtee-backports.sources"
	apt_sources=(-o "Dir::Etc::sourceparts=$scratch/sources")
	# apt reads the directory as the user _apt does not: only root's apt-get opens it.
	chmod -R go+rX "$scratch"
}

refresh_lists() {
	apt-get "${apt_sources[@]}" update -o APT::Update::Error-Mode=any >>"$log" 2>&1 </dev/null
}

missing=() apt_sources=() own_policy='' scratch=''
lists=''
for group in "${@:-build}"; do
	case "$group" in
	build) lists+=$packages_build ;;
	lint) lists+=$packages_lint ;;
	run) lists+=$packages_run ;;
	*) fail "unknown group '$group'" "use any of: build lint run" ;;
	esac
done
find_missing "$lists"
[ "${#missing[@]}" -gt 0 ] || exit 0

command -v apt-get >/dev/null || fail "this is no Debian (no apt-get), so install by hand what is missing:" \
	"${missing[*]}" "(Debian's names; tested on Debian 12)"
[ "$(id -u)" -eq 0 ] || fail "not root, and these packages are missing: ${missing[*]}" \
	"run the same make command as root, or: apt-get install --no-install-recommends ${missing[*]}"

# shellcheck source=/dev/null
codename=$(. /etc/os-release && printf %s "${VERSION_CODENAME:-}")
log=$(mktemp /tmp/xtee-install.XXXXXX.log)
scratch=$(mktemp -d)
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true

require_space /usr 2048
mkdir -p /var/cache/apt/archives
require_space /var/cache/apt/archives 1024
step "missing: ${missing[*]}"
step "apt's output goes to $log"

# Debian 12 has Suricata 7 in its backports; the release itself has an older one or, since it was
# removed in a point release, none.
from_backports=()
wants_suricata=''
case " ${missing[*]} " in *' suricata '*) wants_suricata=yes ;; esac
if [ -n "$wants_suricata" ] && [ "$codename" = bookworm ] && add_backports; then
	from_backports=(suricata)
fi
step 'fetching the package lists'
if ! refresh_lists; then
	[ "${#from_backports[@]}" -gt 0 ] || apt_failed 'apt-get update failed'
	step 'the backports archive cannot be had: falling back to the suricata of the release'
	from_backports=() apt_sources=()
	refresh_lists || apt_failed 'apt-get update failed'
fi
ordinary=()
for package in "${missing[@]}"; do
	[ "${#from_backports[@]}" -gt 0 ] && [ "$package" = suricata ] || ordinary+=("$package")
done

forbid_service_starts
if [ "${#ordinary[@]}" -gt 0 ]; then
	step "installing ${#ordinary[@]} package(s) and what they depend on"
	apt_with_progress apt-get "${apt_sources[@]}" install -y --no-install-recommends "${ordinary[@]}" ||
		apt_failed "apt-get could not install ${ordinary[*]}"
fi
if [ "${#from_backports[@]}" -gt 0 ]; then
	step "installing suricata from $codename-backports"
	apt_with_progress apt-get "${apt_sources[@]}" install -y --no-install-recommends \
		-t "$codename-backports" suricata || apt_failed "apt-get could not install suricata"
fi
if [ -n "$wants_suricata" ]; then
	# The lab starts its own Suricata; the packaged service would listen on eth0 from the next boot on.
	if command -v systemctl >/dev/null; then systemctl --quiet disable suricata >>"$log" 2>&1 || true; fi
	if command -v update-rc.d >/dev/null; then update-rc.d suricata disable >>"$log" 2>&1 || true; fi
fi

wanted=("${missing[@]}")
find_missing "$lists"
[ "${#missing[@]}" -eq 0 ] || apt_failed "still missing after the installation: ${missing[*]}"
step "installed ${#wanted[@]} package(s)"
rm -f "$log"
