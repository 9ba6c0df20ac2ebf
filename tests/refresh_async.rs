//! One refresh at a time among the tasks of a Tokio runtime.
#![cfg(feature = "tokio")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::rotating::{Rotating, expire, refresh_tokens, sign_in_expired, wanted};
use common::{Bench, CLIENT, account};
use tokenseal::{
    AcquireError, PersistedTokenCache, RefreshTokenQuery, SharedTokenCache, TokenCache, TokenResponse,
    refresh::{AcquireRequest, RefreshCall, RefreshFailure, TokenSource},
};

const SHORT: Duration = Duration::from_millis(200);

/// A call that takes a while, as asynchronous ones do.
fn call(
    provider: &Arc<Rotating>,
) -> impl FnMut(
    RefreshCall,
) -> std::pin::Pin<Box<dyn Future<Output = Result<TokenResponse, RefreshFailure>> + Send>>
+ Send
+ 'static {
    let provider = Arc::clone(provider);
    move |call| {
        let provider = Arc::clone(&provider);
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            provider.refresh(&call)
        })
    }
}

async fn never(_: RefreshCall) -> Result<TokenResponse, RefreshFailure> {
    panic!("no call was to be made")
}

async fn hang(_: RefreshCall) -> Result<TokenResponse, RefreshFailure> {
    std::future::pending().await
}

async fn thousand_tasks(cache: &PersistedTokenCache, provider: &Arc<Rotating>) {
    sign_in_expired(cache);
    for round in 1..=5 {
        let tasks: Vec<_> = (0..1_000)
            .map(|_| {
                let (cache, call) = (cache.clone(), call(provider));
                tokio::spawn(async move { cache.acquire_async(&wanted("read"), call).await.unwrap() })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.unwrap().token().expose(), format!("renewed-{round}"));
        }
        assert_eq!(provider.calls(), round);
        expire(cache);
    }
    assert!(!provider.is_revoked());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_tasks_make_one_call() {
    thousand_tasks(&Bench::new().open(), &Rotating::new()).await;
}

#[tokio::test]
async fn a_thousand_tasks_on_one_thread_make_one_call() {
    thousand_tasks(&Bench::new().open(), &Rotating::new()).await;
}

#[tokio::test]
async fn a_fresh_token_is_given_without_a_pause() {
    let bench = Bench::new();
    let cache = bench.open();
    cache.add(&common::response("alice", "read")).unwrap();
    let wanted = wanted("read");
    let mut acquiring = std::pin::pin!(cache.acquire_async(&wanted, never));
    let ready =
        std::future::poll_fn(|context| std::task::Poll::Ready(acquiring.as_mut().poll(context))).await;
    let std::task::Poll::Ready(acquired) = ready else { panic!("it was not ready at once") };
    assert_eq!(acquired.unwrap().origin(), TokenSource::Cache);
    // Written by another handle: the file is read on another thread, and nobody is called.
    bench.open().add(&common::response("alice", "write")).unwrap();
    let acquired = cache.acquire_async(&common::rotating::wanted("write"), never).await.unwrap();
    assert_eq!(acquired.token().expose(), "at-alice-write");
}

#[tokio::test]
async fn dropping_the_waiter_leaves_the_call_and_its_save_alone() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    let wanted = wanted("read");
    let waiter = cache.acquire_async(&wanted, call(&provider));
    assert!(tokio::time::timeout(Duration::from_millis(5), waiter).await.is_err());
    let acquired = cache.acquire_async(&wanted, never).await.unwrap();
    assert_eq!((acquired.token().expose(), provider.calls()), ("renewed-1", 1));
    assert_eq!(bench.open().read(refresh_tokens).unwrap(), ["rotated-1"]);

    // The same where the task that waits is aborted.
    expire(&cache);
    let task = tokio::spawn({
        let (cache, call) = (cache.clone(), call(&provider));
        async move { cache.acquire_async(&common::rotating::wanted("read"), call).await }
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert_eq!(cache.acquire_async(&wanted, never).await.unwrap().token().expose(), "renewed-2");
}

#[tokio::test]
async fn a_call_that_hangs_is_given_up_and_counts_as_failed() {
    let bench = Bench::new();
    let cache = bench.open();
    sign_in_expired(&cache);
    let wanted = wanted("read");
    let request = AcquireRequest::new(&wanted).call_timeout(SHORT);
    let error = cache.acquire_async(request, hang).await.unwrap_err();
    assert!(matches!(error, AcquireError::CallTimedOut { .. }), "{error:?}");
    let error = cache.acquire_async(request, never).await.unwrap_err();
    assert!(error.retry_after().is_some(), "{error:?}");
    assert_eq!(cache.read(refresh_tokens).unwrap(), ["original"]);
}

#[tokio::test]
async fn blocking_and_asynchronous_callers_wait_for_each_other() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    provider.hold();
    let blocking = std::thread::spawn({
        let (cache, call) = (cache.clone(), provider.call());
        move || cache.acquire(&wanted("read"), call).unwrap()
    });
    provider.wait_for_calls(1);
    let query = wanted("read");
    // Its own patience with a call that somebody else makes.
    let request = AcquireRequest::new(&query).call_timeout(SHORT);
    let error = cache.acquire_async(request, never).await.unwrap_err();
    assert!(matches!(error, AcquireError::CallTimedOut { waited, .. } if waited == SHORT), "{error:?}");
    let request = AcquireRequest::new(&query).wait_timeout(SHORT);
    let error = cache.acquire_async(request, never).await.unwrap_err();
    assert!(matches!(error, AcquireError::WaitTimedOut { .. }), "{error:?}");
    let patient = cache.acquire_async(&query, never);
    provider.let_go();
    assert_eq!(patient.await.unwrap().token().expose(), "renewed-1");
    assert_eq!(blocking.join().unwrap().token().expose(), "renewed-1");
}

#[test]
fn a_runtime_that_is_shut_down_takes_its_call_with_it_and_nobody_hangs() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let gone = runtime();
    gone.block_on(async {
        let wanted = wanted("read");
        let waiter = cache.acquire_async(&wanted, hang);
        assert!(tokio::time::timeout(SHORT, waiter).await.is_err());
    });
    drop(gone);
    let error = runtime().block_on(cache.acquire_async(&wanted("read"), never)).unwrap_err();
    let wait = error.retry_after().unwrap();
    std::thread::sleep(wait);
    let acquired = runtime().block_on(cache.acquire_async(&wanted("read"), call(&provider))).unwrap();
    assert_eq!(acquired.token().expose(), "renewed-1");
}

