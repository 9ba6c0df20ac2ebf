//! Issuers (the `iss` claim): which two are one, and what they say of the provider.

use std::borrow::Cow;

/// The hosts in the issuers of Microsoft Entra ID, of both versions of its tokens and in all clouds.
const ENTRA: [&str; 9] = [
    "sts.windows.net",
    "login.microsoftonline.com",
    "login.microsoft.com",
    "login.windows.net",
    "login.microsoftonline.us",
    "login.usgovcloudapi.net",
    "sts.chinacloudapi.cn",
    "login.chinacloudapi.cn",
    "login.partner.microsoftonline.cn",
];

/// One spelling for all issuers that are one provider.
///
/// Google writes its issuer with and without the scheme. Entra ID has one issuer for each version of
/// its tokens, and the tenant's id in both.
pub(crate) fn canonical(issuer: &str) -> Cow<'_, str> {
    if issuer == "accounts.google.com" {
        return Cow::Borrowed("https://accounts.google.com");
    }
    match entra_tenant(issuer) {
        Some(tenant) => Cow::Owned(format!("entra:{}", tenant.to_ascii_lowercase())),
        None => Cow::Borrowed(issuer),
    }
}

/// Whether two issuers are one.
pub(crate) fn same(a: &str, b: &str) -> bool {
    a == b || canonical(a) == canonical(b)
}

/// The tenant in an issuer of Entra ID.
fn entra_tenant(issuer: &str) -> Option<&str> {
    let (host, path) = issuer.strip_prefix("https://")?.split_once('/')?;
    let tenant = path.split('/').next()?;
    let rest = path[tenant.len()..].trim_end_matches('/');
    let is_entra = ENTRA.iter().any(|entra| entra.eq_ignore_ascii_case(host))
        && is_guid(tenant)
        && (rest.is_empty() || rest == "/v2.0");
    is_entra.then_some(tenant)
}

/// The first part of an issuer's path that is an id of a tenant.
pub(crate) fn tenant(issuer: &str) -> Option<&str> {
    issuer.strip_prefix("https://")?.split('/').skip(1).find(|part| is_guid(part))
}

/// Whether the issuer is of Azure AD B2C, on a host of Microsoft's.
pub(crate) fn is_b2c(issuer: &str) -> bool {
    let host = issuer.strip_prefix("https://").and_then(|rest| rest.split('/').next());
    host.is_some_and(|host| host.to_ascii_lowercase().ends_with(".b2clogin.com"))
}

/// Whether a text is an id such as `11111111-aaaa-4aaa-8aaa-111111111111`.
pub(crate) fn is_guid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// The issuer whose token endpoint this is, where a host has several and the endpoint says which: Keycloak's
/// realms, Okta's authorization servers.
pub(super) fn of_token_endpoint(url: &str) -> Option<String> {
    let url = url.split(['?', '#']).next()?;
    if let Some(issuer) = url.strip_suffix("/protocol/openid-connect/token") {
        return Some(issuer.to_owned());
    }
    let issuer = url.strip_suffix("/v1/token")?;
    let (host, _server) = issuer.rsplit_once("/oauth2/")?;
    (!host.is_empty()).then(|| issuer.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: &str = "11111111-aaaa-4aaa-8aaa-111111111111";

    #[test]
    fn issuers_are_compared_as_they_are_but_for_google_and_entra() {
        let entra = |host: &str, rest: &str| format!("https://{host}/{TENANT}{rest}");
        assert!(same("accounts.google.com", "https://accounts.google.com"));
        assert!(same(&entra("sts.windows.net", "/"), &entra("login.microsoftonline.com", "/v2.0")));
        assert!(same(
            &entra("sts.windows.net", "/").to_uppercase().replace("HTTPS", "https"),
            &entra("sts.windows.net", "")
        ));
        for (a, b) in [
            ("https://idp.example/realms/a", "https://idp.example/realms/b"),
            ("https://idp.example", "https://idp.example/"),
            ("https://idp.example", "http://idp.example"),
            ("idp.example", "https://idp.example"),
            ("https://accounts.google.com.evil.example", "accounts.google.com"),
        ] {
            assert!(!same(a, b), "{a} {b}");
        }
        let other = entra("sts.windows.net", "/").replace("aaaa", "bbbb");
        assert!(!same(&entra("sts.windows.net", "/"), &other), "another tenant");
        assert!(!same(&entra("contoso.ciamlogin.com", "/v2.0"), &entra("sts.windows.net", "/")));
        assert!(!same(&entra("sts.windows.net", "/x"), &entra("sts.windows.net", "/")));
    }

    #[test]
    fn b2c_and_tenants_are_found() {
        let issuer = format!("https://contoso.b2clogin.com/{TENANT}/v2.0/");
        assert!(is_b2c(&issuer) && !is_b2c("https://b2clogin.com.evil.example/"));
        assert_eq!(tenant(&issuer), Some(TENANT));
        assert_eq!(tenant("https://idp.example/realms/a"), None);
        assert!(!is_guid("1111111g-aaaa-4aaa-8aaa-111111111111") && !is_guid("common"));
    }
}
