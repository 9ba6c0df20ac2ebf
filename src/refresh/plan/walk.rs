//! Walks through every order of events that a plan can meet, with the plan itself.
//!
//! The world is two processes, a provider that rotates refresh tokens and takes a second use for theft, a
//! sealed cache, and a lease with a status. Wherever something can happen in more ways than one, the walk takes
//! them all, and goes on from each state once. What must hold is checked in every state.

mod checks;
mod fingerprint;
mod once;
mod provider;
mod world;

use std::collections::{BTreeMap, HashSet};

use super::Fault;
use provider::Reply;
use world::{Scenario, World};

/// Walks through all states; the number of them, or what was wrong in one.
fn walk(scenario: Scenario, fault: Option<Fault>) -> Result<usize, String> {
    let first = World::new(scenario);
    let mut seen = HashSet::from([first.fingerprint()]);
    let mut left = vec![first];
    while let Some(world) = left.pop() {
        let next = world.next(fault)?;
        if next.is_empty() {
            world.check_end()?;
        }
        for world in next {
            if seen.insert(world.fingerprint()) {
                left.push(world);
            }
        }
    }
    Ok(seen.len())
}

fn nothing() -> Scenario {
    Scenario {
        callers: Vec::new(),
        replies: vec![Reply::Rotated],
        kills: 0,
        failed_saves: 0,
        unreadable: 0,
        timeouts: 0,
        sign_outs: 0,
        sign_ins: 0,
        expiries: 0,
    }
}

/// What is walked through, by name.
fn scenarios() -> BTreeMap<&'static str, Scenario> {
    let callers = vec![(0, 0), (0, 1), (1, 0), (1, 1)];
    BTreeMap::from([
        ("kills", Scenario { callers: callers.clone(), kills: 1, ..nothing() }),
        (
            "failed saves",
            Scenario { callers: vec![(0, 0), (0, 1), (1, 0)], failed_saves: 2, kills: 1, ..nothing() },
        ),
        (
            "sessions",
            Scenario {
                callers: vec![(0, 0), (0, 1), (1, 0)],
                sign_outs: 1,
                sign_ins: 1,
                failed_saves: 1,
                ..nothing()
            },
        ),
        (
            "answers",
            Scenario {
                callers: vec![(0, 0), (1, 1), (1, 0)],
                replies: vec![
                    Reply::Rotated,
                    Reply::OtherScopes,
                    Reply::NoAccessToken,
                    Reply::ErrorWithToken,
                    Reply::Dead,
                    Reply::NeedsUser,
                    Reply::Refused,
                    Reply::Outage,
                    Reply::LostAnswer,
                    Reply::OtherUser,
                ],
                failed_saves: 1,
                ..nothing()
            },
        ),
        (
            // Without failed saves: one that is made up for later is a change of the row, after which a token
            // that was not rotated may be sent once more.
            "a provider that does not rotate",
            Scenario {
                callers: vec![(0, 0), (1, 1), (1, 0)],
                replies: vec![Reply::SameRefreshToken, Reply::NeedsUser, Reply::Outage],
                sign_ins: 1,
                sign_outs: 1,
                ..nothing()
            },
        ),
        (
            "the same asked for in turn",
            Scenario {
                callers: vec![(0, 0), (1, 0), (0, 1), (1, 0)],
                replies: vec![Reply::Rotated, Reply::OtherScopes, Reply::Outage, Reply::NeedsUser],
                ..nothing()
            },
        ),
        (
            "a sign-in after a refusal",
            Scenario {
                callers: vec![(0, 0), (0, 1), (1, 0)],
                replies: vec![Reply::Rotated, Reply::Refused, Reply::Outage, Reply::Dead],
                sign_ins: 1,
                ..nothing()
            },
        ),
        (
            "waits in vain",
            Scenario {
                callers: callers.clone(),
                unreadable: 1,
                timeouts: 1,
                replies: vec![Reply::Rotated, Reply::Dead],
                ..nothing()
            },
        ),
        (
            "leases that expire",
            Scenario {
                callers: vec![(0, 0), (0, 1), (1, 0)],
                expiries: 1,
                sign_outs: 1,
                failed_saves: 1,
                ..nothing()
            },
        ),
    ])
}

#[test]
fn in_every_order_of_events_nothing_is_lost_nobody_waits_for_ever_and_nothing_is_sent_twice() {
    let mut total = 0;
    for (name, scenario) in scenarios() {
        let began = std::time::Instant::now();
        let states = walk(scenario, None).unwrap_or_else(|wrong| panic!("{name}: {wrong}"));
        println!("{name}: {states} states in {:.1} s", began.elapsed().as_secs_f64());
        total += states;
    }
    println!("{total} states");
}

#[test]
fn a_plan_that_does_wrong_is_noticed() {
    for fault in [
        Fault::LooksAtAnOldState,
        Fault::LooksWithoutWhatIsPending,
        Fault::IgnoresBackOff,
        Fault::IgnoresRefusals,
        Fault::ForgetsFailures,
        Fault::ForgetsRefusalsOfRotatedTokens,
        Fault::RetiresWhatIsAlive,
        Fault::DropsTokensOfErrors,
        Fault::FinishesUnsaved,
        Fault::KeepsWhatIsDead,
        Fault::BlocksForEver,
    ] {
        let noticed = scenarios().into_iter().find_map(|(name, scenario)| {
            walk(scenario, Some(fault)).err().map(|wrong| format!("{name}: {wrong}"))
        });
        println!("{fault:?}: {noticed:?}");
        assert!(noticed.is_some(), "{fault:?} goes unnoticed");
    }
}
