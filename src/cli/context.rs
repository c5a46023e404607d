//! What every verb has at hand: the configuration, and the engine that runs by it.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use super::{
    failure::{Exit, Failure},
    output::Output,
};
use crate::config::{self, Config, ConfigErrors, Loaded, Warning};

/// In the data directory: where the engine that runs by it listens.
pub(super) const ADDRESS_FILE: &str = "address";
/// In the data directory: the token that the engine made.
pub(super) const TOKEN_FILE: &str = "token";

/// What the global options say.
#[derive(Clone, Debug)]
pub struct Context {
    /// As `--config` names it.
    pub config: Option<PathBuf>,
    /// As `--api` names it.
    pub api: Option<String>,
    /// How to print.
    pub output: Output,
    /// As `serve --plugins` names it.
    pub plugins: Option<PathBuf>,
}

impl Context {
    /// The configuration file in force, if there is one.
    ///
    /// # Errors
    /// The file that was named is not there.
    pub fn file(&self) -> Result<Option<PathBuf>, Failure> {
        match &self.config {
            Some(file) if !file.exists() => Err(Failure::new(
                Exit::Refused,
                "CONFIG_NOT_FOUND",
                format!("there is no configuration file {}", file.display()),
                "name one that is there, or leave --config out for the built-in development configuration",
            )),
            named => Ok(config::find(named.clone())),
        }
    }

    /// The configuration, every mistake of it at once where it has any. Warnings are left to the caller.
    ///
    /// # Errors
    /// Nothing of it is in force.
    pub fn load(&self) -> Result<Loaded, Failure> {
        let file = self.file()?;
        self.load_file(file.as_deref()).map_err(|errors| refused(file.as_deref(), &errors))
    }

    /// As [`Self::load`], with the warnings printed.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with_warnings(&self) -> Result<Loaded, Failure> {
        let loaded = self.load()?;
        loaded.warnings.iter().for_each(|warning| self.warn(warning));
        Ok(loaded)
    }

    /// The configuration of that file.
    ///
    /// # Errors
    /// Every mistake.
    pub fn load_file(&self, file: Option<&Path>) -> Result<Loaded, ConfigErrors> {
        let mut loaded = config::load(file, &|name| std::env::var(name).ok())?;
        if let Some(directory) = &self.plugins {
            loaded.config.plugins.directory.clone_from(directory);
        }
        Ok(loaded)
    }

    /// Prints a warning of the configuration.
    pub fn warn(&self, warning: &Warning) {
        self.output.note(format_args!("warning: {warning}"));
    }
}

/// Says every mistake of a configuration.
fn refused(file: Option<&Path>, errors: &ConfigErrors) -> Failure {
    let name = file.map_or_else(|| "the environment".to_owned(), |file| file.display().to_string());
    let count = errors.mistakes().len();
    let mistakes = if count == 1 { "a mistake".to_owned() } else { format!("{count} mistakes") };
    Failure::new(
        Exit::Refused,
        "INVALID_CONFIG",
        format!("the configuration of {name} has {mistakes}, and nothing of it is in force"),
        "correct what follows",
    )
    .with_details(errors.to_string(), "mistakes", &errors.mistakes())
}

/// Where the engine of this configuration listens: as it wrote down itself, else as configured.
pub(super) fn engine_address(config: &Config) -> SocketAddr {
    let written = fs::read_to_string(config.data_directory.join(ADDRESS_FILE)).ok();
    let listen = written.and_then(|text| text.trim().parse().ok()).unwrap_or(config.http.listen);
    reachable(listen)
}

/// Where to reach what listens there: "every address" is not one that can be called.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    (ip, listen.port()).into()
}

/// What the engine of this configuration asks for: as configured, else as it made it.
pub(super) fn engine_token(config: &Config) -> Option<String> {
    match &config.http.token {
        Some(token) => Some(token.reveal().to_owned()),
        None => fs::read_to_string(config.data_directory.join(TOKEN_FILE)).ok().map(|text| text.trim().to_owned()),
    }
    .filter(|token| !token.is_empty())
}
