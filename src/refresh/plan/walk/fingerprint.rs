//! What tells two states of the walk apart.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use super::super::{After, Answer, Candidate, Failed, Plan, State};
use super::world::{Flight, Todo, World, number, number_of_row};
use crate::secret::Secret;

impl World {
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let to = &mut hasher;
        self.disk.serialize().json().expose().hash(to);
        (self.now, &self.provider, self.is_signed_in, &self.excused, &self.refused, &self.down).hash(to);
        (&self.callers, &self.left).hash(to);
        (self.lease.holder, self.lease.status.to_text()).hash(to);
        for process in &self.processes {
            process.is_alive.hash(to);
            // What a process has in memory counts only where something reads it.
            process.memory.serialize().json().expose().hash(to);
            process.pending.fingerprint(to);
        }
        for flight in &self.flights {
            let Flight { process, request, plan, todo, held, has_lease, custody, steps, refused } = flight;
            (process, request, todo, has_lease, custody, refused).hash(to);
            if !matches!(todo, Todo::Finished) {
                // What comes back to where it was goes on for ever.
                steps.hash(to);
                fingerprint(plan, to);
                held.is_some().hash(to);
                if let Some(held) = held {
                    held.status.to_text().hash(to);
                    held.pending.fingerprint(to);
                }
            }
        }
        hasher.finish()
    }
}

fn fingerprint(plan: &Plan, to: &mut DefaultHasher) {
    std::mem::discriminant(&plan.state).hash(to);
    plan.error.to_string().hash(to);
    plan.spent.iter().for_each(|token| token.expose().hash(to));
    let sent = |sent: &Candidate, to: &mut DefaultHasher| {
        (sent.mark.as_str(), sent.token.as_ref().map(number_of_row)).hash(to);
    };
    let answer = |answer: &Answer, to: &mut DefaultHasher| {
        sent(&answer.sent, to);
        answer.response.body.secret_of("refresh_token").ok().flatten().map(|token| number(&token)).hash(to);
        answer.token.as_ref().map(Secret::expose).hash(to);
        (answer.known_until, answer.failure.is_some()).hash(to);
    };
    let failed = |failed: &Failed, to: &mut DefaultHasher| {
        sent(&failed.sent, to);
        format!("{:?}", failed.reason).hash(to);
    };
    match &plan.state {
        State::Looking | State::Leasing | State::LookingAgain | State::Ended => {}
        State::Calling(candidate, _) | State::Done(candidate) => sent(candidate, to),
        State::Checking(it) | State::Judging(it) | State::Saving(After::Judge(it)) => answer(it, to),
        State::Saving(After::Fail(it)) | State::Failing(it) => failed(it, to),
        State::Saving(After::LookAgain) => 7.hash(to),
        State::FallingBack(error) => error.to_string().hash(to),
    }
}
