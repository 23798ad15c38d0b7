//! Whatever is searched for is what a walk over all rows finds.

use std::sync::Arc;

use proptest::prelude::*;

use super::super::query::Searched;
use super::super::{Cursor, Everything, Index, IndexFile};
use super::world::{Memory, World, index, micros};
use crate::event::{Event, Level};
use crate::header::{Header, Kind, Status};
use crate::id::{BodyId, MessageId, SessionId};
use crate::store::tests::sim::Random;
use crate::store::{EventFilter, MessageFilter};
use crate::vault::Vault;

fn message_filter(world: &World, random: &mut Random) -> MessageFilter {
    let some = world.headers().into_values().collect::<Vec<_>>();
    let pick = |random: &mut Random| {
        (!some.is_empty()).then(|| some[random.below(some.len() as u64) as usize].clone())
    };
    let mut filter = MessageFilter::default();
    for _ in 0..random.below(4) {
        let one = pick(random);
        match random.below(9) {
            0 => filter.session = one.map(|one| one.session).or(Some(SessionId(5))),
            1 => filter.source = Some(format!("source{}", random.below(4))),
            2 => filter.target = Some(format!("target{}", random.below(4))),
            3 => {
                let all =
                    [Status::Completed, Status::Error, Status::Queued, Status::Discarded, Status::Suspended];
                filter.status = all.into_iter().filter(|_| random.one_in(3)).collect();
            }
            4 => filter.type_name = Some(format!("ADT^A0{}", random.below(5))),
            5 => filter.control_id = Some(format!("C{}", random.below(45))),
            6 => filter.kind = Some(if random.one_in(2) { Kind::Request } else { Kind::Response }),
            7 => {
                let value =
                    format!("{}{}", if random.one_in(2) { "STRASSE" } else { "straße" }, random.below(13));
                filter.keys.push(("name".into(), value));
                if random.one_in(3) {
                    filter.keys.push(("mrn".into(), format!("MRN{}", random.below(12))));
                }
            }
            _ => {
                let at = |random: &mut Random| micros(1_790_000_000_000_000 + random.below(4_000_000) as i64);
                filter.from = random.one_in(2).then(|| at(random));
                filter.to = random.one_in(2).then(|| at(random));
            }
        }
    }
    filter
}

fn event_filter(random: &mut Random) -> EventFilter {
    EventFilter {
        item: random.one_in(3).then(|| format!("target{}", random.below(4))),
        level: random.one_in(3).then_some(Level::Warning),
        kind: random.one_in(3).then(|| "alert".to_owned()),
        session: random.one_in(4).then(|| SessionId(random.below(60))),
    }
}

/// All rows, in steps of random length; now and then the cursor is made anew, or sees a change.
fn walk<T: Searched>(
    mut cursor: Cursor<T>,
    world: &World,
    random: &mut Random,
    mut anew: impl FnMut(u64) -> Cursor<T>,
    mut change: impl FnMut(),
) -> Vec<T> {
    let mut found: Vec<T> = Vec::new();
    loop {
        let step = cursor.step(&mut Memory(world), 1 + random.below(40) as usize).unwrap();
        assert!(step.rows.iter().all(|row| row.id() >= step.reached));
        found.extend(step.rows);
        if step.reached == 0 {
            return found;
        }
        match random.below(8) {
            0 => cursor = anew(step.reached),
            1 => {
                change();
                cursor.refresh();
            }
            _ => {}
        }
    }
}

