//! What can go wrong with a kernel program: what was asked, what the kernel said, what helps.

/// An error of loading, attaching or talking to a BPF program.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object could not be opened or the verifier refused it.
    #[error("cannot load the {program} program: {source}; {help}", help = help(source))]
    Load {
        /// Which program.
        program: &'static str,
        /// What libbpf said.
        source: libbpf_rs::Error,
    },
    /// The program could not be attached.
    #[error("cannot attach to {interface} ({hook}): {source}{help}", help = attach_help(hook, source))]
    Attach {
        /// The interface's name.
        interface: String,
        /// Which hook.
        hook: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A map operation failed.
    #[error("cannot {what}: {source}")]
    Map {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The compiled rules have more networks than a table holds.
    #[error("{count} distinct networks, at most {limit} fit")]
    TooManyNetworks {
        /// How many there are.
        count: usize,
        /// How many fit.
        limit: usize,
    },
}

impl Error {
    pub(super) fn map(what: &'static str) -> impl Fn(libbpf_rs::Error) -> Error {
        move |error| Error::Map {
            what,
            source: to_io(&error),
        }
    }

    pub(super) fn map_io(what: &'static str) -> impl Fn(std::io::Error) -> Error {
        move |source| Error::Map { what, source }
    }
}

/// libbpf-rs errors carry the errno only as a kind; keep the text.
pub(super) fn to_io(error: &libbpf_rs::Error) -> std::io::Error {
    std::io::Error::other(format!("{error:#}"))
}

/// What the driver said is not to be had by a link (its text goes to the kernel's log or nowhere), so the
/// usual causes are named.
fn attach_help(hook: &str, error: &std::io::Error) -> &'static str {
    if hook.starts_with("clsact") && error.raw_os_error() == Some(libc::EINVAL) {
        return "; mostly a filter of another kind has priority 1 (`tc filter show dev IF ingress`, egress): give it a pref above 1";
    }
    if !hook.ends_with("XDP") {
        return "";
    }
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => {
            "; another XDP program is attached (`ip -d link` names it, `ip link set IF xdp off` removes it)"
        }
        Some(libc::EOPNOTSUPP) => "; the driver has no native XDP: mode = \"generic\"",
        Some(libc::ENOSPC) => {
            "; too few queues: a veth needs as many receive queues as its peer has transmit queues (`ethtool -L`)"
        }
        Some(libc::ERANGE | libc::EINVAL) => {
            "; mostly the MTU is too large for XDP, or an offload (LRO, header split) is in the way (`ethtool -k`)"
        }
        Some(libc::EPERM | libc::EACCES) => "; needs CAP_NET_ADMIN and CAP_BPF",
        Some(libc::ENODEV) => "; the interface is gone",
        _ => "",
    }
}

fn help(error: &libbpf_rs::Error) -> &'static str {
    match error.kind() {
        libbpf_rs::ErrorKind::PermissionDenied => {
            "run as root or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN; `xtee doctor` shows which is missing"
        }
        libbpf_rs::ErrorKind::OutOfMemory => "raise the memory limit (ulimit -l, cgroup) or lower ring_size",
        _ => "`xtee doctor` shows what this kernel lacks",
    }
}
