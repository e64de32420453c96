//! A map whose clones share what they have in common.
