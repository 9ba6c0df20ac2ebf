//! A stand-in for an identity provider: just enough of RFC 8628 and RFC 6749 to sign one user in, and
//! to take a refresh token that is used twice for stolen. Nothing here belongs into a program of yours.
#![allow(dead_code)] // No example needs all of it.

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::Duration;

use base64ct::{Base64UrlUnpadded, Encoding as _};

/// How often the user has been asked for.
static POLLS: AtomicUsize = AtomicUsize::new(0);

/// The refresh tokens that were used.
static USED: LazyLock<Mutex<HashSet<String>>> = LazyLock::new(Mutex::default);

/// Requests to refresh, and those that brought a used token.
static REFRESHES: AtomicUsize = AtomicUsize::new(0);
static REUSES: AtomicUsize = AtomicUsize::new(0);

/// How many requests to refresh came, and how many of them with a used token.
pub(crate) fn refreshes() -> (usize, usize) {
    (REFRESHES.load(Ordering::SeqCst), REUSES.load(Ordering::SeqCst))
}

/// Starts the provider on loopback and gives the URL below which its endpoints are.
pub(crate) fn start() -> std::io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let provider = format!("http://{}/demo", listener.local_addr()?);
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            // A client that breaks off is of no interest.
            thread::spawn(move || answer(connection));
        }
    });
    Ok(provider)
}

fn answer(mut connection: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body = String::from_utf8_lossy(&body);

    let (status, json) = if first.starts_with("POST /demo/device ") {
        let url = "http://127.0.0.1/demo/enter-code";
        (
            "200 OK",
            format!(
                r#"{{"device_code":"d","user_code":"WDJB-MJHT","verification_uri":"{url}","expires_in":600,"interval":1}}"#
            ),
        )
    } else if body.contains("grant_type=refresh_token") {
        REFRESHES.fetch_add(1, Ordering::SeqCst);
        // Time for others to come as well.
        thread::sleep(Duration::from_millis(200));
        let refresh_token = body.split('&').find_map(|field| field.strip_prefix("refresh_token="));
        if USED.lock().is_ok_and(|mut used| used.insert(refresh_token.unwrap_or_default().to_owned())) {
            // The answer to a refresh need not have an id_token, and often has none.
            ("200 OK", tokens(""))
        } else {
            REUSES.fetch_add(1, Ordering::SeqCst);
            ("400 Bad Request", r#"{"error":"invalid_grant"}"#.to_owned())
        }
    } else if POLLS.fetch_add(1, Ordering::Relaxed) == 0 {
        ("400 Bad Request", r#"{"error":"authorization_pending"}"#.to_owned())
    } else {
        ("200 OK", tokens(&format!(r#","id_token":"{}""#, id_token())))
    };
    write!(
        connection,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{json}",
        json.len()
    )
}

/// Says who the one user is.
fn id_token() -> String {
    let part = |json: &str| Base64UrlUnpadded::encode_string(json.as_bytes());
    let claims = r#"{"iss":"http://127.0.0.1/demo","aud":"desktop-example","sub":"1001","preferred_username":"ada@example.com"}"#;
    format!("{}.{}.{}", part(r#"{"alg":"none"}"#), part(claims), "unsigned")
}

/// A token response, with further members. The access token lives for the number of seconds in
/// `DESKTOP_EXAMPLE_LIFETIME`, or for an hour.
fn tokens(further: &str) -> String {
    let random = || {
        let mut bytes = [0; 48];
        getrandom::fill(&mut bytes).expect("the operating system has random bytes");
        Base64UrlUnpadded::encode_string(&bytes)
    };
    let lifetime = std::env::var("DESKTOP_EXAMPLE_LIFETIME").ok().and_then(|seconds| seconds.parse().ok());
    format!(
        r#"{{"access_token":"{}","token_type":"Bearer","expires_in":{},"refresh_token":"{}"{further}}}"#,
        random(),
        lifetime.unwrap_or(3_600_u32),
        random()
    )
}
