//! The status socket: a UNIX socket that answers each connection with the status as JSON.
//!
//! Reachable by root alone. A path that a dead xtee left is taken over; one that a living xtee answers on
//! is refused. The socket is opened before anything is attached, so that a refusal costs nothing.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{bail, Context as _};

use crate::telemetry::observer::Observer;
use crate::telemetry::status::Status;

/// Largest answer that a client takes.
const LARGEST: u64 = 16 << 20;

/// An opened status socket that does not answer yet; dropping it removes the socket.
#[derive(Debug)]
pub struct Door {
    path: PathBuf,
    listener: UnixListener,
    /// Device and inode of what was made at `path`: only that is removed.
    identity: Option<(u64, u64)>,
}

impl Door {
    /// Listens on `path`; its folder is made if it is missing.
    ///
    /// # Errors
    /// The path cannot be written, or a living xtee answers there.
    pub fn open(path: &Path) -> anyhow::Result<Door> {
        let listener = listen(path)?;
        listener.set_nonblocking(true)?;
        Ok(Door {
            path: path.to_owned(),
            listener,
            identity: identity(path),
        })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if self.identity.is_some() && self.identity == identity(&self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// A running server; dropping it ends the thread and removes the socket.
#[derive(Debug)]
pub struct Server {
    door: Arc<Door>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers on an opened socket from now on.
    ///
    /// # Errors
    /// The thread could not be made.
    pub fn start(door: Door, observer: Arc<Observer>) -> anyhow::Result<Server> {
        let door = Arc::new(door);
        let ended = Arc::new(AtomicBool::new(false));
        let (seen, opened) = (ended.clone(), door.clone());
        let thread = std::thread::Builder::new()
            .name("xtee-status".to_owned())
            .spawn(move || {
                while !seen.load(Ordering::Acquire) {
                    match opened.listener.accept() {
                        // A client that goes away is its own affair.
                        Ok((stream, _)) => drop(answer(stream, &observer)),
                        Err(_) => std::thread::sleep(Duration::from_millis(20)),
                    }
                }
            })?;
        Ok(Server {
            door,
            ended,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.door.path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
    }
    if UnixStream::connect(path).is_ok() {
        bail!(
            "{} belongs to a running xtee; give this one another --socket",
            path.display()
        );
    }
    if let Ok(found) = std::fs::symlink_metadata(path) {
        use std::os::unix::fs::FileTypeExt as _;
        if !found.file_type().is_socket() {
            bail!(
                "{} exists and is not a socket; give another --socket",
                path.display()
            );
        }
        std::fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn answer(mut stream: UnixStream, observer: &Observer) -> anyhow::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(Duration::from_secs(1)))?;
    let json = serde_json::to_vec(&observer.status()?)?;
    stream.write_all(&json)?;
    Ok(())
}

/// The status of the xtee that listens on `path`.
///
/// # Errors
/// Nobody answers there, or not with a status.
pub fn ask(path: &Path) -> anyhow::Result<Status> {
    let stream = UnixStream::connect(path).with_context(|| {
        format!(
            "no xtee answers on {} (is one running? --socket names another)",
            path.display()
        )
    })?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut json = Vec::new();
    stream.take(LARGEST).read_to_end(&mut json)?;
    serde_json::from_slice(&json)
        .with_context(|| format!("{} did not answer with a status", path.display()))
}
