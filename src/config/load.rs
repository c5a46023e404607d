//! Joins file, environment and the plugins' own files.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    Backend, Config, ConfigErrors, DeadLetters, Loading, LogFormat, PluginSettings, Plugins, Telemetry, Warning,
    brakes, connections, embedded, environment, fallback,
    finding::Origin,
    http,
    kind::{self, Kind, Wrong},
    limits::{Base, MESSAGE_BYTES, WAIT_MS},
    plugin_toml::{self, Part},
    require,
    routes::{self, Draft, OnKafka, Surroundings},
    section::{Reader, Section},
    shown::{Key, Shown},
    source,
    tree::Node,
    yaml,
};
use crate::{broker::topology, message::Address, route::Route};

/// Where the configuration is looked for when no file is named.
pub const DEFAULT_FILE: &str = "configs/messaging.yaml";
/// A pebibyte: more than any machine has.
const MEMORY_MIB_MAX: usize = 1 << 30;
/// A configuration, and how it came about.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What the engine runs by.
    pub config: Config,
    /// Every value that is in force, with who named it.
    pub values: Vec<Shown>,
    /// What is accepted and should be looked at.
    pub warnings: Vec<Warning>,
    /// Every file that was read: the configuration is another once one of them changes, or one is added to the
    /// plugins' directory.
    pub files: Vec<PathBuf>,
}

/// What a plugin's own file says.
#[derive(Clone, Debug)]
pub struct PluginToml {
    /// Over what messaging.yaml says.
    pub settings: PluginSettings,
    /// The routes it brings, each sound by itself; whether they go with all others is known to [`load`].
    pub routes: Vec<Route>,
    /// Every value that is in force.
    pub values: Vec<Shown>,
    /// What is accepted and should be looked at.
    pub warnings: Vec<Warning>,
}

/// The file to load: the one that was named, else [`DEFAULT_FILE`] where it is, else none.
#[must_use]
pub fn find(named: Option<PathBuf>) -> Option<PathBuf> {
    named.or_else(|| Some(PathBuf::from(DEFAULT_FILE)).filter(|file| file.exists()))
}

