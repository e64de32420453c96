//! Bytes that nobody of ours wrote: refused, without a panic, in bounded memory.

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::registry::{StateError, state::Remembered};

fn full_state() -> Registry {
    let mut state = Registry::default();
    let registrations = vec![
        new(1, stream_source("x")),
        new(2, keys_source("k")),
        new(3, command_source("t")),
    ];
    make(&mut state, change("s", registrations)).unwrap();
    make(&mut state, triggers("gone", &[(4, "g")])).unwrap();
    let gone = Command::Unregister {
        id: id(4),
        abort_pending: true,
    };
    apply(&mut state, gone).unwrap();
    let pause = Command::Pause {
        ids: vec![id(1)],
        abort_pending: false,
    };
    apply(&mut state, pause).unwrap();
    apply(&mut state, Command::ImportRequirement(requirement("r"))).unwrap();
    for refused in [
        Command::Unpause { ids: vec![id(3)] },
        Command::Unpause { ids: vec![id(9)] },
        Command::ChangeSession(triggers("s", &[])),
        Command::ChangeSession(triggers(&"n".repeat(limits::NAME_BYTES + 1), &[(9, "z")])),
    ] {
        apply(&mut state, refused).unwrap_err();
    }
    state
}

/// With a checksum that fits: what comes behind it is looked at.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let checksum = crc32fast::hash(&bytes[10..]);
    bytes[6..10].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

#[test]
fn a_state_comes_back_as_it_was() {
    let state = full_state();
    let back = Registry::decode(&state.encode()).unwrap();
    assert_eq!(back, state);
    assert_eq!(back.encode(), state.encode());
    assert_eq!(back.bytes, state.bytes);
    for index in 1..=state.index() {
        let request = RequestId(u128::from(index) << 64 | 0xabcd);
        assert!(state.outcome(request).is_some());
        assert_eq!(back.outcome(request), state.outcome(request));
    }
    let empty = Registry::default();
    assert_eq!(Registry::decode(&empty.encode()), Ok(empty));
}

#[test]
fn equal_states_have_equal_bytes_however_they_came_about() {
    let (mut a, mut b) = (Registry::default(), Registry::default());
    for number in 1..200 {
        for state in [&mut a, &mut b] {
            make(
                state,
                triggers(&format!("s{number}"), &[(number, &format!("t{number}"))]),
            )
            .unwrap();
        }
        if number % 50 == 0 {
            b = Registry::decode(&b.encode()).unwrap();
        }
    }
    assert_eq!(a.encode(), b.encode());
    assert_eq!(a, b);
    b.advance(b.index() + 1);
    assert_ne!(a.encode(), b.encode());
}

#[test]
fn every_cut_and_every_flipped_byte_is_seen() {
    let bytes = full_state().encode();
    for end in 0..bytes.len() {
        assert!(Registry::decode(&bytes[..end]).is_err(), "cut at {end}");
    }
    for at in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x41;
        assert!(Registry::decode(&bytes).is_err(), "flipped at {at}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(Registry::decode(&sealed(longer)).is_err());
    let mut newer = bytes;
    newer[4] = 2;
    assert_eq!(Registry::decode(&newer), Err(StateError::Newer(2)));
}

/// The checksum is no secret: whoever forges it must not get further than the rules.
#[test]
fn forged_states_are_refused_or_sound() {
    let bytes = full_state().encode();
    let mut rng = StdRng::seed_from_u64(11);
    let mut sound = 0;
    for _ in 0..60_000 {
        let mut forged = bytes.clone();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(10..forged.len());
            match rng.random_range(0..4) {
                0 => forged[at] = rng.random(),
                1 => forged[at] = 0xff,
                2 => forged.truncate(at.max(11)),
                _ => forged.insert(at, rng.random()),
            }
        }
        if let Ok(mut state) = Registry::decode(&sealed(forged)) {
            sound += 1;
            // Sound means: it can be written, read, and goes on working.
            assert_eq!(Registry::decode(&state.encode()), Ok(state.clone()));
            let index = state.index() + 1;
            for session in state.sessions() {
                for id in &session.registrations {
                    assert!(state.registration(id).is_some());
                }
            }
            let proposal = Proposal {
                request: RequestId(77),
                basis: index - 1,
                command: Command::ChangeSession(SessionChange {
                    upgrade: true,
                    ..triggers("s", &[(1 << 40, "fresh")])
                }),
            };
            let _ = state.apply(index, &proposal);
            assert!(Registry::decode(&state.encode()).is_ok());
        }
    }
    assert!(sound > 0, "changed texts are still states");
}

