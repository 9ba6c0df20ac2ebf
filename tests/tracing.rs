//! What an operator sees, and that no secret, user name or account id is in it.
#![cfg(feature = "tracing")]

mod common;

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use common::key_stores::Refusing;
use common::{Bench, CLIENT, ENVIRONMENT};
use tokenseal::refresh::{AcquireRequest, OnceRequest, RefreshCall, RefreshFailure};
use tokenseal::{AccessTokenQuery, Account, PersistedTokenCache, RefreshTokenQuery, TokenResponse};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Writes down everything that is recorded, at every level.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<String>>, Arc<AtomicU64>);

struct Line<'a>(&'a mut String);

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, " {}={value:?}", field.name()).unwrap();
    }
}

impl Recorder {
    fn write(&self, what: &str, metadata: Option<&Metadata<'_>>, record: impl FnOnce(&mut Line<'_>)) {
        if metadata.is_some_and(|metadata| !metadata.target().starts_with("tokenseal")) {
            return;
        }
        let mut text = self.0.lock().unwrap();
        let (name, level) = metadata.map_or(("", ""), |m| (m.name(), m.level().as_str()));
        write!(text, "{what} {level} {name}:").unwrap();
        record(&mut Line(&mut text));
        text.push('\n');
    }

    fn text(&self) -> String {
        self.0.lock().unwrap().clone()
    }
}

impl Subscriber for Recorder {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.write("span", Some(span.metadata()), |line| span.record(line));
        Id::from_u64(self.1.fetch_add(1, Ordering::SeqCst) + 1)
    }
    fn record(&self, _: &Id, values: &Record<'_>) {
        self.write("record", None, |line| values.record(line));
    }
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        self.write("event", Some(event.metadata()), |line| event.record(line));
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// What must not be seen: four things of each of 25 users.
fn planted() -> Vec<String> {
    let kinds = ["account", "name", "access", "refresh"];
    (0..25).flat_map(|user| kinds.map(|kind| format!("planted-{kind}-{user:02}"))).collect()
}

fn sign_in(user: usize) -> TokenResponse {
    use base64ct::Encoding as _;
    let claims = format!(r#"{{"sub":"{user}","preferred_username":"planted-name-{user:02}"}}"#);
    let id_token = format!("e30.{}.sig", base64ct::Base64UrlUnpadded::encode_string(claims.as_bytes()));
    let json = format!(
        r#"{{"access_token":"planted-access-{user:02}","refresh_token":"planted-refresh-{user:02}",
        "id_token":"{id_token}","expires_in":1,"scope":"read"}}"#
    );
    TokenResponse::from_json(json)
        .unwrap()
        .client_id(CLIENT)
        .environment(ENVIRONMENT)
        .realm("tenant")
        .home_account_id(format!("planted-account-{user:02}"))
        .received_at(SystemTime::now() - Duration::from_secs(1))
}

fn account(user: usize) -> Account {
    Account::new(format!("planted-account-{user:02}"), ENVIRONMENT)
}

fn wanted(user: usize) -> AccessTokenQuery {
    AccessTokenQuery::for_account(CLIENT, &account(user)).realm("tenant").scopes(["read"])
}

/// Answers for each user in another way.
fn refresh(user: usize) -> impl FnMut(RefreshCall) -> Result<TokenResponse, RefreshFailure> + Send + 'static {
    move |call| {
        let _form = call.form();
        let (status, body) = match user % 7 {
            0 => (
                200,
                format!(
                    r#"{{"access_token":"planted-access-{user:02}","refresh_token":"planted-refresh-{user:02}x","expires_in":3600}}"#
                ),
            ),
            1 => {
                (400, format!(r#"{{"error":"invalid_grant","error_description":"planted-name-{user:02}"}}"#))
            }
            2 => (400, format!(r#"{{"error":"interaction_required","claims":"planted-name-{user:02}"}}"#)),
            3 => (503, format!("planted-name-{user:02}")),
            4 => (
                400,
                format!(r#"{{"error":"invalid_scope","error_description":"planted-access-{user:02}"}}"#),
            ),
            5 => (200, format!("<html>planted-refresh-{user:02}")),
            _ => panic!("planted-name-{user:02}"),
        };
        call.answer(status, Some("application/json"), Some("7"), body)
    }
}

fn everything(recorder: &Recorder, bench: &Bench, cache: &PersistedTokenCache, keys: &Refusing) {
    for user in 0..25 {
        cache.add(&sign_in(user)).unwrap();
    }
    for user in 0..25 {
        let _ = cache.acquire(&wanted(user), refresh(user));
        // Held up by a back-off, or by a refusal that is remembered.
        let _ = cache.acquire(&wanted(user), |_| panic!("no call was to be made"));
    }
    assert!(recorder.text().contains("acquired"), "{}", recorder.text());

    // Somebody else holds the lease for a while.
    let guard = cache.refresh_guard(&RefreshTokenQuery::new(CLIENT, &account(7)), Duration::from_secs(5));
    let guard = guard.unwrap();
    let token = cache.find_access_token(&wanted(7)).unwrap().unwrap();
    std::thread::scope(|scope| {
        let acquire = |wait: Duration| {
            let request = wanted(7);
            let request = AcquireRequest::new(&request).replacing(&token).wait_timeout(wait);
            cache.acquire(request, refresh(7)).map(drop)
        };
        let short = scope.spawn(move || acquire(Duration::from_millis(50)));
        assert!(short.join().unwrap().is_err());
        let patient = scope.spawn(move || acquire(Duration::from_secs(20)));
        std::thread::sleep(Duration::from_millis(100));
        drop(guard);
        let _ = patient.join().unwrap();
    });
    let once = OnceRequest::new("planted-name-00");
    let _ = cache.run_once(once, |_| None::<()>, || Err(RefreshFailure::transient("planted-name-00")));

    keys.refuses(true);
    assert!(cache.remove_account(&account(0)).unwrap().is_rotation_pending());
    keys.refuses(false);
    assert!(!cache.remove_account(&account(1)).unwrap().is_rotation_pending());
    std::fs::write(bench.file(), "planted-access-00").unwrap();
    assert!(cache.accounts().is_err());
}

#[test]
fn an_operator_sees_what_happens_and_no_secret_or_name() {
    let recorder = Recorder::default();
    tracing::subscriber::set_global_default(recorder.clone()).unwrap();
    let bench = Bench::new();
    let keys = Arc::new(Refusing::new(&bench.keys));
    let cache = bench.builder_with(keys.clone()).open().unwrap();
    everything(&recorder, &bench, &cache, &keys);

    let text = recorder.text();
    for expected in [
        "span DEBUG open: cache=",
        "span DEBUG load: cache=",
        "span DEBUG save: cache=",
        "span INFO rotation: cache=",
        "span INFO refresh: request=",
        "record  : lease=",
        "waited for the lease",
        "backing off",
        r#"outcome="rejected" code="invalid_grant""#,
        r#"outcome="rejected" code="interaction_required""#,
        r#"outcome="refused" code="invalid_scope""#,
        r#"outcome="transient""#,
        r#"outcome="lost""#,
        r#"reason="lease timed out""#,
        "could not be rotated",
    ] {
        assert!(text.contains(expected), "{expected} is missing in:\n{text}");
    }
    let planted = planted();
    assert_eq!(planted.len(), 100);
    let directory = bench.base.path().to_str().unwrap().to_owned();
    for secret in planted.iter().chain([&directory, &"contoso".to_owned(), &"planted".to_owned()]) {
        assert!(!text.contains(secret.as_str()), "{secret} is shown in:\n{text}");
    }
}