/// Loads the configuration; without a file, the built-in development configuration. Variables of the environment and
/// every `<plugin>.toml` in the plugins' directory count in both cases. Reads files, so call it where blocking is
/// allowed.
///
/// # Errors
/// Every mistake at once; none of it is in force. At a reload, keep the configuration that is.
pub fn load(file: Option<&Path>, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, ConfigErrors> {
    let mut reader = Reader::new(env, file);
    let text = match file.map(source::text).transpose() {
        Ok(text) => text,
        Err(errors) => return Err(refused(reader, errors, file)),
    };
    match text.map(|text| yaml::read(&text)).transpose() {
        Ok(document) => joined(&mut reader, file, document.as_ref()),
        Err(error) => Err(refused(reader, vec![error], file)),
    }
}

/// As [`load`], for a text that is not in a file yet; `file` is what mistakes name.
///
/// # Errors
/// As [`load`].
pub fn load_text(file: &Path, text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, ConfigErrors> {
    let mut reader = Reader::new(env, Some(file));
    let document =
        source::checked(text.as_bytes().to_vec()).and_then(|text| yaml::read(&text).map_err(|error| vec![error]));
    match document {
        Ok(document) => joined(&mut reader, Some(file), Some(&document)),
        Err(errors) => Err(refused(reader, errors, Some(file))),
    }
}

/// Reads one plugin's own file, to say what is wrong with it alone. What is in force comes from [`load`] only.
///
/// # Errors
/// Every mistake at once.
pub fn read_plugin_toml(
    file: &Path,
    config: &Config,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<PluginToml, ConfigErrors> {
    let mut reader = Reader::new(env, Some(file));
    let plugin = file.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if !kind::is_name(&plugin) {
        let wrong = kind::bad_name(&plugin);
        let origin = reader.origin(super::tree::Place::NONE);
        reader.refuse(origin, "", wrong.problem, wrong.fix);
    }
    let mut part = Part::default();
    let group = environment::group(&mut reader, &config.group);
    let said = |address: &Address| (address.clone(), Origin::Default);
    let DeadLetters { tasks, events } = &config.dead_letters;
    let dead_letters = DeadLetters { tasks: said(tasks), events: said(events) };
    let (kafka, outage) = (OnKafka::of(config), brakes::Outage::of(config.outage));
    let mut around = Surroundings { group, dead_letters, kafka, outage, plugins: BTreeMap::new() };
    let drafts = plugin_toml::read(&mut reader, file, &plugin, &mut part, &mut around);
    finished(&mut reader, &[file.to_path_buf()])?;
    let routes = drafts.into_iter().map(Draft::into_route).collect();
    Ok(PluginToml { settings: part.settings, routes, values: reader.shown, warnings: reader.warnings })
}

/// Every key of messaging.yaml, in the order of its sections, with what it takes and its default. `<plugin>.toml` has
/// those under `plugins.settings.<name>`, and `routes` without `handler`.
#[must_use]
pub fn keys() -> Vec<Key> {
    /// One of everything that has keys.
    const SAMPLE: &str = "{embedded: {queues: {a: {}}, topics: {a: {}}}, plugins: {settings: {a: {}}}, \
                          http: {tokens: [{name: a, token: a}]}, rabbitmq: {exchanges: {a: {}}, queues: {a: {bindings: [{exchange: a}]}}, topics: {a: {}}}, \
                          kafka: {topics: {a: {}}}, \
                          redis: {queues: {a: {}}, topics: {a: {}}}, \
                          routes: [{name: a, topic: a, handler: a}]}";
    let mut reader = Reader::new(&|_| None, None);
    let document = yaml::read(SAMPLE).ok();
    reader.root(document.as_ref(), |section| read(section, None, false));
    reader.keys
}

fn refused(mut reader: Reader<'_>, errors: Vec<super::tree::SyntaxError>, file: Option<&Path>) -> ConfigErrors {
    for error in errors {
        let origin = reader.origin(error.place);
        reader.refuse(origin, "", error.problem, error.fix);
    }
    let files: Vec<_> = file.map(Path::to_path_buf).into_iter().collect();
    ConfigErrors::new(reader.findings, reader.more, &files)
}

fn finished(reader: &mut Reader<'_>, files: &[PathBuf]) -> Result<(), ConfigErrors> {
    if reader.findings.is_empty() {
        return Ok(());
    }
    Err(ConfigErrors::new(std::mem::take(&mut reader.findings), reader.more, files))
}

fn joined(reader: &mut Reader<'_>, file: Option<&Path>, document: Option<&Node>) -> Result<Loaded, ConfigErrors> {
    let backend = environment::read(reader);
    let (mut config, mut drafts, mut files) = reader.root(document, |section| read(section, backend, true));
    let unread = std::mem::take(&mut reader.unread);
    routes::require_systems(reader, &drafts, &|address| {
        let is_unread = address.system.as_deref().is_some_and(|system| unread.contains(system));
        config.objection(address).filter(|_| !is_unread)
    });
    drafts.iter_mut().for_each(|draft| draft.name_alike(|address| config.plain(address)));
    let kafka = OnKafka::of(&config);
    require_declared(reader, &config, &drafts);
    routes::look_for_handlers(reader, &drafts, &config.plugins.directory);
    config.routes = routes::join_all(reader, drafts, &kafka);
    config.file = file.map(Path::to_path_buf);
    files.splice(0..0, config.file.clone());
    finished(reader, &files)?;
    let (values, warnings) = (std::mem::take(&mut reader.shown), std::mem::take(&mut reader.warnings));
    Ok(Loaded { config, values, warnings, files })
}

/// With nothing made on first use, every address that a route names must be declared where it is.
fn require_declared(reader: &mut Reader<'_>, config: &Config, drafts: &[Draft]) {
    let on = |system: Backend, address: &Address| config.system_name_of(address) == system.name();
    if !config.embedded.auto_create {
        let declared = embedded::declared(&config.embedded);
        routes::require_declared(reader, drafts, "embedded", &|address| {
            !on(Backend::Inmemory, address) || declared.contains(&address.local())
        });
    }
    #[cfg(feature = "rabbitmq")]
    if let Some(settings) = config.rabbitmq_in_use().filter(|settings| !settings.auto_create) {
        let declared = super::rabbitmq::declared(settings);
        routes::require_declared(reader, drafts, "rabbitmq", &|address| {
            !on(Backend::Rabbitmq, address) || declared.contains(&address.local())
        });
    }
    #[cfg(feature = "redis")]
    if let Some(settings) = config.redis_in_use().filter(|settings| !settings.auto_create) {
        let declared = super::redis::declared(settings);
        routes::require_declared(reader, drafts, "redis", &|address| {
            !on(Backend::Redis, address) || declared.contains(&address.local())
        });
    }
}

/// The whole of messaging.yaml, and with `beside` the plugins' own files. The routes are not joined yet.
fn read(
    section: &mut Section<'_, '_, '_>,
    backend: Option<Backend>,
    beside: bool,
) -> (Config, Vec<Draft>, Vec<PathBuf>) {
    let default = Config::default();
    environment::forbid_absent(section);
    let (enabled, named, asked, required) = section.section("messaging", |section| {
        let enabled = section.value("enabled", &kind::flag(), default.enabled);
        let backend = section.optional("backend", &connections::backend(), "- (each message where its kind is)");
        (enabled, backend.map(|given| given.value), fallback::of_all(section), require::read(section))
    });
    let backend = backend.or(named);
    let mut guards = BTreeMap::new();
    let http = section.section("http", http::read);
    let (data_directory, shutdown_grace, memory_budget, outage, watchdog) = section.section("engine", |section| {
        (
            section.value("data_directory", &kind::path(), default.data_directory),
            section.value("shutdown_grace_ms", &kind::millis(0..=*WAIT_MS.end()), default.shutdown_grace),
            section.value("memory_budget_mib", &kind::integer(0..=MEMORY_MIB_MAX), default.memory_budget >> 20) << 20,
            section.section("outage", brakes::Outage::default),
            section.section("watchdog", brakes::watchdog),
        )
    });
    let (embedded, dead_letter_origin) =
        section.section("embedded", |section| embedded::read(section, &data_directory));
    #[cfg(feature = "rabbitmq")]
    let rabbitmq = {
        let named = backend == Some(Backend::Rabbitmq) || environment::names_rabbitmq(section.reader);
        if named || section.has("rabbitmq") {
            let dead_letter = &embedded.dead_letter;
            Some(section.section("rabbitmq", |section| {
                guards.insert(Backend::Rabbitmq.name(), fallback::read(section, asked.fallback));
                Arc::new(super::rabbitmq::read(section, backend, true, dead_letter))
            }))
        } else {
            section.known("rabbitmq");
            None
        }
    };
    let group = environment::group(section.reader, topology::GROUP);
    #[cfg(feature = "kafka")]
    let (kafka, group) = {
        let named = backend == Some(Backend::Kafka) || environment::names_kafka(section.reader);
        let kafka = if named || section.has("kafka") {
            Some(section.section("kafka", |section| {
                guards.insert(Backend::Kafka.name(), fallback::read(section, asked.fallback));
                super::kafka::read(section, backend, true, group.clone())
            }))
        } else {
            section.known("kafka");
            None
        };
        let group = kafka.as_ref().map_or(group, |kafka| kafka.group.clone());
        (kafka, group)
    };
    #[cfg(feature = "redis")]
    let redis = {
        let named = backend == Some(Backend::Redis) || environment::names_redis(section.reader);
        if named || section.has("redis") {
            let dead_letter = &embedded.dead_letter;
            Some(section.section("redis", |section| {
                guards.insert(Backend::Redis.name(), fallback::read(section, asked.fallback));
                Arc::new(super::redis::read(section, backend, true, dead_letter))
            }))
        } else {
            section.known("redis");
            None
        }
    };
    let connections = connections::read(section, backend, &embedded.dead_letter, &group, &mut |name, section| {
        guards.insert(name, fallback::read(section, asked.fallback));
    });
    let (mut plugins, mut parts) = section.section("plugins", plugins);
    let telemetry = section.section("telemetry", telemetry);

    #[cfg(feature = "kafka")]
    let on_kafka = kafka.as_ref().map(|kafka| kafka.dead_letters.clone());
    #[cfg(not(feature = "kafka"))]
    let on_kafka = None;
    let config = Config {
        enabled,
        data_directory,
        shutdown_grace,
        memory_budget,
        watchdog,
        outage: outage.rule(),
        http,
        backend,
        embedded,
        telemetry,
        group: group.0.as_str().into(),
        connections,
        guards,
        ..Config::default()
    };
    #[cfg(feature = "rabbitmq")]
    let config = Config { rabbitmq, ..config };
    #[cfg(feature = "kafka")]
    let config = Config { kafka: kafka.map(|kafka| Arc::new(kafka.settings)), ..config };
    #[cfg(feature = "redis")]
    let config = Config { redis, ..config };
    if config.connections_in_use().is_empty() {
        fallback::warn_of_no_system(section, &asked);
    }
    let dead_letters = dead_letters(&config, dead_letter_origin, on_kafka);

    let mut around = Surroundings {
        group,
        kafka: OnKafka::of(&config),
        outage,
        dead_letters: dead_letters.clone(),
        plugins: parts.iter().map(|(name, part)| (name.clone(), part.limits.clone())).collect(),
    };
    let (mut files, mut theirs) = (Vec::new(), Vec::new());
    if beside {
        for (plugin, file) in plugin_toml::find(section.reader, &plugins.directory) {
            let part = parts.entry(plugin.clone()).or_default();
            theirs.extend(plugin_toml::read(section.reader, &file, &plugin, part, &mut around));
            files.push(file);
        }
    }
    plugins.settings = parts.into_iter().map(|(name, part)| (name, part.settings)).collect();

    let mut drafts = Vec::new();
    section.list("routes", |section| drafts.extend(routes::read(section, &around, None)));
    drafts.extend(theirs);
    environment::refuse_absent(section.reader, &config);
    let require = require::checked(section.reader, required, &config);
    let dead_letters = DeadLetters { tasks: dead_letters.tasks.0, events: dead_letters.events.0 };
    (Config { plugins, dead_letters, require, ..config }, drafts, files)
}

/// Where dead letters go that no route sends elsewhere, and who says so: on Kafka they have topics of their own.
fn dead_letters(
    config: &Config,
    origin: Origin,
    on_kafka: Option<DeadLetters<(Address, Origin)>>,
) -> DeadLetters<(Address, Origin)> {
    let mut all = DeadLetters::both(&(config.embedded.dead_letter.clone(), origin));
    if let Some(on_kafka) = on_kafka {
        if config.queues_on_kafka() {
            all.tasks = on_kafka.tasks;
        }
        if config.topics_on_kafka() {
            all.events = on_kafka.events;
        }
    }
    all
}

fn plugins(section: &mut Section<'_, '_, '_>) -> (Plugins, BTreeMap<String, Part>) {
    let default = Plugins::default();
    let directory = section.value("directory", &kind::path(), default.directory);
    if directory.exists() && !directory.is_dir() {
        let (path, origin) = (section.path_of("directory"), section.origin_of("directory"));
        section.reader.refuse(origin, &path, "is not a directory", "name the directory that plugins are dropped into");
    }
    let loading = section.section("loading", |section| {
        let default = Loading::default();
        Loading {
            file_bytes_max: section.value("file_bytes_max", &kind::bytes(MESSAGE_BYTES), default.file_bytes_max),
            compile_cpu_max: section.value("compile_cpu_ms_max", &seconds(), default.compile_cpu_max),
            compile_memory_bytes_max: section.value(
                "compile_memory_bytes_max",
                &kind::bytes(COMPILE_MEMORY_BYTES_MIN..=u64::MAX),
                default.compile_memory_bytes_max,
            ),
            init_timeout: section.value("init_timeout_ms", &kind::millis(WAIT_MS), default.init_timeout),
        }
    });
    let mut parts: BTreeMap<String, Part> = BTreeMap::new();
    section.named("settings", |name, origin, section| {
        let mut part = Part { limits: Base::default(), ..Part::default() };
        part.read(section);
        if kind::is_name(name) {
            parts.insert(name.to_owned(), part);
        } else {
            let (wrong, path) = (kind::bad_name(name), section.path.clone());
            section.reader.refuse(origin, &path, wrong.problem, wrong.fix);
        }
    });
    (Plugins { directory, settings: BTreeMap::new(), loading }, parts)
}

/// With less, not even an empty component compiles.
const COMPILE_MEMORY_BYTES_MIN: u64 = 64 << 20;

/// CPU time of a process, which systems count in whole seconds. Source: POSIX, `RLIMIT_CPU`.
fn seconds() -> Kind<Duration> {
    kind::millis(1000..=60 * 60 * 1000)
}

fn telemetry(section: &mut Section<'_, '_, '_>) -> Telemetry {
    let default = Telemetry::default();
    let filter = section.value("filter", &filter(), default.filter.to_string());
    let words = &[("auto", LogFormat::Auto), ("pretty", LogFormat::Pretty), ("json", LogFormat::Json)];
    let format = kind::choice(words, |format| {
        match format {
            LogFormat::Auto => "auto",
            LogFormat::Pretty => "pretty",
            LogFormat::Json => "json",
        }
        .to_owned()
    });
    Telemetry { filter: Arc::from(filter), format: section.value("format", &format, default.format) }
}

/// Checked here, so that a filter that would silence everything is a mistake and not a silence.
fn filter() -> Kind<String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let read = |text: &str| {
        let fix = "write a level (error, warn, info, debug, trace), or several parts: info,helixmq=debug";
        for part in text.split(',').map(str::trim) {
            let bare = !part.contains(['=', '[']);
            if bare && !LEVELS.iter().any(|level| level.eq_ignore_ascii_case(part)) {
                return Err(Wrong::new(format!("{} is not a level of logging", super::words::quoted(part)), fix));
            }
        }
        match tracing_subscriber::EnvFilter::builder().parse(text) {
            Ok(_) => Ok(text.to_owned()),
            Err(error) => Err(Wrong::new(format!("{} is not a filter: {error}", super::words::quoted(text)), fix)),
        }
    };
    kind::parsed("a filter such as info,helixmq=debug", read, Clone::clone)
}
