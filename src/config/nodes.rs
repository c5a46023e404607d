//! Where a system's servers are: `host` and `port`, or `hosts`, or the same part of a URL.

use super::{
    finding::Origin,
    kind::{self, Kind, Wrong},
    section::{Given, Section},
    tree::Value,
    url::{Node, is_environment, merged, shown, shown_node},
};

/// What differs from one kind of system to the next.
pub(super) struct Words {
    /// Reads one host.
    pub(super) node: fn(&str) -> Result<Node, Wrong>,
    /// The default port, for people.
    pub(super) port: &'static str,
    /// Several hosts, for people.
    pub(super) several: &'static str,
}

/// What the keys of a section say.
pub(super) struct Written {
    host: Option<Given<Node>>,
    port: Option<Given<u16>>,
    hosts: Option<Given<Vec<Node>>>,
}

impl Words {
    /// Asks for the keys.
    pub(super) fn read(&self, section: &mut Section<'_, '_, '_>) -> Written {
        let host = section.unshown("host", &self.kind(), "localhost");
        let port = section.unshown("port", &kind::integer(1..=u16::MAX), self.port);
        Written { host, port, hosts: self.hosts(section) }
    }

    fn kind(&self) -> Kind<Node> {
        kind::parsed("a host", self.node, shown_node)
    }

    fn hosts(&self, section: &mut Section<'_, '_, '_>) -> Option<Given<Vec<Node>>> {
        let node = section.ask("hosts", "a list of hosts, each with its port where it is another", "- (host)")?;
        let (path, origin) = (section.path_of("hosts"), section.origin_of("hosts"));
        let items = match &node.value {
            Value::List(items) if !items.is_empty() => items,
            _ => {
                section.reader.refuse(origin, &path, "is not a list of hosts", format!("write {}", self.several));
                return None;
            }
        };
        let kind = self.kind();
        let mut nodes = Vec::new();
        for (place, item) in items.iter().enumerate() {
            nodes.extend(section.reader.one(&format!("{path}[{place}]"), item, &kind).map(|given| given.value));
        }
        (!nodes.is_empty()).then_some(Given { value: nodes, origin, from_environment: false })
    }
}

impl Written {
    /// Joins the keys with what the URL says, and shows what holds: each host with its port.
    pub(super) fn joined(
        self,
        section: &mut Section<'_, '_, '_>,
        url: Option<Vec<Node>>,
        from_url: Option<&Origin>,
        default_port: u16,
    ) -> Vec<(String, u16)> {
        let Self { host, port, hosts } = self;
        let own = own(section, host, hosts);
        let (nodes, origin) = merged(section, "host", own, url, from_url)
            .unwrap_or((vec![("localhost".to_owned(), None)], Origin::Default));
        let wins = port.as_ref().is_some_and(|port| is_environment(&port.origin) && !is_environment(&origin));
        let loses = port.as_ref().is_some_and(|port| !is_environment(&port.origin) && is_environment(&origin));
        // Of several, it is the port of those that name none.
        if let Some(port) = port.as_ref().filter(|_| !wins && !loses && nodes.len() == 1)
            && nodes.iter().any(|(_, named)| named.is_some_and(|named| named != port.value))
        {
            let path = section.path_of("port");
            let problem = "differs from the port that is named with a host";
            section.reader.refuse(port.origin.clone(), &path, problem, "keep one of the two");
        }
        let given = port.filter(|_| !loses).map(|port| port.value);
        let of = |named: Option<u16>| if wins { given } else { named.or(given) }.unwrap_or(default_port);
        let nodes: Vec<_> = nodes.into_iter().map(|(name, named)| (name, of(named))).collect();
        let text: Vec<_> = nodes.iter().map(|(name, port)| shown_node(&(name.clone(), Some(*port)))).collect();
        shown(section, "hosts", text.join(", "), origin);
        nodes
    }
}

/// Named as `host`, or as `hosts`.
fn own(
    section: &mut Section<'_, '_, '_>,
    host: Option<Given<Node>>,
    hosts: Option<Given<Vec<Node>>>,
) -> Option<Given<Vec<Node>>> {
    if let (Some(host), Some(hosts)) = (&host, &hosts)
        && !is_environment(&host.origin)
    {
        let path = section.path_of("hosts");
        section.reader.refuse(hosts.origin.clone(), &path, "is given beside host", "keep one of them");
    }
    let one = host.map(|host| Given {
        value: vec![host.value],
        origin: host.origin,
        from_environment: host.from_environment,
    });
    one.or(hosts)
}
