//! One refresh at a time among processes, against a certified identity provider that rotates refresh
//! tokens and revokes the grant when one is used twice.
#![cfg(feature = "file")]

mod common;
#[path = "common/oidc.rs"]
mod oidc;

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::rotating::never;
use oidc::Provider;
use tokenseal::{
    AccessTokenQuery, AcquireError, PersistedTokenCache, TokenResponse,
    refresh::{Acquired, MintCall, RefreshCall, RefreshFailure},
};

/// A child process that does what it is told, line by line.
struct Worker {
    child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    fn start(base: &Path, url: &str, task: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "as_a_child_process", "--nocapture"])
            .env("TOKENSEAL_CHILD_BASE", base)
            .env("TOKENSEAL_CHILD_URL", url)
            .env("TOKENSEAL_CHILD_TASK", task)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut worker = Self { child, orders, answers };
        assert_eq!(worker.answer(), "ready");
        worker
    }

    fn many(number: usize, base: &Path, url: &str, task: &str) -> Vec<Self> {
        (0..number).map(|_| Self::start(base, url, task)).collect()
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
        self.orders.flush().unwrap();
    }

    fn answer(&mut self) -> String {
        next_answer(&mut self.answers)
    }

    /// The next answer but for what was said on the way.
    fn result(&mut self) -> String {
        loop {
            match self.answer() {
                calling if calling == "calling" => {}
                answer => return answer,
            }
        }
    }

    fn dismiss(mut self) {
        drop(self.orders);
        assert!(self.child.wait().unwrap().success());
    }
}

/// The next answer; "gone" if the child is.
fn next_answer(answers: &mut Lines<BufReader<ChildStdout>>) -> String {
    loop {
        match answers.next() {
            Some(Ok(line)) => {
                if let Some(answer) = line.strip_prefix("> ") {
                    return answer.to_owned();
                }
            }
            _ => return "gone".to_owned(),
        }
    }
}

/// Lets all workers begin at one moment.
fn begin(workers: &mut [Worker]) {
    let moment = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_millis(100);
    for worker in workers {
        worker.order(&moment.as_millis().to_string());
    }
}

fn wait_until(moment: &str) {
    let moment = UNIX_EPOCH + Duration::from_millis(moment.parse().unwrap());
    std::thread::sleep(moment.duration_since(SystemTime::now()).unwrap_or_default());
}

fn open(base: &Path) -> PersistedTokenCache {
    common::with_key_file(base).open().unwrap()
}

fn call(
    url: &str,
) -> impl FnMut(RefreshCall) -> Result<TokenResponse, RefreshFailure> + Send + use<> + 'static {
    let url = url.to_owned();
    move |call| {
        answer("calling");
        oidc::refresh(&url, &call)
    }
}

fn acquire(cache: &PersistedTokenCache, url: &str) -> Result<Acquired, AcquireError> {
    cache.acquire(&oidc::wanted(url), call(url))
}

fn answer(answer: &str) {
    // In one write: other threads may have something to say, too. The test harness may have left its
    // own line unfinished.
    let line = format!("\n> {answer}\n");
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).unwrap();
    out.flush().unwrap();
}

fn told(result: Result<Acquired, AcquireError>) -> String {
    match result {
        Ok(acquired) => format!("token {}", acquired.token().expose()),
        Err(error) if error.is_sign_in_required() => format!("sign in: {error}"),
        Err(error) if error.is_transient() => format!("transient: {error}"),
        Err(error) => format!("error: {error}"),
    }
}

