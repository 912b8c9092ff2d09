//! `audit`: where the audit record is and how long it is kept.

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
    or(root.take("audit"), Some(defaults.clone()), |value| {
        if !value.is_map() {
            let want = "off, or a mapping of keys";
            return value.parse(want, |text| match text {
                "off" => Ok(None),
                _ => Err(Complaint::new("is not known here", format!("Write {want}."))),
            });
        }
        value.map("a mapping of keys", |map| keys(map, &defaults)).flatten().map(Some)
    })
}

fn keys(map: &mut Map<'_, '_>, defaults: &AuditConfig) -> Option<AuditConfig> {
    let dir = or(map.take("dir"), defaults.dir.clone(), |value| directory(value).map(Some));
    let segment_bytes = or(map.take("segment_bytes"), SEGMENT_BYTES, |value| value.bytes(MIB, 1024 * MIB));
    let keep = or(map.take("keep"), None, |value| value.parse(KEEP, keep));
    let interval = or(map.take("checkpoint_interval"), defaults.checkpoint_interval, |value| {
        value.duration(Duration::from_secs(10), DAY)
    });
    Some(AuditConfig { dir: dir?, segment_bytes: segment_bytes?, keep: keep?, checkpoint_interval: interval? })
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
