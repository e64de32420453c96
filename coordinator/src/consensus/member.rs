//! One node's part in the group.
