//! The few things that the record does to its directory, as a port, and the directory itself.
//!
//! Owns the order-free primitives; what must be durable before what is the writer's to say. Tests put a double in its
//! place that fails, tears writes and crashes at any of these calls. Refuses: a directory that another process has open.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A directory of plain files.
pub trait Folder: fmt::Debug + Send + Sync {
    /// The names of all files.
    ///
    /// # Errors
    /// As the file system says; so for all calls.
    fn names(&self) -> io::Result<Vec<String>>;
    /// Reads a file from its beginning.
    fn read(&self, name: &str) -> io::Result<Box<dyn BufRead + Send>>;
    /// Opens a file to be written; makes it where it is not there.
    fn open(&self, name: &str) -> io::Result<Box<dyn Tail>>;
    /// Shortens a file, durably.
    fn cut(&self, name: &str, bytes: u64) -> io::Result<()>;
    /// Writes a whole file, durably but for its name.
    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes durable which files there are.
    fn sync(&self) -> io::Result<()>;
    /// Where it is, for people.
    fn place(&self) -> String;
}

/// A file's end.
pub trait Tail: fmt::Debug + Send {
    /// Writes bytes from a place on, which is not behind the file's end.
    ///
    /// # Errors
    /// As the file system says; some of the bytes may be there.
    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes durable what was written.
    ///
    /// # Errors
    /// As the file system says. What was written may or may not be durable then, and asking again proves nothing.
    fn sync(&mut self) -> io::Result<()>;
}

/// A directory on disk, which no other process has open.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Held while this lives.
    _lock: File,
}

/// The file whose lock keeps a second process out.
pub const LOCK: &str = "lock";

impl Directory {
    /// Opens a directory, and makes it where it is not there, readable by its owner only.
    ///
    /// # Errors
    /// With the path and what to do.
    pub fn open(path: &Path) -> Result<Self, String> {
        let at = |why: &dyn fmt::Display| format!("{}: {why}", path.display());
        if !path.exists() {
            make(path).map_err(|why| at(&why))?;
        }
        let lock = private().truncate(false).write(true).create(true).open(path.join(LOCK)).map_err(|why| at(&why))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                Err(at(&"in use by another process. Stop that one, or give this one a directory of its own"))
            }
            Err(TryLockError::Error(why)) => Err(at(&why)),
        }
    }
}

/// Makes a directory with its parents; its name is durable when this returns.
fn make(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(path)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options
}

impl Folder for Directory {
    fn names(&self) -> io::Result<Vec<String>> {
        names(&self.path)
    }

    fn read(&self, name: &str) -> io::Result<Box<dyn BufRead + Send>> {
        Ok(Box::new(BufReader::with_capacity(256 * 1024, File::open(self.path.join(name))?)))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Tail>> {
        let file = private().write(true).create(true).truncate(false).open(self.path.join(name))?;
        Ok(Box::new(End { file, at: 0 }))
    }

    fn cut(&self, name: &str, bytes: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.path.join(name))?;
        file.set_len(bytes)?;
        file.sync_all()
    }

    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = private().write(true).create(true).truncate(true).open(self.path.join(name))?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }
}

/// The names of a directory's files.
///
/// # Errors
/// As the file system says.
pub fn names(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

/// A file that is written.
#[derive(Debug)]
struct End {
    file: File,
    /// Where the next bytes go by themselves.
    at: u64,
}

impl Tail for End {
    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        if at != self.at {
            self.file.seek(SeekFrom::Start(at))?;
        }
        self.file.write_all(bytes)?;
        self.at = at.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}
