//! The node's one write-ahead log.
