//! The meta group: the catalog, what it decides, and the loop that carries it out.

pub mod balance;
pub mod catalog;
pub mod catalog_machine;
pub mod drive;
pub mod observe;
pub mod operate;
pub mod plan;
pub mod status;
