//! The provider of the walk: it rotates refresh tokens, and takes a second use for theft.

use std::sync::Arc;
use std::time::Duration;

use super::super::Called;
use super::world::{SCOPES, Todo, Token, World, response, text, time};
use crate::refresh::failure::{Cause, Reason, RefreshFailure};

#[derive(Clone, Hash)]
pub(super) struct Provider {
    /// The refresh token that it takes next, of each session.
    pub(super) valid: Vec<Option<Token>>,
    /// The session of each refresh token.
    pub(super) sessions: Vec<usize>,
}

/// What the provider says to a refresh token that it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reply {
    Rotated,
    SameRefreshToken,
    OtherScopes,
    NoAccessToken,
    /// A refresh token, and an error beside it.
    ErrorWithToken,
    Dead,
    NeedsUser,
    Refused,
    Outage,
    /// It rotated the token, and the answer was lost.
    LostAnswer,
    OtherUser,
}

impl World {
    /// The provider takes the refresh token that is valid.
    pub(super) fn reply(&mut self, number: usize, token: Token, reply: Reply) {
        let session = self.provider.sessions[token];
        let rotates = matches!(
            reply,
            Reply::Rotated
                | Reply::OtherScopes
                | Reply::NoAccessToken
                | Reply::ErrorWithToken
                | Reply::LostAnswer
                | Reply::OtherUser
        );
        let came = rotates.then(|| {
            self.provider.sessions.push(session);
            self.provider.sessions.len() - 1
        });
        match (reply, came) {
            (Reply::Dead, _) => self.provider.valid[session] = None,
            (_, Some(came)) => self.provider.valid[session] = Some(came),
            _ => {}
        }
        let flight = &mut self.flights[number];
        // Whoever keeps the tokens of another user would mix them up: they are given up on purpose.
        if matches!(reply, Reply::LostAnswer | Reply::OtherUser) {
            self.excused.insert(session);
        } else {
            flight.custody = came;
        }
        let known = came.unwrap_or(token);
        match reply {
            Reply::Outage | Reply::LostAnswer | Reply::Dead => flight.refused.push((None, token)),
            Reply::ErrorWithToken => flight.refused.push((Some(flight.request), known)),
            Reply::NeedsUser | Reply::Refused | Reply::OtherScopes | Reply::NoAccessToken => {
                flight.refused.push((Some(flight.request), known));
            }
            // What was known of the old one is known of the new one.
            Reply::Rotated => {
                let carried: Vec<_> = self
                    .refused
                    .iter()
                    .filter(|(request, of)| *of == token && *request != flight.request)
                    .map(|(request, _)| (Some(*request), known))
                    .collect();
                flight.refused.extend(carried);
            }
            _ => {}
        }
        flight.todo = Todo::Answer(token, reply, came);
    }

    pub(super) fn answer(
        &mut self,
        number: usize,
        token: Token,
        reply: Reply,
        came: Option<Token>,
    ) -> Result<(), String> {
        let now = self.now;
        let flight = &mut self.flights[number];
        let granted = match reply {
            Reply::OtherScopes => "other",
            _ => SCOPES[flight.request],
        };
        let json = |json: String| Called::Answered(Ok(Some(Box::new(response(&json, now)))));
        let (refresh_token, access_token) = (text(came.unwrap_or(token)), format!("at{}", token + 100));
        let tokens = format!(
            r#""refresh_token":"{refresh_token}","access_token":"{access_token}-{}","expires_in":3600,"scope":"{granted}""#,
            flight.request
        );
        let called = match reply {
            Reply::Rotated | Reply::SameRefreshToken | Reply::OtherScopes => json(format!("{{{tokens}}}")),
            Reply::NoAccessToken => json(format!(r#"{{"refresh_token":"{refresh_token}"}}"#)),
            Reply::ErrorWithToken => {
                json(format!(r#"{{"error":"invalid_scope","refresh_token":"{refresh_token}"}}"#))
            }
            Reply::OtherUser => {
                // {"sub":"bob"}, where the stored user is alice.
                json(format!(r#"{{{tokens},"client_info":"eyJ1aWQiOiJib2IiLCJ1dGlkIjoidCJ9"}}"#))
            }
            Reply::Dead => Called::Answered(Err(RefreshFailure::rejected("invalid_grant"))),
            Reply::NeedsUser => Called::Answered(Err(RefreshFailure::rejected("interaction_required"))),
            Reply::Refused => Called::Answered(Err(RefreshFailure::refused("invalid_scope"))),
            Reply::Outage => Called::Answered(Err(RefreshFailure(Reason::Transient {
                retry_after: Some(Duration::from_secs(4)),
                cause: Cause(Arc::from(Box::from("no connection"))),
            }))),
            Reply::LostAnswer => Called::Lost("the answer was lost"),
        };
        let Some(held) = &mut flight.held else { return Err("a call without a lease".into()) };
        let step = flight.plan.answered(called, held, time(now));
        self.take_step(number, step)
    }
}
