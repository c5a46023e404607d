//! Bad configurations, and word for word what is said of each: `tests/fixtures/config/*.yaml` and the `.expected`
//! beside it. With `UPDATE_EXPECTED=1` the texts are written anew, to be read before they are committed.

use std::{fs, path::Path};

use helixmq::config;

/// The environment of all of them.
fn env(name: &str) -> Option<String> {
    match name {
        "SECRET_OF_THE_ENVIRONMENT" => Some("hunter2".to_owned()),
        _ => None,
    }
}

#[test]
fn each_bad_configuration_is_refused_in_these_words() {
    let directory = Path::new("tests/fixtures/config");
    let mut wrong = Vec::new();
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "yaml")) {
        let said = match config::load(Some(file), &env) {
            Ok(_) => "accepted".to_owned(),
            Err(errors) => errors.to_string(),
        };
        let expected = file.with_extension("expected");
        if std::env::var_os("UPDATE_EXPECTED").is_some() {
            fs::write(&expected, format!("{said}\n")).unwrap();
        }
        let wanted = fs::read_to_string(&expected).unwrap_or_default();
        if wanted.trim_end() != said {
            wrong.push(format!("{}\n--- wanted\n{}\n--- said\n{said}", file.display(), wanted.trim_end()));
        }
        assert!(!said.contains("hunter2"), "{}: a secret is printed:\n{said}", file.display());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn six_different_mistakes_are_reported_together() {
    let errors = config::load(Some(Path::new("tests/fixtures/config/six-mistakes.yaml")), &env).unwrap_err();
    assert_eq!(errors.mistakes().len(), 6, "{errors}");
}

#[test]
fn of_very_many_mistakes_the_first_are_told_and_the_rest_counted() {
    let text: String = (0..300).map(|number| format!("k{number}: 1\n")).collect();
    let errors = config::load_text(Path::new("many.yaml"), &text, &env).unwrap_err();
    assert_eq!(errors.mistakes().len(), 100);
    assert!(errors.to_string().ends_with("and 200 more"));
}

#[test]
fn too_many_routes_are_refused_before_they_are_compared() {
    let routes: String = (0..5000).map(|number| format!("  - {{name: r{number}, queue: q, handler: h}}\n")).collect();
    let text = format!("plugins: {{directory: tests/fixtures/config/no-plugins}}\nroutes:\n{routes}");
    let errors = config::load_text(Path::new("many.yaml"), &text, &env).unwrap_err();
    assert!(errors.mistakes().iter().any(|mistake| mistake.problem.contains("more than 1000 routes")), "{errors}");
}
