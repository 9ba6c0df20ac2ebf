//! No secret is in what any public type shows of itself, nor in any error that one is near to.
#![cfg(feature = "file")]

mod common;

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::sync::Arc;
use std::time::Duration;

use common::key_stores::Refusing;
use common::rotating::Rotating;
use common::{Bench, CLIENT, ENVIRONMENT, account, response, wanted};
use tokenseal::{
    AcquireError, CacheError, RefreshTokenQuery, Secret, SharedTokenCache, TokenCache, TokenResponse,
    cache::{AccountQuery, EnvironmentAliases},
    key_store::{KeyFileStore, KeyName, KeyStore, KeyStoreError, MemoryKeyStore},
    refresh::{AcquireRequest, RefreshFailure, SignInReason},
    seal::SecretBytes,
};
use tokenseal::{
    ErrorKind,
    seal::{self, Context, KeyId, Kind, SealError, SealingKey},
};

/// In every token, and in every key text.
const PLANTED: &str = "planted";

fn planted_response() -> TokenResponse {
    let json = r#"{"access_token":"at-planted","refresh_token":"rt-planted","id_token":"planted.e.n.c.r",
        "expires_in":3600}"#;
    let response = TokenResponse::from_json(json).unwrap().client_id(CLIENT).environment(ENVIRONMENT);
    response
        .realm("tenant")
        .home_account_id("alice")
        .requested_scopes(["read"])
        .parameter("password", "planted")
}

/// What was shown, by the name of the type.
#[derive(Default)]
struct Shown(BTreeMap<String, String>);

impl Shown {
    fn show<T: Debug>(&mut self, value: &T) {
        self.add(&short_name(std::any::type_name::<T>()), &format!("{value:?} {value:#?}"));
    }

    /// An error, with all that it says was the cause.
    fn show_error<T: std::error::Error>(&mut self, error: &T) {
        self.show(error);
        let name = short_name(std::any::type_name::<T>());
        let (mut text, mut cause) = (error.to_string(), error.source());
        while let Some(error) = cause {
            write!(text, " {error} {error:?}").unwrap();
            cause = error.source();
        }
        self.add(&name, &text);
    }

    fn add(&mut self, name: &str, text: &str) {
        assert!(!text.contains(PLANTED), "{name} shows a secret: {text}");
        self.0.entry(name.to_owned()).or_default().push_str(text);
    }
}

/// Without the path and what it is generic over.
fn short_name(name: &str) -> String {
    let name = name.split('<').next().unwrap();
    name.rsplit("::").next().unwrap().to_owned()
}

/// The names of the public types, as the crate's own text lists them.
fn public_types() -> Vec<String> {
    let is_type = |name: &&str| name.starts_with(char::is_uppercase) && name.contains(char::is_lowercase);
    let mut names = Vec::new();
    for text in [
        include_str!("../src/lib.rs"),
        include_str!("../src/cache/mod.rs"),
        include_str!("../src/key_store/mod.rs"),
        include_str!("../src/persisted/mod.rs"),
        include_str!("../src/refresh/mod.rs"),
        include_str!("../src/seal/mod.rs"),
    ] {
        for exported in text.split("\npub use ").skip(1) {
            let exported = exported.split(';').next().unwrap();
            let words = exported.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            names.extend(words.filter(is_type).map(str::to_owned));
        }
        let defined = text.lines().filter_map(|line| {
            ["pub struct ", "pub enum ", "pub trait "].iter().find_map(|kind| line.strip_prefix(kind))
        });
        names.extend(
            defined.map(|line| line.split(|c: char| !c.is_alphanumeric()).next().unwrap().to_owned()),
        );
    }
    names
}

/// Takes keys and gives back something else, which is a secret as well.
#[derive(Debug)]
struct Exchanging;

impl KeyStore for Exchanging {
    fn description(&self) -> String {
        "the exchanging store".into()
    }
    fn create(&self, _: &KeyName, _: &Secret) -> Result<(), KeyStoreError> {
        Ok(())
    }
    fn read(&self, _: &KeyName) -> Result<Option<Secret>, KeyStoreError> {
        Ok(Some(Secret::from("tokenseal-key-1:planted")))
    }
    fn delete(&self, _: &KeyName) -> Result<(), KeyStoreError> {
        Ok(())
    }
}