fn check(seed: u64, seal: bool) {
    let mut random = Random(seed);
    let (folder, vault) = (tempfile::tempdir().unwrap(), Vault::ephemeral().unwrap());
    let world = World::random(&mut random, 5, 900);
    let (index, _) = index(folder.path(), seal, &vault);
    let mut parts = world.write(&index, &mut random).unwrap();
    let (headers, events) = (world.headers(), world.events());
    for _ in 0..12 {
        let filter = message_filter(&world, &mut random);
        let expected: Vec<Header> = headers
            .values()
            .rev()
            .filter(|header| header.matches(&Header::ready(&filter)))
            .cloned()
            .collect();
        let anew = |before| index.messages(&filter, Some(before));
        let change = || seal_last(&index, &world, &mut parts);
        let found = walk(index.messages(&filter, None), &world, &mut random, anew, change);
        assert_eq!(found, expected, "{filter:?}");
        let filter = event_filter(&mut random);
        let expected: Vec<Event> =
            events.values().rev().filter(|event| event.matches(&filter)).cloned().collect();
        let anew = |before| index.events(&filter, Some(before));
        let found = walk(index.events(&filter, None), &world, &mut random, anew, || {});
        assert_eq!(found, expected, "{filter:?}");
    }
    check_lookups(&world, &index);
    check_bodies(&world, &index);
    seal_last(&index, &world, &mut parts);
    check_metas(&world, &index);
    check_lookups(&world, &index);
    // Parts are gone from the disk once nobody reads them.
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, world.segments.len());
}

fn seal_last(index: &Index, world: &World, parts: &mut Vec<Arc<IndexFile>>) {
    if !parts.is_empty() {
        let last = world.segments.last().unwrap();
        last.seal(index, std::mem::take(parts)).unwrap();
    }
}

fn check_lookups(world: &World, index: &Index) {
    let (headers, events) = (world.headers(), world.events());
    let mut memory = Memory(world);
    let max = headers.keys().max().map_or(3, |max| max + 3);
    // Some two hundred of them.
    for id in (0..max).step_by(max as usize / 200 + 1) {
        assert_eq!(index.header(MessageId(id), &mut memory).unwrap().as_ref(), headers.get(&id));
        let session = SessionId(id);
        let (found, told) = index.session(session, &mut memory).unwrap();
        assert!(found.iter().eq(headers.values().filter(|header| header.session == session)));
        assert!(told.iter().eq(events.values().filter(|event| event.session == Some(session))));
        let body =
            world.segments.iter().flat_map(|segment| &segment.bodies).find(|body| body.id == BodyId(id));
        assert_eq!(index.body(BodyId(id)).unwrap().as_ref(), body);
    }
}

fn check_bodies(world: &World, index: &Index) {
    let mut bodies: Vec<_> = world.segments.iter().flat_map(|segment| segment.bodies.clone()).collect();
    let ids: Vec<BodyId> = (0..bodies.last().map_or(9, |body| body.id.0 + 9)).map(BodyId).collect();
    let mut found = index.bodies(&ids).unwrap();
    found.sort_by_key(|body| body.id);
    bodies.sort_by_key(|body| body.id);
    assert_eq!(found, bodies);
}

