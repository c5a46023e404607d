//! The files beside plugins: they win over messaging.yaml, bring routes, and are as strict.

use std::{fs, path::PathBuf};

use helixmq::{
    config::{self, Config},
    message::Address,
};
use tempfile::TempDir;

fn none(_: &str) -> Option<String> {
    None
}

/// A directory with a plugin, its file, and a messaging.yaml that names both.
fn with(beside: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let plugins = directory.path().join("plugins");
    fs::create_dir(&plugins).unwrap();
    fs::write(plugins.join("triage.wasm"), "").unwrap();
    fs::write(plugins.join("triage.toml"), beside).unwrap();
    fs::write(plugins.join("README.md"), "not read").unwrap();
    let file = directory.path().join("messaging.yaml");
    let text = format!(
        "plugins:\n  directory: {}\n  settings:\n    triage:\n      config: {{a: '1', b: '1'}}\n      limits: {{hops_max: 3, results_max: 3}}\nroutes:\n  - {{name: one, queue: one, handler: triage}}\n",
        plugins.display()
    );
    fs::write(&file, text).unwrap();
    (directory, file)
}

#[test]
fn a_plugins_own_file_wins_key_by_key_and_brings_routes() {
    let (directory, file) = with(
        "[config]\nb = \"2\"\npassword = \"hunter2\"\n[limits]\nresults_max = 4\n[[routes]]\nname = \"two\"\ntopic = \"two\"\ndestinations = [\"queue:x\"]\n[routes.limits]\nhops_max = 5\n",
    );
    let loaded = config::load(Some(&file), &none).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let settings = &loaded.config.plugins.settings["triage"];
    assert_eq!((&*settings.config["a"], &*settings.config["b"]), ("1", "2"));
    assert_eq!((settings.limits.hops_max, settings.limits.results_max), (Some(3), Some(4)));
    let limits = |address: &Address| {
        let route = &loaded.config.routes.of(address)[0];
        assert_eq!(&*route.handler, "triage");
        (route.terms.limits.hops_max, route.terms.limits.results_max)
    };
    assert_eq!(limits(&Address::queue("one")), (3, 4));
    assert_eq!(limits(&Address::topic("two")), (5, 4));
    assert_eq!(loaded.files, [file, directory.path().join("plugins/triage.toml")]);
    let shown = loaded.values.iter().find(|shown| shown.path == "triage.toml: config.password").unwrap();
    assert_eq!(shown.value, "***");
    assert!(shown.origin.to_string().ends_with("triage.toml:3"), "{}", shown.origin);
}

#[test]
fn a_broken_file_refuses_the_whole_and_can_be_asked_alone() {
    let (directory, file) = with("[limits]\nresults_max = \"many\"\n");
    let errors = config::load(Some(&file), &none).unwrap_err();
    assert_eq!(errors.mistakes().len(), 1, "{errors}");
    let beside = directory.path().join("plugins/triage.toml");
    let alone = config::read_plugin_toml(&beside, &Config::default(), &none).unwrap_err();
    assert_eq!(alone.mistakes(), errors.mistakes());
    let json = serde_json::to_value(&alone).unwrap();
    assert_eq!((&json["mistakes"][0]["line"], &json["mistakes"][0]["path"]), (&2.into(), &"limits.results_max".into()));
}

#[test]
fn a_sound_file_alone_tells_its_routes() {
    let (directory, _) = with("sha256 = \"${NOBODY:-}\"\n");
    let beside = directory.path().join("plugins/triage.toml");
    assert!(config::read_plugin_toml(&beside, &Config::default(), &none).is_err());
    fs::write(&beside, "[[routes]]\nname = \"two\"\nqueue = \"two\"\n").unwrap();
    let read = config::read_plugin_toml(&beside, &Config::default(), &none).unwrap();
    assert_eq!(read.routes.iter().map(|route| &*route.name).collect::<Vec<_>>(), ["two"]);
}

#[test]
fn a_route_without_its_plugin_is_a_warning() {
    let (directory, file) = with("");
    fs::remove_file(directory.path().join("plugins/triage.wasm")).unwrap();
    let loaded = config::load(Some(&file), &none).unwrap();
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
}

#[test]
fn long_files_and_things_that_are_no_files_are_refused() {
    let (directory, file) = with("");
    for path in [directory.path().to_path_buf(), directory.path().join("absent.yaml"), PathBuf::from("/dev/zero")] {
        assert!(config::load(Some(&path), &none).is_err(), "{}", path.display());
    }
    fs::write(&file, " ".repeat(config::FILE_BYTES_MAX as usize + 1)).unwrap();
    assert!(config::load(Some(&file), &none).unwrap_err().to_string().contains("longer than"));
}
