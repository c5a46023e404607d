//! `route`: which route a message would take and why, by the configuration alone; what serves, by the running engine.

use std::{fs, path::Path, sync::Arc};

use clap::Subcommand;
use serde_json::{Value, json};

use super::{
    Context, Exit, Failure,
    arguments::{Place, pair},
    client::Client,
    shown::text,
};
use crate::{
    config::{Loaded, Shown},
    handler::component::digest,
    message::{Address, Message},
    route::{Match, Order, Route},
};

/// What can be asked about routes.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the routes of the configuration, in the order in which they are asked
    List,
    /// Say which route a message would take and why, and every value it would be handled by
    Explain(Explain),
}

/// A message to explain.
#[derive(Debug, clap::Args)]
pub(super) struct Explain {
    #[command(flatten)]
    from: Place,
    /// Its type
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Its key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// One of its headers; may be given more than once
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = pair)]
    headers: Vec<(String, String)>,
}

pub(super) fn run(command: &Command, context: &Context) -> Result<Exit, Failure> {
    match command {
        Command::List => list(context),
        Command::Explain(args) => explain(args, context),
    }
}

fn list(context: &Context) -> Result<Exit, Failure> {
    let config = context.load_with_warnings()?.config;
    let routes: Vec<_> = config.routes.iter().collect();
    if context.output.json() {
        context.output.value(&routes)?;
    } else if routes.is_empty() {
        context.output.note("no routes; add one under `routes` in the configuration");
    } else {
        let rows: Vec<_> = routes
            .iter()
            .map(|route| {
                [
                    route.name.to_string(),
                    route.source.address.to_string(),
                    conditions(&route.matches),
                    route.handler.to_string(),
                    order(route.order).to_owned(),
                    route.concurrency.to_string(),
                ]
            })
            .collect();
        context.output.table(["ROUTE", "SOURCE", "TAKES", "HANDLER", "ORDER", "CONCURRENCY"], &rows)?;
    }
    Ok(Exit::Done)
}

/// What a route takes, in words.
fn conditions(matches: &Match) -> String {
    if matches.takes_all() {
        return "everything".to_owned();
    }
    let types: Vec<_> = matches.types.iter().map(ToString::to_string).collect();
    let types = (!types.is_empty()).then(|| format!("type {}", types.join(" or ")));
    let headers = matches.headers.iter().map(|(name, pattern)| format!("{name}={pattern}"));
    types.into_iter().chain(headers).collect::<Vec<_>>().join(", ")
}

fn order(order: Order) -> &'static str {
    match order {
        Order::None => "none",
        Order::Key => "key",
        Order::Partition => "partition",
    }
}

/// One route that was asked.
struct Asked {
    route: Arc<Route>,
    /// Why it does not take the message; `None`: it does.
    objection: Option<String>,
}

