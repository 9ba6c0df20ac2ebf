//! What several tests need.
#![allow(dead_code)] // No test needs all of it.

#[cfg(feature = "file")]
pub(crate) mod key_stores;
#[cfg(feature = "file")]
pub(crate) mod rotating;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenseal::{
    AccessTokenQuery, Account, PersistedTokenCache, TokenResponse,
    key_store::{KeyFileStore, KeyStore, MemoryKeyStore},
    persisted::PersistedTokenCacheBuilder,
};

pub(crate) const CLIENT: &str = "app";
pub(crate) const ENVIRONMENT: &str = "idp.example";

/// Says that a test was left out, because this machine lacks something. Where
/// `TOKENSEAL_REQUIRE_<requirement>` is set, that is a failure.
pub(crate) fn skip(requirement: &str, why: &str) {
    use std::io::Write as _;
    let variable = format!("TOKENSEAL_REQUIRE_{requirement}");
    assert!(std::env::var_os(&variable).is_none(), "{variable} is set, but {why}");
    // What a macro prints, the test harness keeps to itself.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// Runs a test of this program again, where `variable` is `base`, as a user whom file modes bind. The test
/// prints `it was done` at its end.
#[cfg(unix)]
pub(crate) fn again_without_root(test: &str, variable: &str, base: &Path) {
    use std::os::unix::fs::MetadataExt as _;
    let program = std::env::current_exe().unwrap();
    // It was made by this user.
    let is_root = std::fs::metadata(base).unwrap().uid() == 0;
    let mut again = if is_root {
        let without_root = |program: &Path| {
            let mut again = std::process::Command::new("setpriv");
            again.args(["--bounding-set", "-all", "--inh-caps", "-all"]).arg(program);
            again
        };
        if !without_root(Path::new("true")).status().is_ok_and(|status| status.success()) {
            return skip("ROOT", "setpriv, which takes root's powers away, is missing");
        }
        without_root(&program)
    } else {
        std::process::Command::new(program)
    };
    let output = again.args(["--exact", test, "--nocapture"]).env(variable, base).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.contains("it was done"), "{said}");
}

/// A directory for one test, with a key store in memory.
pub(crate) struct Bench {
    pub(crate) base: tempfile::TempDir,
    pub(crate) keys: MemoryKeyStore,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self { base: tempfile::tempdir().unwrap(), keys: MemoryKeyStore::new() }
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.base.path().join("tokens")
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.directory().join("default.sealed")
    }

    pub(crate) fn builder(&self) -> PersistedTokenCacheBuilder {
        self.builder_with(Arc::new(self.keys.clone()))
    }

    pub(crate) fn builder_with(&self, keys: Arc<dyn KeyStore>) -> PersistedTokenCacheBuilder {
        PersistedTokenCache::builder("contoso-cli").directory(self.directory()).key_store(keys)
    }

    pub(crate) fn open(&self) -> PersistedTokenCache {
        self.builder().open().unwrap()
    }

    /// The names of all files in the directory of the cache.
    pub(crate) fn files(&self) -> Vec<String> {
        files(&self.directory())
    }
}

pub(crate) fn files(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A response with an access token and a refresh token of this user for this scope.
pub(crate) fn response(user: &str, scope: &str) -> TokenResponse {
    let json = format!(
        r#"{{"access_token":"at-{user}-{scope}","refresh_token":"rt-{user}-{scope}","expires_in":3600}}"#
    );
    TokenResponse::from_json(json)
        .unwrap()
        .client_id(CLIENT)
        .environment(ENVIRONMENT)
        .realm("tenant")
        .home_account_id(user)
        .requested_scopes([scope])
}

pub(crate) fn account(user: &str) -> Account {
    Account::new(user, ENVIRONMENT)
}

pub(crate) fn wanted(user: &str, scope: &str) -> AccessTokenQuery {
    AccessTokenQuery::for_account(CLIENT, &account(user)).scopes([scope])
}

/// Whether the cache has the token of this user for this scope.
pub(crate) fn has(cache: &PersistedTokenCache, user: &str, scope: &str) -> bool {
    let found = cache.find_access_token(&wanted(user, scope)).unwrap();
    found.is_some_and(|token| token.expose() == format!("at-{user}-{scope}"))
}

/// The id of the key that a sealed file names.
pub(crate) fn key_id(file: &Path) -> Vec<u8> {
    std::fs::read(file).unwrap()[8..24].to_vec()
}

/// The generation of a sealed file.
pub(crate) fn generation(file: &Path) -> u64 {
    u64::from_be_bytes(std::fs::read(file).unwrap()[24..32].try_into().unwrap())
}

/// Opens a cache whose key is in a file, as several processes can.
pub(crate) fn with_key_file(base: &Path) -> PersistedTokenCacheBuilder {
    PersistedTokenCache::builder("contoso-cli")
        .directory(base.join("tokens"))
        .key_store(Arc::new(KeyFileStore::new(base.join("keys"))))
}

/// Puts other bytes in the place of the file, as a restore would.
pub(crate) fn replace(bench: &Bench, bytes: &[u8]) {
    use std::io::Write as _;
    let mut file = tempfile::NamedTempFile::new_in(bench.directory()).unwrap();
    file.write_all(bytes).unwrap();
    file.persist(bench.file()).unwrap();
}

/// Puts a record that holds `json` in the place of the file: sealed with its very key, as a program
/// that has gone wrong would write it.
pub(crate) fn plant(base: &Path, json: &[u8]) {
    use base64ct::Encoding as _;
    use tokenseal::seal::{self, Context, KeyId, SealingKey};
    drop(with_key_file(base).open().unwrap());
    let file = base.join("tokens/default.sealed");
    let key_id = KeyId::from_bytes(key_id(&file).try_into().unwrap());
    let entry = &files(&base.join("keys"))[0];
    let text = std::fs::read_to_string(base.join("keys").join(entry)).unwrap();
    let mut bytes = [0; 32];
    base64ct::Base64UrlUnpadded::decode(text.split(':').nth(1).unwrap(), &mut bytes).unwrap();
    let key = SealingKey::from_bytes(key_id, &bytes);
    let record = seal::seal(&key, &Context::file("contoso-cli", "default"), 2, json).unwrap();
    std::fs::write(file, record).unwrap();
}
