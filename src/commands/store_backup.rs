//! `septet store backup` and `restore`. A backup is a client of the admin API, so that it can be made on another
//! machine; what it does is described in the engine's `store::backup`.

use std::collections::HashSet;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use septet_engine::files::{self, File, Files, LockError, SystemFiles};
use septet_engine::store::backup::{self, BackupError, CopiedFile, Manifest};
use septet_engine::store::offline::{self, KeyState, Keys};

use super::client::{Client, Failure, broken};
use super::stop::asked_to_stop;
use crate::output::{error, line};

/// How often a backup that follows looks for more.
const PACE: Duration = Duration::from_secs(2);

/// Copies the store of a running production into a folder: what is on stable storage, without the key. What
/// is there already from an earlier backup is not copied again.
#[derive(Args, Debug)]
pub(crate) struct Backup {
    #[command(flatten)]
    client: Client,
    /// The backup's folder: an earlier backup of this store, or an empty one; made if need be.
    dest: PathBuf,
    /// Goes on copying what is new, until it is stopped.
    #[arg(long)]
    follow: bool,
}

/// Makes a store of a backup. Its key is not in the backup: put it into the folder as store.key, or set
/// store.key in the production. The copy has a new epoch, so that its idempotency keys are its own.
#[derive(Args, Debug)]
pub(crate) struct Restore {
    /// The backup's folder.
    backup: PathBuf,
    /// The new store's folder: there must be nothing in it but store.key.
    path: PathBuf,
}

/// Why a pass did not come to its end.
enum Trouble {
    Api(Failure),
    /// A file was purged or replaced while it was copied: the next pass copies what there is then.
    Moved,
    Local(BackupError),
    /// The folder holds something else.
    Other(String),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Missing(_) => Trouble::Moved,
            failure => Trouble::Api(failure),
        }
    }
}

impl From<BackupError> for Trouble {
    fn from(error: BackupError) -> Self {
        Trouble::Local(error)
    }
}

/// What a pass did.
#[derive(Default)]
struct Pass {
    copied: u64,
    removed: usize,
    damaged: Vec<String>,
}

fn local(path: &Path) -> impl FnOnce(std::io::Error) -> Trouble {
    let path = path.to_owned();
    move |error| Trouble::Other(format!("{}: {error}", path.display()))
}

impl Backup {
    pub(crate) async fn run(self) -> ExitCode {
        if let Err(problem) = backup::begin(&SystemFiles, &self.dest) {
            error(problem);
            return ExitCode::from(2);
        }
        if let Err(problem) = SystemFiles.create_dir(&self.dest.join("journal")) {
            error(format_args!("{}: {problem}", self.dest.display()));
            return ExitCode::from(2);
        }
        let _lock = match SystemFiles.lock(&self.dest.join("lock")) {
            Ok(lock) => lock,
            Err(LockError::Held(pid)) => {
                error(format_args!("{} is in use by process {pid}", self.dest.display()));
                return ExitCode::from(3);
            }
            Err(LockError::Io(problem)) => {
                error(format_args!("{}: {problem}", self.dest.display()));
                return ExitCode::from(3);
            }
        };
        let work = self.passes();
        tokio::select! {
            code = work => code,
            // What belongs together is named by the manifest: stopping anywhere is safe.
            () = asked_to_stop(), if self.follow => ExitCode::SUCCESS,
            () = asked_to_stop(), if !self.follow => {
                error("stopped before all was copied; run it again, and it goes on where it was");
                ExitCode::from(1)
            }
        }
    }

