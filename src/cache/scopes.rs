//! Scopes: how they are written, and which token covers which request.

/// The scopes of OpenID Connect that ask for an id token and what is in it, not for access.
const OF_ID_TOKENS: [&str; 3] = ["openid", "profile", "email"];

/// Asks for a refresh token, and is in no access token.
const OFFLINE_ACCESS: &str = "offline_access";

/// Scopes stand apart by spaces; very old Python caches hold the printed form of a list.
pub(crate) fn split_scopes(target: &str) -> impl Iterator<Item = &str> {
    let printed_list = target.starts_with("['") && target.ends_with("']");
    target.split_ascii_whitespace().map(move |scope| {
        if printed_list { scope.trim_matches(|c| matches!(c, '[' | ']' | '\'' | ',')) } else { scope }
    })
}

/// What a program asks for, each scope by itself: a text with blanks in it is several.
pub(crate) fn listed<S: Into<String>>(scopes: impl IntoIterator<Item = S>) -> Vec<String> {
    let mut listed = Vec::new();
    for scope in scopes {
        let scope = scope.into();
        if scope.is_empty() || scope.contains(|c: char| c.is_ascii_whitespace()) {
            listed.extend(scope.split_ascii_whitespace().map(str::to_owned));
        } else {
            listed.push(scope);
        }
    }
    listed
}

/// How scopes are compared.
pub(crate) struct Comparison<F> {
    /// Microsoft answers in its own spelling.
    pub(crate) ignores_case: bool,
    /// Whether the client has an id token of the user, so that what `openid` asks for was granted.
    pub(crate) has_id_token: F,
}

impl<F: FnOnce() -> bool> Comparison<F> {
    /// Whether a token for `target` covers `wanted`.
    pub(crate) fn covers(self, target: &str, wanted: &[String]) -> bool {
        let ignores_case = self.ignores_case;
        let compared = || wanted.iter().map(String::as_str).filter(|scope| *scope != OFFLINE_ACCESS);
        let mut missing = compared().filter(|scope| !holds(target, scope, ignores_case)).peekable();
        if missing.peek().is_none() {
            return true;
        }
        // Servers name these where they issue an id token, and often nowhere else.
        missing.all(is_of_id_tokens)
            && compared().any(|scope| !is_of_id_tokens(scope))
            && (self.has_id_token)()
    }
}

fn is_of_id_tokens(scope: &str) -> bool {
    OF_ID_TOKENS.contains(&canonical(scope))
}

/// Google has long forms of two of them, and answers in these.
fn canonical(scope: &str) -> &str {
    match scope {
        "https://www.googleapis.com/auth/userinfo.email" => "email",
        "https://www.googleapis.com/auth/userinfo.profile" => "profile",
        other => other,
    }
}

fn holds(target: &str, scope: &str, ignores_case: bool) -> bool {
    let is_it = |granted: &str| {
        granted == scope
            || canonical(granted) == canonical(scope)
            || ignores_case && granted.eq_ignore_ascii_case(scope)
    };
    if split_scopes(target).any(is_it) {
        return true;
    }
    // GitHub separates what it granted by commas.
    target.contains(',')
        && !target.contains(|c: char| c.is_ascii_whitespace())
        && target.split(',').any(is_it)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(target: &str, wanted: &[&str], ignores_case: bool, has_id_token: bool) -> bool {
        let comparison = Comparison { ignores_case, has_id_token: || has_id_token };
        comparison.covers(target, &listed(wanted.iter().copied()))
    }

    #[test]
    fn offline_access_is_in_no_comparison() {
        assert!(covers("User.Read", &["User.Read", "offline_access"], false, false));
        assert!(covers("", &["offline_access"], false, false));
        assert!(!covers("User.Read", &["Mail.Read", "offline_access"], false, true));
    }

    #[test]
    fn what_asks_for_an_id_token_counts_as_granted_where_there_is_one_and_another_scope() {
        let wanted = &["openid", "profile", "email", "read"];
        assert!(covers("read", wanted, false, true));
        assert!(!covers("read", wanted, false, false), "no id token");
        assert!(!covers("read", &["openid", "profile"], false, true), "nothing else is asked for");
        assert!(!covers("read", &["openid", "write"], false, true));
        assert!(covers("openid profile", &["openid", "profile"], false, false), "granted by name");
    }

    #[test]
    fn google_s_long_forms_are_the_short_ones() {
        let long = "openid https://www.googleapis.com/auth/userinfo.email";
        assert!(covers(long, &["openid", "email"], false, false));
        assert!(covers("email", &["https://www.googleapis.com/auth/userinfo.email"], false, false));
        assert!(!covers(long, &["profile"], false, false));
        assert!(!covers("https://www.googleapis.com/auth/userinfo.emails", &["email"], false, false));
    }

    #[test]
    fn case_counts_everywhere_but_at_microsoft() {
        assert!(covers("User.Read", &["user.read"], true, false));
        assert!(!covers("User.Read", &["user.read"], false, false));
    }

    #[test]
    fn commas_without_a_blank_separate_or_belong_to_the_scope() {
        assert!(
            covers("repo,gist", &["gist"], false, false) && covers("repo,gist", &["repo,gist"], false, false)
        );
        assert!(covers("repo,gist", &["repo", "gist"], false, false));
        assert!(!covers("repo,gist read", &["gist"], false, false), "blanks separate there");
        assert!(!covers("repo,gist", &["gi"], false, false));
    }

    #[test]
    fn a_text_with_blanks_is_several_scopes() {
        assert_eq!(listed(["a b", "", " c ", "d"]), ["a", "b", "c", "d"]);
        assert!(covers("b a", &["a b"], false, false));
        assert_eq!(split_scopes("['profile', 'openid']").collect::<Vec<_>>(), ["profile", "openid"]);
    }
}
