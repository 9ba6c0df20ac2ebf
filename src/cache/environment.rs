//! Where a token comes from: the environment (host) and the realm (tenant) of a token endpoint.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use super::error::CacheError;

/// Hosts that are one and the same identity provider.
///
/// A token written for one of them is found under the others. The default knows the hosts that
/// Microsoft's libraries treat as one; other providers have none unless you name them.
///
/// ```
/// use tokenseal::cache::EnvironmentAliases;
/// let aliases = EnvironmentAliases::none().with(["login.example.com", "sso.example.com"]);
/// ```
#[derive(Debug, Clone)]
pub struct EnvironmentAliases(Arc<Vec<Vec<String>>>);

impl EnvironmentAliases {
    /// No host is another.
    pub fn none() -> Self {
        Self(Arc::new(Vec::new()))
    }

    /// The clouds of Microsoft Entra ID, as MSAL knows them without asking the network.
    pub fn microsoft() -> Self {
        Self::none()
            .with([
                "login.microsoftonline.com",
                "login.windows.net",
                "login.microsoft.com",
                "sts.windows.net",
            ])
            .with(["login.partner.microsoftonline.cn", "login.chinacloudapi.cn"])
            .with(["login.microsoftonline.us", "login.usgovcloudapi.net"])
    }

    /// Adds a group of hosts that are one. The first is the one to prefer.
    #[must_use]
    pub fn with<S: AsRef<str>>(self, hosts: impl IntoIterator<Item = S>) -> Self {
        let mut groups = Arc::unwrap_or_clone(self.0);
        groups.push(hosts.into_iter().map(|host| host.as_ref().to_ascii_lowercase()).collect());
        Self(Arc::new(groups))
    }

    /// One name for all hosts of a group.
    pub(crate) fn canonical(&self, host: &str) -> String {
        let group = self.group(host).and_then(|group| group.first());
        group.cloned().unwrap_or_else(|| host.to_ascii_lowercase())
    }

    /// Whether `a` and `b` are one environment. Hosts are compared without regard to case.
    pub(crate) fn same(&self, a: &str, b: &str) -> bool {
        a.eq_ignore_ascii_case(b)
            || self.group(a).is_some_and(|group| group.iter().any(|host| host.eq_ignore_ascii_case(b)))
    }

    fn group(&self, host: &str) -> Option<&Vec<String>> {
        self.0.iter().find(|group| group.iter().any(|other| other.eq_ignore_ascii_case(host)))
    }
}

/// Whether tokens from this host are issued by Microsoft.
pub(crate) fn is_microsoft(environment: &str) -> bool {
    const SUFFIXES: [&str; 2] = [".ciamlogin.com", ".b2clogin.com"];
    static HOSTS: LazyLock<EnvironmentAliases> = LazyLock::new(EnvironmentAliases::microsoft);
    let has_suffix = |suffix: &&str| {
        let start = environment.len().checked_sub(suffix.len());
        let end = start.and_then(|start| environment.get(start..));
        end.is_some_and(|end| end.eq_ignore_ascii_case(suffix))
    };
    HOSTS.group(environment).is_some() || SUFFIXES.iter().any(has_suffix)
}

/// The token endpoint of a tenant at one of Microsoft's clouds; no other provider's follows from its host.
#[cfg(feature = "file")]
pub(crate) fn token_endpoint_of(environment: &str, realm: &str) -> Option<String> {
    static HOSTS: LazyLock<EnvironmentAliases> = LazyLock::new(EnvironmentAliases::microsoft);
    let is_tenant =
        !realm.is_empty() && realm.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let environment = environment.to_ascii_lowercase();
    (HOSTS.group(&environment).is_some() && is_tenant)
        .then(|| format!("https://{environment}/{realm}/oauth2/v2.0/token"))
}

impl Default for EnvironmentAliases {
    fn default() -> Self {
        Self::microsoft()
    }
}

