//! A directory in memory that fails, tears writes and crashes at any call, and forgets what was not made durable.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Cursor};
use std::sync::{Arc, Mutex};

use turnpike::audit::log::folder::{Folder, Tail};

/// What goes wrong at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails, a write half way; calls after it work.
    Fail,
    /// The process dies in it; nothing works any more.
    Crash,
}

/// What a crash leaves of what was not made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    Nothing,
    OneByte,
    Half,
    AllButOneByte,
    All,
    /// Every other sector of what was written, the first among them or not: a disk writes them in any order.
    OddSectors,
    EvenSectors,
}

const SECTOR: usize = 512;

#[derive(Clone, Debug, Default)]
struct File {
    durable: Vec<u8>,
    /// What was written since, each from where.
    waiting: Vec<(usize, Vec<u8>)>,
    named: bool,
}

impl File {
    /// As a process sees it.
    fn seen(&self) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        self.waiting.iter().for_each(|(at, written)| lay(&mut bytes, *at, written));
        bytes
    }

    /// As a crash leaves it.
    fn left(&self, left: Left) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        let all: usize = self.waiting.iter().map(|(_, written)| written.len()).sum();
        let mut kept = match left {
            Left::Nothing => 0,
            Left::OneByte => all.min(1),
            Left::Half => all / 2,
            Left::AllButOneByte => all.saturating_sub(1),
            Left::All | Left::OddSectors | Left::EvenSectors => all,
        };
        for (at, written) in &self.waiting {
            match left {
                Left::OddSectors | Left::EvenSectors => {
                    let parity = usize::from(left == Left::OddSectors);
                    let mut at = *at;
                    let mut rest = &written[..];
                    while !rest.is_empty() {
                        let (sector, others) = rest.split_at(rest.len().min(SECTOR - at % SECTOR));
                        if at / SECTOR % 2 == parity {
                            lay(&mut bytes, at, sector);
                        }
                        (at, rest) = (at + sector.len(), others);
                    }
                }
                _ => {
                    let part = kept.min(written.len());
                    lay(&mut bytes, *at, &written[..part]);
                    kept -= part;
                }
            }
        }
        bytes
    }
}

/// Writes over bytes; what was never written on the way there is zeros.
fn lay(bytes: &mut Vec<u8>, at: usize, written: &[u8]) {
    if written.is_empty() {
        return;
    }
    let end = at + written.len();
    bytes.resize(bytes.len().max(end), 0);
    bytes[at..end].copy_from_slice(written);
}

#[derive(Debug, Default)]
struct Disk {
    files: BTreeMap<String, File>,
    removed: BTreeMap<String, File>,
    calls: u64,
    fault: Option<(u64, Fault)>,
    dead: bool,
}

#[derive(Clone, Debug, Default)]
pub struct MemoryFolder(Arc<Mutex<Disk>>);

fn failed() -> io::Error {
    io::Error::other("the disk was told to fail")
}

impl Disk {
    /// Counts a call that changes something; whether half of it shall be done before it fails.
    fn call(&mut self) -> io::Result<Option<Fault>> {
        if self.dead {
            return Err(failed());
        }
        self.calls += 1;
        let fault = self.fault.filter(|(at, _)| *at == self.calls).map(|(_, fault)| fault);
        self.dead = fault == Some(Fault::Crash);
        Ok(fault)
    }

    fn whole(&mut self) -> io::Result<()> {
        match self.call()? {
            None => Ok(()),
            Some(_) => Err(failed()),
        }
    }
}

impl MemoryFolder {
    pub fn with_fault(at: u64, fault: Fault) -> Self {
        let folder = Self::default();
        folder.0.lock().unwrap().fault = Some((at, fault));
        folder
    }

    /// How many calls changed something.
    pub fn calls(&self) -> u64 {
        self.0.lock().unwrap().calls
    }

