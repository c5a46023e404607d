//! Walks a tree, key by key. Whoever reads a section asks for each key it knows; what was not asked for is unknown.
//! So the keys that are accepted, the keys that are documented ([`Key`]) and the values that are shown are one list.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use super::{
    finding::{FINDINGS_MAX, Finding, Origin},
    interpolate::interpolate,
    kind::{Kind, Wrong},
    shown::{Key, Shown},
    tree::{Entry, Node, Place, Scalar, Value},
    words::{join, nearest, quoted},
};

/// What is gathered on the way.
pub(super) struct Reader<'e> {
    env: &'e dyn Fn(&str) -> Option<String>,
    pub(super) findings: Vec<Finding>,
    /// Mistakes beyond those that are kept.
    pub(super) more: usize,
    pub(super) warnings: Vec<Finding>,
    pub(super) shown: Vec<Shown>,
    pub(super) keys: Vec<Key>,
    /// Variables that values name.
    pub(super) used: BTreeSet<String>,
    /// Systems of `connections:` that are not known by more than their names, which has been said.
    pub(super) unread: BTreeSet<String>,
    /// By path: what the environment says instead of the file.
    pub(super) overrides: BTreeMap<&'static str, (String, &'static str)>,
    file: Option<Arc<Path>>,
    /// In front of paths of values that are shown.
    prefix: String,
}

impl<'e> Reader<'e> {
    pub(super) fn new(env: &'e dyn Fn(&str) -> Option<String>, file: Option<&Path>) -> Self {
        Self {
            env,
            findings: Vec::new(),
            more: 0,
            warnings: Vec::new(),
            shown: Vec::new(),
            keys: Vec::new(),
            used: BTreeSet::new(),
            unread: BTreeSet::new(),
            overrides: BTreeMap::new(),
            file: file.map(Arc::from),
            prefix: String::new(),
        }
    }

    /// An environment variable; one that is set to nothing counts as not set.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        (self.env)(name).filter(|value| !value.is_empty())
    }

    pub(super) fn origin(&self, place: Place) -> Origin {
        match &self.file {
            None => Origin::Default,
            Some(file) => Origin::File { file: Arc::clone(file), line: place.line, column: place.column },
        }
    }

    pub(super) fn refuse(&mut self, origin: Origin, path: &str, problem: impl Into<String>, fix: impl Into<String>) {
        if self.findings.len() >= FINDINGS_MAX {
            self.more += 1;
            return;
        }
        self.findings.push(Finding { origin, path: path.to_owned(), problem: problem.into(), fix: fix.into() });
    }

    pub(super) fn warn(&mut self, origin: Origin, path: &str, problem: impl Into<String>, fix: impl Into<String>) {
        if self.warnings.len() < FINDINGS_MAX {
            self.warnings.push(Finding { origin, path: path.to_owned(), problem: problem.into(), fix: fix.into() });
        }
    }

    pub(super) fn show(&mut self, path: &str, value: String, origin: Origin) {
        self.shown.push(Shown { path: format!("{}{path}", self.prefix), value, origin });
    }

    /// Reads another file in the midst of this one.
    pub(super) fn in_file<T>(&mut self, file: &Path, read: impl FnOnce(&mut Self) -> T) -> T {
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let outer = (self.file.replace(Arc::from(file)), std::mem::replace(&mut self.prefix, format!("{name}: ")));
        let result = read(self);
        (self.file, self.prefix) = outer;
        result
    }

    /// Reads a whole document.
    pub(super) fn root<'n, T>(
        &mut self,
        node: Option<&'n Node>,
        read: impl FnOnce(&mut Section<'_, 'e, 'n>) -> T,
    ) -> T {
        Section::enter(self, String::new(), String::new(), node, read)
    }
}

/// A value that was read.
pub(super) struct Given<T> {
    pub(super) value: T,
    pub(super) origin: Origin,
    /// Whether an environment variable is part of it.
    pub(super) from_environment: bool,
}

/// What a key holds.
enum Found<T> {
    Absent,
    /// Wrong; that has been said.
    Wrong,
    Null(Origin),
    Given(Given<T>),
}

/// Some keys under one path.
pub(super) struct Section<'r, 'e, 'n> {
    pub(super) reader: &'r mut Reader<'e>,
    /// As in errors: `routes[2].retry`.
    pub(super) path: String,
    /// As in the documentation: `routes[].retry`.
    pattern: String,
    place: Place,
    entries: &'n [Entry],
    asked: Vec<&'static str>,
    /// Refused already, each with a reason of its own.
    forbidden: Vec<&'static str>,
}

