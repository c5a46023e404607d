//! What has to be there before anything is built, and the command that brings it.

use std::{env, path::Path};

use crate::{Result, shell};

/// The target that plugins are built for.
pub(crate) const GUEST_TARGET: &str = "wasm32-wasip2";

/// Says everything that is missing at once.
pub(crate) fn check() -> Result {
    let sysroot = shell::output("rustc --print sysroot")?;
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let needs = [
        (
            Path::new(sysroot.trim()).join("lib/rustlib").join(GUEST_TARGET).is_dir(),
            "the Rust target wasm32-wasip2",
            "rustup target add wasm32-wasip2",
        ),
        (shell::succeeds(&format!("{compiler} --version")), "a C compiler", "apt-get install build-essential"),
        // OpenSSL, which the Kafka client brings along, is configured by Perl and built by make.
        (shell::succeeds("make --version"), "make", "apt-get install build-essential"),
        (
            shell::succeeds("perl -MFindBin -MIPC::Cmd -MFile::Compare -e 1"),
            "Perl with its usual modules",
            "apt-get install perl",
        ),
        (shell::succeeds("gzip --version"), "gzip", "apt-get install gzip"),
    ];
    all_there(&needs)
}

/// As [`check`], for tasks that start the real servers.
pub(crate) fn servers() -> Result {
    all_there(&[
        (
            Path::new("/usr/lib/rabbitmq/bin/rabbitmq-server").exists(),
            "RabbitMQ, which tests run against",
            "apt-get install --no-install-recommends rabbitmq-server",
        ),
        (
            has_java(),
            "Java 17 or newer, which runs the Kafka of the tests",
            "apt-get install --no-install-recommends default-jre-headless",
        ),
        (
            shell::succeeds("mvn --version"),
            "Maven, which fetches that Kafka",
            "apt-get install --no-install-recommends maven",
        ),
        (
            shell::succeeds("redis-server --version"),
            "Redis, which tests run against",
            "apt-get install --no-install-recommends redis-server",
        ),
        (shell::succeeds("openssl version"), "OpenSSL's program, which makes certificates", "apt-get install openssl"),
        (shell::succeeds("flock --version"), "flock", "apt-get install util-linux"),
    ])
}

/// Whether there is a Java that Kafka runs on.
fn has_java() -> bool {
    shell::output("java --version").is_ok_and(|said| java_major(&said).is_some_and(|major| major >= 17))
}

/// The first number of a version: of `openjdk 17.0.15 2025-04-15`, 17.
fn java_major(said: &str) -> Option<u32> {
    said.split_whitespace().nth(1)?.split(['.', '-', '+']).next()?.parse().ok()
}

/// As [`check`], for the task that has other versions of the servers in trees of their own.
pub(crate) fn trees() -> Result {
    let user = shell::output("id --user")?;
    if user.trim() != "0" {
        return Err("a tree of another Debian release is made and entered by root: run this as root".into());
    }
    all_there(&[(shell::succeeds("debootstrap --version"), "debootstrap", "apt-get install debootstrap")])
}

/// Whether each is there; what it is; what brings it.
fn all_there(needs: &[(bool, &str, &str)]) -> Result {
    let missing: Vec<String> = needs
        .iter()
        .filter(|(there, ..)| !there)
        .map(|(_, what, how)| format!("\n  {what}: install it with `{how}`"))
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("this is missing:{}", missing.concat()).into()) }
}

#[test]
fn reads_the_version_of_java() {
    for (said, major) in [
        ("openjdk 17.0.15 2025-04-15\nOpenJDK Runtime", Some(17)),
        ("java 21 2023-09-19 LTS", Some(21)),
        ("openjdk 25-ea 2025-09-16", Some(25)),
        ("", None),
    ] {
        assert_eq!(java_major(said), major, "{said}");
    }
}