/// The save begins in the poll that gets the answer: whatever becomes of the runtime, it is done.
#[test]
fn what_came_is_saved_although_its_runtime_is_shut_down() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let (acquiring, call) = (cache.clone(), call(&provider));
        tokio::spawn(async move { acquiring.acquire_async(&wanted("read"), call).await });
        while provider.calls() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    drop(runtime);
    cache.settle(Duration::from_secs(10)).unwrap();
    assert_eq!(bench.open().read(refresh_tokens).unwrap(), ["rotated-1"]);
}

#[tokio::test]
async fn guards_are_waited_for_and_given_back() {
    let bench = Bench::new();
    let cache = bench.open();
    let query = RefreshTokenQuery::new(CLIENT, &account("alice"));
    let guard = cache.refresh_guard_async(&query, SHORT).await.unwrap();
    let error = cache.refresh_guard_async(&query, SHORT).await.unwrap_err();
    assert!(matches!(error, AcquireError::WaitTimedOut { .. }), "{error:?}");
    // A waiter that is dropped gives back what comes too late.
    let waiter = cache.refresh_guard_async(&query, Duration::from_secs(20));
    assert!(tokio::time::timeout(SHORT, waiter).await.is_err());
    tokio::spawn(async move { drop(guard) }).await.unwrap();
    drop(cache.refresh_guard_async(&query, Duration::from_secs(20)).await.unwrap());
}

