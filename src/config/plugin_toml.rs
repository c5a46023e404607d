//! `<plugin>.toml`, beside a plugin: what the operator decides for it. The same keys as in messaging.yaml, in TOML.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use super::{
    PluginSettings,
    kind::{self, Wrong},
    limits::Base,
    routes::{self, Draft, Surroundings},
    section::{Reader, Section},
    tree::{Entry, Node, Place, Scalar, SyntaxError, Value},
    words::join,
};

/// What one plugin may, from messaging.yaml and then from its own file.
#[derive(Clone, Debug, Default)]
pub(super) struct Part {
    pub(super) settings: PluginSettings,
    pub(super) limits: Base,
}

impl Part {
    /// Reads `config`, `limits` and `sha256` over what is here.
    pub(super) fn read(&mut self, section: &mut Section<'_, '_, '_>) {
        if let Some(given) = section.optional("sha256", &sha256(), "- (any file)") {
            self.settings.sha256 = Some(given.value);
        }
        section.ask("config", "text for each key", "- (none)");
        let path = section.path_of("config");
        for entry in section.map("config") {
            let path = join(&path, &entry.key);
            let Some(given) = section.reader.one(&path, &entry.node, &kind::text()) else { continue };
            let hidden = given.from_environment || sounds_secret(&entry.key) || holds_credentials(&given.value);
            section.reader.show(&path, if hidden { "***".to_owned() } else { given.value.clone() }, given.origin);
            self.settings.config.insert(entry.key.clone(), given.value);
        }
        self.limits = section.section("limits", |section| self.limits.read(section, true));
        self.settings.limits = self.limits.patch.clone();
    }
}

/// Whether it is a URL with a user's name or password in it.
fn holds_credentials(value: &str) -> bool {
    value
        .split_once("://")
        .is_some_and(|(_, rest)| rest.split(['/', '?', '#']).next().is_some_and(|place| place.contains('@')))
}

/// Whether a key's name promises something that must not be shown.
fn sounds_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    [
        "secret",
        "token",
        "password",
        "passwd",
        "credential",
        "private",
        "api_key",
        "apikey",
        "api-key",
        "access_key",
        "auth",
    ]
    .iter()
    .any(|word| key.contains(word))
}

fn sha256() -> kind::Kind<String> {
    let read = |text: &str| {
        let text = text.strip_prefix("sha256:").unwrap_or(text);
        if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            Ok(text.to_ascii_lowercase())
        } else {
            Err(Wrong::new(
                format!("{} is not a SHA-256", super::words::quoted(text)),
                "write its 64 hex digits, as `sha256sum FILE` prints them",
            ))
        }
    };
    kind::parsed("64 hex digits", read, Clone::clone)
}

/// The files in the plugins' directory, by plugin name. Names that no plugin can have are refused.
pub(super) fn find(reader: &mut Reader<'_>, directory: &Path) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        // It may be made later, until then there are no plugins; and what is no directory was refused already.
        Err(_) if !directory.is_dir() => return found,
        Err(error) => {
            let problem = format!("{} cannot be read: {error}", directory.display());
            let origin = reader.origin(Place::NONE);
            reader.refuse(origin, "plugins.directory", problem, "name a directory that the engine may read");
            return found;
        }
    };
    for path in entries.filter_map(|entry| entry.ok().map(|entry| entry.path())) {
        let name = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if path.extension().is_none_or(|extension| extension != "toml") || name.starts_with('.') {
            continue;
        }
        if kind::is_name(&name) {
            found.insert(name, path);
        } else {
            reader.in_file(&path, |reader| {
                let wrong = kind::bad_name(&name);
                let origin = reader.origin(Place::NONE);
                reader.refuse(origin, "", format!("no plugin can be called that: {}", wrong.problem), wrong.fix);
            });
        }
    }
    found
}

/// Reads one file over what messaging.yaml says of the plugin, with the routes it brings.
pub(super) fn read(
    reader: &mut Reader<'_>,
    file: &Path,
    plugin: &str,
    part: &mut Part,
    around: &mut Surroundings,
) -> Vec<Draft> {
    reader.in_file(file, |reader| {
        let document = super::source::text(file).and_then(|text| parse(&text));
        let node = match document {
            Ok(node) => node,
            Err(errors) => {
                for error in errors {
                    let origin = reader.origin(error.place);
                    reader.refuse(origin, "", error.problem, error.fix);
                }
                return Vec::new();
            }
        };
        reader.root(Some(&node), |section| {
            part.read(section);
            around.plugins.insert(plugin.to_owned(), part.limits.clone());
            let mut drafts = Vec::new();
            section.list("routes", |section| drafts.extend(routes::read(section, around, Some(plugin))));
            drafts
        })
    })
}

/// All syntax errors at once.
fn parse(text: &str) -> Result<Node, Vec<SyntaxError>> {
    let lines = Lines::of(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(lines.table(0, table.get_ref()));
    }
    let explain = |error: &toml::de::Error| SyntaxError {
        place: error.span().map_or(Place::NONE, |span| lines.place(span.start)),
        problem: format!("this is not TOML: {}", error.message()),
        fix: "write `key = value`, text in double quotes, sections as [config], [limits] and [[routes]]".to_owned(),
    };
    Err(errors.iter().map(explain).collect())
}

/// Where lines begin.
struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    fn of(text: &'t str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, starts }
    }

    fn place(&self, at: usize) -> Place {
        let line = self.starts.partition_point(|start| *start <= at);
        let start = line.checked_sub(1).and_then(|line| self.starts.get(line)).copied().unwrap_or(0);
        let column = self.text.get(start..at).map_or(0, |before| before.chars().count());
        Place { line, column: column + 1 }
    }

    fn table(&self, at: usize, table: &DeTable<'_>) -> Node {
        let mut entries: Vec<_> = table
            .iter()
            .map(|(key, value)| {
                let place = key.span().start;
                (
                    place,
                    Entry {
                        key: key.get_ref().to_string(),
                        place: self.place(place),
                        node: self.node(value.span().start, value.get_ref()),
                    },
                )
            })
            .collect();
        entries.sort_by_key(|(place, _)| *place);
        Node { place: self.place(at), value: Value::Map(entries.into_iter().map(|(_, entry)| entry).collect()) }
    }

    fn node(&self, at: usize, value: &DeValue<'_>) -> Node {
        let scalar = |text: String, quoted| Value::Scalar(Scalar { text, quoted });
        let value = match value {
            DeValue::Table(table) => return self.table(at, table),
            DeValue::Array(items) => {
                Value::List(items.iter().map(|item| self.node(item.span().start, item.get_ref())).collect())
            }
            DeValue::String(text) => scalar(text.to_string(), true),
            DeValue::Integer(number) if number.radix() == 10 => scalar(number.as_str().to_owned(), false),
            DeValue::Integer(number) => {
                let decimal = i128::from_str_radix(number.as_str(), number.radix());
                scalar(decimal.map_or_else(|_| number.to_string(), |number| number.to_string()), false)
            }
            DeValue::Float(number) => scalar(number.as_str().to_owned(), false),
            DeValue::Boolean(flag) => scalar(flag.to_string(), false),
            DeValue::Datetime(time) => scalar(time.to_string(), false),
        };
        Node { place: self.place(at), value }
    }
}
