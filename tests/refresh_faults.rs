//! What goes wrong during a refresh: full disks, dead keyrings, wrong answers, planted files, hung
//! processes. Tokens are kept, deadlines hold, nobody sends a refresh token twice.
#![cfg(feature = "file")]

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::key_stores::Hanging;
use common::rotating::{Rotating, kept, never, sign_in_expired, signed_in, wanted};
use common::{Bench, CLIENT, account};
use tokenseal::{
    AcquireError, Error, PersistedTokenCache, RefreshTokenQuery, SharedTokenCache, TokenCache, TokenResponse,
    cache::EnvironmentAliases,
    refresh::{AcquireRequest, RefreshFailure, TokenSource},
};

const SHORT: Duration = Duration::from_millis(200);

fn query() -> RefreshTokenQuery {
    RefreshTokenQuery::new(CLIENT, &account("alice"))
}

fn answer(json: &str) -> impl FnOnce() -> Result<TokenResponse, RefreshFailure> + Send + use<> + 'static {
    let json = json.to_owned();
    move || Ok(TokenResponse::from_json(json)?)
}

/// Keeps everybody else from changing a cache until it is dropped, as a full disk would.
struct Blocked(mpsc::Sender<()>, Option<thread::JoinHandle<()>>);

impl Blocked {
    fn new(bench: &Bench) -> Self {
        let cache = bench.open();
        let (has_begun, begun) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let change = thread::spawn(move || {
            let change = |_: &mut TokenCache| {
                has_begun.send(()).unwrap();
                let _ = released.recv();
                Ok::<_, Error>(())
            };
            cache.try_update(change).unwrap();
        });
        begun.recv().unwrap();
        Self(release, Some(change))
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        let _ = self.0.send(());
        self.1.take().unwrap().join().unwrap();
    }
}

