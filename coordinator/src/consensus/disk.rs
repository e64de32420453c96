//! Files as the log needs them: a seam for tests that lose, tear and flip bytes.
