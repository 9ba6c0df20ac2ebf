//! Brings a plaintext token cache of any MSAL SDK into a sealed one.
//!
//!     cargo run --example import_msal -- FILE.json [--name NAME] [--dir DIR] [--replace] [--export-secrets]
//!
//! The Azure CLI keeps such a file at `~/.azure/msal_token_cache.json` on Linux. It prints accounts,
//! counts and expiries. With `--export-secrets` it prints the JSON that it reads back from the sealed
//! file, tokens and all, and everything else goes to the standard error. The plaintext file stays
//! where it is: delete it yourself when you are content.

mod support;

use std::error::Error;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::SystemTime;

use tokenseal::{PersistedTokenCache, TokenCache, seal::SecretBytes};

const SIZE_LIMIT: u64 = 256 * 1024 * 1024;

const USAGE: &str = "usage: import_msal FILE.json [--name NAME] [--dir DIR] [--replace] [--export-secrets]";

struct Arguments {
    file: PathBuf,
    name: String,
    directory: Option<PathBuf>,
    replace: bool,
    export_secrets: bool,
}

fn arguments() -> Result<Arguments, Box<dyn Error>> {
    let (mut file, mut name, mut directory) = (None, "tokenseal-import".to_owned(), None);
    let (mut replace, mut export_secrets) = (false, false);
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--name") => {
                name = arguments.next().and_then(|name| name.into_string().ok()).ok_or(USAGE)?;
            }
            Some("--dir") => directory = Some(PathBuf::from(arguments.next().ok_or(USAGE)?)),
            Some("--replace") => replace = true,
            Some("--export-secrets") => export_secrets = true,
            Some(option) if option.starts_with("--") => return Err(USAGE.into()),
            _ if file.is_some() => return Err(USAGE.into()),
            _ => file = Some(PathBuf::from(argument)),
        }
    }
    Ok(Arguments { file: file.ok_or(USAGE)?, name, directory, replace, export_secrets })
}

fn main() -> std::process::ExitCode {
    support::run(import)
}

fn import() -> Result<(), Box<dyn Error>> {
    let arguments = arguments()?;
    let plaintext = read(&arguments.file)
        .map_err(|error| format!("cannot read {}: {error}", arguments.file.display()))?;
    let mut imported = TokenCache::new();
    imported.deserialize(plaintext).map_err(|error| format!("{}: {error}", arguments.file.display()))?;

    let open = || {
        let mut builder = PersistedTokenCache::builder(&arguments.name).size_limit(SIZE_LIMIT);
        if let Some(directory) = &arguments.directory {
            builder = builder.directory(directory);
        }
        support::open(&arguments.name, builder)
    };
    let cache = open()?;
    cache.try_update(|tokens| {
        let held = tokens.access_tokens().count() + tokens.refresh_tokens().count() + tokens.accounts().len();
        if held > 0 && !arguments.replace {
            return Err(tokenseal::Error::aborted(
                "this cache holds tokens already: choose another with --name or --dir, or say --replace",
            ));
        }
        *tokens = imported;
        Ok(())
    })?;
    drop(cache);

    // What follows is read back from the sealed file.
    let cache = open()?;
    let report = cache.read(report)?;
    if arguments.export_secrets {
        eprint!("{report}");
        let json = cache.read(TokenCache::serialize)?;
        std::io::stdout().write_all(json.json().expose())?;
        println!();
    } else {
        print!("{report}");
    }
    eprintln!("Sealed in {}", cache.path().display());
    Ok(())
}

/// Reads a plaintext cache. Some Windows tools begin it with a byte order mark.
fn read(file: &std::path::Path) -> std::io::Result<SecretBytes> {
    let metadata = std::fs::metadata(file)?;
    if !metadata.is_file() || metadata.len() > SIZE_LIMIT {
        return Err(std::io::Error::other("it is no regular file of at most 256 MiB"));
    }
    let bytes = SecretBytes::from(std::fs::read(file)?);
    match bytes.expose().strip_prefix(b"\xEF\xBB\xBF") {
        Some(text) => Ok(SecretBytes::from(text)),
        None => Ok(bytes),
    }
}

/// Accounts, counts and expiries; no secrets.
fn report(tokens: &TokenCache) -> String {
    use std::fmt::Write as _;
    let mut report = String::new();
    let now = SystemTime::now();
    for account in tokens.accounts() {
        let _ = writeln!(
            report,
            "account {} ({} at {}), realms: {}",
            account.username(),
            account.home_account_id(),
            account.environment(),
            account.realms().join(", ")
        );
    }
    for token in tokens.access_tokens() {
        let expiry = match token.expires_on().duration_since(now) {
            Ok(left) => format!("expires in {} s", left.as_secs()),
            Err(past) => format!("expired {} s ago", past.duration().as_secs()),
        };
        let owner = token.home_account_id().unwrap_or("the application itself");
        let _ = writeln!(
            report,
            "access token of {owner} for {} ({}): {expiry}",
            token.client_id(),
            token.scopes().collect::<Vec<_>>().join(" ")
        );
    }
    let _ = writeln!(
        report,
        "{} accounts, {} access tokens, {} refresh tokens, {} id tokens",
        tokens.accounts().len(),
        tokens.access_tokens().count(),
        tokens.refresh_tokens().count(),
        tokens.id_tokens().count()
    );
    report
}
