//! `audit`: where the audit record is and how long it is kept, in the proxy's file and in a cosigner's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::AuditConfig;
use super::reader::{Complaint, Map, Value};
use super::server::or;
use super::value::duration;

const MIB: u64 = 1024 * 1024;
const SEGMENT_BYTES: u64 = 64 * MIB;
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Reads `audit`: a mapping, or `off`. Beside the store where nothing is said, and as temporary as that on the sandbox.
pub(super) fn read(root: &mut Map<'_, '_>, store: Option<&Path>) -> Option<Option<AuditConfig>> {
    let defaults = AuditConfig {
        dir: store.map(|store| store.with_extension("audit")),
        segment_bytes: SEGMENT_BYTES,
        keep: None,
        checkpoint_interval: MINUTE * 10,
    };
    off_or(root, &defaults, keys)
}

/// Reads a cosigner's: nobody signs that record's head, so nothing of it is ever removed, and a place is all it has.
pub(super) fn of_cosigner(root: &mut Map<'_, '_>, store: Option<&Path>) -> Option<Option<PathBuf>> {
    let beside = store.map(|store| store.with_extension("audit"));
    off_or(root, &beside, dir).map(Option::flatten)
}

/// What `keys` reads of the mapping, the default where nothing is said, or `None` for `off`.
fn off_or<T: Clone>(
    root: &mut Map<'_, '_>,
    default: &T,
    keys: impl FnOnce(&mut Map<'_, '_>, &T) -> Option<T>,
) -> Option<Option<T>> {
    or(root.take("audit"), Some(default.clone()), |value| {
        if !value.is_map() {
            let want = "off, or a mapping of keys";
            return value.parse(want, |text| match text {
                "off" => Ok(None),
                _ => Err(Complaint::new("is not known here", format!("Write {want}."))),
            });
        }
        value.map("a mapping of keys", |map| keys(map, default)).flatten().map(Some)
    })
}

fn keys(map: &mut Map<'_, '_>, defaults: &AuditConfig) -> Option<AuditConfig> {
    let dir = dir(map, &defaults.dir);
    let segment_bytes = or(map.take("segment_bytes"), SEGMENT_BYTES, |value| value.bytes(MIB, 1024 * MIB));
    let keep = or(map.take("keep"), None, |value| value.parse(KEEP, keep));
    let interval = or(map.take("checkpoint_interval"), defaults.checkpoint_interval, |value| {
        value.duration(Duration::from_secs(10), DAY)
    });
    Some(AuditConfig { dir: dir?, segment_bytes: segment_bytes?, keep: keep?, checkpoint_interval: interval? })
}

fn dir(map: &mut Map<'_, '_>, default: &Option<PathBuf>) -> Option<Option<PathBuf>> {
    or(map.take("dir"), default.clone(), |value| directory(value).map(Some))
}

const KEEP: &str = "forever, or a duration of 1d to 36500d";

fn keep(text: &str) -> Result<Option<Duration>, Complaint> {
    if text == "forever" {
        return Ok(None);
    }
    let bad = |what: &str| Complaint::new(what, format!("Write {KEEP}."));
    let keep = duration(text).map_err(|_| bad("is not a duration"))?;
    if (DAY..=DAY * 36_500).contains(&keep) { Ok(Some(keep)) } else { Err(bad("is out of range")) }
}

fn directory(value: &Value<'_, '_>) -> Option<PathBuf> {
    let path = value.path()?;
    if path.is_file() {
        value.reject(Complaint::new("is a file", "Write the path of a directory; it is made where it is not there."));
        return None;
    }
    Some(path)
}
