//! The test of the tests: each deliberately broken step must be noticed within a number of runs.
//!
//! `cargo test -p oxigears-coordinator --features broken --lib consensus::simulation::broken`

use super::{run, scenario::Trouble};
use crate::consensus::mutants::{Mutant, set};

/// Runs with one step broken until one fails.
fn check(mutant: Mutant, trouble: Trouble, most_runs: u64) {
    set(Some(mutant));
    let seeds = 0..most_runs;
    let found = seeds
        .map(|seed| (seed, run(seed, trouble)))
        .find_map(|(seed, result)| Some((seed, result.err()?)));
    set(None);
    let (seed, text) = found.unwrap_or_else(|| panic!("{mutant:?} is not noticed in {most_runs} runs"));
    eprintln!(
        "{mutant:?} is noticed in run {}: {}",
        seed + 1,
        text.lines().next().unwrap_or_default()
    );
}

#[test]
fn acknowledging_before_the_sync_is_noticed() {
    check(Mutant::NoSync, Trouble::Crashes, 40);
}

#[test]
fn forgetting_the_vote_is_noticed() {
    check(Mutant::ForgetVote, Trouble::Elections, 400);
}

#[test]
fn trusting_a_damaged_log_is_noticed() {
    check(Mutant::TakeDamaged, Trouble::Disks, 200);
}

#[test]
fn keeping_the_number_without_the_log_is_noticed() {
    check(Mutant::KeepNumber, Trouble::Disks, 200);
}

#[test]
fn applying_copies_again_is_noticed() {
    check(Mutant::ApplyAgain, Trouble::Network, 40);
}

#[test]
fn ignoring_another_group_is_noticed() {
    check(Mutant::IgnoreOtherGroup, Trouble::Merge, 40);
}

#[test]
fn founding_at_once_is_noticed() {
    check(Mutant::FoundAtOnce, Trouble::Quiet, 40);
}
