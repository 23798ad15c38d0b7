//! What `benches/index.rs` measures; nothing else uses it, and it is no part of the engine's interface.

use std::path::Path;
use std::sync::Arc;

use super::{Coverage, Description, Error, Everything, Index, IndexFile, Secret};
use crate::files::SystemFiles;
use crate::header::Header;
use crate::id::{BodyId, MessageId, SessionId};
use crate::store::bodies::Place;
use crate::store::record::Sealer;
use crate::store::{EventFilter, MessageFilter};
use crate::vault::Vault;

/// An index without a store.
#[derive(Debug)]
pub struct IndexBench(Index);

/// A file on its way to the disk.
#[derive(Debug)]
pub struct Part(Arc<IndexFile>);

type Outcome<T> = Result<T, String>;

fn told(error: Error) -> String {
    error.to_string()
}

impl IndexBench {
    /// In a folder.
    pub fn open(folder: &Path, seal: bool) -> Outcome<IndexBench> {
        let vault = Vault::ephemeral().map_err(|error| error.to_string())?;
        let (files, sealer) = (Arc::new(SystemFiles), Sealer { vault, bodies: seal });
        let (index, refused) = Index::open(files, folder.to_owned(), Secret::new([7; 16]), sealer, 1);
        refused.into_iter().next().map_or(Ok(IndexBench(index)), |error| Err(told(error)))
    }

    /// Writes a file with these headers, each with a body of its own, and with the rows of the parts.
    pub fn write(&self, segment: u64, part: u32, headers: &[Header], parts: &[Part]) -> Outcome<Part> {
        let mut builder = self.0.builder();
        let kind = Description {
            type_name: "ORU^R01".into(),
            content_type: "application/hl7-v2".into(),
            charset: None,
        };
        for header in headers {
            builder.header(header, !header.status.is_final()).map_err(told)?;
            if let Some(BodyId(id)) = header.body_id {
                let place =
                    Place { segment, offset: id * 1024 % (64 << 20), length: 1024, crc: 1, sealed: false };
                builder.body(BodyId(id), &place, &kind);
            }
        }
        let first_id = headers.first().map_or(0, |header| header.id.0);
        let coverage = Coverage { epoch: 1, segment, part, first_sequence: 0, last_sequence: 0, first_id };
        let parts: Vec<_> = parts.iter().map(|part| part.0.clone()).collect();
        let file = builder.write(coverage, &parts).map_err(told)?;
        self.0.replace(&parts, vec![file.clone()]);
        Ok(Part(file))
    }

    /// The newest messages that match, and events if asked.
    pub fn messages(
        &self,
        filter: &MessageFilter,
        before: Option<u64>,
        limit: usize,
    ) -> Outcome<Vec<Header>> {
        let mut cursor = self.0.messages(filter, before);
        let mut found = Vec::new();
        loop {
            let step = cursor.step(&mut Everything, limit - found.len()).map_err(told)?;
            found.extend(step.rows);
            if step.reached == 0 || found.len() >= limit {
                return Ok(found);
            }
        }
    }

    /// How many rows a session has.
    pub fn session(&self, id: SessionId) -> Outcome<usize> {
        let (headers, events) = self.0.session(id, &mut Everything).map_err(told)?;
        let filter = EventFilter { session: Some(id), ..EventFilter::default() };
        let newest = self.0.events(&filter, None).step(&mut Everything, 10).map_err(told)?;
        Ok(headers.len() + events.len() + newest.rows.len())
    }

    /// Whether there is a header.
    pub fn header(&self, id: MessageId) -> Outcome<bool> {
        Ok(self.0.header(id, &mut Everything).map_err(told)?.is_some())
    }

    /// Whether there is a body.
    pub fn body(&self, id: BodyId) -> Outcome<bool> {
        Ok(self.0.body(id).map_err(told)?.is_some())
    }

    /// Bytes on the disk, and about how many in memory.
    pub fn size(&self) -> (u64, usize) {
        (self.0.files().iter().map(|file| file.meta().length).sum(), self.0.memory())
    }
}
