//! `serve --check`: everything that a start would check, and nothing of what it would start.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::json;

use super::{data, settings};
use crate::{
    cli::{Context, Exit, Failure, plugin::load::Loader, store},
    config::Config,
    handler::{
        Handler as _,
        component::{Component, LoadError},
        reload::{Change, Directory},
    },
};

/// What came of each plugin's file.
type Plugins = BTreeMap<String, Result<Arc<Component>, LoadError>>;

pub(super) fn run(context: &Context) -> Result<Exit, Failure> {
    let config = context.load_with_warnings()?.config;
    settings::check(&config)
        .map_err(|error| Failure::new(Exit::Refused, "INVALID_CONFIG", error.to_string(), "correct `embedded`"))?;
    settings::check_store(&config).map_err(|error| {
        let (message, hint) = store::sentence(&error);
        Failure::new(Exit::Refused, "STORE_REFUSED", format!("the engine would not start: {message}"), hint)
    })?;
    let cache = settings::cache_directory(&config);
    data::make(&config.data_directory)
        .and_then(|()| data::make(&cache))
        .map_err(|error| data::unusable(&cache, &error))?;
    let plugins = load(&config, Loader::new(&config, cache)?)?;
    let refusals = refusals(&config, &plugins);
    show(context, &config, &plugins)?;
    if refusals.is_empty() {
        return Ok(Exit::Done);
    }
    let count = if refusals.len() == 1 { "a refusal".to_owned() } else { format!("{} refusals", refusals.len()) };
    Err(Failure::new(Exit::Refused, "REFUSED", format!("the engine would start with {count}"), "correct what follows")
        .with_details(refusals.join("\n"), "refusals", &refusals))
}

fn load(config: &Config, loader: Loader<'_>) -> Result<Plugins, Failure> {
    let directory = &config.plugins.directory;
    super::readable(directory)?;
    // One that is not there may be made while the engine runs.
    let changes = Directory::default().changes(directory).unwrap_or_default();
    let files = changes.into_iter().filter_map(|change| match change {
        Change::Look { name, path, .. } => Some((name, path)),
        Change::Gone { .. } => None,
    });
    Ok(files.map(|(name, path)| (name.clone(), loader.load(&name, &path).map(|(component, _)| component))).collect())
}

/// Plugins that would not serve, and routes whose plugin cannot handle what they read.
fn refusals(config: &Config, plugins: &Plugins) -> Vec<String> {
    let of_plugins =
        plugins.iter().filter_map(|(name, loaded)| Some(format!("plugin {name}: {}", loaded.as_ref().err()?)));
    let of_routes = config.routes.iter().filter_map(|route| {
        let component = plugins.get(&*route.handler)?.as_ref().ok()?;
        let address = &route.source.address;
        (!component.handles(address.kind)).then(|| {
            format!(
                "route {}: its handler {} does not handle what comes from a {}, as {address} is",
                route.name, route.handler, address.kind
            )
        })
    });
    of_plugins.chain(of_routes).collect()
}

/// What would serve.
fn show(context: &Context, config: &Config, plugins: &Plugins) -> Result<(), Failure> {
    let state = |name: &str| match plugins.get(name) {
        Some(Ok(component)) => ("serves", Some(component.identity().digest.clone())),
        Some(Err(_)) => ("refused", None),
        None => ("waits", None),
    };
    for route in config.routes.iter().filter(|route| !plugins.contains_key(&*route.handler)) {
        let (handler, directory) = (&route.handler, config.plugins.directory.display());
        context.output.note(format_args!(
            "warning: route {}: there is no {directory}/{handler}.wasm, its messages would wait for it",
            route.name
        ));
    }
    if context.output.json() {
        let routes: Vec<_> = config
            .routes
            .iter()
            .map(|route| {
                let (state, digest) = state(&route.handler);
                json!({ "route": route.name, "source": route.source.address, "handler": route.handler, "state": state, "digest": digest })
            })
            .collect();
        let plugins: Vec<_> = plugins
            .iter()
            .map(|(name, loaded)| match loaded {
                Ok(component) => json!({ "plugin": name, "state": "serves", "digest": component.identity().digest }),
                Err(error) => json!({ "plugin": name, "state": "refused", "reason": error.to_string() }),
            })
            .collect();
        return context.output.value(
            &json!({ "enabled": config.enabled, "listen": config.http.listen, "routes": routes, "plugins": plugins }),
        );
    }
    let mut rows: Vec<_> = config
        .routes
        .iter()
        .map(|route| {
            let (state, digest) = state(&route.handler);
            let digest = digest.map_or_else(|| "-".to_owned(), |digest| digest.chars().take(12).collect());
            [
                route.name.to_string(),
                route.source.address.to_string(),
                route.handler.to_string(),
                state.to_owned(),
                digest,
            ]
        })
        .collect();
    let routed = |name: &str| config.routes.iter().any(|route| &*route.handler == name);
    for name in plugins.keys().filter(|name| !routed(name)) {
        let digest = state(name).1.map_or_else(|| "-".to_owned(), |digest| digest.chars().take(12).collect());
        rows.push(["-".to_owned(), "-".to_owned(), name.clone(), "no route".to_owned(), digest]);
    }
    context.output.table(["ROUTE", "SOURCE", "HANDLER", "STATE", "DIGEST"], &rows)
}
