//! Which programs and filters stand on an interface's hooks, ours and others'.
//!
//! Must not attach, move or remove any. Called by the doctor, and by `crate::bpf`'s clean-up through
//! it. On ingress the order is: XDP, tcx, clsact; on egress: tcx, clsact (net/core/dev.c,
//! `sch_handle_ingress`: the legacy filters run only if the tcx programs let the packet go on).

use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use netlink_packet_route::RouteNetlinkMessage;

use super::bpf_syscall as bpf;
use super::link::Link;
use super::netlink::{Netlink, NetlinkError};

/// A place where programs stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// XDP: before everything, ingress only.
    Xdp,
    /// tcx ingress.
    TcxIngress,
    /// clsact or ingress queueing discipline, ingress filters.
    ClsactIngress,
    /// tcx egress.
    TcxEgress,
    /// clsact queueing discipline, egress filters.
    ClsactEgress,
}

impl Hook {
    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Xdp => "XDP",
            Self::TcxIngress => "tcx ingress",
            Self::ClsactIngress => "clsact ingress",
            Self::TcxEgress => "tcx egress",
            Self::ClsactEgress => "clsact egress",
        }
    }

    /// The packets that pass here are coming in.
    pub fn ingress(self) -> bool {
        !matches!(self, Self::TcxEgress | Self::ClsactEgress)
    }
}

/// A program or filter on a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Where.
    pub hook: Hook,
    /// `bpf`, or the classifier's name: flower, u32, matchall, …
    pub kind: String,
    /// The program's name, if it is one and has one.
    pub name: Option<String>,
    /// The program's id (`bpftool prog show id N`).
    pub program: Option<u32>,
    /// Priority of a clsact filter: lower runs first.
    pub priority: Option<u16>,
}

impl Attached {
    /// Loaded by xtee: all its programs' names begin so.
    pub fn ours(&self) -> bool {
        self.name
            .as_deref()
            .is_some_and(|name| name.starts_with("xtee"))
    }

    /// For a message: kind, name and id.
    pub fn describe(&self) -> String {
        let mut text = match (&self.name, self.kind.as_str()) {
            (Some(name), _) if !name.is_empty() => format!("program {name:?}"),
            (_, "bpf") => "a program without a name".to_owned(),
            (_, kind) => format!("a {kind} filter"),
        };
        if let Some(id) = self.program {
            text += &format!(" (id {id})");
        }
        if let Some(priority) = self.priority {
            text += &format!(" at priority {priority}");
        }
        text
    }
}

/// All that stands on one interface, in the order in which packets meet it, by direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Programs and filters.
    pub attached: Vec<Attached>,
    /// A clsact or ingress queueing discipline is there, with or without filters.
    pub clsact: bool,
    /// Not everything could be read, and why.
    pub unread: Option<String>,
}

/// Lists what is on an interface.
pub fn on(netlink: &mut Netlink, link: &Link) -> Result<Hooks, NetlinkError> {
    let mut hooks = Hooks::default();
    for xdp in &link.xdp {
        hooks.attached.push(Attached {
            hook: Hook::Xdp,
            kind: format!("{} xdp", xdp.mode),
            name: bpf::program_name(xdp.program).ok(),
            program: Some(xdp.program),
            priority: None,
        });
    }
    for (hook, attach_type) in [
        (Hook::TcxIngress, bpf::ATTACH_TCX_INGRESS),
        (Hook::TcxEgress, bpf::ATTACH_TCX_EGRESS),
    ] {
        match bpf::query_hook(link.index, attach_type) {
            Ok(ids) => hooks.attached.extend(ids.into_iter().map(|id| Attached {
                hook,
                kind: "bpf".into(),
                name: bpf::program_name(id).ok(),
                program: Some(id),
                priority: None,
            })),
            // EINVAL: a kernel without tcx, so nothing stands there.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => hooks.unread = Some(format!("{}: {error}", hook.describe())),
        }
    }
    hooks.clsact = has_clsact(netlink, link.index)?;
    if hooks.clsact {
        for (hook, minor) in [
            (Hook::ClsactIngress, TcHandle::MIN_INGRESS),
            (Hook::ClsactEgress, TcHandle::MIN_EGRESS),
        ] {
            hooks
                .attached
                .extend(filters(netlink, link.index, hook, minor)?);
        }
    }
    hooks
        .attached
        .sort_by_key(|attached| (attached.hook, attached.priority));
    Ok(hooks)
}

fn has_clsact(netlink: &mut Netlink, interface: u32) -> Result<bool, NetlinkError> {
    let mut request = TcMessage::default();
    request.header.index = interface as i32;
    let answers = netlink.dump(
        "queueing disciplines",
        RouteNetlinkMessage::GetQueueDiscipline(request),
    )?;
    Ok(answers.iter().any(|answer| match answer {
        RouteNetlinkMessage::NewQueueDiscipline(message) => {
            message.header.index == interface as i32
                && message.attributes.iter().any(|attribute| {
                    matches!(attribute, TcAttribute::Kind(kind)
                        if kind == "clsact" || kind == "ingress")
                })
        }
        _ => false,
    }))
}

fn filters(
    netlink: &mut Netlink,
    interface: u32,
    hook: Hook,
    minor: u16,
) -> Result<Vec<Attached>, NetlinkError> {
    let mut request = TcMessage::default();
    request.header.index = interface as i32;
    request.header.parent = TcHandle {
        major: 0xffff,
        minor,
    };
    let answers = netlink.dump("filters", RouteNetlinkMessage::GetTrafficFilter(request))?;
    let found = answers.iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewTrafficFilter(message) => parse(message, hook),
        _ => None,
    });
    Ok(found.collect())
}

/// A filter of a dump. Each priority begins with a message for the chain itself, without a handle and
/// without options: those are left out.
fn parse(message: &TcMessage, hook: Hook) -> Option<Attached> {
    let mut kind = None;
    let mut options = None;
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(name) => kind = Some(name.clone()),
            TcAttribute::Options(list) => options = Some(list),
            _ => {}
        }
    }
    let options = options?;
    let mut attached = Attached {
        hook,
        kind: kind?,
        name: None,
        program: None,
        priority: Some((message.header.info >> 16) as u16),
    };
    for option in options {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => attached.name = Some(name.clone()),
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => attached.program = Some(*id),
            _ => {}
        }
    }
    Some(attached)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_bpf_filter_and_leaves_its_chain_out() {
        let mut message = TcMessage::default();
        message.header.info = 7 << 16 | 0x300;
        message.attributes = vec![TcAttribute::Kind("bpf".into())];
        assert_eq!(parse(&message, Hook::ClsactIngress), None);
        message.attributes.push(TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgName("from-container".into())),
            TcOption::Bpf(TcFilterBpfOption::ProgId(41)),
        ]));
        let found = parse(&message, Hook::ClsactIngress).unwrap();
        assert_eq!((found.priority, found.program), (Some(7), Some(41)));
        assert!(!found.ours());
        assert_eq!(
            found.describe(),
            "program \"from-container\" (id 41) at priority 7"
        );
    }

    #[test]
    fn ours_are_known_by_name() {
        let mut program = Attached {
            hook: Hook::TcxEgress,
            kind: "bpf".into(),
            name: Some("xtee_tap_egress".into()),
            program: Some(1),
            priority: None,
        };
        assert!(program.ours());
        program.name = None;
        assert!(!program.ours());
    }
}
