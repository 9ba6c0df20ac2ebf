//! A certified identity provider on loopback, and a real OAuth client to speak to it.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use oauth2::basic::{BasicClient, BasicTokenResponse};
use oauth2::{
    ClientId, DeviceAuthorizationUrl, EndpointNotSet, EndpointSet, Scope,
    StandardDeviceAuthorizationResponse, TokenUrl,
};
use tokenseal::{
    AccessTokenQuery, Account, PersistedTokenCache, TokenResponse,
    refresh::{RefreshCall, RefreshFailure},
};

pub(crate) const CLIENT: &str = "tokenseal-tests";
pub(crate) const REALM: &str = "main";
pub(crate) const USER: &str = "alice";

/// Where providers listen that are running already, one for each test of a run: for systems that cannot
/// start one themselves.
const RUNNING: &str = "TOKENSEAL_IDENTITY_PROVIDERS";

/// The provider, until it is dropped.
pub(crate) struct Provider {
    /// It ends when its input is closed.
    child: Option<(Child, ChildStdin)>,
    pub(crate) url: String,
}

impl Provider {
    /// Installs the provider if it must, and starts it; `None` where Node.js is missing.
    pub(crate) fn start() -> Option<Self> {
        if let Ok(running) = std::env::var(RUNNING) {
            static TAKEN: AtomicUsize = AtomicUsize::new(0);
            let url = running.split_whitespace().nth(TAKEN.fetch_add(1, Ordering::Relaxed));
            return Some(Self { child: None, url: url.expect("there is one for each test").to_owned() });
        }
        let installed = match install() {
            Ok(installed) => installed,
            Err(why) => {
                super::common::skip("IDENTITY_PROVIDER", &format!("there is no identity provider: {why}"));
                return None;
            }
        };
        let mut child = Command::new("node")
            .arg(installed.join("provider.mjs"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening ").expect("it says where it listens").to_owned();
        let stdin = child.stdin.take().unwrap();
        Some(Self { child: Some((child, stdin)), url })
    }

    /// Signs alice in by the device-code flow, with an access token for each scope that has expired.
    pub(crate) fn sign_in(&self, cache: &PersistedTokenCache) {
        let answer = self.device_flow(USER);
        let response = described(&answer, &self.url).home_account_id(USER);
        cache.add(&response.requested_scopes(["openid", "read"])).unwrap();
        expire(cache, &self.url);
    }

    fn device_flow(&self, account: &str) -> BasicTokenResponse {
        let client = client(&self.url);
        let scopes = ["openid", "offline_access", "read", "write"].map(|scope| Scope::new(scope.into()));
        let device: StandardDeviceAuthorizationResponse =
            client.exchange_device_code().add_scopes(scopes).request(&http).unwrap();
        // What the user would do in a browser.
        let form = format!("user_code={}&account={account}", device.user_code().secret());
        let approve = format!("{}/test/approve", self.url);
        let form_type = "application/x-www-form-urlencoded";
        ureq::post(approve).content_type(form_type).send(form).unwrap();
        client.exchange_device_access_token(&device).request(&http, |_| (), None).unwrap()
    }

    /// What has happened since the last [`reset`](Self::reset).
    pub(crate) fn counts(&self) -> Counts {
        let mut answer = ureq::get(format!("{}/test/counts", self.url)).call().unwrap();
        serde_json::from_slice(&answer.body_mut().read_to_vec().unwrap()).unwrap()
    }

    pub(crate) fn reset(&self) {
        ureq::post(format!("{}/test/reset", self.url)).send_empty().unwrap();
    }

    /// Makes the provider slow, or refuse: JSON with `delay_ms`, `delay_after_ms`, `status`,
    /// `retry_after`.
    pub(crate) fn behave(&self, behaviour: &str) {
        let url = format!("{}/test/behaviour", self.url);
        ureq::post(url).content_type("application/json").send(behaviour).unwrap();
    }

    /// Whether the provider takes an access token.
    pub(crate) fn accepts(&self, access_token: &str) -> bool {
        let request = ureq::get(format!("{}/me", self.url));
        request.header("Authorization", format!("Bearer {access_token}")).call().is_ok()
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[derive(Debug, serde::Deserialize)]
pub(crate) struct Counts {
    pub(crate) refresh_requests: usize,
    pub(crate) refresh_successes: usize,
    pub(crate) refresh_errors: usize,
    pub(crate) grants_revoked: usize,
    pub(crate) reuse_detected: usize,
}

/// Installs the provider once for all tests, and gives its directory.
fn install() -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oidc-provider");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("oidc-provider");
    std::fs::create_dir_all(&target).unwrap();
    // Other tests may be about to do the same.
    let lock = std::fs::File::create(target.join("lock")).unwrap();
    lock.lock().unwrap();
    for name in ["provider.mjs", "package.json"] {
        std::fs::copy(source.join(name), target.join(name)).unwrap();
    }
    let (locked, installed) = (source.join("package-lock.json"), target.join("package-lock.json"));
    let read = |path: &Path| std::fs::read(path).unwrap_or_default();
    if read(&locked) != read(&installed) || !target.join("node_modules/.package-lock.json").exists() {
        std::fs::copy(&locked, &installed).unwrap();
        let npm = Command::new("npm")
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])
            .current_dir(&target)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("npm cannot be started: {error}"))?;
        if !npm.status.success() {
            return Err(format!("npm ci failed: {}", String::from_utf8_lossy(&npm.stderr)));
        }
    }
    let node = Command::new("node").arg("--version").output();
    node.map(|_| target).map_err(|error| format!("node cannot be started: {error}"))
}