    /// One pass, or one after the other.
    async fn passes(&self) -> ExitCode {
        let mut moved = 0;
        loop {
            match self.pass().await {
                Ok((manifest, pass)) => {
                    moved = 0;
                    if pass.copied > 0 || pass.removed > 0 || !self.follow {
                        self.tell(&manifest, &pass);
                    }
                    if !self.follow {
                        return if pass.damaged.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) };
                    }
                }
                Err(Trouble::Moved) if moved < 20 || self.follow => {
                    moved += 1;
                    if moved < 20 {
                        continue;
                    }
                }
                Err(Trouble::Moved) => {
                    error("files of the store went away as often as they were copied; try again");
                    return ExitCode::from(1);
                }
                Err(Trouble::Api(Failure::Unreachable(text))) if self.follow => {
                    error(format_args!("{text}; going on when it does"));
                }
                Err(Trouble::Api(failure)) => return failure.report(),
                Err(Trouble::Local(problem)) => {
                    error(problem);
                    return ExitCode::from(1);
                }
                Err(Trouble::Other(text)) => {
                    error(text);
                    return ExitCode::from(1);
                }
            }
            tokio::time::sleep(PACE).await;
        }
    }

    fn tell(&self, manifest: &Manifest, pass: &Pass) {
        for place in &pass.damaged {
            error(format_args!(
                "{place}: the store's own file is damaged here; stop it and run septet store check"
            ));
        }
        line(format_args!(
            "{}: {} bytes in {} segments as of {}, {} bytes copied now",
            self.dest.display(),
            manifest.bytes(),
            manifest.segments.len(),
            manifest.at,
            pass.copied
        ));
    }

    /// What there is to copy now.
    async fn listing(&self) -> Result<Manifest, Trouble> {
        let answer = self.client.get("/api/v1/store", &[]).await;
        let answer = answer.map_err(|failure| match failure {
            Failure::Missing(text) => Trouble::Other(text),
            failure => Trouble::Api(failure),
        })?;
        serde_json::from_value(answer)
            .map_err(|error| Trouble::Other(format!("the API's answer is of another version: {error}")))
    }

    /// Copies everything that is new, and then says in the manifest what belongs together.
    async fn pass(&self) -> Result<(Manifest, Pass), Trouble> {
        let mut pass = Pass::default();
        let before = Manifest::read(&SystemFiles, &self.dest)?;
        let listing = self.listing().await?;
        if let Some(before) = before.as_ref().filter(|before| before.epoch != listing.epoch) {
            let (there, here) = (&before.epoch, &listing.epoch);
            return Err(Trouble::Other(format!(
                "{} is a backup of another store ({there}, not {here})",
                self.dest.display()
            )));
        }
        if let Some(checkpoint) = &listing.checkpoint {
            pass.copied += self.copy_checkpoint(checkpoint).await?;
        }
        // The journal must reach at least as far as the checkpoint: it is looked at again, after it.
        let manifest = self.listing().await?;
        if manifest.checkpoint != listing.checkpoint {
            return Err(Trouble::Moved);
        }
        for segment in &manifest.segments {
            pass.copied += self.copy_segment(segment, &mut pass.damaged).await?;
        }
        SystemFiles.sync_dir(&self.dest.join("journal")).map_err(local(&self.dest))?;
        manifest.write(&SystemFiles, &self.dest)?;
        pass.removed = self.tidy(&manifest).map_err(local(&self.dest))?;
        Ok((manifest, pass))
    }

    async fn copy_checkpoint(&self, checkpoint: &CopiedFile) -> Result<u64, Trouble> {
        let name = backup::checkpoint_name(checkpoint);
        let (path, aside) = (self.dest.join(&name), self.dest.join(format!(".{name}.part")));
        if path.is_file() {
            return Ok(0);
        }
        let file = SystemFiles.create(&aside).map_err(local(&aside))?;
        self.fetch(checkpoint, 0, &file, &aside).await?;
        let same = backup::checkpoint_check(&*file).map_err(local(&aside))? == checkpoint.check;
        if !same || !backup::checkpoint_is_whole(&*file).map_err(local(&aside))? {
            return Err(Trouble::Moved);
        }
        file.sync().map_err(local(&aside))?;
        SystemFiles.rename(&aside, &path).map_err(local(&path))?;
        SystemFiles.sync_dir(&self.dest).map_err(local(&path))?;
        Ok(checkpoint.size)
    }

    /// Copies what is missing of a segment, and looks whether what came is whole.
    async fn copy_segment(&self, segment: &CopiedFile, damaged: &mut Vec<String>) -> Result<u64, Trouble> {
        let path = self.dest.join("journal").join(&segment.name);
        let failed = || local(&path);
        let there = match SystemFiles.open(&path) {
            Ok(file) => file,
            Err(_) => SystemFiles.create(&path).map_err(failed())?,
        };
        let mut length = there.length().map_err(failed())?;
        let same = |length: u64| {
            length >= segment.size
                && backup::check_of(&*there, segment.size, segment.sealed).ok() == Some(segment.check)
        };
        if same(length) {
            if length > segment.size {
                there.truncate(segment.size).map_err(failed())?;
            }
            return Ok(0);
        }
        if length >= segment.size {
            length = 0;
        }
        let number = segment.name.trim_end_matches(".seg").parse().unwrap_or_default();
        loop {
            there.truncate(length).map_err(failed())?;
            self.fetch(segment, length, &there, &path).await?;
            there.sync().map_err(failed())?;
            let whole =
                backup::check_of(&*there, segment.size, segment.sealed).map_err(failed())? == segment.check;
            let damage = backup::damage(&*there, number, length, segment.size).map_err(failed())?;
            match damage {
                None if whole => return Ok(segment.size - length),
                // What was there before may be of another life of this segment: once more, all of it.
                _ if length > 0 => length = 0,
                Some(offset) if whole => {
                    damaged.push(format!("{}:{offset}", segment.name));
                    return Ok(segment.size);
                }
                _ => return Err(Trouble::Moved),
            }
        }
    }

    /// Fetches the rest of a file and appends it.
    async fn fetch(
        &self,
        copied: &CopiedFile,
        from: u64,
        to: &Arc<dyn File>,
        path: &Path,
    ) -> Result<(), Trouble> {
        let url = format!("/api/v1/store/files/{}?from={from}&to={}", copied.name, copied.size);
        let mut answer = self.client.stream(&url).await?;
        let mut at = from;
        while let Some(piece) = answer.chunk().await.map_err(|error| Trouble::Api(broken(error)))? {
            files::write_all(&**to, &mut [IoSlice::new(&piece)], at).map_err(local(path))?;
            at += piece.len() as u64;
        }
        if at != copied.size {
            return Err(Trouble::Moved);
        }
        Ok(())
    }

    /// Removes what was purged, and checkpoints that another has replaced.
    fn tidy(&self, manifest: &Manifest) -> std::io::Result<usize> {
        let segments: HashSet<&str> = manifest.segments.iter().map(|segment| segment.name.as_str()).collect();
        let checkpoint = manifest.checkpoint.as_ref().map(backup::checkpoint_name);
        let journal = self.dest.join("journal");
        let mut removed = 0;
        for name in SystemFiles.list(&journal)? {
            if name.ends_with(".seg") && !segments.contains(name.as_str()) {
                SystemFiles.remove(&journal.join(name))?;
                removed += 1;
            }
        }
        for name in SystemFiles.list(&self.dest)? {
            if name.starts_with(backup::CHECKPOINT) && Some(&name) != checkpoint.as_ref() {
                SystemFiles.remove(&self.dest.join(name))?;
            }
        }
        Ok(removed)
    }
}