/// A list may claim to be long, or be long and of empty things: neither takes memory.
#[test]
fn claims_of_length_are_not_believed() {
    let header = [b"OXRS".as_slice(), &[1, 0, 0, 0, 0, 0]].concat();
    let four_numbers = [0u8; 4];
    for claim in [
        vec![0xff, 0xff, 0xff, 0xff, 0x7f],
        vec![0xff; 9],
        vec![0x80, 0xad, 0xe2, 0x04],
    ] {
        let bytes = [header.as_slice(), &four_numbers, &claim, &[0; 64]].concat();
        assert!(Registry::decode(&sealed(bytes)).is_err(), "{claim:?}");
    }
    let empties = Command::Pause {
        ids: vec!["".into(); limits::REGISTRATIONS_PER_CHANGE],
        abort_pending: false,
    };
    assert!(Command::decode(&empties.encode().unwrap()).is_ok());
    let empties = Command::Pause {
        ids: vec!["".into(); limits::REGISTRATIONS_PER_CHANGE + 1],
        abort_pending: false,
    };
    assert!(Command::decode(&empties.encode().unwrap()).is_err());
    let mut wheels = requirement("r");
    wheels.wheels = vec![String::new(); limits::NAMES_PER_LIST + 1];
    assert!(Command::decode(&Command::ImportRequirement(wheels).encode().unwrap()).is_err());
}

#[test]
fn commands_come_back_and_junk_does_not() {
    let mut join = change("s", vec![new(1, keys_source("k")), new(2, stream_source("x"))]);
    (join.join, join.user, join.replace) = (true, Some("u".into()), Some("o".into()));
    let commands = [
        Command::ChangeSession(join.clone()),
        Command::Pause {
            ids: vec![id(1)],
            abort_pending: true,
        },
        Command::ClearStatistics,
        Command::ImportRequirement(requirement("r")),
    ];
    let mut rng = StdRng::seed_from_u64(3);
    for command in commands {
        let bytes = command.encode().unwrap();
        assert_eq!(Command::decode(&bytes), Ok(command.clone()));
        let proposal = Proposal {
            request: RequestId(u128::MAX),
            basis: u64::MAX,
            command,
        };
        let bytes = proposal.encode().unwrap();
        assert_eq!(Proposal::decode(&bytes), Ok(proposal));
        for end in 0..bytes.len() {
            assert!(Proposal::decode(&bytes[..end]).is_err());
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(Proposal::decode(&longer).is_err());
        for _ in 0..5000 {
            let mut forged = bytes.clone();
            let at = rng.random_range(0..forged.len());
            forged[at] = rng.random();
            if let Ok(forged) = Proposal::decode(&forged) {
                let _ = Registry::default().apply(1, &forged);
            }
        }
    }
    assert_eq!(SessionChange::decode(&join.encode().unwrap()), Ok(join));
    assert!(
        Proposal::decode(&[9, 0, 0])
            .unwrap_err()
            .to_string()
            .contains("format 9")
    );
}

#[test]
fn too_large_commands_are_refused() {
    let large = Bytes::from(vec![0; limits::PROPOSAL_BYTES]);
    let mut change = triggers("s", &[(1, "a")]);
    change.registrations[0].plan = large;
    let command = Command::ChangeSession(change.clone());
    assert!(matches!(command.encode(), Err(Refusal::TooLarge { .. })));
    assert!(matches!(change.encode(), Err(Refusal::TooLarge { .. })));
}

/// What is remembered of refusals has a bound, whatever names they hold.
#[test]
fn remembered_refusals_are_small() {
    let mut state = Registry::default();
    let long = "n".repeat(limits::NAME_BYTES);
    make(&mut state, triggers(&long, &[(1, "a")])).unwrap();
    let refusal = make(&mut state, triggers(&long, &[(2, "b")])).unwrap_err();
    assert!(matches!(&refusal, Refusal::SessionExists(name) if name.len() < 600 && name.ends_with("...")));
    let words = Remembered {
        request: RequestId(1),
        index: 1,
        outcome: Err(Refusal::TooMany {
            what: "words of a newer version",
            count: 2,
            most: 1,
        }),
    };
    let back: Remembered = postcard::from_bytes(&postcard::to_allocvec(&words).unwrap()).unwrap();
    assert!(
        back.outcome
            .unwrap_err()
            .to_string()
            .starts_with("the request: 2 are asked for")
    );
}
