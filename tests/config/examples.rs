//! The files in `configs/`: each loads, and the default one says what holds without it.

use std::{collections::BTreeMap, fs, path::Path};

use helixmq::{
    config::{self, Config, Origin},
    message::{Address, Message, now_ms},
    route::Order,
};

fn env(name: &str) -> Option<String> {
    (name == "HELIXMQ_TOKEN").then(|| "a token of more than sixteen characters".replace(' ', "-"))
}

fn load(name: &str) -> config::Loaded {
    let file = Path::new("configs").join(name);
    config::load(Some(&file), &env).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn each_example_loads() {
    let mut count = 0;
    for entry in fs::read_dir("configs").unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_some_and(|extension| extension == "yaml") {
            let text = fs::read_to_string(&file).unwrap();
            let env = |name: &str| match name {
                "RABBITMQ_PASSWORD" | "GPU_PASSWORD" | "KAFKA_SASL_PASSWORD" | "REDIS_PASSWORD" => {
                    text.contains(name).then(|| "p@ss".replace('@', "%40"))
                }
                _ => env(name),
            };
            let loaded = config::load(Some(&file), &env).unwrap_or_else(|errors| panic!("{errors}"));
            // What the plugins' directory holds differs from one machine to the next.
            let odd: Vec<_> = loaded.warnings.iter().filter(|warning| !warning.path.ends_with(".handler")).collect();
            assert!(odd.is_empty(), "{odd:?}");
            count += 1;
        }
    }
    assert!(count >= 10, "{count} examples");
}

/// Without what tells where it comes from.
fn essence(mut config: Config) -> String {
    config.file = None;
    config.http.token = None;
    format!("{config:#?}")
}

#[test]
fn the_default_file_says_what_holds_without_it() {
    assert_eq!(essence(load("messaging.yaml").config), essence(Config::default()));
    let without = config::load(None, &|_| None).unwrap();
    assert_eq!(essence(without.config), essence(Config::default()));
}

#[test]
fn the_default_file_names_every_key_that_is_not_under_a_name_of_the_operators() {
    let named: BTreeMap<_, _> =
        load("messaging.yaml").values.into_iter().map(|shown| (shown.path, shown.origin)).collect();
    for key in config::keys() {
        // With a section for another system, even an empty one, queues or topics would be there; with a backend, all.
        let systems = ["rabbitmq.", "kafka.", "redis.", "messaging.backend"];
        let elsewhere = systems.iter().any(|start| key.path.starts_with(start));
        if !key.path.contains(['<', '[']) && key.path != "http.token" && !elsewhere {
            assert!(matches!(named.get(&key.path), Some(Origin::File { .. })), "{} is not in the file", key.path);
        }
    }
}

#[test]
fn the_commented_lines_of_the_default_file_are_right_too() {
    let text = fs::read_to_string("configs/messaging.yaml").unwrap();
    let uncommented: Vec<_> = text
        .lines()
        .filter(|line| *line != "routes: []")
        .map(|line| match line.split_once('#') {
            Some((before, after)) if before.trim().is_empty() && !after.starts_with([' ', '#']) => {
                format!("{before}{after}")
            }
            // The second line of such an example, whose own indentation follows.
            Some((before, after)) if before.trim().is_empty() && after.starts_with("  ") => format!("{before}{after}"),
            _ => line.to_owned(),
        })
        .collect();
    let loaded = config::load_text(Path::new("uncommented.yaml"), &uncommented.join("\n"), &env).unwrap();
    assert_eq!(loaded.config.routes.iter().count(), 1);
    assert!(loaded.config.http.token.is_some());
    assert_eq!(loaded.config.plugins.settings["triage"].config["region"], "eu");
}

#[test]
fn the_demo_reads_its_topic_by_key_and_may_send_alerts() {
    let config = load("quakes.yaml").config;
    let message = Message::new("quake", "{}", now_ms());
    let route = config.routes.find(&Address::topic("quakes"), &message).unwrap();
    assert_eq!((&*route.handler, route.order), ("quake-triage", Order::Key));
    let granted: Vec<_> =
        route.terms.destinations.iter().map(|(name, to)| (name.to_string(), to.to_string())).collect();
    assert_eq!(
        granted,
        [("helixagent.tasks.notifications".to_owned(), "queue:helixagent.tasks.notifications".to_owned())]
    );
}

#[test]
fn the_example_with_further_connections_leads_from_one_cluster_to_another() {
    let env = |name: &str| ["RABBITMQ_PASSWORD", "GPU_PASSWORD"].contains(&name).then(|| "secret".to_owned());
    let config = config::load(Some(Path::new("configs/connections.yaml")), &env).unwrap().config;
    let systems = config.connections_in_use();
    assert_eq!(systems.keys().map(|name| &**name).collect::<Vec<_>>(), ["gpu", "kafka", "rabbitmq"]);
    let message = Message::new("request", "{}", now_ms());
    let route = config.routes.find(&Address::queue("helixagent.tasks.requests"), &message).unwrap();
    let to: Vec<_> = route.terms.destinations.values().map(|to| config.system_name_of(to).to_string()).collect();
    assert_eq!(to, ["kafka", "gpu"]);
}

#[test]
fn secrets_are_not_shown() {
    let loaded = load("production.yaml");
    let token = env("HELIXMQ_TOKEN").unwrap();
    let shown = loaded.values.iter().find(|shown| shown.path == "http.token").unwrap();
    assert_eq!(shown.value, "***");
    assert!(matches!(&shown.origin, Origin::File { line: 5, .. }), "{:?}", shown.origin);
    assert!(!format!("{:?}", loaded).contains(&token));
    assert_eq!(loaded.config.http.token.unwrap().reveal(), token);
}

#[test]
fn a_routes_limits_are_its_own_then_its_plugins_then_the_defaults() {
    let loaded = load("strict-limits.yaml");
    let route = loaded.config.routes.iter().next().unwrap();
    let limits = &route.terms.limits;
    assert_eq!((limits.results_max, limits.memory_bytes_max), (1, 16 << 20));
    let origin_of = |key: &str| {
        let path = format!("routes[0].limits.{key}");
        loaded.values.iter().find(|shown| shown.path == path).unwrap().origin.to_string()
    };
    assert_eq!(origin_of("results_max"), "configs/strict-limits.yaml:24");
    assert_eq!(origin_of("memory_bytes_max"), "configs/strict-limits.yaml:11");
    let ordered = load("ordered.yaml");
    let default = ordered.values.iter().find(|shown| shown.path == "routes[0].limits.memory_bytes_max").unwrap();
    assert_eq!((default.value.as_str(), default.origin.to_string().as_str()), ("64 MiB", "default"));
}