impl<'e, 'n> Section<'_, 'e, 'n> {
    /// Reads the section that `node` is, and refuses what nobody asked for.
    fn enter<T>(
        reader: &mut Reader<'e>,
        path: String,
        pattern: String,
        node: Option<&'n Node>,
        read: impl FnOnce(&mut Section<'_, 'e, 'n>) -> T,
    ) -> T {
        let place = node.map_or(Place::NONE, |node| node.place);
        let entries = match node.map(|node| &node.value) {
            None => &[],
            Some(Value::Map(entries)) => entries.as_slice(),
            Some(Value::Scalar(scalar)) if scalar.is_null() => &[],
            Some(_) => {
                let kind = node.map_or("", Node::kind);
                let problem = format!("is {kind}, not a section with keys of its own");
                let fix = if path.is_empty() {
                    "write sections as `http:` with keys under them"
                } else {
                    "write keys under it, indented, as `key: value`"
                };
                reader.refuse(reader.origin(place), &path, problem, fix);
                &[]
            }
        };
        let mut section = Section { reader, path, pattern, place, entries, asked: Vec::new(), forbidden: Vec::new() };
        section.refuse_duplicates(entries);
        let result = read(&mut section);
        section.refuse_unknown();
        result
    }

    fn refuse_duplicates(&mut self, entries: &[Entry]) {
        let mut first: BTreeMap<&str, Place> = BTreeMap::new();
        for entry in entries {
            if let Some(earlier) = first.get(entry.key.as_str()) {
                let (path, origin) = (self.path_of(&entry.key), self.reader.origin(entry.place));
                let problem = format!("is given twice; the first is on line {}", earlier.line);
                self.reader.refuse(origin, &path, problem, "keep one of them");
            } else {
                first.insert(&entry.key, entry.place);
            }
        }
    }

    fn refuse_unknown(&mut self) {
        for entry in self.entries {
            if self.asked.iter().chain(&self.forbidden).any(|known| *known == entry.key) {
                continue;
            }
            let fix = match nearest(&entry.key, self.asked.iter().copied()) {
                Some(known) => format!("did you mean {known}?"),
                None => format!("remove it; known here: {}", self.asked.join(", ")),
            };
            let what = if matches!(entry.node.value, Value::Map(_)) { "unknown section" } else { "unknown key" };
            let (path, origin) = (self.path_of(&entry.key), self.reader.origin(entry.place));
            self.reader.refuse(origin, &path, what, fix);
        }
    }

    pub(super) fn path_of(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// Where the section begins.
    pub(super) fn origin(&self) -> Origin {
        self.reader.origin(self.place)
    }

    /// Where a key stands; the section where it does not.
    pub(super) fn origin_of(&self, key: &str) -> Origin {
        self.reader.origin(self.entry(key).map_or(self.place, |entry| entry.node.place))
    }

    fn entry(&self, key: &str) -> Option<&'n Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// Whether the key is there at all.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    /// Asks for a key.
    pub(super) fn ask(&mut self, key: &'static str, takes: &str, default: &str) -> Option<&'n Node> {
        self.asked.push(key);
        let path = join(&self.pattern, key);
        if !self.reader.keys.iter().any(|known| known.path == path) {
            self.reader.keys.push(Key { path, takes: takes.to_owned(), default: default.to_owned() });
        }
        self.entry(key).map(|entry| &entry.node)
    }

    /// Leaves the rest alone: which keys there may be depends on one that is wrong.
    pub(super) fn leave(&mut self) {
        self.entries = &[];
    }

    /// Names a section that is read only where it is there, so that a key may be taken for it.
    #[cfg(any(feature = "rabbitmq", feature = "kafka", feature = "redis"))]
    pub(super) fn known(&mut self, key: &'static str) {
        self.asked.push(key);
    }

    /// Refuses a key that is known elsewhere, with a reason of its own.
    pub(super) fn forbid(&mut self, key: &'static str, problem: impl Into<String>, fix: impl Into<String>) {
        if let Some(entry) = self.entry(key) {
            self.forbidden.push(key);
            let (path, origin) = (self.path_of(key), self.reader.origin(entry.place));
            self.reader.refuse(origin, &path, problem, fix);
        }
    }

    fn find<T>(&mut self, key: &'static str, kind: &Kind<T>, default: &str) -> Found<T> {
        let node = self.ask(key, &kind.takes, default);
        let path = self.path_of(key);
        let from_file = match node {
            None => Found::Absent,
            Some(node) if node.is_null() => Found::Null(self.reader.origin(node.place)),
            Some(node) => self.reader.one(&path, node, kind).map_or(Found::Wrong, Found::Given),
        };
        // The file is checked even where the environment says otherwise.
        let Some((text, variable)) = self.reader.overrides.get(path.as_str()).cloned() else { return from_file };
        match (kind.read)(&text) {
            Ok(value) => Found::Given(Given { value, origin: Origin::Environment(variable), from_environment: true }),
            Err(wrong) => {
                self.reader.refuse(Origin::Environment(variable), &path, wrong.problem, wrong.fix);
                Found::Wrong
            }
        }
    }

    fn refuse_null<T>(&mut self, key: &str, origin: Origin, kind: &Kind<T>) {
        let path = self.path_of(key);
        let fix = format!("write {}, or remove the key; text that begins with '#' needs quotes", kind.takes);
        self.reader.refuse(origin, &path, "has no value", fix);
    }

    fn show<T>(&mut self, key: &str, kind: &Kind<T>, value: &T, origin: Origin) {
        let path = self.path_of(key);
        let value = if kind.secret { "***".to_owned() } else { (kind.show)(value) };
        self.reader.show(&path, value, origin);
    }

    /// A value with a default.
    pub(super) fn value<T>(&mut self, key: &'static str, kind: &Kind<T>, default: T) -> T {
        let shown = (kind.show)(&default);
        self.value_or(key, kind, default, Origin::Default, &shown)
    }

    /// A value whose default comes from elsewhere, and is called `documented` in the documentation.
    pub(super) fn value_or<T>(
        &mut self,
        key: &'static str,
        kind: &Kind<T>,
        default: T,
        origin: Origin,
        documented: &str,
    ) -> T {
        let (value, origin) = match self.find(key, kind, documented) {
            Found::Given(given) => (given.value, given.origin),
            Found::Absent | Found::Wrong => (default, origin),
            Found::Null(place) => {
                self.refuse_null(key, place, kind);
                (default, origin)
            }
        };
        self.show(key, kind, &value, origin);
        value
    }

    /// A value that may be left out.
    pub(super) fn optional<T>(&mut self, key: &'static str, kind: &Kind<T>, documented: &str) -> Option<Given<T>> {
        let given = self.unshown(key, kind, documented)?;
        self.show(key, kind, &given.value, given.origin.clone());
        Some(given)
    }

    /// As [`Self::optional`], for what is not in force yet: whoever decides shows it.
    pub(super) fn unshown<T>(&mut self, key: &'static str, kind: &Kind<T>, documented: &str) -> Option<Given<T>> {
        match self.find(key, kind, documented) {
            Found::Given(given) => Some(given),
            Found::Absent | Found::Wrong => None,
            Found::Null(place) => {
                self.refuse_null(key, place, kind);
                None
            }
        }
    }

    /// A value that may be left out, and is then another's: what holds is shown either way.
    pub(super) fn inherited<T: Clone>(
        &mut self,
        key: &'static str,
        kind: &Kind<T>,
        base: &T,
        origin: Option<&Origin>,
    ) -> Option<Given<T>> {
        let shown = (kind.show)(base);
        let given = self.optional(key, kind, &shown);
        if given.is_none() {
            self.show(key, kind, base, origin.cloned().unwrap_or(Origin::Default));
        }
        given
    }

    /// A value that must be there.
    pub(super) fn required<T>(&mut self, key: &'static str, kind: &Kind<T>) -> Option<Given<T>> {
        if !self.has(key) {
            self.asked.push(key);
            let (path, origin) = (self.path_of(key), self.origin());
            self.reader.refuse(origin, &path, "is missing", format!("add `{key}:` with {}", kind.takes));
            return None;
        }
        self.optional(key, kind, "-")
    }

    /// A bound that `null` takes away.
    pub(super) fn bound<T>(&mut self, key: &'static str, kind: &Kind<T>, default: Option<T>) -> Option<T> {
        let none = || "null".to_owned();
        let shown = default.as_ref().map_or_else(none, |default| (kind.show)(default));
        let takes = kind.takes.clone();
        let (value, origin) = match self.find(key, kind, &shown) {
            Found::Given(given) => (Some(given.value), given.origin),
            Found::Null(place) => (None, place),
            Found::Absent | Found::Wrong => (default, Origin::Default),
        };
        self.note_takes(key, format!("{takes}; null: no limit"));
        let (path, text) = (self.path_of(key), value.as_ref().map_or_else(none, |value| (kind.show)(value)));
        self.reader.show(&path, text, origin);
        value
    }

    fn note_takes(&mut self, key: &str, takes: String) {
        let path = join(&self.pattern, key);
        if let Some(known) = self.reader.keys.iter_mut().find(|known| known.path == path) {
            known.takes = takes;
        }
    }

    /// Keys under a key.
    pub(super) fn section<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'_, 'e, 'n>) -> T) -> T {
        self.asked.push(key);
        let node = self.entry(key).map(|entry| &entry.node);
        Section::enter(self.reader, self.path_of(key), join(&self.pattern, key), node, read)
    }

    /// Sections under names that the operator chose; each name once.
    pub(super) fn named(&mut self, key: &'static str, mut read: impl FnMut(&str, Origin, &mut Section<'_, 'e, 'n>)) {
        self.asked.push(key);
        let (path, pattern) = (self.path_of(key), format!("{}.<name>", join(&self.pattern, key)));
        for entry in self.map(key) {
            let origin = self.reader.origin(entry.place);
            let section = |section: &mut Section<'_, 'e, 'n>| read(&entry.key, origin, section);
            Section::enter(self.reader, join(&path, &entry.key), pattern.clone(), Some(&entry.node), section);
        }
    }

    /// Single values under names that the operator chose. `None`: the key is not there, or wrong.
    pub(super) fn map(&mut self, key: &'static str) -> Vec<&'n Entry> {
        let Some(node) = self.entry(key).map(|entry| &entry.node) else { return Vec::new() };
        let Value::Map(entries) = &node.value else {
            if !node.is_null() {
                let (path, origin) = (self.path_of(key), self.reader.origin(node.place));
                let problem = format!("is {}, not names with something under each", node.kind());
                self.reader.refuse(origin, &path, problem, "write `name: …` under it, indented");
            }
            return Vec::new();
        };
        let inner = self.path_of(key);
        let outer = std::mem::replace(&mut self.path, inner);
        self.refuse_duplicates(entries);
        self.path = outer;
        let mut names = BTreeSet::new();
        entries.iter().filter(|entry| names.insert(entry.key.as_str())).collect()
    }

    /// Sections in a list.
    pub(super) fn list(&mut self, key: &'static str, mut read: impl FnMut(&mut Section<'_, 'e, 'n>)) {
        self.asked.push(key);
        let path = self.path_of(key);
        let items = match self.entry(key).map(|entry| &entry.node) {
            None => return,
            Some(Node { value: Value::List(items), .. }) => items.as_slice(),
            Some(node) if node.is_null() => return,
            Some(node) => {
                let origin = self.reader.origin(node.place);
                self.reader.refuse(
                    origin,
                    &path,
                    format!("is {}, not a list", node.kind()),
                    "begin each item with \"- \"",
                );
                return;
            }
        };
        let pattern = format!("{}[]", join(&self.pattern, key));
        for (place, item) in items.iter().enumerate() {
            Section::enter(self.reader, format!("{path}[{place}]"), pattern.clone(), Some(item), |section| {
                read(section)
            });
        }
    }
}

