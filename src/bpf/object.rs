//! Opening an object: settings before the load, maps and programs by name after it.

use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::sync::Once;

use libbpf_rs::{MapCore as _, MapHandle, Object, ObjectBuilder, OpenObject, PrintLevel};

use super::error::Error;

/// libbpf writes to standard error by itself, several lines for one failure, and also what is expected, such
/// as a clsact qdisc that exists already. What matters of it is in our error; the rest is for who asks (`XTEE_LOG=debug`).
fn log_quietly() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        libbpf_rs::set_print(Some((PrintLevel::Info, |_, text| {
            tracing::debug!("{}", text.trim_end());
        })));
    });
}

/// Opens an embedded object.
pub(super) fn open(program: &'static str, bytes: &[u8]) -> Result<OpenObject, Error> {
    log_quietly();
    ObjectBuilder::default()
        .name(program)
        .and_then(|builder| builder.open_memory(bytes))
        .map_err(|source| Error::Load { program, source })
}

/// Runs `set` on the bytes of the object's read-only settings, before the load.
pub(super) fn set_settings(
    program: &'static str,
    object: &mut OpenObject,
    set: impl FnOnce(&mut [u8]),
) -> Result<(), Error> {
    let mut settings = object
        .maps_mut()
        .find(|map| map.name().to_string_lossy().ends_with(".rodata"))
        .ok_or_else(|| missing(program, ".rodata"))?;
    let bytes = settings
        .initial_value_mut()
        .ok_or_else(|| missing(program, ".rodata"))?;
    set(bytes);
    Ok(())
}

/// Programs with these names are not loaded.
pub(super) fn leave_out(object: &mut OpenObject, names: &[&str]) {
    for mut program in object.progs_mut() {
        if names.iter().any(|name| program.name() == *name) {
            program.set_autoload(false);
        }
    }
}

/// Gives a map room for so many entries, before the load.
pub(super) fn set_entries(
    program: &'static str,
    object: &mut OpenObject,
    name: &str,
    entries: u32,
) -> Result<(), Error> {
    let mut map = object
        .maps_mut()
        .find(|map| map.name().to_string_lossy() == name)
        .ok_or_else(|| missing(program, name))?;
    map.set_max_entries(entries)
        .map_err(|source| Error::Load { program, source })
}

/// XDP programs are loaded for packets of one buffer.
pub(super) fn without_fragments(object: &mut OpenObject) {
    for mut program in object.progs_mut() {
        program.set_flags(0);
    }
}

pub(super) fn load(program: &'static str, object: OpenObject) -> Result<Object, Error> {
    object
        .load()
        .map_err(|source| Error::Load { program, source })
}

/// A handle of the map with this name (the name's end, for `.bss`).
pub(super) fn map(program: &'static str, object: &Object, name: &str) -> Result<MapHandle, Error> {
    let map = object
        .maps()
        .find(|map| {
            map.name().to_string_lossy() == name
                || (name.starts_with('.') && map.name().to_string_lossy().ends_with(name))
        })
        .ok_or_else(|| missing(program, name))?;
    MapHandle::try_from(&map).map_err(|source| Error::Load { program, source })
}

/// The raw descriptor of the program with this name; open for as long as the object lives.
pub(super) fn program_fd(
    object_name: &'static str,
    object: &Object,
    name: &str,
) -> Result<RawFd, Error> {
    object
        .progs()
        .find(|program| program.name() == name && program.autoload())
        .map(|program| program.as_fd().as_raw_fd())
        .ok_or_else(|| missing(object_name, name))
}

fn missing(program: &'static str, what: &str) -> Error {
    Error::Load {
        program,
        source: libbpf_rs::Error::from(std::io::Error::new(
            std::io::ErrorKind::NotFound,
            format!("the object has no {what}"),
        )),
    }
}
