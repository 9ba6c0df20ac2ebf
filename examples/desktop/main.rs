//! A small program that signs its user in once and finds the tokens at its next run.
//!
//!     cargo run --example desktop                  sign in, or use what is there
//!     cargo run --example desktop -- --show        show what is there
//!     cargo run --example desktop -- --sign-out    sign out
//!
//! The identity provider is a stand-in that runs inside this program, on loopback. Everything else is
//! what a program of yours would do: the `oauth2` crate speaks to the provider by real HTTP, and
//! `tokenseal` keeps the tokens.

#[path = "../support/mod.rs"]
mod support;

use std::error::Error;
use std::time::{Duration, SystemTime};

use oauth2::basic::{
    BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse, BasicTokenType,
};
use oauth2::{
    Client, ClientId, DeviceAuthorizationUrl, EndpointNotSet, EndpointSet, ExtraTokenFields, Scope,
    StandardDeviceAuthorizationResponse, StandardRevocableToken, StandardTokenResponse, TokenUrl,
};
use support::identity_provider;
use tokenseal::{
    AccessTokenQuery, PersistedTokenCache, Secret, TokenResponse,
    persisted::Rotation,
    refresh::{RefreshCall, RefreshFailure, TokenSource},
};

const APPLICATION: &str = "tokenseal-desktop-example";
const CLIENT_ID: &str = "desktop-example";
const SCOPE: &str = "notes.read";

fn main() -> std::process::ExitCode {
    support::run(desktop)
}

fn desktop() -> Result<(), Box<dyn Error>> {
    let argument = std::env::args_os().nth(1).map(|argument| argument.to_string_lossy().into_owned());
    let task: fn(&PersistedTokenCache) -> Result<(), Box<dyn Error>> = match argument.as_deref() {
        None => call_the_service,
        Some("--show") => show,
        Some("--sign-out") => sign_out,
        Some(other) => return Err(format!("unknown argument {other}: use --show, --sign-out or none").into()),
    };
    // Sealed in a file, the key in the platform keyring.
    let cache = support::open(APPLICATION, PersistedTokenCache::builder(APPLICATION))?;
    let result = task(&cache);
    // A refresh that is still under way is not lost with this process.
    cache.settle(Duration::from_secs(30))?;
    result
}

fn call_the_service(cache: &PersistedTokenCache) -> Result<(), Box<dyn Error>> {
    let token = access_token(cache)?;
    println!("Calling the service with a token of {} characters.", token.expose().len());
    Ok(())
}

/// A token to call the service with: from the cache, or by the refresh token, or by signing in.
fn access_token(cache: &PersistedTokenCache) -> Result<Secret, Box<dyn Error>> {
    for account in cache.accounts()? {
        let wanted = AccessTokenQuery::for_account(CLIENT_ID, &account).scopes([SCOPE]);
        // However many processes run this at once, one of them refreshes and all get the token.
        match cache.acquire(&wanted, |call| refresh(&call)) {
            Ok(acquired) => {
                let how = match acquired.origin() {
                    TokenSource::Refreshed => "already; the token was refreshed",
                    _ => "already",
                };
                println!("Signed in as {} {how}.", account.username());
                return Ok(acquired.token().secret());
            }
            Err(error) if error.is_sign_in_required() => println!("{}: {error}.", account.username()),
            Err(error) => return Err(error.into()),
        }
    }

    let response = sign_in()?;
    let added = cache.add(&response)?; // On disk, sealed, before this returns.
    let account = added.account().ok_or("the provider did not say who signed in")?;
    println!("Signed in as {}. Run this again: no sign-in will be needed.", account.username());
    let wanted = AccessTokenQuery::for_account(CLIENT_ID, account).scopes([SCOPE]);
    Ok(cache.acquire(&wanted, |call| refresh(&call))?.token().secret())
}

/// Signs in by the device-code flow (RFC 8628).
fn sign_in() -> Result<TokenResponse, Box<dyn Error>> {
    let provider = identity_provider::start()?;
    let client = client(&provider)?;
    let device: StandardDeviceAuthorizationResponse =
        client.exchange_device_code().add_scope(Scope::new(SCOPE.into())).request(&http)?;
    println!(
        "Open {} and enter the code {}.",
        device.verification_uri().as_str(),
        device.user_code().secret()
    );
    println!("(The stand-in provider says yes by itself in a moment.)");
    let answer = client.exchange_device_access_token(&device).request(&http, std::thread::sleep, None)?;
    described(&answer, &provider, "urn:ietf:params:oauth:grant-type:device_code")
}

