//! The test of the tests: each deliberately broken step must be noticed within a number of runs.
//!
//! `cargo test -p oxigears-coordinator --features broken --lib consensus::simulation::broken`

use super::{run, scenario::Trouble};
use crate::consensus::mutants::{Mutant, set};

/// What clients were told is not so.
const LOST: &[&str] = &[
    "acknowledged at",
    "is lost",
    "went back",
    "is there after its end was acknowledged",
];
/// Raft's own promises are broken.
const SPLIT: &[&str] = &["two leaders of term", "two different states of group"];
/// Two groups of one cluster decided.
const TWO_GROUPS: &[&str] = &["changes were acknowledged by"];

/// Runs with one step broken until one fails in an expected way: one of the texts is in its first line.
fn check(mutant: Mutant, trouble: Trouble, most_runs: u64, expected: &[&[&str]]) {
    let mut others = Vec::new();
    for seed in 0..most_runs {
        set(Some(mutant));
        let result = run(seed, trouble);
        set(None);
        let Err(text) = result else { continue };
        let reason = text.lines().next().unwrap_or_default().to_owned();
        if expected.concat().iter().any(|text| reason.contains(text)) {
            eprintln!("{mutant:?} is noticed in run {}: {reason}", seed + 1);
            return;
        }
        eprintln!("{mutant:?} fails in another way in run {}: {reason}", seed + 1);
        others.push(reason);
    }
    panic!("{mutant:?} is not noticed in {most_runs} runs; other failures: {others:?}");
}

#[test]
fn acknowledging_before_the_sync_is_noticed() {
    check(Mutant::NoSync, Trouble::Crashes, 40, &[LOST, SPLIT]);
}

#[test]
fn forgetting_the_vote_is_noticed() {
    check(Mutant::ForgetVote, Trouble::Elections, 400, &[SPLIT]);
}

#[test]
fn trusting_a_damaged_log_is_noticed() {
    check(Mutant::TakeDamaged, Trouble::Damage, 400, &[LOST, SPLIT]);
}

#[test]
fn keeping_the_number_without_the_log_is_noticed() {
    check(Mutant::KeepNumber, Trouble::Damage, 400, &[LOST, SPLIT]);
}

#[test]
fn applying_copies_again_is_noticed() {
    check(
        Mutant::ApplyAgain,
        Trouble::Network,
        40,
        &[&["statistics were cleared"]],
    );
}

#[test]
fn ignoring_another_group_is_noticed() {
    check(
        Mutant::IgnoreOtherGroup,
        Trouble::Merge,
        40,
        &[&["although it knew of another group"]],
    );
}

#[test]
fn founding_at_once_is_noticed() {
    check(
        Mutant::FoundAtOnce,
        Trouble::Quiet,
        40,
        &[TWO_GROUPS, &["brought their own state"]],
    );
}

#[test]
fn deciding_without_most_masters_is_noticed() {
    check(Mutant::DecideAsFew, Trouble::Founding, 400, &[TWO_GROUPS]);
}