#[tokio::test]
async fn a_cache_in_memory_is_shared_by_tasks() {
    let provider = Rotating::new();
    let cache = SharedTokenCache::new(TokenCache::new());
    let expired = common::rotating::signed_in("original", "read", r#","expires_in":0"#);
    cache.try_update(|tokens| tokens.add(&expired)).unwrap();
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let (cache, call) = (cache.clone(), call(&provider));
            tokio::spawn(async move { cache.acquire_async(&wanted("read"), call).await.unwrap() })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap().token().expose(), "renewed-1");
    }
    assert_eq!(provider.calls(), 1);
}

#[test]
fn a_runtime_that_nobody_drives_does_not_keep_the_lock() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    let wanted = wanted("read");
    let left_alone = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    left_alone.block_on(async {
        let waiter = cache.acquire_async(AcquireRequest::new(&wanted).call_timeout(SHORT), call(&provider));
        assert!(tokio::time::timeout(Duration::from_millis(5), waiter).await.is_err());
    });
    let started = std::time::Instant::now();
    loop {
        match cache.acquire(&wanted, provider.call()) {
            Ok(_) => break,
            Err(error) => assert!(error.is_transient(), "{error:?}"),
        }
        assert!(started.elapsed() < Duration::from_secs(10), "it is locked for ever");
        std::thread::sleep(Duration::from_millis(50));
    }
    // Driven again, the call that was given up sends nothing any more.
    left_alone.block_on(async { tokio::time::sleep(SHORT).await });
    assert_eq!(provider.sent(), ["original"]);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn waiting_for_guards_takes_one_thread_and_dropped_waiters_none() {
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name.starts_with("tokenseal-guard")).count()
    };
    let bench = Bench::new();
    let cache = bench.open();
    let query = RefreshTokenQuery::new(CLIENT, &account("alice"));
    let guard = cache.refresh_guard_async(&query, SHORT).await.unwrap();
    let waiters: Vec<_> = (0..300)
        .map(|_| {
            let (cache, query) = (cache.clone(), query.clone());
            tokio::spawn(
                async move { cache.refresh_guard_async(&query, Duration::from_secs(60)).await.map(drop) },
            )
        })
        .collect();
    tokio::time::sleep(SHORT).await;
    // Other tests of this process wait for guards as well.
    assert!((1..=3).contains(&threads()), "{} threads", threads());
    waiters.iter().for_each(tokio::task::JoinHandle::abort);
    tokio::time::sleep(Duration::from_millis(600)).await;
    drop(guard);
    drop(cache.refresh_guard_async(&query, SHORT).await.unwrap());
}

/// R3, for tasks.
#[tokio::test]
async fn whoever_leads_waits_for_its_own_call_however_short_its_patience_with_others() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    let wanted = wanted("read");
    let slow = {
        let mut call = call(&provider);
        move |request| {
            let answer = call(request);
            async move {
                tokio::time::sleep(3 * SHORT).await;
                answer.await
            }
        }
    };
    let request = AcquireRequest::new(&wanted).wait_timeout(Duration::from_millis(10));
    let acquired = cache.acquire_async(request, slow).await.unwrap();
    assert_eq!(acquired.token().expose(), "renewed-1");
    assert_eq!(bench.open().read(refresh_tokens).unwrap(), ["rotated-1"]);
}

/// R19.
#[test]
fn outside_a_runtime_it_is_an_error_at_once() {
    let bench = Bench::new();
    let cache = bench.open();
    sign_in_expired(&cache);
    let wanted = wanted("read");
    let mut acquiring = std::pin::pin!(cache.acquire_async(&wanted, never));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let std::task::Poll::Ready(result) = acquiring.as_mut().poll(&mut context) else { panic!("it waits") };
    assert!(matches!(result, Err(AcquireError::NoRuntime)), "{result:?}");
    let query = RefreshTokenQuery::new(CLIENT, &account("alice"));
    let mut guarding = std::pin::pin!(cache.refresh_guard_async(&query, SHORT));
    let std::task::Poll::Ready(result) = guarding.as_mut().poll(&mut context) else { panic!("it waits") };
    assert!(matches!(result, Err(AcquireError::NoRuntime)), "{result:?}");
}