/// The file beside the cache whose name ends like this.
fn beside(bench: &Bench, ending: &str) -> PathBuf {
    let name = bench.files().into_iter().find(|name| name.ends_with(ending)).unwrap();
    bench.directory().join(name)
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(20), "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_token_that_cannot_be_retired_on_disk_is_not_sent_again_and_the_next_one_is() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.builder().lock_timeout(Duration::ZERO).open().unwrap();
    cache.add(&signed_in("own", "read", r#","expires_in":0"#)).unwrap();
    cache.add(&signed_in("family", "write", r#","expires_in":0,"foci":"1""#)).unwrap();
    let blocked = Blocked::new(&bench);
    provider.next_fails(RefreshFailure::rejected("invalid_grant"));
    provider.next_fails(RefreshFailure::transient("down"));
    let error = cache.acquire(&wanted("read"), provider.call()).unwrap_err();
    assert_eq!(provider.sent(), ["family", "own"]);
    thread::sleep(error.retry_after().unwrap());
    // Each of the two has a lock of its own, under which the other's retirement does not show.
    let acquired = cache.acquire(&wanted("read"), provider.call()).unwrap();
    assert!(!acquired.is_persisted());
    assert_eq!(provider.sent(), ["family", "own", "own"]);
    drop(blocked);
    wait_for("both are saved in the end", || kept(&cache) == ["rotated-3"]);
}

#[test]
fn an_answer_with_a_wrong_field_is_no_reason_to_lose_its_refresh_token() {
    for is_blocked in [false, true] {
        let (bench, provider) = (Bench::new(), Rotating::new());
        let cache = bench.builder().lock_timeout(Duration::from_millis(20)).open().unwrap();
        sign_in_expired(&cache);
        let blocked = is_blocked.then(|| Blocked::new(&bench));
        provider.next(answer(r#"{"access_token":{"x":1},"expires_in":3600,"refresh_token":"salvaged"}"#));
        let error = cache.acquire(&wanted("read"), provider.call()).unwrap_err();
        assert!(error.is_transient(), "{error:?}");
        assert!(cache.acquire(&wanted("read"), never()).unwrap_err().retry_after().is_some(), "backs off");
        thread::sleep(error.retry_after().unwrap());
        let acquired = cache.acquire(&wanted("read"), provider.call()).unwrap();
        assert_eq!(
            (provider.sent().join(" "), acquired.is_persisted()),
            ("original salvaged".into(), !is_blocked)
        );
        drop(blocked);
        wait_for("it is saved", || kept(&cache) == ["rotated-2"]);
        wait_for("the guard is free", || cache.refresh_guard(&query(), SHORT).is_ok());
    }
}

#[test]
fn what_could_not_be_saved_is_given_to_those_who_cannot_wait_for_the_next_try() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.builder().lock_timeout(Duration::from_secs(2)).open().unwrap();
    sign_in_expired(&cache);
    let blocked = Blocked::new(&bench);
    assert!(!cache.acquire(&wanted("read"), provider.call()).unwrap().is_persisted());
    let wanted = wanted("read");
    for _ in 0..3 {
        let started = Instant::now();
        let acquired = cache.acquire(AcquireRequest::new(&wanted).wait_timeout(SHORT), never()).unwrap();
        assert!(acquired.token().expose() == "renewed-1" && !acquired.is_persisted());
        assert!(started.elapsed() < Duration::from_secs(1));
    }
    // Others wait, and learn who has it.
    let lock = std::fs::File::open(beside(&bench, ".refresh.lock")).unwrap();
    assert!(lock.try_lock().is_err(), "the one on disk must not be sent");
    let note = std::fs::read_to_string(beside(&bench, ".refresh.note")).unwrap();
    assert!(note.contains(&format!("holder {}\n", std::process::id())), "{note}");
    drop(blocked);
    wait_for("it is saved", || kept(&cache) == ["rotated-1"]);
    wait_for("the lock is free", || lock.try_lock().is_ok());
}

#[test]
fn a_session_that_was_ended_does_not_come_back_beside_another_clients() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    for (ended_by, is_answered) in [("other", false), (CLIENT, true)] {
        cache.clear().unwrap();
        sign_in_expired(&cache);
        let calls = provider.calls();
        provider.hold();
        provider.next(answer(r#"{"access_token":"late","refresh_token":"late","expires_in":3600}"#));
        let waiting = thread::spawn({
            let (cache, call) = (cache.clone(), provider.call());
            move || cache.acquire(&wanted("read"), call)
        });
        provider.wait_for_calls(calls + 1);
        bench.open().remove_account(&account("alice")).unwrap();
        let newer = signed_in("newer", "read", r#","expires_in":3600"#).client_id(ended_by);
        cache.add(&newer).unwrap();
        provider.let_go();
        match waiting.join().unwrap() {
            Ok(acquired) => assert!(is_answered && acquired.token().expose() == "first-read"),
            Err(error) => assert!(!is_answered && error.is_sign_in_required(), "{error:?}"),
        }
        assert_eq!(kept(&cache), ["newer"]);
        assert_eq!(cache.read(|tokens| tokens.access_tokens().count()).unwrap(), 1, "nothing late is there");
    }
}

#[test]
fn deadlines_hold_while_the_keyring_hangs() {
    let bench = Bench::new();
    let keys = Arc::new(Hanging::new(&bench.keys));
    let cache = bench.builder_with(keys.clone()).key_timeout(Duration::from_secs(3)).open().unwrap();
    sign_in_expired(&cache);
    // Another process changes the key, and this one needs the new one.
    let other = bench.open();
    other.add(&common::response("bob", "read")).unwrap();
    other.remove_account(&account("bob")).unwrap();
    keys.hangs(true);
    let wanted = wanted("read");
    let request = AcquireRequest::new(&wanted).wait_timeout(SHORT);
    let started = Instant::now();
    let error = cache.acquire(request, never()).unwrap_err();
    assert!(matches!(error, AcquireError::WaitTimedOut { .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    #[cfg(feature = "tokio")]
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let longest_pause = runtime.block_on(async {
            let ticker = tokio::spawn(async {
                let mut longest = Duration::ZERO;
                for _ in 0..40 {
                    let last = Instant::now();
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    longest = longest.max(last.elapsed());
                }
                longest
            });
            let hung = cache.acquire_async(request, async |_: tokenseal::refresh::RefreshCall| {
                panic!("no call was to be made")
            });
            assert!(hung.await.unwrap_err().is_transient());
            ticker.await.unwrap()
        });
        assert!(longest_pause < Duration::from_millis(500), "the runtime stood still for {longest_pause:?}");
    }
    keys.hangs(false);
}

#[test]
fn a_due_token_is_not_served_after_its_end() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    cache.add(&signed_in("original", "read", r#","expires_in":4,"refresh_in":0"#)).unwrap();
    thread::sleep(Duration::from_millis(1_050)); // The jitter is a quarter at the most.
    provider.hold();
    for _ in 0..2 {
        match cache.acquire(
            AcquireRequest::new(&wanted("read")).call_timeout(Duration::from_secs(5)),
            provider.call(),
        ) {
            Ok(acquired) => assert!(acquired.token().expires_on() > SystemTime::now(), "{acquired:?}"),
            Err(error) => assert!(error.is_transient(), "{error:?}"),
        }
    }
    provider.let_go();
}

#[test]
fn a_token_that_is_valid_is_served_though_the_lock_is_unusable() {
    let bench = Bench::new();
    let cache = bench.open();
    let received = SystemTime::now() - Duration::from_secs(3_480);
    cache.add(&signed_in("original", "read", r#","expires_in":3600"#).received_at(received)).unwrap();
    drop(cache.refresh_guard(&query(), SHORT).unwrap());
    let lock = beside(&bench, ".refresh.lock");
    std::fs::remove_file(&lock).unwrap();
    std::fs::create_dir(&lock).unwrap();
    let acquired = cache.acquire(&wanted("read"), never()).unwrap();
    assert_eq!(acquired.origin(), TokenSource::StillValid);
    assert!(acquired.failure().unwrap().to_string().contains("is a directory"), "{:?}", acquired.failure());
    let error = cache.acquire(&wanted("write"), never()).unwrap_err();
    assert!(matches!(error, AcquireError::Cache(_)), "without a valid token it is an error: {error:?}");
}

/// Each thing that may stand where the note or the lock belongs.
#[cfg(unix)]
#[test]
fn planted_notes_count_for_nothing_and_planted_locks_are_refused() {
    type Plant = fn(&std::path::Path, &std::path::Path) -> std::io::Result<()>;
    let plants: [(&str, Plant); 4] = [
        ("link", |place, victim| std::os::unix::fs::symlink(victim, place)),
        ("pipe", |place, _| {
            make_pipe(place);
            Ok(())
        }),
        ("directory", |place, _| std::fs::create_dir(place)),
        ("hard link", |place, victim| std::fs::hard_link(victim, place)),
    ];
    for (what, plant) in plants {
        for ending in [".refresh.note", ".refresh.lock"] {
            let (bench, provider) = (Bench::new(), Rotating::new());
            let cache = bench.open();
            sign_in_expired(&cache);
            provider.next_fails(RefreshFailure::transient("down"));
            let error = cache.acquire(&wanted("read"), provider.call()).unwrap_err();
            let place = beside(&bench, ending);
            std::fs::remove_file(&place).unwrap();
            let victim = bench.base.path().join("victim");
            std::fs::write(&victim, "precious").unwrap();
            plant(&place, &victim).unwrap();
            thread::sleep(error.retry_after().unwrap());
            let started = Instant::now();
            let result = cache.acquire(&wanted("read"), provider.call());
            assert!(started.elapsed() < Duration::from_secs(1), "{what} as {ending}");
            // A hard link has a wrong mode here, and would be locked without harm if it had not.
            assert_eq!(result.is_ok(), ending == ".refresh.note", "{what} as {ending}: {result:?}");
            if let Err(error) = &result {
                let AcquireError::Cache(error) = error else { panic!("{what} as {ending}: {error:?}") };
                let is_refused = matches!(
                    error.kind(),
                    tokenseal::ErrorKind::WrongFileType | tokenseal::ErrorKind::LoosePermissions
                );
                assert!(is_refused, "{what} as {ending}: {error:?}");
            }
            assert_eq!(std::fs::read(&victim).unwrap(), b"precious", "{what} as {ending}");
            assert_eq!(provider.calls(), 1 + usize::from(result.is_ok()), "{what} as {ending}");
        }
    }
}

#[cfg(unix)]
fn make_pipe(place: &std::path::Path) {
    assert!(std::process::Command::new("mkfifo").arg(place).status().unwrap().success());
}

/// A lock that is there and cannot be opened may be held: that is no read-only directory.
#[cfg(unix)]
#[test]
fn a_lock_that_cannot_be_opened_is_an_error_and_nobody_is_called() {
    use std::os::unix::fs::PermissionsExt as _;
    let Some(base) = std::env::var_os("TOKENSEAL_UNOPENABLE").map(PathBuf::from) else {
        let base = tempfile::tempdir().unwrap();
        let name = "a_lock_that_cannot_be_opened_is_an_error_and_nobody_is_called";
        return common::again_without_root(name, "TOKENSEAL_UNOPENABLE", base.path());
    };
    let cache = common::with_key_file(&base).open().unwrap();
    sign_in_expired(&cache);
    drop(cache.refresh_guard(&query(), SHORT).unwrap());
    let names = common::files(&base.join("tokens"));
    let lock = names.iter().find(|name| name.ends_with(".refresh.lock")).unwrap();
    let lock = base.join("tokens").join(lock);
    let held = std::fs::File::open(&lock).unwrap();
    held.lock().unwrap();
    std::fs::set_permissions(&lock, std::fs::Permissions::from_mode(0o400)).unwrap();
    let wanted = wanted("read");
    let result = cache.acquire(AcquireRequest::new(&wanted).wait_timeout(SHORT), never());
    assert!(matches!(result, Err(AcquireError::Cache(_))), "{result:?}");
    println!("it was done");
}

#[test]
fn a_note_that_is_wrong_locks_nobody_out_for_ever() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    provider.next_fails(RefreshFailure::transient("down"));
    cache.acquire(&wanted("read"), provider.call()).unwrap_err();
    let note = beside(&bench, ".refresh.note");
    let text = std::fs::read_to_string(&note).unwrap();
    let failed: Vec<&str> =
        text.lines().find(|line| line.starts_with("failed")).unwrap().split(' ').collect();
    let wrong = text.replace(failed[2], "18446744073709551615");
    std::fs::write(&note, wrong).unwrap();
    let error = cache.acquire(&wanted("read"), never()).unwrap_err();
    let hour = Duration::from_secs(3_600);
    assert!(error.retry_after().unwrap() <= hour, "{error:?}");
    // One of the future is of a clock that was wrong.
    std::fs::write(&note, text.replace(failed[1], "18446744073709551615")).unwrap();
    assert!(cache.acquire(&wanted("read"), provider.call()).is_ok());
}

#[test]
fn back_off_holds_for_a_token_that_seems_to_come_from_the_future() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    let ahead = SystemTime::now() + Duration::from_secs(86_400);
    cache.add(&signed_in("original", "read", r#","expires_in":-90000"#).received_at(ahead)).unwrap();
    provider.next_fails(RefreshFailure::transient("down").retry_after(Duration::from_secs(60)));
    for _ in 0..5 {
        assert!(cache.acquire(&wanted("read"), provider.call()).unwrap_err().is_transient());
    }
    assert_eq!(provider.calls(), 1);
}

#[test]
fn a_request_that_is_refused_or_granted_something_else_is_not_repeated_and_hinders_no_other() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    provider.next_fails(RefreshFailure::from_error_response(400, r#"{"error":"invalid_scope"}"#));
    provider
        .next(answer(r#"{"access_token":"at","refresh_token":"second","expires_in":3600,"scope":"less"}"#));
    provider.next_fails(RefreshFailure::rejected("interaction_required"));
    for _ in 0..5 {
        let error = cache.acquire(&wanted("typo"), provider.call()).unwrap_err();
        assert!(
            matches!(&error, AcquireError::Refused { error, .. } if error == "invalid_scope"),
            "{error:?}"
        );
    }
    for _ in 0..5 {
        let error = bench.open().acquire(&wanted("more"), provider.call()).unwrap_err();
        assert!(matches!(&error, AcquireError::NotGranted { granted, .. } if granted == "less"), "{error:?}");
    }
    for scope in ["share", "share", "more"] {
        let error = cache.acquire(&wanted(scope), provider.call()).unwrap_err();
        assert_eq!(error.is_sign_in_required(), scope == "share", "{scope}: {error:?}");
    }
    assert_eq!(provider.sent(), ["original", "original", "second"]);
    assert_eq!(cache.acquire(&wanted("read"), provider.call()).unwrap().token().expose(), "renewed-4");
}

#[test]
fn the_parameters_of_a_request_set_its_token_apart() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    let apart = wanted("read").parameters([("fmi_path", "x")]);
    assert_eq!(cache.acquire(&apart, provider.call()).unwrap().token().expose(), "renewed-1");
    assert_eq!(cache.acquire(&apart, never()).unwrap().token().expose(), "renewed-1");
    assert_eq!(cache.acquire(&wanted("read"), provider.call()).unwrap().token().expose(), "renewed-2");
}

#[test]
fn handles_with_other_aliases_find_the_same_lock() {
    let bench = Bench::new();
    let cache = bench.open();
    sign_in_expired(&cache);
    let aliases = EnvironmentAliases::none().with(["a.example", common::ENVIRONMENT]);
    let other = bench.builder().environment_aliases(aliases).open().unwrap();
    let _guard = cache.refresh_guard(&query(), SHORT).unwrap();
    assert!(other.refresh_guard(&query(), SHORT).is_err());
}

#[test]
fn a_shared_cache_in_hand_is_an_error_and_no_deadlock() {
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || {
        let cache = SharedTokenCache::new(TokenCache::new());
        let error = cache.update(|_| cache.acquire(&wanted("read"), never()).unwrap_err());
        done.send(error.unwrap().into_value()).unwrap();
    });
    let AcquireError::Cache(error) = is_done.recv_timeout(Duration::from_secs(20)).unwrap() else { panic!() };
    assert!(error.is_nested_change());
}

#[test]
fn what_a_closure_does_when_it_is_dropped_is_no_matter() {
    struct PanicsWhenDropped;
    impl Drop for PanicsWhenDropped {
        fn drop(&mut self) {
            assert!(thread::panicking(), "told to");
        }
    }
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    let (panics, mut call) = (PanicsWhenDropped, provider.call());
    let call = move |refresh_token| {
        let _panics = &panics;
        call(refresh_token)
    };
    assert_eq!(cache.acquire(&wanted("read"), call).unwrap().token().expose(), "renewed-1");
}

/// Another open file is to the system what another process is.
#[test]
fn a_hung_holder_costs_the_deadline_and_is_named() {
    let bench = Bench::new();
    let cache = bench.open();
    sign_in_expired(&cache);
    drop(cache.refresh_guard(&query(), SHORT).unwrap());
    let lock = std::fs::File::open(beside(&bench, ".refresh.lock")).unwrap();
    lock.lock().unwrap();
    let note = beside(&bench, ".refresh.lock").to_string_lossy().replace(".lock", ".note");
    let mut options = std::fs::OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    std::io::Write::write_all(
        &mut options.write(true).create_new(true).open(note).unwrap(),
        b"tokenseal refresh 2\nholder 4711\n",
    )
    .unwrap();
    let wanted = wanted("read");
    let started = Instant::now();
    let error = cache.acquire(AcquireRequest::new(&wanted).wait_timeout(SHORT), never()).unwrap_err();
    assert!((SHORT..Duration::from_secs(2)).contains(&started.elapsed()));
    assert!(matches!(error, AcquireError::WaitTimedOut { holder: Some(4711), .. }), "{error:?}");
    assert!(error.to_string().contains("process 4711"), "{error}");
    drop(lock);
    let provider = Rotating::new();
    assert!(cache.acquire(&wanted, provider.call()).is_ok(), "it is free at once");
    assert!(bench.files().iter().all(|name| !name.ends_with(".refresh.note")), "and the old note is gone");
}

/// Runs this program again, as a user who may not write where the cache is.
#[cfg(unix)]
#[test]
fn in_a_read_only_directory_there_is_one_refresh_in_a_process_and_it_is_not_saved() {
    use std::os::unix::fs::PermissionsExt as _;
    let Some(base) = std::env::var_os("TOKENSEAL_READ_ONLY").map(PathBuf::from) else {
        let base = tempfile::tempdir().unwrap();
        let cache = common::with_key_file(base.path()).open().unwrap();
        sign_in_expired(&cache);
        let directory = base.path().join("tokens");
        let set_mode = |mode| std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(mode));
        set_mode(0o500).unwrap();
        let name = "in_a_read_only_directory_there_is_one_refresh_in_a_process_and_it_is_not_saved";
        common::again_without_root(name, "TOKENSEAL_READ_ONLY", base.path());
        set_mode(0o700).unwrap();
        assert_eq!(kept(&cache), ["original"], "nothing was written");
        return;
    };
    assert!(std::fs::File::create(base.join("tokens/another")).is_err(), "it is read-only");
    let cache = common::with_key_file(&base).open().unwrap();
    let provider = Rotating::new();
    provider.hold();
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let (cache, call) = (cache.clone(), provider.call());
            thread::spawn(move || cache.acquire(&wanted("read"), call).unwrap())
        })
        .collect();
    provider.wait_for_calls(1);
    provider.let_go();
    for thread in threads {
        let acquired = thread.join().unwrap();
        assert!(acquired.token().expose() == "renewed-1" && !acquired.is_persisted());
    }
    assert!(!cache.acquire(&wanted("read"), never()).unwrap().is_persisted());
    let other = cache.acquire(&wanted("write"), provider.call()).unwrap();
    assert_eq!(
        (other.token().expose(), provider.sent().join(" ")),
        ("renewed-2", "original rotated-1".into())
    );
    println!("it was done");
}

#[test]
fn a_failure_now_does_not_end_up_in_the_future() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    provider.next_fails(RefreshFailure::transient("down"));
    cache.acquire(&wanted("read"), provider.call()).unwrap_err();
    let text = std::fs::read_to_string(beside(&bench, ".refresh.note")).unwrap();
    let failed: Vec<&str> =
        text.lines().find(|line| line.starts_with("failed")).unwrap().split(' ').collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    assert!(now.abs_diff(failed[1].parse::<u128>().unwrap()) < 10_000, "Unix milliseconds: {text}");
}

/// The limit is too small for what comes, as a disk may be too full.
fn long(
    name: &str,
    further: &str,
) -> impl FnOnce() -> Result<TokenResponse, RefreshFailure> + Send + use<> + 'static {
    answer(&format!(r#"{{"access_token":"{name}{}","expires_in":3600{further}}}"#, "x".repeat(2_000)))
}

fn too_full(bench: &Bench) -> PersistedTokenCache {
    let cache = bench.builder().size_limit(2_500).open().unwrap();
    sign_in_expired(&cache);
    cache
}

#[test]
fn where_the_server_does_not_rotate_a_failed_save_costs_nothing() {
    for further in ["", r#","refresh_token":"original""#] {
        let (bench, provider) = (Bench::new(), Rotating::new());
        let full = too_full(&bench);
        provider.next(long("first", further));
        assert!(!full.acquire(&wanted("read"), provider.call()).unwrap().is_persisted());
        // Nobody is kept out: the token on disk is as good as ever.
        drop(full.refresh_guard(&query(), SHORT).unwrap());
        provider.next(long("second", further));
        assert!(
            full.acquire(&wanted("write"), provider.call()).unwrap().token().expose().starts_with("second")
        );
        assert_eq!(provider.sent(), ["original", "original"]);
    }
}

#[test]
fn back_off_holds_while_a_renewed_token_is_unsaved() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let full = too_full(&bench);
    let further = format!(r#","refresh_token":"{}""#, "x".repeat(2_000));
    provider.next(long("first", &further));
    assert!(!full.acquire(&wanted("read"), provider.call()).unwrap().is_persisted());
    provider.next_fails(RefreshFailure::transient("down").retry_after(Duration::from_secs(600)));
    for _ in 0..3 {
        let error = full.acquire(&wanted("write"), provider.call()).unwrap_err();
        assert!(error.retry_after().is_some(), "{error:?}");
    }
    let note = std::fs::read_to_string(beside(&bench, ".refresh.note")).unwrap();
    assert!(note.contains("holder ") && note.contains("failed "), "{note}");
    assert_eq!(provider.calls(), 2);
}

#[test]
fn an_answer_from_a_wrong_endpoint_is_no_reason_to_lose_its_refresh_token() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    let json = r#"{"access_token":"at","refresh_token":"rotated","expires_in":3600}"#;
    provider.next(move || Ok(TokenResponse::from_json(json)?.token_endpoint("http://idp.internal/token")));
    // Where the tokens belong is known from the one that was sent.
    assert_eq!(cache.acquire(&wanted("read"), provider.call()).unwrap().token().expose(), "at");
    assert_eq!(kept(&bench.open()), ["rotated"]);
}

#[test]
fn whatever_the_answer_calls_its_account_it_belongs_to_the_token_that_was_sent() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    let json = r#"{"access_token":"at","refresh_token":"rotated","expires_in":3600}"#;
    provider.next(move || {
        Ok(TokenResponse::from_json(json)?.home_account_id("alice.tenant").environment("idp.example:443"))
    });
    assert_eq!(cache.acquire(&wanted("read"), provider.call()).unwrap().token().expose(), "at");
    assert_eq!(kept(&bench.open()), ["rotated"]);
    assert_eq!(cache.accounts().unwrap().len(), 1);
}

#[test]
fn a_refused_family_token_does_not_hide_the_clients_own() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    cache.add(&signed_in("own", "read", r#","expires_in":0"#)).unwrap();
    cache.add(&signed_in("family", "read", r#","expires_in":0,"foci":"1""#).client_id("sibling")).unwrap();
    let wanted = wanted("read");
    let request = AcquireRequest::new(&wanted).family_id("1");
    provider.next_fails(RefreshFailure::rejected("invalid_grant").sub_error("client_mismatch"));
    let first = cache.acquire(request, provider.call()).unwrap().into_token();
    let second = cache.acquire(request.replacing(&first), provider.call()).unwrap();
    assert_eq!(second.token().expose(), "renewed-3");
    assert_eq!(provider.sent(), ["family", "own", "rotated-2"]);
}

#[test]
fn what_is_in_memory_only_never_counts_as_persisted() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    let file = bench.file();
    provider.next(move || {
        // While the server answers, the file is damaged.
        let mut bytes = std::fs::read(&file).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        Ok(TokenResponse::from_json(r#"{"access_token":"at","refresh_token":"rotated","expires_in":3600}"#)?)
    });
    let acquired = cache.acquire(&wanted("read"), provider.call()).unwrap();
    assert_eq!(acquired.token().expose(), "at");
    assert!(!acquired.is_persisted() && acquired.save_failure().unwrap().is_tampered(), "{acquired:?}");
}

#[test]
fn a_guard_can_be_asked_for_without_waiting() {
    let bench = Bench::new();
    let cache = bench.open();
    let guard = cache.refresh_guard(&query(), Duration::ZERO).unwrap();
    assert!(matches!(cache.refresh_guard(&query(), Duration::ZERO), Err(AcquireError::WaitTimedOut { .. })));
    drop(guard);
    drop(cache.refresh_guard(&query(), Duration::ZERO).unwrap());
}

#[test]
fn a_server_that_gives_the_same_access_token_again_is_told_so() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    cache.add(&signed_in("original", "read", r#","expires_in":3600"#)).unwrap();
    let wanted = wanted("read");
    let refused = cache.acquire(&wanted, never()).unwrap().into_token();
    provider.next(answer(r#"{"access_token":"first-read","refresh_token":"rotated","expires_in":3600}"#));
    let error = cache.acquire(AcquireRequest::new(&wanted).replacing(&refused), provider.call()).unwrap_err();
    assert!(matches!(error, AcquireError::SameToken), "{error:?}");
    assert_eq!(kept(&cache), ["rotated"]);
}

#[test]
fn what_a_sign_out_elsewhere_removed_is_not_served_from_memory_while_the_file_cannot_be_read() {
    let bench = Bench::new();
    let keys = Arc::new(Hanging::new(&bench.keys));
    let cache = bench.builder_with(keys.clone()).key_timeout(SHORT).open().unwrap();
    cache.add(&signed_in("original", "read", r#","expires_in":3600"#)).unwrap();
    assert_eq!(cache.acquire(&wanted("read"), never()).unwrap().origin(), TokenSource::Cache);
    // The file is under another key now, which this process cannot get.
    bench.open().remove_account(&account("alice")).unwrap();
    keys.hangs(true);
    let wanted = wanted("read");
    for wait in [Duration::from_millis(50), Duration::from_secs(20)] {
        let result = cache.acquire(AcquireRequest::new(&wanted).wait_timeout(wait), never());
        assert!(
            matches!(result, Err(AcquireError::WaitTimedOut { .. } | AcquireError::Cache(_))),
            "{result:?}"
        );
    }
    keys.hangs(false);
}

/// R9: what has expired makes room; and where it does not, the refresh token alone is saved.
#[test]
fn a_full_cache_gives_up_access_tokens_before_a_refresh_token() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let full = bench.builder().size_limit(20_000).open().unwrap();
    sign_in_expired(&full);
    let mut number = 0;
    while full
        .add(&signed_in("original", &format!("{number}-{}", "x".repeat(100)), r#","expires_in":0"#))
        .is_ok()
    {
        number += 1;
    }
    assert!(number > 3, "it is full of expired tokens");
    let scope = "y".repeat(600);
    let acquired = full.acquire(&wanted(&scope), provider.call()).unwrap();
    assert!(acquired.is_persisted(), "{:?}", acquired.save_failure());
    let is_saved = |tokens: &TokenCache| {
        (tokens.access_tokens().count(), tokens.refresh_tokens().any(|token| token.expose() == "rotated-1"))
    };
    assert_eq!(bench.open().read(is_saved).unwrap(), (1, true));

    let long_token = answer(&format!(
        r#"{{"access_token":"{}","refresh_token":"kept","expires_in":3600}}"#,
        "x".repeat(20_000)
    ));
    provider.next(long_token);
    let acquired = full.acquire(&wanted("second"), provider.call()).unwrap();
    assert!(!acquired.is_persisted() && acquired.save_failure().unwrap().is_too_large());
    let saved = |tokens: &TokenCache| tokens.refresh_tokens().any(|token| token.expose() == "kept");
    assert!(bench.open().read(saved).unwrap(), "the refresh token alone is saved");
    // It is served from memory, the lock is free, and nothing is at risk.
    assert_eq!(full.acquire(&wanted("second"), never()).unwrap().token().expose(), acquired.token().expose());
    drop(bench.open().refresh_guard(&query(), SHORT).unwrap());
    full.settle(SHORT).unwrap();
}

/// R8: after a failed save nobody sends the old token again.
#[test]
fn what_a_guard_cannot_save_is_kept_with_the_lock_and_saved_later() {
    let bench = Bench::new();
    let cache = bench.builder().lock_timeout(Duration::from_millis(20)).open().unwrap();
    sign_in_expired(&cache);
    let mut guard = cache.refresh_guard(&query(), SHORT).unwrap();
    assert_eq!(guard.refresh_token().unwrap().expose(), "original");
    let blocked = Blocked::new(&bench);
    let json = r#"{"access_token":"at","refresh_token":"rotated","expires_in":3600,"scope":"read"}"#;
    let error = guard.save(TokenResponse::from_json(json).unwrap()).unwrap_err();
    assert!(matches!(error, AcquireError::NotSaved { .. }), "{error:?}");
    drop(guard);
    let acquired = cache.acquire(&wanted("read"), never()).unwrap();
    assert_eq!((acquired.token().expose(), acquired.is_persisted()), ("at", false));
    assert!(cache.refresh_guard(&query(), SHORT).is_err(), "nobody may send the old one");
    assert!(matches!(cache.settle(SHORT), Err(AcquireError::NotSaved { .. })));
    drop(blocked);
    cache.settle(Duration::from_secs(20)).unwrap();
    assert_eq!(kept(&bench.open()), ["rotated"]);
    drop(bench.open().refresh_guard(&query(), SHORT).unwrap());
}

#[test]
fn a_guard_saves_and_remembers_for_all() {
    let bench = Bench::new();
    let cache = bench.open();
    sign_in_expired(&cache);
    let mut guard = cache.refresh_guard(&query(), SHORT).unwrap();
    // The answer says nothing of its account, its client or where it comes from.
    let json = r#"{"access_token":"at","refresh_token":"rotated","expires_in":3600,"scope":"read"}"#;
    let added = guard.save(TokenResponse::from_json(json).unwrap()).unwrap();
    assert_eq!(added.account().unwrap().home_account_id(), "alice");
    assert_eq!(guard.refresh_token().unwrap().expose(), "rotated", "what is to be sent next");
    assert_eq!(
        (kept(&bench.open()), cache.acquire(&wanted("read"), never()).unwrap().origin()),
        (vec!["rotated".to_owned()], TokenSource::Cache)
    );
    // An outage holds up everybody, guards too.
    let error = guard.rejected(RefreshFailure::transient("down").retry_after(Duration::from_secs(30)));
    assert!(error.is_transient() && error.retry_after().is_some());
    drop(guard);
    for cache in [&cache, &bench.open()] {
        assert!(cache.refresh_guard(&query(), SHORT).unwrap_err().retry_after().is_some());
        assert!(cache.acquire(&wanted("write"), never()).unwrap_err().is_transient());
    }
    // A sign-in ends it. A token that is surely dead is removed, another one stays.
    for (failure, left) in [
        (RefreshFailure::rejected("invalid_grant").sub_error("device_authentication_failed"), 1),
        (RefreshFailure::rejected("invalid_grant"), 0),
    ] {
        cache.add(&signed_in("another", "read", r#","expires_in":0"#)).unwrap();
        let mut guard = cache.refresh_guard(&query(), SHORT).unwrap();
        assert!(guard.rejected(failure).is_sign_in_required());
        drop(guard);
        assert_eq!(kept(&bench.open()).len(), left);
        let again = bench.open().refresh_guard(&query(), SHORT);
        assert_eq!(
            again.is_err_and(|error| error.is_sign_in_required()),
            left == 1,
            "it is not sent again at once"
        );
    }
}

/// R3: a caller whose own call is under way does not leave it alone.
#[test]
fn whoever_leads_waits_for_its_own_call_however_short_its_patience_with_others() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    let slow = {
        let mut call = provider.call();
        move |request| {
            thread::sleep(3 * SHORT);
            call(request)
        }
    };
    let query = wanted("read");
    let acquired =
        cache.acquire(AcquireRequest::new(&query).wait_timeout(Duration::from_millis(10)), slow).unwrap();
    assert_eq!(acquired.token().expose(), "renewed-1");
    assert_eq!(kept(&bench.open()), ["rotated-1"], "saved before it returned");
}
