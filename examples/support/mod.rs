//! Opens a sealed cache with the platform keyring, or says why not and goes on with a key file.

pub(crate) mod identity_provider;

use std::error::Error;
use std::sync::Arc;

use etcetera::BaseStrategy as _;
use tokenseal::{PersistedTokenCache, key_store::KeyFileStore, persisted::PersistedTokenCacheBuilder};

/// Set where somebody else has told already that the keyring cannot be used.
pub(crate) const QUIET: &str = "TOKENSEAL_EXAMPLE_QUIET";

/// Opens the cache that `builder` describes. Where the platform keyring cannot be used, a second
/// cache is opened whose key is in a file: these examples ask for that by name, so that they run
/// everywhere. A program of yours may rather stop here and show the advice to its user.
pub(crate) fn open(
    application: &str,
    builder: PersistedTokenCacheBuilder,
) -> Result<PersistedTokenCache, Box<dyn Error>> {
    match builder.clone().open() {
        Err(error) if error.is_key_unavailable() => {
            // Not beside the sealed file: whoever copies that directory must not get both.
            let keys = etcetera::choose_base_strategy()?.data_dir().join(application).join("keys");
            if std::env::var_os(QUIET).is_none() {
                // The error says what is wrong and what would fix it; `tokenseal::key_store::probe()` tells the
                // same without opening anything.
                eprintln!("The platform keyring cannot be used: {error}.");
                if let Some(cause) = error.source() {
                    eprintln!("It said: {cause}.");
                }
                eprintln!(
                    "Going on with a key file in {} (weaker: anyone who reads it can read the tokens).",
                    keys.display()
                );
            }
            let keys = Arc::new(KeyFileStore::new(keys));
            Ok(builder.cache("with-key-file").key_store(keys).open()?)
        }
        result => Ok(result?),
    }
}

/// Runs a program and tells what went wrong in words, with what caused it.
pub(crate) fn run(program: impl FnOnce() -> Result<(), Box<dyn Error>>) -> std::process::ExitCode {
    let Err(error) = program() else { return std::process::ExitCode::SUCCESS };
    eprintln!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
    std::process::ExitCode::FAILURE
}
