//! The meta group: the catalog, what it decides, and the loop that carries it out.

pub mod catalog;
pub mod drive;
pub mod observe;
pub mod plan;