impl Reader<'_> {
    /// A single value, its variables filled in; `None` where it is wrong, which has been said.
    pub(super) fn one<T>(&mut self, path: &str, node: &Node, kind: &Kind<T>) -> Option<Given<T>> {
        let origin = self.origin(node.place);
        let Value::Scalar(scalar) = &node.value else {
            self.refuse(
                origin,
                path,
                format!("is {}, not {}", node.kind(), kind.takes),
                format!("write {}", kind.takes),
            );
            return None;
        };
        let (text, from_environment) = self.filled(path, &origin, scalar)?;
        let result = if kind.bare && scalar.quoted && !from_environment {
            match (kind.read)(&text) {
                Ok(_) => Err(Wrong::new(
                    format!("is text in quotes, not {}", kind.takes),
                    format!("remove the quotes: {text}"),
                )),
                Err(wrong) => Err(wrong),
            }
        } else {
            (kind.read)(&text)
        };
        match result {
            Ok(value) => Some(Given { value, origin, from_environment }),
            // What the environment holds may be a secret that ended in the wrong place.
            Err(_) if from_environment && !kind.secret => {
                let problem = format!("what {} stands for is not {}", quoted(&scalar.text), kind.takes);
                self.refuse(origin, path, problem, format!("set the variable to {}", kind.takes));
                None
            }
            Err(wrong) => {
                self.refuse(origin, path, wrong.problem, wrong.fix);
                None
            }
        }
    }

    /// The text with its variables filled in, and whether it has any.
    fn filled(&mut self, path: &str, origin: &Origin, scalar: &Scalar) -> Option<(String, bool)> {
        match interpolate(&scalar.text, self.env) {
            Ok(filled) => {
                let any = !filled.names.is_empty();
                self.used.extend(filled.names);
                Some((filled.text, any))
            }
            Err(errors) => {
                for error in errors {
                    self.refuse(origin.clone(), path, error.to_string(), error.fix());
                }
                None
            }
        }
    }
}