impl Restore {
    pub(crate) fn run(self) -> ExitCode {
        let restored = match backup::restore(&SystemFiles, &self.backup, &self.path) {
            Ok(restored) => restored,
            Err(problem) => {
                error(&problem);
                return ExitCode::from(match problem {
                    BackupError::NoBackup(..) => 2,
                    BackupError::NotEmpty(..) | BackupError::Occupied(..) | BackupError::Damaged { .. } => 1,
                    BackupError::Open(_) => 3,
                });
            }
        };
        let (manifest, path) = (&restored.manifest, self.path.display());
        line(format_args!(
            "{path}: {} bytes in {} segments, as of {}",
            manifest.bytes(),
            manifest.segments.len(),
            manifest.at
        ));
        line(format_args!(
            "its epoch is {}, not {}: its idempotency keys are its own; messages that were waiting then are sent when it runs",
            restored.epoch, manifest.epoch
        ));
        for place in &restored.damaged {
            error(format_args!("{place}: damaged in the backup; septet store repair {path} after this"));
        }
        let sound = restored.damaged.is_empty();
        match offline::check(&SystemFiles, &self.path, &Keys::default()) {
            Ok(report) if report.key == KeyState::Right => {
                line(format_args!(
                    "checked: {} messages, {} problems",
                    report.counts.headers, report.problem_count
                ));
                if sound && report.is_sound() { ExitCode::SUCCESS } else { ExitCode::from(1) }
            }
            Ok(_) => {
                line(format_args!(
                    "it needs key {}: put it into {path}/store.key, or set store.key in the production",
                    manifest.key_id
                ));
                if sound { ExitCode::SUCCESS } else { ExitCode::from(1) }
            }
            Err(problem) => {
                error(problem);
                ExitCode::from(1)
            }
        }
    }
}
