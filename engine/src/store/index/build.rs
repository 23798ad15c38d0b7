//! Making a file: rows are collected in any order, merged with those of earlier part files, and written
//! front to back under a name aside.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use super::Error;
use super::body::{Kinds, put_body};
use super::environment::Environment;
use super::file::IndexFile;
use super::format::{Coverage, Description, GroupKey, IS_ERROR, NOBODY, PROVISIONAL, RESPONSE};
use super::intern::{Groups, Names};
use super::output::Output;
use super::source::Collected;
use super::write::Writer;
use crate::event::Event;
use crate::header::{self, Header};
use crate::id::BodyId;
use crate::store::bodies::Place;
use crate::store::codec::Encoder;
use crate::store::record::{encode_event, encode_header, level_number, status_number};

/// Collects the rows of one file.
#[derive(Debug)]
pub(in crate::store) struct Builder {
    pub(super) environment: Arc<Environment>,
    pub(super) names: Names,
    pub(super) headers: Collected,
    pub(super) header_groups: Groups,
    pub(super) events: Collected,
    pub(super) event_groups: Groups,
    pub(super) bodies: Collected,
    pub(super) kinds: Kinds,
    scratch: Encoder,
}

impl Builder {
    pub(super) fn new(environment: Arc<Environment>) -> Self {
        Builder {
            environment,
            names: Names::default(),
            headers: Collected::default(),
            header_groups: Groups::default(),
            events: Collected::default(),
            event_groups: Groups::default(),
            bodies: Collected::default(),
            kinds: Kinds::default(),
            scratch: Encoder::default(),
        }
    }

    /// Adds a header; `provisional` as long as its status is not final. Of two with one id the settled one
    /// counts, else the later.
    pub(in crate::store) fn header(&mut self, header: &Header, provisional: bool) -> Result<(), Error> {
        let target = header.target.as_ref().map(|target| target.as_str());
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let key = GroupKey {
            flags: flag(provisional, PROVISIONAL)
                | flag(header.kind == header::Kind::Response, RESPONSE)
                | flag(header.is_error(), IS_ERROR),
            code: status_number(header.status),
            names: [
                self.names.number(header.source.as_str()),
                self.names.optional(target),
                self.names.number(&header.type_name),
            ],
        };
        let group = self.header_groups.number(key);
        self.scratch.clear();
        encode_header(header, &self.environment.sealer, &mut self.scratch)?;
        let row = self.headers.add(header.id.0, provisional, group, &self.scratch.slices());
        self.environment.secret.header(header, |hash| self.headers.hashes.push((hash, row)));
        Ok(())
    }

    /// Adds an event.
    pub(in crate::store) fn event(&mut self, event: &Event) -> Result<(), Error> {
        let item = event.item.as_ref().map(|item| item.as_str());
        let names = [self.names.number(&event.kind), self.names.optional(item), NOBODY];
        let key = GroupKey { flags: 0, code: level_number(event.level), names };
        let group = self.event_groups.number(key);
        self.scratch.clear();
        encode_event(event, &self.environment.sealer, &mut self.scratch)?;
        let row = self.events.add(event.id.0, false, group, &self.scratch.slices());
        self.environment.secret.event(event, |hash| self.events.hashes.push((hash, row)));
        Ok(())
    }

    /// Adds a body: where its bytes are in the journal, and what it is.
    pub(in crate::store) fn body(&mut self, id: BodyId, place: &Place, kind: &Description) {
        let mut row = Vec::with_capacity(32);
        put_body(place, self.kinds.number(kind).ok_or(kind), &mut row);
        self.bodies.add(id.0, false, 0, &[&row]);
    }

    /// How many rows were added.
    pub(in crate::store) fn rows(&self) -> usize {
        self.headers.len() + self.events.len() + self.bodies.len()
    }

    /// Writes the rows, and those of `parts` (oldest first), as one file and opens it. A part file
    /// (`coverage.part > 0`) is not synced: it does not outlive the process.
    pub(in crate::store) fn write(
        mut self,
        coverage: Coverage,
        parts: &[Arc<IndexFile>],
    ) -> Result<Arc<IndexFile>, Error> {
        let environment = self.environment.clone();
        let name = super::file_name(coverage.segment, coverage.part);
        let aside = environment.folder.join(format!(".{}.part", name.trim_start_matches('.')));
        let written = self.write_aside(&environment, &name, &aside, coverage, parts);
        if written.is_err() {
            // On a full disk, what there is of it would be in the way.
            let _ = environment.files.remove(&aside);
        }
        written.and_then(|()| IndexFile::open(&environment, &name))
    }

    fn write_aside(
        &mut self,
        environment: &Environment,
        name: &str,
        aside: &Path,
        coverage: Coverage,
        parts: &[Arc<IndexFile>],
    ) -> Result<(), Error> {
        let fail = |error| Error::io(name, error);
        let create = || environment.files.create(aside);
        let file = match create() {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                // Somebody removed the folder.
                environment.names()?;
                create()
            }
            file => file,
        };
        let mut writer = Writer::new(Output::new(file.map_err(fail)?), coverage, name.to_owned());
        writer.write(self, parts)?;
        let lasting = coverage.part == 0;
        writer.output.finish(lasting).map_err(fail)?;
        environment.files.rename(aside, &environment.folder.join(name)).map_err(fail)?;
        if lasting {
            environment.files.sync_dir(&environment.folder).map_err(fail)?;
        }
        Ok(())
    }
}
