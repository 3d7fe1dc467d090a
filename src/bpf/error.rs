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
    #[error("cannot attach to {interface} ({hook}): {source}")]
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

fn help(error: &libbpf_rs::Error) -> &'static str {
    match error.kind() {
        libbpf_rs::ErrorKind::PermissionDenied => {
            "run as root or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN; `xtee doctor` shows which is missing"
        }
        libbpf_rs::ErrorKind::OutOfMemory => "raise the memory limit (ulimit -l, cgroup) or lower ring_size",
        _ => "`xtee doctor` shows what this kernel lacks",
    }
}
