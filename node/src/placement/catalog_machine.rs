//! The catalog as a Raft state machine: one small record in the meta group's space.

use std::sync::Arc;

use borough_proto::{ClusterMap, wire};
use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;

use super::catalog;
use crate::node::MapCell;
use crate::raft::{Machine, Reply};
use crate::store::snapshot::VersionedSpace;
use crate::store::{Batch, Space, StoreError};

const CATALOG_KEY: &[u8] = b"catalog";

/// Applies catalog commands and tells the node of every new map.
pub struct CatalogMachine {
    catalog: Mutex<wire::Catalog>,
    map: MapCell,
}

impl CatalogMachine {
    pub fn new(map: MapCell) -> Arc<Self> {
        Arc::new(Self { catalog: Mutex::default(), map })
    }

    /// The map as applied here; empty before the cluster is initialised.
    pub fn map(&self) -> wire::ClusterMap {
        self.catalog.lock().map.clone().unwrap_or_default()
    }

    /// All of the catalog as applied here.
    pub fn catalog(&self) -> wire::Catalog {
        self.catalog.lock().clone()
    }

    fn publish(&self) {
        let map = self.map();
        if map.epoch == 0 {
            return;
        }
        match ClusterMap::try_from(map) {
            Ok(map) => {
                self.map.offer(Arc::new(map));
            }
            Err(error) => tracing::error!(%error, "the catalog holds a map that cannot be used"),
        }
    }
}

impl Machine for CatalogMachine {
    fn load(&self, space: &VersionedSpace) -> Result<(), StoreError> {
        let catalog = match space.get(CATALOG_KEY)? {
            Some(bytes) => wire::Catalog::decode(bytes).map_err(|error| StoreError::Damaged {
                space: "meta".to_owned(),
                detail: error.to_string(),
            })?,
            None => wire::Catalog::default(),
        };
        *self.catalog.lock() = catalog;
        self.publish();
        Ok(())
    }

    fn apply(
        &self,
        space: &VersionedSpace,
        commands: &[(u64, Bytes)],
        position: (Bytes, Bytes),
    ) -> Result<Vec<Reply>, StoreError> {
        let mut next = self.catalog.lock().clone();
        let replies = commands
            .iter()
            .map(|(index, bytes)| match wire::CatalogCommand::decode(bytes.clone()) {
                Ok(command) => Reply::Catalog(catalog::apply(&mut next, command)),
                Err(error) => {
                    tracing::error!(index, %error, "meta log entry is not a command");
                    Reply::Undecodable
                }
            })
            .collect();
        let mut changes = vec![(position.0, Some(position.1))];
        if !commands.is_empty() {
            changes.push((Bytes::from_static(CATALOG_KEY), Some(next.encode_to_vec().into())));
        }
        space.apply(Batch { changes })?;
        *self.catalog.lock() = next;
        self.publish();
        Ok(replies)
    }
}
