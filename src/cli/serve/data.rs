//! The data directory: made for this user alone, used by one engine at a time, and where the command line finds the
//! engine's token and address.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::{
    cli::{
        context::{ADDRESS_FILE, TOKEN_FILE},
        failure::{Exit, Failure},
    },
    store,
};

/// Of a token that is made: twice as many hex digits.
const TOKEN_BYTES: usize = 32;
/// Held locked by the engine that runs.
const LOCK_FILE: &str = "lock";

/// A data directory in use by this process, until it is dropped.
#[derive(Debug)]
pub(super) struct DataDirectory {
    path: PathBuf,
    /// Kept: closing it gives the lock back.
    _lock: File,
}

impl DataDirectory {
    /// Makes it where it is not there, and keeps other engines out. Waits a moment for one that was killed just now.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        make(path).map_err(|error| unusable(path, &error))?;
        let lock = private(OpenOptions::new().create(true).truncate(false).write(true))
            .open(path.join(LOCK_FILE))
            .map_err(|error| unusable(path, &error))?;
        match store::lock(|| lock.try_lock()) {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Failure::new(
                Exit::Failed,
                "DATA_DIRECTORY_IN_USE",
                format!("another engine uses the data directory {}", path.display()),
                "stop it, or give this one another engine.data_directory",
            )),
            Err(TryLockError::Error(error)) => Err(unusable(path, &error)),
        }
    }

    /// The token of this engine: made on first use, readable by this user alone, the same until its file is removed.
    pub(super) fn token(&self) -> Result<String, Failure> {
        let file = self.path.join(TOKEN_FILE);
        let unusable = |error: io::Error| unusable(&self.path, &error);
        match fs::read_to_string(&file) {
            Ok(text) if text.trim().len() >= TOKEN_BYTES => {
                fs::set_permissions(&file, Permissions::from_mode(0o600)).map_err(unusable)?;
                return Ok(text.trim().to_owned());
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unusable(error)),
        }
        let mut bytes = [0_u8; TOKEN_BYTES];
        getrandom::fill(&mut bytes).map_err(|error| {
            Failure::new(
                Exit::Failed,
                "NO_RANDOMNESS",
                format!("the system gives no random bytes for a token: {error}"),
                "set http.token",
            )
        })?;
        let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.replace(TOKEN_FILE, &token).map_err(unusable)?;
        Ok(token)
    }

    /// Writes down where the engine listens.
    pub(super) fn write_address(&self, address: SocketAddr) -> Result<(), Failure> {
        self.replace(ADDRESS_FILE, &address.to_string()).map_err(|error| unusable(&self.path, &error))
    }

    /// Whole or not at all: whoever reads it meanwhile sees the text before.
    fn replace(&self, name: &str, text: &str) -> io::Result<()> {
        let (file, part) = (self.path.join(name), self.path.join(format!("{name}.part")));
        // What an engine left behind that was killed here.
        fs::remove_file(&part).ok();
        let mut written = private(OpenOptions::new().write(true).create_new(true)).open(&part)?;
        written.write_all(text.as_bytes())?;
        written.write_all(b"\n")?;
        fs::rename(&part, file)
    }
}

impl Drop for DataDirectory {
    fn drop(&mut self) {
        // One that stays behind names a port that does not answer, which says the same.
        fs::remove_file(self.path.join(ADDRESS_FILE)).ok();
    }
}

/// Makes a directory that only this user may enter; one that is there is left as it is.
pub(super) fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    options.mode(0o600)
}

pub(super) fn unusable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(
        Exit::Failed,
        "DATA_DIRECTORY_UNUSABLE",
        format!("the data directory {} cannot be used ({error})", path.display()),
        "set engine.data_directory to one that the engine may write",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_for_this_user_alone() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        let token = DataDirectory::open(&path).unwrap().token().unwrap();
        assert_eq!(token.len(), 2 * TOKEN_BYTES);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&path.join(TOKEN_FILE))), (0o700, 0o600));
        fs::set_permissions(path.join(TOKEN_FILE), Permissions::from_mode(0o644)).unwrap();
        assert_eq!(DataDirectory::open(&path).unwrap().token().unwrap(), token);
        assert_eq!(mode(&path.join(TOKEN_FILE)), 0o600);
    }

    #[test]
    fn one_engine_at_a_time_uses_it_and_its_address_goes_with_it() {
        let parent = tempfile::tempdir().unwrap();
        let first = DataDirectory::open(parent.path()).unwrap();
        first.write_address(([127, 0, 0, 1], 7061).into()).unwrap();
        assert_eq!(fs::read_to_string(parent.path().join(ADDRESS_FILE)).unwrap(), "127.0.0.1:7061\n");
        assert!(DataDirectory::open(parent.path()).unwrap_err().message().starts_with("another engine uses"));
        drop(first);
        assert!(!parent.path().join(ADDRESS_FILE).exists());
        DataDirectory::open(parent.path()).unwrap();
    }
}