fn explain(args: &Explain, context: &Context) -> Result<Exit, Failure> {
    let asked = args.from.address()?;
    let loaded = context.load_with_warnings()?;
    if let Some((problem, fix)) = loaded.config.objection(&asked) {
        return Err(Failure::new(Exit::NotFound, "SYSTEM_NOT_FOUND", problem, fix));
    }
    let source = loaded.config.plain(&asked);
    let message = Message {
        key: args.key.clone().map(Into::into),
        headers: args.headers.iter().map(|(name, value)| (name, value)).collect(),
        ..Message::new(args.kind.clone().unwrap_or_default(), Vec::new(), 0)
    };
    let asked = ask(&loaded, &source, &message);
    let taken = asked.last().filter(|last| last.objection.is_none()).map(|last| Arc::clone(&last.route));
    let values = taken.as_ref().map_or_else(Vec::new, |route| values(&loaded, &route.name));
    let file = taken.as_ref().and_then(|route| on_disk(&loaded.config.plugins.directory, &route.handler));
    let serving = taken.as_ref().map(|_| serving(args, &source, context));
    let outcome = outcome(&loaded, &source, &asked, taken.as_deref());

    if context.output.json() {
        let asked: Vec<_> = asked
            .iter()
            .map(|asked| json!({ "route": asked.route.name, "takes": asked.objection.is_none(), "because": asked.objection }))
            .collect();
        let (engine, unanswered) = match serving {
            Some(Ok(answer)) => (answer, None),
            Some(Err(failure)) => (Value::Null, Some(failure.message().to_owned())),
            None => (Value::Null, None),
        };
        context.output.value(&json!({
            "source": source,
            "asked": asked,
            "route": taken.as_ref().map(|route| &route.name),
            "outcome": outcome,
            "at_most_once": loaded.config.is_at_most_once(&source),
            "handler": taken.as_ref().map(|route| json!({ "name": route.handler, "file_digest": file })),
            "engine": engine,
            "engine_error": unanswered,
            "values": values,
        }))?;
    } else {
        context.output.line(&outcome)?;
        if loaded.config.is_at_most_once(&source) {
            context
                .output
                .line("  it is a Pub/Sub channel: messages come at most once, and never to who does not listen")?;
        }
        for asked in &asked {
            let why = asked
                .objection
                .as_deref()
                .map_or("takes it".to_owned(), |objection| format!("does not take it: {objection}"));
            context.output.line(super::output::safe(&format!("  {}: {why}", asked.route.name)))?;
        }
        if let (Some(route), Some(serving)) = (&taken, &serving) {
            say_handler(context, &route.handler, file.as_deref(), serving)?;
        }
        let rows: Vec<_> =
            values.into_iter().map(|shown| [shown.path, shown.value, shown.origin.to_string()]).collect();
        if !rows.is_empty() {
            context.output.line("")?;
            context.output.table(["VALUE", "IS", "FROM"], &rows)?;
        }
    }
    Ok(if taken.is_some() { Exit::Done } else { Exit::NotFound })
}

/// The routes of the source, up to the one that takes the message.
fn ask(loaded: &Loaded, source: &Address, message: &Message) -> Vec<Asked> {
    let mut asked = Vec::new();
    for route in loaded.config.routes.reading(source) {
        let objection = route.matches.objection(message);
        let takes = objection.is_none();
        asked.push(Asked { route: Arc::clone(route), objection });
        if takes {
            break;
        }
    }
    asked
}

fn outcome(loaded: &Loaded, source: &Address, asked: &[Asked], taken: Option<&Route>) -> String {
    let disabled = if loaded.config.enabled { "" } else { ", once messaging.enabled is true" };
    match (taken, asked.first()) {
        (Some(route), _) => format!("takes route {}, handled by {}{disabled}", route.name, route.handler),
        (None, Some(first)) => {
            format!(
                "no route takes it: it becomes a dead letter with code NO_ROUTE in {}{disabled}",
                first.route.dead_letter
            )
        }
        (None, None) => format!("no route reads {source}: it stays there"),
    }
}

/// Every value of a route that is in force, with who named it, by its path below the route.
fn values(loaded: &Loaded, route: &str) -> Vec<Shown> {
    let prefix = loaded.values.iter().find_map(|shown| {
        let prefix = shown.path.strip_suffix("name")?;
        (shown.value == route && prefix.ends_with("].") && prefix.contains("routes[")).then_some(prefix)
    });
    let Some(prefix) = prefix else { return Vec::new() };
    let below = loaded.values.iter().filter_map(|shown| {
        shown.path.strip_prefix(prefix).map(|path| Shown { path: path.to_owned(), ..shown.clone() })
    });
    below.collect()
}

/// Digest of the handler's file, if it is where plugins are.
fn on_disk(plugins: &Path, handler: &str) -> Option<String> {
    fs::read(plugins.join(format!("{handler}.wasm"))).ok().map(|bytes| digest(&bytes))
}