/// Keeps what it is given, with the name.
#[derive(Debug)]
struct Keeping(MemoryKeyStore, std::sync::Mutex<Vec<(KeyName, String)>>);

impl KeyStore for Keeping {
    fn description(&self) -> String {
        self.0.description()
    }
    fn create(&self, name: &KeyName, text: &Secret) -> Result<(), KeyStoreError> {
        self.1.lock().unwrap().push((name.clone(), text.expose().to_owned()));
        self.0.create(name, text)
    }
    fn read(&self, name: &KeyName) -> Result<Option<Secret>, KeyStoreError> {
        self.0.read(name)
    }
    fn delete(&self, name: &KeyName) -> Result<(), KeyStoreError> {
        self.0.delete(name)
    }
}

fn show_the_cache_in_memory(shown: &mut Shown) {
    let response = planted_response();
    let mut cache = TokenCache::new();
    let added = cache.add(&response).unwrap();
    let query = wanted("alice", "read").parameters([("subject_token", PLANTED)]);
    shown.show(&query);
    shown.show(&RefreshTokenQuery::new(CLIENT, &account("alice")));
    shown.show(&AccountQuery::new().username("alice"));
    shown.show(&EnvironmentAliases::microsoft());
    shown.show(&response);
    shown.show(&added);
    shown.show(added.account().unwrap());
    shown.show(&cache.access_tokens().next().unwrap());
    shown.show(&cache.refresh_tokens().next().unwrap());
    shown.show(&cache.id_tokens().next().unwrap());
    shown.show(&cache.find_app_metadata(CLIENT, ENVIRONMENT).unwrap());
    shown.show(&cache.serialize());
    shown.show(&Secret::from(PLANTED));
    shown.show(&SecretBytes::from(PLANTED.as_bytes()));
    shown.show(&cache);
    for body in ["[\"planted\"]", "{\"access_token\":planted}", "planted"] {
        shown.show_error(&TokenResponse::from_json(body).unwrap_err());
        shown.show_error(&TokenCache::new().deserialize(body).unwrap_err());
    }
    for body in [r#"{"access_token":["planted"]}"#, r#"{"access_token":"a","expires_in":"planted"}"#] {
        let response = TokenResponse::from_json(body).unwrap().environment("e").realm("r");
        shown.show_error(&cache.add(&response).unwrap_err());
    }
    let url = planted_response().token_endpoint("https://planted:planted@idp.example/t");
    shown.show(&url);
    shown.show_error(&cache.add(&url).unwrap_err());
    let mut unusable = TokenCache::new();
    unusable.deserialize(r#"{"AccessToken":"planted"}"#).unwrap();
    let error = unusable.add(&response).unwrap_err();
    assert!(matches!(error, CacheError::UnusableSection { .. }), "{error}");
    shown.show_error(&error);
    shown.show(&cache.remove_account(&account("alice")));
}

fn show_the_seal(shown: &mut Shown) {
    // A key whose bytes are the text, in however many numbers.
    let mut bytes = [0; 32];
    bytes[..7].copy_from_slice(PLANTED.as_bytes());
    let key = SealingKey::from_bytes(KeyId::from_bytes([7; 16]), &bytes);
    let text = format!("{key:?} {key:#?}");
    assert!(!text.contains("112") && !text.contains("706c") && !text.contains("cGxh"), "{text}");
    shown.show(&key);
    shown.show(&key.id());
    shown.show(&Kind::File);
    let context = Context::file("contoso-cli", "default");
    shown.show(&context);
    let record = seal::seal(&key, &context, 1, b"{\"planted\":1}").unwrap();
    let mut altered = record.clone();
    *altered.last_mut().unwrap() ^= 1;
    for record in [altered, record[..90].to_vec(), b"{\"planted\":1}".to_vec()] {
        let error: SealError = seal::open(&key, &context, record).unwrap_err();
        shown.show_error(&error);
    }
}

fn show_the_cache_in_a_file(shown: &mut Shown) {
    let bench = Bench::new();
    let keeping = Arc::new(Keeping(bench.keys.clone(), std::sync::Mutex::default()));
    let builder = bench.builder_with(keeping.clone());
    let cache = builder.clone().open().unwrap();
    cache.add(&planted_response()).unwrap();
    shown.show(&builder);
    shown.show(&cache);
    let (name, key) = keeping.1.lock().unwrap()[0].clone();
    let key = key.split(':').nth(1).unwrap();
    let stores = format!("{name:?} {:?} {:?} {cache:?} {builder:?}", bench.keys, bench.keys.description());
    assert!(!stores.contains(key), "{stores}");
    shown.show(&name);
    shown.show(&bench.keys);
    shown.show(&KeyFileStore::new(bench.base.path()));
    let keys: Arc<dyn KeyStore> = Arc::new(bench.keys.clone());
    shown.add("KeyStore", &keys.description());

    let refusing = Arc::new(Refusing::new(&bench.keys));
    let other = bench.builder_with(refusing.clone()).open().unwrap();
    refusing.refuses(true);
    let updated = other.update(tokenseal::TokenCache::clear).unwrap();
    assert!(updated.is_rotation_pending());
    shown.show(&updated);
    shown.show(updated.rotation());
    refusing.refuses(false);

    shown.show_error(&KeyStoreError::locked("the vault", "it is sealed"));
    shown.show(&ErrorKind::Tampered);
    let error = bench.builder_with(Arc::new(Exchanging)).open().unwrap_err();
    assert!(error.is_key_lost(), "{error}");
    shown.show_error(&error);
    let elsewhere = bench.builder_with(Arc::new(Exchanging)).directory(bench.base.path().join("elsewhere"));
    let error = elsewhere.open().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::KeyNotKept, "{error}");
    shown.show_error(&error);

    let error = cache.try_update(|tokens| tokens.deserialize("planted")).unwrap_err();
    shown.show_error(&error);
    let error = bench.builder().size_limit(1_000).open().unwrap().add(&planted_response()).unwrap_err();
    assert!(error.is_too_large(), "{error}");
    shown.show_error(&error);

    // Where a program handed a token over as a name, the name is shown: it is none of ours to hide.
    common::plant(&bench.base.path().join("content"), b"[\"planted\"]");
    let error = common::with_key_file(&bench.base.path().join("content")).open().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotACache, "{error}");
    shown.show_error(error.cache_error().unwrap());
    shown.show_error(&error);
    std::fs::remove_file(bench.file()).unwrap();
    std::fs::create_dir(bench.file()).unwrap();
    let error = bench.builder().open().unwrap_err();
    shown.show_error(&error);
    assert_eq!(error.kind(), ErrorKind::WrongFileType, "{error}");
}