/// Not a test by itself: what the children of the tests below do.
#[test]
fn as_a_child_process() {
    let Some(base) = std::env::var_os("TOKENSEAL_CHILD_BASE") else { return };
    let (base, url) = (Path::new(&base), std::env::var("TOKENSEAL_CHILD_URL").unwrap());
    let task = std::env::var("TOKENSEAL_CHILD_TASK").unwrap();
    let cache = open(base);
    #[cfg(feature = "tokio")]
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    answer("ready");
    for order in std::io::stdin().lines() {
        let order = order.unwrap();
        match task.as_str() {
            "acquire" => {
                wait_until(&order);
                answer(&told(acquire(&cache, &url)));
            }
            "acquire for ten seconds" => {
                wait_until(&order);
                let started = Instant::now();
                let mut kinds = [0, 0, 0];
                while started.elapsed() < Duration::from_secs(10) {
                    match acquire(&cache, &url) {
                        Ok(_) => kinds[0] += 1,
                        Err(error) if error.is_transient() => kinds[1] += 1,
                        Err(_) => kinds[2] += 1,
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                answer(&format!("{} tokens, {} transient, {} others", kinds[0], kinds[1], kinds[2]));
            }
            "mint" => {
                wait_until(&order);
                let source = base.join("calls");
                let mint = move |call: MintCall| {
                    let mut calls =
                        std::fs::OpenOptions::new().create(true).append(true).open(&source).unwrap();
                    calls.write_all(b"x").unwrap();
                    std::thread::sleep(Duration::from_millis(30));
                    let number = std::fs::metadata(&source).unwrap().len();
                    let json = format!(r#"{{"access_token":"minted-{number}","expires_in":3600}}"#);
                    call.answer(200, None, None, json)
                };
                answer(&told(cache.acquire_for_application(&of_the_application(), mint)));
            }
            #[cfg(feature = "tokio")]
            "acquire in 1000 tasks" => {
                wait_until(&order);
                let tasks: Vec<_> = (0..1_000)
                    .map(|_| {
                        let (cache, url) = (cache.clone(), url.clone());
                        runtime.spawn(async move {
                            let to = url.clone();
                            let call = move |call: tokenseal::refresh::RefreshCall| {
                                let url = to.clone();
                                async move {
                                    let call = move || oidc::refresh(&url, &call);
                                    tokio::task::spawn_blocking(call).await.unwrap()
                                }
                            };
                            told(cache.acquire_async(&oidc::wanted(&url), call).await)
                        })
                    })
                    .collect();
                let mut told: Vec<String> =
                    tasks.into_iter().map(|task| runtime.block_on(task).unwrap()).collect();
                let number = told.len();
                told.sort();
                told.dedup();
                answer(&format!("{number} times {}", told.join(" or ")));
            }
            other => panic!("no task {other}"),
        }
    }
}

/// Lets all workers acquire at once, twenty times: one request each time, and one answer.
fn rounds(provider: &Provider, cache: &PersistedTokenCache, mut workers: Vec<Worker>, expected: &str) {
    // Time enough for all to find the expired token.
    provider.behave(r#"{"delay_ms":30}"#);
    provider.reset();
    let mut slowest = Duration::ZERO;
    for round in 1..=20 {
        oidc::expire(cache, &provider.url);
        let began = Instant::now();
        begin(&mut workers);
        let answers: Vec<String> = workers.iter_mut().map(Worker::result).collect();
        slowest = slowest.max(began.elapsed());
        let token = cache.acquire(&oidc::wanted(&provider.url), never()).unwrap().into_token();
        assert!(provider.accepts(token.expose()), "round {round}");
        for answer in answers {
            assert_eq!(answer, format!("{expected}{}", token.expose()), "round {round}");
        }
        let counts = provider.counts();
        assert_eq!((counts.refresh_requests, counts.refresh_successes), (round, round), "{counts:?}");
    }
    let counts = provider.counts();
    assert_eq!(
        (counts.refresh_errors, counts.grants_revoked, counts.reuse_detected),
        (0, 0, 0),
        "{counts:?}"
    );
    println!("20 rounds: {} requests, slowest round {slowest:?}", counts.refresh_requests);
    workers.into_iter().for_each(Worker::dismiss);
}

#[test]
fn sixty_four_processes_make_one_request_a_round() {
    let Some(provider) = Provider::start() else { return };
    let base = tempfile::tempdir().unwrap();
    let cache = open(base.path());
    provider.sign_in(&cache);
    let workers = Worker::many(64, base.path(), &provider.url, "acquire");
    rounds(&provider, &cache, workers, "token ");
}

fn of_the_application() -> AccessTokenQuery {
    AccessTokenQuery::for_application("daemon")
        .environment("idp.example")
        .realm("tenant")
        .scopes(["orders.read"])
}

#[test]
fn sixty_four_processes_get_the_application_s_token_by_one_call_a_round() {
    let base = tempfile::tempdir().unwrap();
    let cache = open(base.path());
    let mut workers = Worker::many(64, base.path(), "none", "mint");
    for round in 1..=20 {
        begin(&mut workers);
        for worker in &mut workers {
            assert_eq!(worker.result(), format!("token minted-{round}"));
        }
        let calls = std::fs::metadata(base.path().join("calls")).unwrap().len();
        assert_eq!(calls, round, "one call a round");
        let found = cache.find_access_token(&of_the_application()).unwrap().unwrap();
        cache.update(|tokens| tokens.remove_access_token(&found)).unwrap();
    }
    println!("20 rounds of 64 processes: 20 calls");
    workers.into_iter().for_each(Worker::dismiss);
}

#[cfg(feature = "tokio")]
#[test]
fn a_thousand_tasks_in_each_of_four_processes_make_one_request_a_round() {
    let Some(provider) = Provider::start() else { return };
    let base = tempfile::tempdir().unwrap();
    let cache = open(base.path());
    provider.sign_in(&cache);
    let workers = Worker::many(4, base.path(), &provider.url, "acquire in 1000 tasks");
    rounds(&provider, &cache, workers, "1000 times token ");
}

#[test]
fn while_the_provider_is_down_sixteen_processes_try_once_in_each_back_off() {
    let Some(provider) = Provider::start() else { return };
    let base = tempfile::tempdir().unwrap();
    let cache = open(base.path());
    provider.sign_in(&cache);
    provider.behave(r#"{"status":503}"#);
    provider.reset();
    let mut workers = Worker::many(16, base.path(), &provider.url, "acquire for ten seconds");
    begin(&mut workers);
    for worker in &mut workers {
        let said = worker.result();
        assert!(said.starts_with("0 tokens, ") && said.ends_with(" transient, 0 others"), "{said}");
    }
    let counts = provider.counts();
    // At 0, 1, 3 and 7 seconds, each a little later.
    assert!((3..=4).contains(&counts.refresh_requests), "{counts:?}");
    assert_eq!(cache.read(|tokens| tokens.refresh_tokens().count()).unwrap(), 1, "the token is kept");
    workers.into_iter().for_each(Worker::dismiss);
    provider.behave("{}");
    let started = Instant::now();
    while let Err(error) = acquire(&cache, &provider.url) {
        assert!(error.is_transient(), "{error}");
        assert!(started.elapsed() < Duration::from_secs(20), "it never recovered");
        std::thread::sleep(error.retry_after().unwrap_or_default());
    }
}

#[test]
fn a_killed_refresher_is_followed_at_once_and_no_request_is_repeated_for_ever() {
    let Some(provider) = Provider::start() else { return };
    let base = tempfile::tempdir().unwrap();
    let cache = open(base.path());
    provider.sign_in(&cache);
    provider.behave(r#"{"delay_ms":4,"delay_after_ms":4}"#);
    let (mut renewed, mut lost, mut slowest) = (0, 0, Duration::ZERO);
    let (mut in_the_call, mut renewed_after) = (0, 0);
    for round in 0..100 {
        oidc::expire(&cache, &provider.url);
        provider.reset();
        let mut workers = Worker::many(2, base.path(), &provider.url, "acquire");
        begin(&mut workers);
        // Whoever calls is killed, somewhere between its request and its last write.
        let (said, say) = std::sync::mpsc::channel();
        let mut children = Vec::new();
        let readers: Vec<_> = workers
            .into_iter()
            .enumerate()
            .map(|(number, Worker { child, orders, mut answers })| {
                children.push(child);
                let said = said.clone();
                std::thread::spawn(move || {
                    loop {
                        let answer = next_answer(&mut answers);
                        let is_last = answer != "calling";
                        said.send((number, answer)).unwrap();
                        if is_last {
                            return orders;
                        }
                    }
                })
            })
            .collect();
        let (caller, calling) = say.recv().unwrap();
        assert_eq!(calling, "calling", "round {round}");
        std::thread::sleep(Duration::from_micros(random() % 16_000));
        let killed = Instant::now();
        children[caller].kill().unwrap();
        let follower = 1 - caller;
        let mut of_the_killed = Vec::new();
        let end = loop {
            let (number, answer) = say.recv_timeout(Duration::from_secs(60)).unwrap();
            if number == caller {
                of_the_killed.push(answer.clone());
            }
            if number == follower && answer != "calling" {
                break answer;
            }
        };
        slowest = slowest.max(killed.elapsed());
        if end.starts_with("token ") {
            renewed += 1;
        } else {
            assert!(end.starts_with("sign in: "), "round {round}: {end}");
            lost += 1;
        }
        for mut child in children {
            let _ = child.kill();
            child.wait().unwrap();
        }
        for reader in readers {
            drop(reader.join().unwrap());
        }
        of_the_killed
            .extend(say.try_iter().filter(|(number, _)| *number == caller).map(|(_, answer)| answer));
        if of_the_killed == ["gone"] {
            in_the_call += 1;
            renewed_after += usize::from(end.starts_with("token "));
        }
        let before = provider.counts().refresh_requests;
        assert!((1..=2).contains(&before), "round {round}: {before}");
        // The cache is whole, and says the same without asking again.
        let now = cache.acquire(&oidc::wanted(&provider.url), never());
        assert_eq!(now.is_ok(), end.starts_with("token "), "round {round}: {end}, then {now:?}");
        if now.is_err() {
            provider.sign_in(&cache);
        }
    }
    println!(
        "killed 100 times, {in_the_call} of them in the call: {renewed} renewed ({renewed_after} after a kill in \
         the call), {lost} lost between server and disk, slowest {slowest:?}"
    );
    assert!(slowest < Duration::from_secs(1), "the next one took over after {slowest:?}");
    assert!(
        in_the_call > 5 && renewed_after > 0,
        "{in_the_call} killed in the call, {renewed_after} renewed after"
    );
}

#[test]
fn a_sign_out_elsewhere_is_seen_at_the_next_call_and_is_final() {
    let Some(provider) = Provider::start() else { return };
    let base = tempfile::tempdir().unwrap();
    let cache = open(base.path());
    provider.sign_in(&cache);
    let mut workers = Worker::many(4, base.path(), &provider.url, "acquire");
    let mut all = |expected: &str| {
        begin(&mut workers);
        for worker in &mut workers {
            let answer = worker.result();
            assert!(answer.starts_with(expected), "{answer}");
        }
    };
    all("token ");
    let account = oidc::account(&provider.url);
    cache.remove_account(&account).unwrap();
    provider.reset();
    all("sign in: ");
    assert_eq!(provider.counts().refresh_requests, 0);
    assert!(cache.accounts().unwrap().is_empty());

    // The same while a request is under way.
    provider.sign_in(&cache);
    provider.behave(r#"{"delay_after_ms":500}"#);
    provider.reset();
    std::thread::scope(|scope| {
        let provider = &provider;
        scope.spawn(|| {
            while provider.counts().refresh_requests == 0 {
                std::thread::sleep(Duration::from_millis(10));
            }
            cache.remove_account(&account).unwrap();
        });
        all("sign in: ");
    });
    assert_eq!(provider.counts().refresh_requests, 1);
    assert!(cache.accounts().unwrap().is_empty(), "nobody came back");
    assert_eq!(cache.read(|tokens| tokens.refresh_tokens().count()).unwrap(), 0);
    workers.into_iter().for_each(Worker::dismiss);
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    u64::from_ne_bytes(bytes)
}