/// A thousand users, each with a refresh of their own, at once.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_refreshes_take_a_few_threads() {
    use std::sync::atomic::{AtomicUsize, Ordering};

    // Other tests of this process have refreshes of their own, of which blocking ones have a thread each.
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name.starts_with("tokenseal-work")).count()
    };
    let bench = Bench::new();
    let cache = bench.open();
    cache
        .try_update(|tokens| {
            (0..1_000).try_for_each(|user| {
                let json = format!(r#"{{"access_token":"old","refresh_token":"rt-{user}","expires_in":0}}"#);
                let response =
                    TokenResponse::from_json(json)?.client_id(CLIENT).environment(common::ENVIRONMENT);
                tokens.add(&response.realm("t").home_account_id(user.to_string())).map(drop)
            })
        })
        .unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..1_000)
        .map(|user| {
            let (cache, calls) = (cache.clone(), Arc::clone(&calls));
            tokio::spawn(async move {
                let wanted = tokenseal::AccessTokenQuery::for_account(CLIENT, &account(&user.to_string()));
                let call = move |call: RefreshCall| {
                    calls.fetch_add(1, Ordering::SeqCst);
                    async move {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        let came = format!("new-{}", call.refresh_token().expose());
                        call.answer(
                            200,
                            None,
                            None,
                            format!(r#"{{"access_token":"{came}","expires_in":3600}}"#),
                        )
                    }
                };
                let acquired = cache.acquire_async(&wanted, call).await.unwrap();
                assert_eq!(acquired.token().expose(), format!("new-rt-{user}"));
            })
        })
        .collect();
    let mut most = 0;
    while !tasks.iter().all(tokio::task::JoinHandle::is_finished) {
        most = most.max(threads());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for task in tasks {
        task.await.unwrap();
    }
    println!("a thousand refreshes at once: {most} threads");
    assert_eq!(calls.load(Ordering::SeqCst), 1_000);
    assert!((1..=8).contains(&most), "{most} threads");
}

#[tokio::test]
async fn changes_lookups_and_settling_never_block_the_runtime() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.builder().open_async().await.unwrap();
    cache.add_async(common::response("alice", "read")).await.unwrap();
    let wanted = wanted("read");
    // Another thread has the lock: a change waits for it, and the runtime goes on.
    let (locked, is_locked) = std::sync::mpsc::channel();
    let other = bench.open();
    let holder = std::thread::spawn(move || {
        let hold = |_: &mut TokenCache| {
            locked.send(()).unwrap();
            std::thread::sleep(2 * SHORT);
            Ok::<_, tokenseal::CacheError>(())
        };
        drop(other.try_update(hold).unwrap());
    });
    is_locked.recv().unwrap();
    let began = std::time::Instant::now();
    let adding = tokio::spawn({
        let cache = cache.clone();
        async move { cache.add_async(common::response("bob", "read")).await }
    });
    tokio::task::yield_now().await;
    let found = cache.find_access_token_async(&wanted).await.unwrap().unwrap();
    assert_eq!(found.expose(), "at-alice-read");
    assert!(began.elapsed() < SHORT, "neither the change nor the lookup blocked: {:?}", began.elapsed());
    adding.await.unwrap().unwrap();
    assert!(began.elapsed() >= SHORT, "the change waited for the lock");
    holder.join().unwrap();
    assert_eq!(bench.open().accounts().unwrap().len(), 2, "what was added is on disk");
    assert_eq!(cache.accounts_async().await.unwrap().len(), 2);
    assert_eq!(cache.remove_account_async(&account("bob")).await.unwrap().value().refresh_tokens(), 1);

    // A panic of the change is the caller's.
    let task = tokio::spawn({
        let cache = cache.clone();
        async move { cache.try_update_async(|_| -> Result<(), tokenseal::Error> { panic!("on purpose") }).await }
    });
    assert!(task.await.unwrap_err().is_panic());

    expire(&cache);
    let slow = call(&provider);
    let waiter = cache.acquire_async(&wanted, slow);
    assert!(tokio::time::timeout(Duration::from_millis(5), waiter).await.is_err());
    cache.settle_async(Duration::from_secs(20)).await.unwrap();
    assert_eq!(provider.calls(), 1);
    assert!(bench.open().read(refresh_tokens).unwrap().contains(&"rotated-1".to_owned()));
}