fn check_metas(world: &World, index: &Index) {
    let files = index.files();
    assert_eq!(files.len(), world.segments.len());
    for (file, segment) in files.iter().zip(&world.segments) {
        file.verify().unwrap();
        let meta = file.meta();
        assert_eq!(meta.coverage, segment.coverage(0));
        let mut rows = segment.headers.clone();
        rows.sort_by_key(|(header, _)| header.id);
        let mut found = Vec::new();
        file.glance_headers(|row| {
            let header = row.header()?;
            let activity = header.processed.unwrap_or(header.created).max(header.created);
            let told = (row.id, row.session, row.activity, row.body, row.audited);
            let known = (header.id.0, header.session.0, activity.as_microsecond(), header.body_id, false);
            assert_eq!(told, known, "what is told without decoding");
            found.push((header, row.provisional));
            Ok(())
        })
        .unwrap();
        assert_eq!(found, rows);
        assert_eq!(meta.provisional as usize, rows.iter().filter(|(_, provisional)| *provisional).count());
        let mut foreign = std::collections::BTreeMap::new();
        let activity = rows.iter().map(|(header, _)| {
            (header.session.0, header.processed.unwrap_or(header.created).max(header.created))
        });
        let told = segment.events.iter().filter_map(|event| Some((event.session?.0, event.at)));
        for (session, at) in activity.chain(told) {
            let last = foreign.entry(session).or_insert(at);
            *last = at.max(*last);
        }
        let last = segment.events.iter().map(|event| event.at).chain(foreign.values().copied()).max();
        assert_eq!(last.map_or(0, |last| last.as_microsecond()), meta.last_activity);
        foreign.retain(|session, _| *session < segment.first_id);
        let found = file.foreign_sessions().unwrap();
        assert!(
            found.into_iter().eq(foreign.into_iter().map(|(session, at)| (session, at.as_microsecond())))
        );
        let mut told = Vec::new();
        file.glance_events(|row| {
            let event = row.event()?;
            let session = event.session.map_or(0, |session| session.0);
            let known = (event.id.0, session, event.at.as_microsecond(), event.who.is_some());
            assert_eq!((row.id, row.session, row.activity, row.audited), known, "without decoding");
            told.push(event);
            Ok(())
        })
        .unwrap();
        assert_eq!(told.len(), segment.events.len());
        let mut bodies = Vec::new();
        file.scan_bodies(|_| true, |body| bodies.push(body)).unwrap();
        assert_eq!(bodies, segment.bodies);
        let (even, mut wanted) =
            (|body: &crate::store::index::BodyRow| body.id.0.is_multiple_of(2), Vec::new());
        file.scan_bodies(|id| id.0.is_multiple_of(2), |body| wanted.push(body)).unwrap();
        bodies.retain(even);
        assert_eq!(bodies, wanted);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 0, ..ProptestConfig::default() })]
    #[test]
    fn every_search_finds_what_a_walk_over_all_rows_finds(seed: u64, seal: bool) {
        check(seed, seal);
    }
}

#[test]
fn what_is_made_again_of_a_dropped_segment_does_not_come_in() {
    let mut random = Random(5);
    let (folder, vault) = (tempfile::tempdir().unwrap(), Vault::ephemeral().unwrap());
    let world = World::random(&mut random, 3, 90);
    let (index, _) = index(folder.path(), false, &vault);
    for segment in &world.segments {
        segment.seal(&index, Vec::new()).unwrap();
    }
    let segments = || index.files().iter().map(|file| file.meta().coverage.segment).collect::<Vec<_>>();
    // Missed and made again while the second segment was being dropped; and once more when it was gone.
    index.retire(2);
    assert_eq!(segments(), [3]);
    let late = world.segments[1].seal(&index, Vec::new()).unwrap();
    assert_eq!(segments(), [3]);
    drop(late);
    assert_eq!(index.names().unwrap(), ["0000000003.idx"]);
}

#[test]
fn files_are_there_after_opening_again_and_parts_are_not() {
    let mut random = Random(4);
    let (folder, vault) = (tempfile::tempdir().unwrap(), Vault::ephemeral().unwrap());
    let world = World::random(&mut random, 5, 900);
    let (before, _) = index(folder.path(), false, &vault);
    for segment in &world.segments {
        segment.seal(&before, Vec::new()).unwrap();
    }
    let names: Vec<String> = before.files().iter().map(|file| file.name().to_owned()).collect();
    let part = before.builder().write(world.segments[0].coverage(1), &[]).unwrap();
    assert_eq!(part.name(), ".0000000001-0001.part");
    std::fs::write(folder.path().join("0000000099.idx"), b"not an index").unwrap();
    let (after, refused) = index(folder.path(), false, &vault);
    assert!(after.files().iter().map(|file| file.name()).eq(names.iter().map(String::as_str)));
    assert_eq!(refused.iter().map(|error| error.file()).collect::<Vec<_>>(), [Some("0000000099.idx")]);
    assert!(!folder.path().join(part.name()).exists());
    assert!(after.memory() > 0);
    assert_eq!(after.messages(&MessageFilter::default(), None).step(&mut Everything, 9).unwrap().reached, 0);
}
