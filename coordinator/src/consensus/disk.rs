//! Files as the log needs them: a seam for tests that lose, tear and flip bytes.
//!
//! A `Disk` is one folder with a handful of flat files. It never interprets them; `storage` does. It never syncs on
//! its own account: what is durable is decided by the caller's `sync` and `sync_folder`.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::limits;

/// The files of one folder. Names are plain file names.
pub trait Disk: Send {
    /// Names of the files that are there; empty if the folder is not there.
    fn list(&mut self) -> io::Result<Vec<String>>;
    /// The whole content; `None` if there is no such file. A file of more than `most` bytes is an error.
    fn read(&mut self, name: &str, most: u64) -> io::Result<Option<Vec<u8>>>;
    /// Adds bytes at the end of a file, which is made if it is not there. Durable after `sync` only.
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Writes over the beginning of a file, which is made if it is not there. Durable after `sync` only.
    fn overwrite(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Cuts a file. Durable after `sync` only.
    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()>;
    /// Makes a file's content durable.
    fn sync(&mut self, name: &str) -> io::Result<()>;
    /// Gives a file another name, in place of a file that has it. Durable after `sync_folder` only.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file, if it is there. Durable after `sync_folder` only.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Makes names durable: new files, renamed and removed ones.
    fn sync_folder(&mut self) -> io::Result<()>;
    /// Keeps the folder's content under a new name, `<folder>.<kind>-<n>`, which is returned; the folder is empty
    /// then. Of each kind the newest `limits::KEPT_LOGS` are kept. Durable when it returns. Nothing to keep: `None`.
    fn set_aside(&mut self, kind: &str) -> io::Result<Option<String>>;
}

/// A real folder, made with the rights 0700 when the first file is written.
#[derive(Debug)]
pub struct FileDisk {
    folder: PathBuf,
    /// Files stay open between a write and its sync: the kernel reports a failed write-back only to those who had the
    /// file open.
    open: HashMap<String, File>,
}

impl FileDisk {
    /// A folder that may not exist yet; nothing is touched.
    pub fn new(folder: &Path) -> FileDisk {
        FileDisk {
            folder: folder.to_owned(),
            open: HashMap::new(),
        }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn make_folder(&self) -> io::Result<()> {
        if self.folder.is_dir() {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        sync_path(&parent(&self.folder))
    }

    fn file(&mut self, name: &str, create: bool) -> io::Result<&File> {
        if !self.open.contains_key(name) {
            if create {
                self.make_folder()?;
            }
            let path = self.path(name);
            // Positions are given with each write, because O_APPEND would overrule those of `overwrite`.
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(create)
                .truncate(false)
                .mode(0o600)
                .open(path)?;
            self.open.insert(name.to_owned(), file);
        }
        self.open.get(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn sync_path(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The number `n` of `<stem>-<n>`.
fn kept_number(name: &str, stem: &str) -> Option<u64> {
    name.strip_prefix(stem)?.strip_prefix('-')?.parse().ok()
}

impl Disk for FileDisk {
    fn list(&mut self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn read(&mut self, name: &str, most: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let length = file.metadata()?.len();
        if length > most {
            let text = format!("{name} has {length} bytes, at most {most} are expected");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        // A file that grows meanwhile is not read beyond that.
        let mut bytes = Vec::with_capacity(length as usize);
        file.take(length).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let file = self.file(name, true)?;
        let length = file.metadata()?.len();
        file.write_all_at(bytes, length)
    }

    fn overwrite(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.file(name, true)?.write_all_at(bytes, 0)
    }

    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        self.file(name, false)?.set_len(length)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        // Data and the length; times do not matter.
        self.file(name, false)?.sync_data()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))?;
        self.open.remove(to);
        if let Some(file) = self.open.remove(from) {
            self.open.insert(to.to_owned(), file);
        }
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.open.remove(name);
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        sync_path(&self.folder)
    }

    fn set_aside(&mut self, kind: &str) -> io::Result<Option<String>> {
        self.open.clear();
        if self.list()?.is_empty() {
            return Ok(None);
        }
        let folder = self.folder.file_name().unwrap_or_default().to_string_lossy();
        let (parent, stem) = (parent(&self.folder), format!("{folder}.{kind}"));
        let mut kept = Vec::new();
        for entry in fs::read_dir(&parent)? {
            let name = entry?.file_name();
            kept.extend(name.to_str().and_then(|name| kept_number(name, &stem)));
        }
        kept.sort_unstable();
        let next = kept.last().map_or(1, |n| n.saturating_add(1));
        let name = format!("{stem}-{next}");
        fs::rename(&self.folder, parent.join(&name))?;
        // Kept folders must not fill the disk.
        let surplus = (kept.len() + 1).saturating_sub(limits::KEPT_LOGS);
        for n in kept.into_iter().take(surplus) {
            let _ = fs::remove_dir_all(parent.join(format!("{stem}-{n}")));
        }
        sync_path(&parent)?;
        Ok(Some(name))
    }
}
