//! The meaning of error codes of token endpoints.

/// How to react to an error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The user must act: the refresh token is rejected, or works for other requests only.
    UserIsNeeded,
    /// The same request may succeed later.
    Later,
    /// The request is wrong, and would be wrong again.
    RequestIsWrong,
}

/// The user must be asked, or the session is over: OpenID Connect Core section 3.1.2.6, RFC 9470 section
/// 3, and what providers add. As in [`plain`], without separators.
const USER_IS_NEEDED: [&str; 39] = [
    "invalidgrant",
    "interactionrequired",
    "loginrequired",
    "consentrequired",
    "accountselectionrequired",
    "unmetauthenticationrequirements",
    "insufficientuserauthentication",
    // Auth0, Okta, Cognito and others.
    "mfarequired",
    "mfaenrollmentrequired",
    "multifactorauthrequired",
    "reauthrequired",
    "reauthenticationrequired",
    "reauthenticationneeded",
    "reauthneeded",
    "authenticationrequired",
    "passwordchangerequired",
    "passwordexpired",
    "passwordresetrequired",
    "verificationrequired",
    "stepuprequired",
    // Google.
    "invalidrapt",
    "raptrequired",
    // Slack, Supabase, MCP servers.
    "tokenrevoked",
    "tokenexpired",
    "expiredtoken",
    "invalidtoken",
    "badtoken",
    "invalidauth",
    "notauthed",
    "accountinactive",
    "sessionnotfound",
    "sessionexpired",
    "usersessionexpired",
    "sessionterminated",
    "sessionrevoked",
    "invalidsession",
    "grantrevoked",
    "userdisabled",
    "userinactive",
];

/// RFC 6749 section 4.1.2.1, RFC 8628 section 3.5, and what providers add.
const LATER: [&str; 15] = [
    "temporarilyunavailable",
    "servererror",
    "slowdown",
    "authorizationpending",
    "internalerror",
    "internalservererror",
    "serviceunavailable",
    "serverbusy",
    "unavailable",
    "requesttimeout",
    "timeout",
    "tryagainlater",
    "tryagain",
    "fatalerror",
    // RFC 9449 section 8: with the nonce that came along the request succeeds.
    "usedpopnonce",
];

/// What is in every spelling of "too many requests".
const TOO_MANY: [&str; 5] = ["ratelimit", "toomany", "throttl", "quotaexceeded", "ratetoohigh"];

/// What an error code means. Case and separators do not count: `RateLimited` is `rate_limited`.
pub(super) fn of(code: &str) -> Meaning {
    let code = plain(code);
    let is_too_many = TOO_MANY.iter().any(|part| code.contains(part))
        || code.contains("exceed") && (code.contains("limit") || code.contains("rate"));
    if LATER.contains(&code.as_str()) || is_too_many {
        Meaning::Later
    } else if USER_IS_NEEDED.contains(&code.as_str())
        || asks_for_the_user(&code)
        || is_about_the_refresh_token(&code)
    {
        Meaning::UserIsNeeded
    } else {
        Meaning::RequestIsWrong
    }
}

/// `device_authentication_required`, `user_registration_required` and the like: not `dpop_proof_required`,
/// which is about the client.
fn asks_for_the_user(code: &str) -> bool {
    let about = ["auth", "consent", "login", "signin", "interaction", "factor", "mfa", "regist", "enrol"];
    let further = ["password", "verif", "selection", "stepup", "device", "session"];
    code.ends_with("required")
        && !code.contains("client")
        && about.iter().chain(&further).any(|part| code.contains(part))
}

/// `bad_refresh_token`, `refresh_token_reused`, `invalid_refresh_token` and the like.
fn is_about_the_refresh_token(code: &str) -> bool {
    code.contains("refreshtoken") && !code.contains("unsupported") && !code.contains("missing")
}

fn plain(code: &str) -> String {
    code.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_mean_the_same_in_every_spelling() {
        for (codes, meaning) in [
            (
                &[
                    "invalid_grant",
                    "INVALID_GRANT",
                    "InvalidGrant",
                    "device_authentication_required",
                    "reauth_needed",
                    "session_terminated",
                    "interaction_required",
                    "login_required",
                    "consent_required",
                    "mfa_required",
                    "unmet_authentication_requirements",
                    "bad_refresh_token",
                    "refresh_token_reused",
                    "invalid_refresh_token",
                    "refresh_token_not_found",
                    "RefreshTokenExpired",
                    "token_revoked",
                    "invalid_rapt",
                ][..],
                Meaning::UserIsNeeded,
            ),
            (
                &[
                    "temporarily_unavailable",
                    "server_error",
                    "slow_down",
                    "authorization_pending",
                    "rate_limited",
                    "ratelimited",
                    "rate_limit_exceeded",
                    "RateLimitExceeded",
                    "over_request_rate_limit",
                    "too_many_requests",
                    "request_throttled",
                    "use_dpop_nonce",
                    "RequestLimitExceeded",
                    "LimitExceededException",
                    "rate_exceeded",
                    "too_many_logins",
                    "request_rate_too_high",
                    "try_again",
                ][..],
                Meaning::Later,
            ),
            (
                &[
                    "invalid_target",
                    "invalid_resource",
                    "invalid_scope",
                    "invalid_client",
                    "admin_policy_enforced",
                    "access_denied",
                    "unsupported_grant_type",
                    "missing_refresh_token",
                    "dpop_proof_required",
                    "client_authentication_required",
                    "E0000011",
                ][..],
                Meaning::RequestIsWrong,
            ),
        ] {
            for code in codes {
                assert_eq!(of(code), meaning, "{code}");
            }
        }
    }
}
