//! The storm, live: many processes find the same expired token, one of them refreshes it, and all get
//! the new one.
//!
//!     cargo run --example many_processes             sixteen processes
//!     cargo run --example many_processes -- 64       as many as you like
//!
//! The identity provider is a stand-in on loopback that rotates refresh tokens and takes one that comes
//! twice for stolen, as real ones do.

mod support;

use std::error::Error;
use std::process::Command;
use std::time::Instant;

use support::identity_provider;
use tokenseal::{
    AccessTokenQuery, Account, PersistedTokenCache, TokenResponse,
    refresh::{RefreshCall, RefreshFailure, TokenSource},
};

const APPLICATION: &str = "tokenseal-many-processes-example";
const CLIENT_ID: &str = "many-processes-example";
const ENVIRONMENT: &str = "idp.example";
const SCOPE: &str = "notes.read";

fn main() -> std::process::ExitCode {
    support::run(|| {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        match &arguments[..] {
            [] => storm(16),
            [number] => storm(number.parse()?),
            // How this program starts itself.
            [_child, number, provider] => acquire(number, provider),
            _ => Err("give the number of processes, or nothing".into()),
        }
    })
}

/// Signs in with an access token that has expired, and starts the processes.
fn storm(processes: usize) -> Result<(), Box<dyn Error>> {
    let cache = open()?;
    let expired = r#"{"access_token":"expired","refresh_token":"first","expires_in":0}"#;
    let account = Account::new("ada", ENVIRONMENT);
    cache.add(
        &TokenResponse::from_json(expired)?
            .client_id(CLIENT_ID)
            .environment(ENVIRONMENT)
            .home_account_id(account.home_account_id())
            .requested_scopes([SCOPE]),
    )?;
    let provider = identity_provider::start()?;
    let program = std::env::current_exe()?;
    let children: Vec<_> = (1..=processes)
        .map(|number| {
            let arguments = ["child", &number.to_string(), &provider];
            Command::new(&program).args(arguments).env(support::QUIET, "").spawn()
        })
        .collect::<Result<_, _>>()?;
    let mut failed = 0;
    for mut child in children {
        failed += usize::from(!child.wait()?.success());
    }
    cache.remove_account(&account)?;
    let (requests, reuses) = identity_provider::refreshes();
    println!("{processes} processes, {requests} request, {reuses} refresh tokens sent twice");
    if failed > 0 {
        return Err(format!("{failed} processes got no token").into());
    }
    Ok(())
}

/// What each process does.
fn acquire(number: &str, provider: &str) -> Result<(), Box<dyn Error>> {
    let cache = open()?;
    let wanted = AccessTokenQuery::for_account(CLIENT_ID, &Account::new("ada", ENVIRONMENT)).scopes([SCOPE]);
    let token_endpoint = format!("{provider}/token");
    let own = std::process::id();
    let call = move |call: RefreshCall| {
        println!("process {own}: nobody else is at it, so I refresh");
        refresh(&token_endpoint, &call)
    };
    let started = Instant::now();
    let acquired = cache.acquire(&wanted, call)?;
    let how = match acquired.origin() {
        TokenSource::Refreshed => "by my own request",
        _ => "that another process got",
    };
    println!("process {own} (number {number}): the token {how}, after {} ms", started.elapsed().as_millis());
    Ok(())
}

fn open() -> Result<PersistedTokenCache, Box<dyn Error>> {
    support::open(APPLICATION, PersistedTokenCache::builder(APPLICATION))
}

/// Makes a refresh with an HTTP client.
fn refresh(token_endpoint: &str, call: &RefreshCall) -> Result<TokenResponse, RefreshFailure> {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let request = agent.post(token_endpoint).content_type("application/x-www-form-urlencoded");
    let answer = request.send(call.form().expose()).map_err(RefreshFailure::transient)?;
    let (parts, mut body) = answer.into_parts();
    let body = body.read_to_vec().map_err(RefreshFailure::transient)?;
    let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
    call.answer(parts.status.as_u16(), header("content-type"), header("retry-after"), body)
}