/// The environment and the realm of a token endpoint, derived as msal (Python) 1.39 derives them:
/// the host in lower case without its port, and the first segment of the path.
pub(crate) fn of_token_endpoint(url: &str) -> Result<(String, Option<String>), CacheError> {
    let error = |reason| CacheError::TokenEndpoint { reason };
    let (scheme, rest) = url.split_once("://").ok_or_else(|| error("is no absolute URL"))?;
    let (authority, path) = match rest.find(['/', '?', '#']) {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    if authority.contains('@') {
        return Err(error("carries credentials before its host"));
    }
    let host = host_of(authority).ok_or_else(|| error("has no valid host"))?;
    match scheme.to_ascii_lowercase().as_str() {
        "https" => {}
        "http" if is_loopback(&host) => {}
        "http" => return Err(error("uses plain http to a host that is not this machine")),
        _ => return Err(error("is no https URL")),
    }
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let first = path.split('/').nth(1).filter(|segment| !segment.is_empty()).map(str::to_owned);
    // Entra External ID names the tenant by its sub-domain where the path is empty.
    let realm = first.or_else(|| Some(format!("{}.onmicrosoft.com", host.strip_suffix(".ciamlogin.com")?)));
    Ok((host, realm))
}

fn host_of(authority: &str) -> Option<String> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        host.parse::<std::net::Ipv6Addr>().ok()?;
        (host, port)
    } else {
        match authority.find(':') {
            Some(at) => authority.split_at(at),
            None => (authority, ""),
        }
    };
    let port_is_valid = match port.strip_prefix(':') {
        Some(digits) => digits.is_empty() || digits.parse::<u16>().is_ok(),
        None => port.is_empty(),
    };
    let is_host = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c.is_control());
    (port_is_valid && is_host).then(|| host.to_lowercase())
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derives_what_msal_derives() {
        for (url, environment, realm) in [
            (
                "https://login.microsoftonline.com/common/oauth2/v2.0/token",
                "login.microsoftonline.com",
                "common",
            ),
            ("https://FS.MsidLab8.com/adfs/oauth2/token", "fs.msidlab8.com", "adfs"),
            ("HTTPS://host:8443/tenant", "host", "tenant"),
            ("https://169.254.169.254/managed_identity", "169.254.169.254", "managed_identity"),
            ("https://contoso.ciamlogin.com/", "contoso.ciamlogin.com", "contoso.onmicrosoft.com"),
            ("https://contoso.ciamlogin.com/t/oauth2", "contoso.ciamlogin.com", "t"),
            ("https://h/a?b/c", "h", "a"),
            ("http://localhost:8080/realms/x/token", "localhost", "realms"),
            ("http://127.0.0.53/a", "127.0.0.53", "a"),
            ("http://[::1]:80/a", "::1", "a"),
        ] {
            let derived = of_token_endpoint(url).unwrap();
            assert_eq!(derived, (environment.into(), Some(realm.into())), "{url}");
        }
        assert_eq!(of_token_endpoint("https://idp.example/").unwrap(), ("idp.example".into(), None));
    }

    #[test]
    fn refuses_what_is_no_safe_endpoint() {
        for url in [
            "",
            "login.example.com/t",
            "ftp://h/t",
            "https://",
            "https:///t",
            "https://user:pw@h/t",
            "https://h:x/t",
            "https://h:99999/t",
            "http://example.com/t",
            "http://localhost.example.com/t",
            "http://10.0.0.1/t",
            "http://[::2]/t",
            "https://[::1/t",
            "https://[zz]/t",
            "https://a b/t",
            "http://127.0.0.1@evil.example/t",
        ] {
            assert!(matches!(of_token_endpoint(url), Err(CacheError::TokenEndpoint { .. })), "{url}");
        }
        let error = of_token_endpoint("HTTP://example.com/t").unwrap_err().to_string();
        assert!(error.contains("uses plain http to a host"), "{error}");
    }

    #[test]
    fn aliases_are_groups() {
        let aliases = EnvironmentAliases::microsoft();
        assert!(aliases.same("login.windows.net", "Login.MicrosoftOnline.com"));
        assert!(aliases.same("other.example", "OTHER.example"));
        assert!(!aliases.same("login.windows.net", "login.microsoftonline.us"));
        assert!(is_microsoft("Login.Windows.net") && is_microsoft("contoso.ciamlogin.com"));
        assert!(!is_microsoft("ciamlogin.com.evil.example") && !is_microsoft("é") && !is_microsoft(""));
        assert!(!EnvironmentAliases::none().same("login.windows.net", "login.microsoftonline.com"));
    }
}