fn show_the_refresh(shown: &mut Shown) {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.builder().size_limit(8 << 10).open().unwrap();
    cache.add(&planted_response()).unwrap();
    let query = wanted("alice", "read");
    let stale = cache.find_access_token(&query).unwrap().unwrap();
    shown.show(&tokenseal::refresh::OnceRequest::new("registration"));
    shown.show(&AcquireRequest::new(&query).replacing(&stale));
    let acquire = |answer: Box<dyn FnOnce() -> Result<TokenResponse, RefreshFailure> + Send>| {
        provider.next(answer);
        let calls = provider.calls();
        let request = AcquireRequest::new(&query).replacing(&stale).try_now();
        let came = cache.acquire(request, provider.call());
        assert_eq!(provider.calls(), calls + 1, "{came:?}");
        came
    };
    let answer = |scope: &str, token: &str| {
        let json = format!(r#"{{"access_token":"{token}","expires_in":3600,"scope":"{scope}"}}"#);
        let answer: Box<dyn FnOnce() -> Result<TokenResponse, RefreshFailure> + Send> =
            Box::new(move || Ok(TokenResponse::from_json(json)?));
        answer
    };
    provider.next(answer("write", "at-planted-2"));
    let error = cache.acquire(&wanted("alice", "calendar"), provider.call()).unwrap_err();
    assert!(matches!(error, AcquireError::NotGranted { .. }), "{error:?}");
    shown.show_error(&error);
    let error = acquire(answer("read", "at-planted")).unwrap_err();
    assert!(matches!(error, AcquireError::SameToken), "{error:?}");
    shown.show_error(&error);
    let error = acquire(Box::new(|| panic!("the client says {PLANTED}"))).unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    shown.show_error(&error);
    let AcquireError::Unavailable { cause: Some(cause), retry_after, .. } = error else { panic!("{error}") };
    shown.show(&cause);
    std::thread::sleep(retry_after);
    let failures = [
        RefreshFailure::transient(PLANTED),
        RefreshFailure::rejected("planted code"),
        RefreshFailure::refused("planted code"),
        RefreshFailure::from_error_response(
            400,
            r#"{"error":"invalid_grant","error_description":"planted"}"#,
        ),
        RefreshFailure::from_error_response(503, PLANTED),
    ];
    for failure in &failures {
        shown.show(failure);
    }
    let (seen, was_seen) = std::sync::mpsc::channel();
    let looking = AcquireRequest::new(&query).replacing(&stale).claims(PLANTED).try_now();
    let came = cache.acquire(looking, move |call| {
        seen.send(format!("{call:?} {call:#?}")).unwrap();
        Err(RefreshFailure::refused("invalid_request"))
    });
    assert!(came.is_err());
    shown.add("RefreshCall", &was_seen.recv().unwrap());
    let (seen, was_seen) = std::sync::mpsc::channel();
    let looking = AcquireRequest::new(&query).replacing(&stale).claims(PLANTED);
    let came = cache.acquire_with(looking, move |call| {
        seen.send(format!("{call:?} {call:#?}")).unwrap();
        Err(RefreshFailure::refused("invalid_request"))
    });
    shown.show_error(&came.unwrap_err());
    shown.add("MintCall", &was_seen.recv().unwrap());
    let owner = RefreshTokenQuery::new(CLIENT, &account("alice"));
    shown.show(&cache.refresh_guard(&owner, Duration::from_secs(5)).unwrap());
    let rejected = r#"{"error":"invalid_grant","suberror":"planted!"}"#;
    let error =
        acquire(Box::new(move || Err(RefreshFailure::from_error_response(400, rejected)))).unwrap_err();
    let AcquireError::SignInRequired { reason, .. } = &error else { panic!("{error:?}") };
    let _: &SignInReason = reason;
    shown.show_error(reason);
    shown.show_error(&error);
    // A sign-in ends what is remembered of the rejection.
    cache.add(&planted_response()).unwrap();
    let long = "x".repeat(9_000);
    let acquired = acquire(answer("read", &format!("at-planted-{long}"))).unwrap();
    assert!(!acquired.is_persisted());
    shown.show(&acquired);
    shown.show(&acquired.origin());
    shown.show_error(acquired.save_failure().unwrap());
    let mut tokens = TokenCache::new();
    tokens.add(&response("alice", PLANTED)).unwrap();
    shown.show(&SharedTokenCache::new(tokens));
}

#[test]
fn no_public_type_shows_a_secret() {
    let mut shown = Shown::default();
    show_the_cache_in_memory(&mut shown);
    show_the_seal(&mut shown);
    show_the_cache_in_a_file(&mut shown);
    show_the_refresh(&mut shown);
    #[cfg(feature = "keyring")]
    {
        shown.show(&tokenseal::key_store::KeyringStore::platform());
        shown.show(&tokenseal::key_store::HostEnvironment::detect());
        // It asks the keyring: tests/secret_service.rs looks at it, beside a key.
        shown.add("Probe", "");
    }
    let mut types = public_types();
    if cfg!(not(feature = "keyring")) {
        types.retain(|name| !["KeyringStore", "Probe", "HostEnvironment"].contains(&name.as_str()));
    }
    assert!(types.len() > 40, "{types:?}");
    let left_out: Vec<_> = types.iter().filter(|name| !shown.0.contains_key(*name)).collect();
    assert!(left_out.is_empty(), "{left_out:?} are public and were not looked at");
}
