//! The calls of the data plane and the control plane, one file each.

pub mod admin;
pub mod batch_get;
pub mod batch_write;
pub mod call;
pub mod document;
pub mod list;
pub mod operations;
pub mod page_token;
pub mod settle;
pub mod transact;
pub mod write;