    /// What a restart finds, with a fault of its own.
    pub fn crash(&self, left: Left, fault: Option<(u64, Fault)>) -> Self {
        let disk = self.0.lock().unwrap();
        let mut files = disk.files.clone();
        // A removal that was not made durable may not have been.
        if left == Left::Nothing {
            files.extend(disk.removed.clone());
        }
        files.retain(|_, file| file.named || left != Left::Nothing);
        for file in files.values_mut() {
            *file = File { durable: file.left(left), waiting: Vec::new(), named: true };
        }
        Self(Arc::new(Mutex::new(Disk { files, fault, ..Disk::default() })))
    }

    /// Every segment's text as the process sees it, in order, without the room behind it.
    pub fn segments(&self) -> Vec<(String, Vec<u8>)> {
        let mut segments = self.whole_segments();
        for (_, text) in &mut segments {
            while text.ends_with(b"\n\n") || *text == b"\n" {
                text.pop();
            }
        }
        segments
    }

    /// The same with it.
    pub fn whole_segments(&self) -> Vec<(String, Vec<u8>)> {
        let disk = self.0.lock().unwrap();
        let segments = disk.files.iter().filter(|(name, _)| name.ends_with(".jsonl"));
        segments.map(|(name, file)| (name.clone(), file.seen())).collect()
    }

    /// Puts a file there as it is.
    pub fn set(&self, name: &str, bytes: &[u8]) {
        let file = File { durable: bytes.to_vec(), named: true, ..File::default() };
        self.0.lock().unwrap().files.insert(name.to_owned(), file);
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.lock().unwrap().files.contains_key(name)
    }
}

impl Folder for MemoryFolder {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().files.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Box<dyn BufRead + Send>> {
        let disk = self.0.lock().unwrap();
        let file = disk.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Cursor::new(file.seen())))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Tail>> {
        let mut disk = self.0.lock().unwrap();
        disk.whole()?;
        disk.files.entry(name.to_owned()).or_default();
        Ok(Box::new(MemoryTail { folder: self.clone(), name: name.to_owned() }))
    }

    fn cut(&self, name: &str, bytes: u64) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.whole()?;
        let file = disk.files.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        (file.durable, file.waiting) = (file.seen(), Vec::new());
        file.durable.truncate(bytes.try_into().unwrap());
        Ok(())
    }

    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        let fault = disk.call()?;
        let file = disk.files.entry(name.to_owned()).or_default();
        let bytes = if fault.is_some() { &bytes[..bytes.len() / 2] } else { bytes };
        (file.durable, file.waiting) = (bytes.to_vec(), Vec::new());
        fault.map_or(Ok(()), |_| Err(failed()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.whole()?;
        let file = disk.files.remove(name).ok_or(io::ErrorKind::NotFound)?;
        disk.removed.insert(name.to_owned(), file);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.whole()?;
        disk.removed.clear();
        disk.files.values_mut().for_each(|file| file.named = true);
        Ok(())
    }

    fn place(&self) -> String {
        "memory".to_owned()
    }
}

#[derive(Debug)]
struct MemoryTail {
    folder: MemoryFolder,
    name: String,
}

impl Tail for MemoryTail {
    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.folder.0.lock().unwrap();
        let fault = disk.call()?;
        let file = disk.files.get_mut(&self.name).ok_or(io::ErrorKind::NotFound)?;
        let bytes = if fault == Some(Fault::Fail) { &bytes[..bytes.len() / 2] } else { bytes };
        let at = at.try_into().unwrap();
        assert!(at <= file.seen().len(), "a write behind the end of {}", self.name);
        file.waiting.push((at, bytes.to_vec()));
        fault.map_or(Ok(()), |_| Err(failed()))
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut disk = self.folder.0.lock().unwrap();
        disk.whole()?;
        let file = disk.files.get_mut(&self.name).ok_or(io::ErrorKind::NotFound)?;
        (file.durable, file.waiting) = (file.seen(), Vec::new());
        Ok(())
    }
}
