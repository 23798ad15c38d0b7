//! Whatever happens to the bytes of a file, nothing panics, and what is read is right or refused.

use proptest::prelude::*;

use super::super::format::{self, TRAILER, Trailer};
use super::super::{Error, Index};
use super::world::{Memory, World, index};
use crate::id::{MessageId, SessionId};
use crate::store::tests::sim::Random;
use crate::store::{EventFilter, MessageFilter};
use crate::vault::Vault;

/// Everything that can be asked, in one text; or the first refusal.
fn read_all(index: &Index, world: &World) -> Result<String, Error> {
    let mut told = String::new();
    let mut memory = Memory(world);
    let named = MessageFilter { source: Some("source1".into()), ..MessageFilter::default() };
    let keyed = MessageFilter { keys: vec![("mrn".into(), "mrn3".into())], ..MessageFilter::default() };
    for filter in [MessageFilter::default(), named, keyed] {
        let mut cursor = index.messages(&filter, None);
        loop {
            let step = cursor.step(&mut memory, 1000)?;
            told += &format!("{:?}", step.rows);
            if step.reached == 0 {
                break;
            }
        }
    }
    let mut cursor =
        index.events(&EventFilter { kind: Some("alert".into()), ..EventFilter::default() }, None);
    told += &format!("{:?}", cursor.step(&mut memory, 1000)?.rows);
    for id in 0..40 {
        told += &format!("{:?}", index.header(MessageId(id), &mut memory)?);
        told += &format!("{:?}", index.session(SessionId(id), &mut memory)?);
        told += &format!("{:?}", index.body(crate::id::BodyId(id))?);
    }
    for file in index.files().iter() {
        told += &format!("{:?}", file.foreign_sessions()?);
    }
    Ok(told)
}

struct Written {
    folder: tempfile::TempDir,
    vault: Vault,
    world: World,
    content: Vec<u8>,
    expected: String,
}

impl Written {
    fn new(seed: u64) -> Written {
        let (folder, vault) = (tempfile::tempdir().unwrap(), Vault::ephemeral().unwrap());
        let world = World::random(&mut Random(seed), 1, 100);
        let (index, _) = index(folder.path(), false, &vault);
        world.segments[0].seal_rows(&index).unwrap();
        let expected = read_all(&index, &world).unwrap();
        let content = std::fs::read(folder.path().join("0000000001.idx")).unwrap();
        Written { folder, vault, world, content, expected }
    }

    /// What can be read of other content; and whether a check of everything was content with it.
    fn with(&self, content: &[u8]) -> (Result<String, Error>, bool) {
        std::fs::write(self.folder.path().join("0000000001.idx"), content).unwrap();
        let (index, refused) = index(self.folder.path(), false, &self.vault);
        if let Some(error) = refused.into_iter().next() {
            assert_eq!(error.file(), Some("0000000001.idx"));
            return (Err(error), false);
        }
        let whole = index.files().iter().all(|file| file.verify().is_ok());
        (read_all(&index, &self.world), whole)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn a_flipped_byte_is_found_and_never_gives_a_wrong_row(seed in 0u64..8, at: prop::sample::Index, bits in 1u8..) {
        let written = Written::new(seed);
        let mut content = written.content.clone();
        *at.get_mut(&mut content) ^= bits;
        let (read, whole) = written.with(&content);
        prop_assert!(!whole);
        match read {
            Ok(read) => prop_assert_eq!(&read, &written.expected),
            Err(Error::Damaged { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_refused(seed in 0u64..8, at: prop::sample::Index) {
        let written = Written::new(seed);
        let (read, _) = written.with(&written.content[..at.index(written.content.len())]);
        let refused = matches!(read, Err(Error::Damaged { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn a_directory_of_any_bytes_never_makes_reading_panic(
        seed in 0u64..8,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let written = Written::new(seed);
        let at = written.content.len() - TRAILER;
        let trailer = Trailer::decode(written.content[at..].try_into().unwrap()).unwrap();
        let (blocks, rest) = written.content.split_at(trailer.offset as usize);
        let mut directory = rest[..trailer.length as usize].to_vec();
        for (place, byte) in changes {
            *place.get_mut(&mut directory) = byte;
        }
        let crc = crc32fast::hash(&directory);
        let content = [blocks, &directory, &Trailer { crc, ..trailer }.encode()].concat();
        let _ = written.with(&content);
    }

    #[test]
    fn any_bytes_are_refused_as_a_file(content in prop::collection::vec(any::<u8>(), 0..200), magic: bool) {
        let written = Written::new(0);
        let content = if magic { [&format::header()[..], &content].concat() } else { content };
        prop_assert!(written.with(&content).0.is_err());
    }
}

#[test]
fn files_of_another_secret_store_or_version_are_made_again() {
    let written = Written::new(1);
    let mut newer = written.content.clone();
    newer[8] = 2;
    let crc = crc32fast::hash(&newer[..12]);
    newer[12..16].copy_from_slice(&crc.to_le_bytes());
    assert!(matches!(written.with(&newer).0, Err(Error::Newer { .. })));
    // Under another segment's name.
    std::fs::write(written.folder.path().join("0000000002.idx"), &written.content).unwrap();
    std::fs::write(written.folder.path().join("0000000001.idx"), &written.content).unwrap();
    let (_, refused) = index(written.folder.path(), false, &written.vault);
    assert!(matches!(&refused[..], [Error::Foreign { file }] if file == "0000000002.idx"));
}