/// Makes a refresh: sends what `tokenseal` says, and passes on all that comes back. The program decides
/// nothing here: which failure ends the session, and which does not, is read from the answer.
fn refresh(call: &RefreshCall) -> Result<TokenResponse, RefreshFailure> {
    let provider = identity_provider::start().map_err(RefreshFailure::transient)?;
    let request = agent().post(format!("{provider}/token")).content_type("application/x-www-form-urlencoded");
    let answer = request.send(call.form().expose()).map_err(RefreshFailure::transient)?;
    let (parts, mut body) = answer.into_parts();
    let body = body.read_to_vec().map_err(RefreshFailure::transient)?;
    let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
    call.answer(parts.status.as_u16(), header("content-type"), header("retry-after"), body)
}

/// Tells the cache what the tokens are and where they come from.
fn described(answer: &Answer, provider: &str, grant_type: &str) -> Result<TokenResponse, Box<dyn Error>> {
    Ok(TokenResponse::from_serialize(answer)?
        .client_id(CLIENT_ID)
        .token_endpoint(format!("{provider}/token"))
        .requested_scopes([SCOPE])
        .grant_type(grant_type))
}

fn show(cache: &PersistedTokenCache) -> Result<(), Box<dyn Error>> {
    println!("{}", cache.path().display());
    for account in cache.accounts()? {
        println!("{} at {}, realms {:?}", account.username(), account.environment(), account.realms());
    }
    for (scopes, expires_on) in cache.read(|tokens| {
        tokens
            .access_tokens()
            .map(|token| (token.scopes().collect::<Vec<_>>().join(" "), token.expires_on()))
            .collect::<Vec<_>>()
    })? {
        match expires_on.duration_since(SystemTime::now()) {
            Ok(left) => println!("  a token for {scopes}, valid for {} s", left.as_secs()),
            Err(_) => println!("  a token for {scopes}, expired"),
        }
    }
    Ok(())
}

fn sign_out(cache: &PersistedTokenCache) -> Result<(), Box<dyn Error>> {
    for account in cache.accounts()? {
        let removed = cache.remove_account(&account)?;
        println!("Signed out {}: {} rows removed.", account.username(), removed.value().total());
        if let Rotation::Pending { reason } = removed.rotation() {
            println!("Older copies of the file can still be opened: {reason}");
        }
    }
    for other in ["default.sealed", "with-key-file.sealed"] {
        let other = cache.path().with_file_name(other);
        if other != cache.path() && other.exists() {
            println!(
                "{} is another cache of this example, with its key elsewhere; it stays.",
                other.display()
            );
        }
    }
    Ok(())
}

// --- What `oauth2` needs: a client that keeps the `id_token`, and a way to send a request. ---

type Answer = StandardTokenResponse<IdTokenField, BasicTokenType>;
type DesktopClient = Client<
    BasicErrorResponse,
    Answer,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
    EndpointNotSet,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointSet,
>;

/// The one field that OpenID Connect adds to a token response.
#[derive(serde::Serialize, serde::Deserialize)]
struct IdTokenField {
    #[serde(skip_serializing_if = "Option::is_none")]
    id_token: Option<String>,
}

impl ExtraTokenFields for IdTokenField {}

impl std::fmt::Debug for IdTokenField {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IdTokenField(..)")
    }
}

fn client(provider: &str) -> Result<DesktopClient, Box<dyn Error>> {
    Ok(Client::new(ClientId::new(CLIENT_ID.into()))
        .set_device_authorization_url(DeviceAuthorizationUrl::new(format!("{provider}/device"))?)
        .set_token_uri(TokenUrl::new(format!("{provider}/token"))?))
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).max_redirects(0).build().into()
}

/// Sends a request with `ureq`; a program of yours may use `oauth2`'s own features for this.
fn http(request: oauth2::HttpRequest) -> Result<oauth2::HttpResponse, ureq::Error> {
    let (parts, mut body) = agent().run(request)?.into_parts();
    Ok(oauth2::HttpResponse::from_parts(parts, body.read_to_vec()?))
}
