//! The pure state machine of a shard.