/// What the running engine says.
fn serving(args: &Explain, source: &Address, context: &Context) -> Result<Value, Failure> {
    let headers: serde_json::Map<_, _> =
        args.headers.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let mut asked = json!({ "type": args.kind, "key": args.key, "headers": headers });
    if let Some(asked) = asked.as_object_mut() {
        asked.retain(|_, value| !value.is_null());
        asked.insert(source.kind.to_string(), json!(source.place()));
    }
    Ok(Client::new(context)?.post("/v1/messaging/routes/explain", &asked)?.value)
}

fn say_handler(
    context: &Context,
    handler: &str,
    file: Option<&str>,
    serving: &Result<Value, Failure>,
) -> Result<(), Failure> {
    match file {
        Some(digest) => context.output.line(format_args!("  {handler}.wasm in the plugins directory is {digest}"))?,
        None => context
            .output
            .line(format_args!("  {handler}.wasm is not in the plugins directory: messages wait for it"))?,
    }
    match serving {
        Ok(answer) => {
            let digest = text(answer, &["/handler/digest"]);
            let since = text(answer, &["/handler/since"]);
            context.output.line(match digest.as_str() {
                "-" => format!("  the running engine has no version of {handler} that serves"),
                digest => format!("  the running engine serves {digest} since {since}"),
            })?;
            match text(answer, &["/status/reason"]) {
                reason if reason == "-" => Ok(()),
                reason => context.output.line(super::output::safe(&format!("  {reason}"))),
            }
        }
        Err(failure) => {
            context.output.note(format_args!("the running engine was not asked: {}", failure.message()));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "
routes:
  - {name: big, queue: orders, match: {type: order.big, headers: {region: eu}}, handler: slow}
  - {name: any, queue: orders, match: {type: 'order.#'}, handler: fast, retry: {delay_ms: 50}}
engine: {outage: {failures_max: 7}}
";

    fn loaded() -> Loaded {
        crate::config::load_text("x.yaml".as_ref(), CONFIG, &|_| None).unwrap()
    }

    fn check(source: &str, kind: &str, headers: &[(&str, &str)], wanted: &str, objections: &[&str]) {
        let (loaded, source) = (loaded(), source.parse().unwrap());
        let message = Message {
            headers: headers.iter().collect::<Vec<_>>().into_iter().copied().collect(),
            ..Message::new(kind, Vec::new(), 0)
        };
        let asked = ask(&loaded, &source, &message);
        let taken = asked.last().filter(|last| last.objection.is_none()).map(|last| &*last.route);
        assert_eq!(outcome(&loaded, &source, &asked, taken), wanted);
        assert_eq!(asked.iter().filter_map(|asked| asked.objection.as_deref()).collect::<Vec<_>>(), objections);
    }

    #[test]
    fn says_which_route_and_why_not_the_others() {
        check("queue:orders", "order.big", &[("region", "eu")], "takes route big, handled by slow", &[]);
        check("queue:orders", "order.big", &[], "takes route any, handled by fast", &["header \"region\" is missing"]);
        check(
            "queue:orders",
            "audit",
            &[],
            "no route takes it: it becomes a dead letter with code NO_ROUTE in queue:helixagent.dlq",
            &["type \"audit\" matches none of order.big", "type \"audit\" matches none of order.#"],
        );
        check("topic:orders", "order.big", &[], "no route reads topic:orders: it stays there", &[]);
    }

    #[test]
    fn every_value_of_the_route_has_its_origin() {
        let values = values(&loaded(), "any");
        let find = |path: &str| {
            values.iter().find(|shown| shown.path == path).map(|shown| (shown.value.as_str(), shown.origin.to_string()))
        };
        assert_eq!(find("retry.delay_ms"), Some(("50", "x.yaml:4".to_owned())));
        assert_eq!(find("timeout_ms"), Some(("30000", "default".to_owned())));
        assert_eq!(find("handler"), Some(("fast", "x.yaml:4".to_owned())));
        assert_eq!(find("outage.failures_max"), Some(("7", "x.yaml:5".to_owned())));
        assert_eq!(find("outage.probe_ms"), Some(("30000", "default".to_owned())));
    }
}
