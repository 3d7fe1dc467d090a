//! Other network namespaces: the one door through which xtee goes into them.
//!
//! Only a thread made for it enters, does one thing and ends; what it opens there belongs there. Nothing
//! that keeps a namespace alive (its file, a socket in it) may be kept: a container that goes away must go
//! away although it is mirrored. Called by control and by the gathering of facts; needs CAP_SYS_ADMIN.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use super::sys;
use crate::config::settings::Namespace;

/// Why a namespace could not be entered.
#[derive(Debug, thiserror::Error)]
#[error("cannot enter the network namespace {name}: {source}{hint}", hint = hint(source))]
pub struct NamespaceError {
    /// As users write it.
    pub name: String,
    /// What the kernel said.
    pub source: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => " (it needs CAP_SYS_ADMIN)",
        Some(libc::EINVAL) => " (it is none)",
        _ => "",
    }
}

/// Where a source's interface is.
#[derive(Debug)]
pub enum Place {
    /// In the namespace of the calling thread.
    Here,
    /// In the namespace that a file stands for, whenever it is looked for.
    Path(PathBuf),
    /// In the namespace of a process: by its descriptor, because its number may be another's later.
    Process(u32, OwnedFd),
}

impl Place {
    /// The place of a namespace; `None`: here. Whether it can be entered is not asked.
    ///
    /// # Errors
    /// There is no such process.
    pub fn of(namespace: Option<&Namespace>) -> Result<Place, NamespaceError> {
        match namespace {
            None => Ok(Place::Here),
            Some(Namespace::Path(path)) => Ok(Place::Path(path.clone())),
            Some(Namespace::Process(process)) => match sys::open_process(*process) {
                Ok(descriptor) => Ok(Place::Process(*process, descriptor)),
                Err(source) => Err(NamespaceError {
                    name: format!("pid:{process}"),
                    source,
                }),
            },
        }
    }

    /// Whether it is another namespace than ours.
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        !matches!(self, Place::Here)
    }

    /// Does `work` in the namespace and returns what it returned.
    ///
    /// # Errors
    /// The namespace is gone, or we may not enter it.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        if !self.is_elsewhere() {
            return Ok(work());
        }
        let failed = |source| NamespaceError {
            name: self.name(),
            source,
        };
        let outcome = std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("xtee-namespace".to_owned())
                .spawn_scoped(scope, || self.enter().map(|()| work()))
                .map(|thread| thread.join())
        });
        match outcome {
            Ok(Ok(done)) => done.map_err(failed),
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(error) => Err(failed(error)),
        }
    }

    /// Moves the calling thread.
    fn enter(&self) -> io::Result<()> {
        match self {
            Place::Here => Ok(()),
            Place::Path(path) => sys::enter_network_namespace(File::open(path)?.as_raw_fd()),
            Place::Process(_, descriptor) => sys::enter_network_namespace(descriptor.as_raw_fd()),
        }
    }

    fn name(&self) -> String {
        match self {
            Place::Here => "of its own".to_owned(),
            Place::Path(path) => path.display().to_string(),
            Place::Process(process, _) => format!("pid:{process}"),
        }
    }
}

/// The number of the calling thread's network namespace (the inode of its file); 0 where /proc is not
/// to be had.
#[must_use]
pub fn number() -> u64 {
    std::fs::metadata("/proc/thread-self/ns/net").map_or(0, |found| found.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_namespace_is_named() {
        for (namespace, wanted) in [
            (
                Namespace::Path("/run/netns/xtee-none".into()),
                "xtee-none: No such file",
            ),
            (Namespace::Path("/etc/hostname".into()), "/etc/hostname: "),
        ] {
            let place = Place::of(Some(&namespace)).unwrap();
            let error = place.within(|| ()).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        let error = Place::of(Some(&Namespace::Process(i32::MAX as u32))).unwrap_err();
        assert!(error.to_string().contains("pid:2147483647"), "{error}");
    }

    #[test]
    fn here_needs_no_thread() {
        let here = std::thread::current().id();
        let place = Place::of(None).unwrap();
        assert_eq!(place.within(|| std::thread::current().id()).unwrap(), here);
        assert_ne!(number(), 0);
    }
}