/// The environment that the tokens are kept under: several providers may listen on one host.
fn environment(url: &str) -> &str {
    url.strip_prefix("http://").unwrap()
}

pub(crate) fn account(url: &str) -> Account {
    Account::new(USER, environment(url))
}

pub(crate) fn wanted(url: &str) -> AccessTokenQuery {
    AccessTokenQuery::for_account(CLIENT, &account(url)).scopes(["openid", "read"])
}

fn described(answer: &BasicTokenResponse, url: &str) -> TokenResponse {
    let response = TokenResponse::from_serialize(answer).unwrap();
    response.client_id(CLIENT).environment(environment(url)).realm(REALM)
}

/// Lets the access token expire, as if an hour had passed.
pub(crate) fn expire(cache: &PersistedTokenCache, url: &str) {
    let expired = TokenResponse::from_json(r#"{"access_token":"expired","expires_in":0}"#)
        .unwrap()
        .client_id(CLIENT)
        .environment(environment(url))
        .realm(REALM)
        .home_account_id(USER)
        .requested_scopes(["openid", "read"])
        .without_account();
    cache
        .try_update(|tokens| {
            for token in tokens.access_tokens().collect::<Vec<_>>() {
                tokens.remove_access_token(&token);
            }
            tokens.add(&expired)
        })
        .unwrap();
}

type Client = BasicClient<EndpointNotSet, EndpointSet, EndpointNotSet, EndpointNotSet, EndpointSet>;

fn client(url: &str) -> Client {
    BasicClient::new(ClientId::new(CLIENT.into()))
        .set_device_authorization_url(DeviceAuthorizationUrl::new(format!("{url}/device/auth")).unwrap())
        .set_token_uri(TokenUrl::new(format!("{url}/token")).unwrap())
}

fn http(request: oauth2::HttpRequest) -> Result<oauth2::HttpResponse, ureq::Error> {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().http_status_as_error(false).max_redirects(0).build().into();
    let (parts, mut body) = agent.run(request)?.into_parts();
    Ok(oauth2::HttpResponse::from_parts(parts, body.read_to_vec()?))
}

/// Makes a refresh, as a program would with any HTTP client.
pub(crate) fn refresh(url: &str, call: &RefreshCall) -> Result<TokenResponse, RefreshFailure> {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let answer = agent
        .post(format!("{url}/token"))
        .content_type("application/x-www-form-urlencoded")
        .send(call.form().expose())
        .map_err(RefreshFailure::transient)?;
    let (parts, mut body) = answer.into_parts();
    let body = body.read_to_vec().map_err(RefreshFailure::transient)?;
    let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
    call.answer(parts.status.as_u16(), header("content-type"), header("retry-after"), body)
}
