//! Which server this is.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use redis_module::raw;

use super::{call, lock::ServerLock};

/// Major, minor and patch.
pub type Version = (u32, u32, u32);

/// Packed as the server packs it: 0xMMmmpp.
static VERSION: AtomicU32 = AtomicU32::new(0);
static IS_VALKEY: AtomicBool = AtomicBool::new(false);

/// Asks the server once, at load.
pub(super) fn init(guard: &ServerLock) {
    // SAFETY: the pointer is filled at load; the call takes nothing.
    let asked = unsafe { raw::RedisModule_GetServerVersion.map(|f| f()) };
    let version = asked
        .filter(|&v| v > 0)
        .map_or_else(|| from_info(guard).unwrap_or(0), |v| v as u32);
    VERSION.store(version, Ordering::Relaxed);
    let is_valkey = field(guard, "valkey_version:").is_some();
    IS_VALKEY.store(is_valkey, Ordering::Relaxed);
}

/// For servers before 6.0.9, which have no call for it.
fn from_info(guard: &ServerLock) -> Option<u32> {
    parse(&field(guard, "redis_version:")?)
}

/// What stands behind this in INFO.
fn field(guard: &ServerLock, name: &str) -> Option<String> {
    let info = call::call(guard, &["INFO", "server"], call::Flags::default()).ok()?;
    let value = info.text()?.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.to_owned())
}

/// The server is Valkey, of whatever version.
pub fn is_valkey() -> bool {
    IS_VALKEY.load(Ordering::Relaxed)
}

/// The server's version; zeros if it does not tell. Compatible servers tell the Redis version that they follow.
pub fn server_version(_guard: &ServerLock) -> Version {
    let packed = VERSION.load(Ordering::Relaxed);
    (packed >> 16, packed >> 8 & 0xff, packed & 0xff)
}

/// The server is of version `major`.`minor` or newer.
pub fn at_least(major: u32, minor: u32) -> bool {
    VERSION.load(Ordering::Relaxed) >= (major << 16 | minor << 8)
}

fn parse(text: &str) -> Option<u32> {
    let mut packed = 0;
    let mut parts = text.trim().split('.');
    for _ in 0..3 {
        let part = parts.next().unwrap_or("0");
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        packed = packed << 8 | u32::from(part[..digits].parse::<u8>().ok()?);
    }
    Some(packed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(parse("7.0.15"), Some(0x0007_000f));
        assert_eq!(parse("6.0.8-rc1\r"), Some(0x0006_0008));
        assert_eq!(parse("8.2"), Some(0x0008_0200));
        assert_eq!(parse("x"), None);
    }
}
