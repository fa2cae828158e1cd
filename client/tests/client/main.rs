//! The client against routers and nodes that a test scripts. Ports are 0, and nothing waits for time to pass
//! but the deadlines that are tested.

#[cfg(test)]
mod api;
#[cfg(test)]
#[cfg(feature = "direct")]
mod direct;
#[cfg(test)]
#[cfg(feature = "direct")]
mod node;
#[cfg(test)]
mod retry;
#[cfg(test)]
mod support;
