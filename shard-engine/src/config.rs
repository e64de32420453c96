//! The configuration: built-in keys with types and ranges, and user-defined ones that scripts read.
//!
//! Values live in this process; nothing is replicated or kept. Engine keys are found in any case when they are set and
//! in exact case when they are read; Python keys always in exact case.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use parking_lot::RwLock;
use thiserror::Error;

/// One element of the replies of RG.CONFIGGET and RG.CONFIGSET.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ConfigReply {
    Int(i64),
    Bulk(Vec<u8>),
    Simple(String),
    Error(String),
    Array(Vec<String>),
}

/// A module argument that is refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ConfigError {
    #[error("the module argument {0} has no value; arguments are pairs of name and value")]
    NoValue(String),
    #[error("{key} is {value}, but it must be {wanted}")]
    BadValue {
        key: String,
        value: String,
        wanted: &'static str,
    },
    #[error("Failed parsing {0} config, value must be a number.")]
    NotANumber(String),
    #[error("Failed parsing {0} config, value must be greater then zero.")]
    NotPositive(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Engine,
    Python,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Lowest and highest value.
    Int(i64, i64),
    /// Non-zero is 1.
    Bool,
    Text,
    /// May be given several times.
    List,
}

struct Key {
    name: &'static str,
    family: Family,
    kind: Kind,
    default: &'static str,
    at_run_time: bool,
}

const ANY: Kind = Kind::Int(i64::MIN, i64::MAX);
const POSITIVE: Kind = Kind::Int(1, i64::MAX);

const fn engine(name: &'static str, kind: Kind, default: &'static str, at_run_time: bool) -> Key {
    Key {
        name,
        family: Family::Engine,
        kind,
        default,
        at_run_time,
    }
}

const fn python(name: &'static str, kind: Kind, default: &'static str, at_run_time: bool) -> Key {
    Key {
        name,
        family: Family::Python,
        kind,
        default,
        at_run_time,
    }
}

/// Most threads that may run executions.
const MOST_THREADS: i64 = 256;

const KEYS: &[Key] = &[
    engine("MaxExecutions", ANY, "1000", true),
    engine("MaxExecutionsPerRegistration", ANY, "100", true),
    engine("MaxEventDepth", POSITIVE, "64", true),
    engine("InterpreterMaxWaitTime", POSITIVE, "50", true),
    engine("ProfileExecutions", Kind::Bool, "0", true),
    engine("ExecutionThreads", Kind::Int(1, MOST_THREADS), "3", false),
    engine("ExecutionMaxIdleTime", POSITIVE, "5000", true),
    engine("SendMsgRetries", Kind::Int(0, i64::MAX), "3", true),
    engine("Plugin", Kind::List, "", false),
    engine("GrpcPort", Kind::Int(0, 65535), "0", false),
    engine("ClusterSecretFile", Kind::Text, "", false),
    engine("RequiredPermission", Kind::Text, "", false),
    python("PythonAttemptTraceback", Kind::Bool, "1", true),
    python("PythonInstallReqMaxIdleTime", POSITIVE, "30000", true),
    python("CreateVenv", Kind::Bool, "0", false),
    python("DownloadDeps", Kind::Bool, "0", false),
    python("ForeceDownloadDepsOnEnterprise", Kind::Bool, "0", false),
    python("OverridePythonAllocators", Kind::Bool, "1", false),
    python("DependenciesUrl", Kind::Text, "", false),
    python("DependenciesSha256", Kind::Text, "", false),
    python(
        "PythonInstallationDir",
        Kind::Text,
        "/var/opt/redislabs/modules/rg",
        false,
    ),
    python("PythonVenv", Kind::Text, "", false),
];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Int(i64),
    Text(String),
    List(Vec<String>),
}

/// The values of this shard.
pub struct ConfigStore {
    values: RwLock<BTreeMap<&'static str, Value>>,
    /// User-defined names and values.
    user: RwLock<BTreeMap<Vec<u8>, Vec<u8>>>,
    hot: Hot,
}

/// Values that are asked for at every event.
#[derive(Default)]
struct Hot {
    max_executions: AtomicI64,
    per_registration: AtomicI64,
    event_depth: AtomicI64,
    profile: AtomicI64,
}

/// Why a text is no value of a key.
enum Bad {
    Number,
    Range,
}

fn parse(kind: Kind, text: &str) -> Result<Value, Bad> {
    Ok(match kind {
        Kind::Int(low, high) => {
            let n: i64 = text.parse().map_err(|_| Bad::Number)?;
            if !(low..=high).contains(&n) {
                return Err(Bad::Range);
            }
            Value::Int(n)
        }
        Kind::Bool => Value::Int(i64::from(text.parse::<i64>().map_err(|_| Bad::Number)? != 0)),
        Kind::Text => Value::Text(text.to_owned()),
        Kind::List => Value::List(vec![text.to_owned()]),
    })
}

impl Key {
    /// The key that a client or an argument means by `name` when it sets it.
    fn to_set(name: &[u8]) -> Option<&'static Key> {
        KEYS.iter().find(|key| match key.family {
            Family::Engine => key.name.as_bytes().eq_ignore_ascii_case(name),
            Family::Python => key.name.as_bytes() == name,
        })
    }

    fn to_read(name: &[u8]) -> Option<&'static Key> {
        KEYS.iter().find(|key| key.name.as_bytes() == name)
    }

    fn refuse(&self, text: &str, bad: &Bad) -> ConfigError {
        let (key, value) = (self.name.to_owned(), text.to_owned());
        match (self.family, bad) {
            (Family::Python, Bad::Number) => ConfigError::NotANumber(key),
            (Family::Python, Bad::Range) => ConfigError::NotPositive(key),
            (Family::Engine, _) => ConfigError::BadValue {
                key,
                value,
                wanted: self.wanted(),
            },
        }
    }

    fn wanted(&self) -> &'static str {
        match self.kind {
            Kind::Int(1, MOST_THREADS) => "a number from 1 to 256",
            Kind::Int(1, _) => "a number greater than 0",
            Kind::Int(0, 65535) => "a port number, 0 for the default",
            Kind::Int(0, _) => "a number, 0 or greater",
            _ => "a number",
        }
    }
}

impl ConfigStore {
    /// The defaults, overridden by the module's arguments (pairs of name and value).
    pub fn from_args(args: &[Vec<u8>]) -> Result<ConfigStore, ConfigError> {
        let mut values = BTreeMap::new();
        for key in KEYS {
            let value = match key.kind {
                Kind::List => Value::List(Vec::new()),
                kind => parse(kind, key.default).map_err(|bad| key.refuse(key.default, &bad))?,
            };
            values.insert(key.name, value);
        }
        let mut user = BTreeMap::new();
        for pair in args.chunks(2) {
            let [name, value] = pair else {
                return Err(ConfigError::NoValue(String::from_utf8_lossy(&pair[0]).into_owned()));
            };
            let text = String::from_utf8_lossy(value).into_owned();
            let Some(key) = Key::to_set(name) else {
                user.insert(name.clone(), value.clone());
                continue;
            };
            let value = parse(key.kind, &text).map_err(|bad| key.refuse(&text, &bad))?;
            match (values.get_mut(key.name), value) {
                (Some(Value::List(all)), Value::List(more)) => all.extend(more),
                (_, value) => drop(values.insert(key.name, value)),
            }
        }
        let store = ConfigStore {
            values: RwLock::new(values),
            user: RwLock::new(user),
            hot: Hot::default(),
        };
        store.warm_up();
        Ok(store)
    }

    /// An element of RG.CONFIGGET.
    pub fn get(&self, name: &[u8]) -> ConfigReply {
        if let Some(key) = Key::to_read(name)
            && let Some(value) = self.values.read().get(key.name)
        {
            return match value {
                Value::Int(n) => ConfigReply::Int(*n),
                Value::Text(text) => ConfigReply::Bulk(text.clone().into_bytes()),
                Value::List(texts) => ConfigReply::Array(texts.clone()),
            };
        }
        match self.user.read().get(name) {
            Some(bytes) => ConfigReply::Bulk(bytes.clone()),
            None => ConfigReply::Error(format!(
                "(error) Unsupported config parameter: {}",
                String::from_utf8_lossy(name)
            )),
        }
    }

    /// An element of RG.CONFIGSET; `value` is missing behind the last name of an odd number of arguments.
    pub fn set(&self, name: &[u8], value: Option<&[u8]>) -> ConfigReply {
        let shown = String::from_utf8_lossy(name).into_owned();
        let text = value.map(|v| String::from_utf8_lossy(v).into_owned());
        match Key::to_set(name) {
            Some(key) if key.family == Family::Engine => self.set_engine(key, &shown, text),
            Some(key) => self.set_python(key, &shown, text),
            None => match value {
                None => ConfigReply::Error(format!("(error) Value was not given to {shown}")),
                Some(bytes) => {
                    self.user.write().insert(name.to_vec(), bytes.to_vec());
                    saved()
                }
            },
        }
    }

    fn set_engine(&self, key: &Key, shown: &str, text: Option<String>) -> ConfigReply {
        if !key.at_run_time {
            return ConfigReply::Error(format!("(error) Config value {shown} not modifiable at runtime"));
        }
        match text.map(|text| parse(key.kind, &text)) {
            Some(Ok(value)) => {
                self.values.write().insert(key.name, value);
                self.warm_up();
                ConfigReply::Simple("OK".into())
            }
            _ => ConfigReply::Error(format!("(error) Failed setting config value {shown}")),
        }
    }

    fn set_python(&self, key: &Key, shown: &str, text: Option<String>) -> ConfigReply {
        if !key.at_run_time {
            return ConfigReply::Error(format!("(error) {shown} is not configurable at runtime"));
        }
        let Some(text) = text else {
            return ConfigReply::Error(format!("(error) Value was not given to {shown}"));
        };
        match parse(key.kind, &text) {
            Ok(value) => {
                self.values.write().insert(key.name, value);
                saved()
            }
            Err(_) => ConfigReply::Error(format!(
                "Failed setting config value for key '{shown}' with value '{text}'"
            )),
        }
    }

    /// What `configGet(key)` gives a script: user-defined values, and built-in ones as text.
    pub fn user_get(&self, name: &str) -> Option<String> {
        if let Some(bytes) = self.user.read().get(name.as_bytes()) {
            return Some(String::from_utf8_lossy(bytes).into_owned());
        }
        match self.values.read().get(Key::to_read(name.as_bytes())?.name)? {
            Value::Int(n) => Some(n.to_string()),
            Value::Text(text) => Some(text.clone()),
            Value::List(texts) => Some(texts.join(" ")),
        }
    }

    /// Every key with its value, for the log.
    pub fn listing(&self) -> Vec<(String, String)> {
        let names = KEYS.iter().map(|key| key.name.to_owned());
        names
            .filter_map(|name| Some((name.clone(), self.user_get(&name)?)))
            .collect()
    }

    fn warm_up(&self) {
        for (value, name) in [
            (&self.hot.max_executions, "MaxExecutions"),
            (&self.hot.per_registration, "MaxExecutionsPerRegistration"),
            (&self.hot.event_depth, "MaxEventDepth"),
            (&self.hot.profile, "ProfileExecutions"),
        ] {
            value.store(self.int(name), Ordering::Relaxed);
        }
    }

    fn int(&self, name: &'static str) -> i64 {
        match self.values.read().get(name) {
            Some(Value::Int(n)) => *n,
            _ => 0,
        }
    }

    fn text(&self, name: &'static str) -> Option<String> {
        match self.values.read().get(name) {
            Some(Value::Text(text)) if !text.is_empty() => Some(text.clone()),
            _ => None,
        }
    }

    /// `RequiredPermission`: a command, or `command|subcommand`, that users must be allowed to run who administer.
    pub fn required_permission(&self) -> Option<String> {
        self.text("RequiredPermission")
    }

    /// `MaxExecutions`; 0 or less: no limit.
    pub fn max_executions(&self) -> i64 {
        self.hot.max_executions.load(Ordering::Relaxed)
    }

    /// `MaxExecutionsPerRegistration`; 0 or less: no limit.
    pub fn max_executions_per_registration(&self) -> i64 {
        self.hot.per_registration.load(Ordering::Relaxed)
    }

    /// `MaxEventDepth`: longest chain of events that handlers cause.
    pub fn max_event_depth(&self) -> i64 {
        self.hot.event_depth.load(Ordering::Relaxed)
    }

    /// `ProfileExecutions`.
    pub fn profile_executions(&self) -> bool {
        self.hot.profile.load(Ordering::Relaxed) != 0
    }

    /// `ExecutionThreads`.
    pub fn execution_threads(&self) -> usize {
        self.int("ExecutionThreads").clamp(1, MOST_THREADS) as usize
    }

    /// `InterpreterMaxWaitTime`: a command that can not be parked waits so long for the interpreter while one thread keeps
    /// that for itself, before it answers that it is busy.
    pub fn interpreter_max_wait(&self) -> Duration {
        Duration::from_millis(self.int("InterpreterMaxWaitTime").max(1) as u64)
    }

    /// `ExecutionMaxIdleTime`, in ms.
    pub fn execution_max_idle_ms(&self) -> u64 {
        self.int("ExecutionMaxIdleTime").unsigned_abs()
    }

    /// `GrpcPort`; 0 for the default.
    pub fn grpc_port(&self) -> u16 {
        self.int("GrpcPort") as u16
    }

    /// What stands in `ClusterSecretFile`. A file, because the server shows module arguments to its clients.
    pub fn cluster_secret(&self) -> Result<Option<String>, String> {
        let Some(path) = self.text("ClusterSecretFile") else {
            return Ok(None);
        };
        let secret = std::fs::read_to_string(&path).map_err(|e| format!("ClusterSecretFile {path}: {e}"))?;
        match secret.trim() {
            "" => Err(format!("ClusterSecretFile {path} is empty")),
            secret => Ok(Some(secret.to_owned())),
        }
    }

    /// `PythonAttemptTraceback`.
    pub fn attempt_traceback(&self) -> bool {
        self.int("PythonAttemptTraceback") != 0
    }

    /// `OverridePythonAllocators`.
    pub fn override_python_allocators(&self) -> bool {
        self.int("OverridePythonAllocators") != 0
    }

    /// `PythonVenv`.
    pub fn python_venv(&self) -> Option<String> {
        self.text("PythonVenv")
    }
}

fn saved() -> ConfigReply {
    ConfigReply::Simple("OK - value was saved in extra config dictionary".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(line: &str) -> Result<ConfigStore, ConfigError> {
        let args: Vec<Vec<u8>> = line.split_whitespace().map(|w| w.as_bytes().to_vec()).collect();
        ConfigStore::from_args(&args)
    }

    #[track_caller]
    fn refused(line: &str) -> String {
        store(line)
            .err()
            .unwrap_or_else(|| panic!("{line} is accepted"))
            .to_string()
    }

    #[test]
    fn arguments_at_load() {
        let config = store("maxexecutions 5 Plugin a.so plugin b.so Mine x pythonattempttraceback 7").unwrap();
        assert_eq!(config.get(b"MaxExecutions"), ConfigReply::Int(5));
        assert_eq!(
            config.get(b"Plugin"),
            ConfigReply::Array(vec!["a.so".into(), "b.so".into()])
        );
        assert_eq!(config.user_get("Mine"), Some("x".into()));
        assert_eq!(config.user_get("mine"), None);
        // Another case of a Python key is a user-defined name.
        assert_eq!(config.get(b"PythonAttemptTraceback"), ConfigReply::Int(1));
        assert_eq!(config.user_get("pythonattempttraceback"), Some("7".into()));
        assert_eq!(
            store("PythonAttemptTraceback 7").unwrap().int("PythonAttemptTraceback"),
            1
        );
    }

    #[test]
    fn bad_arguments_are_named() {
        assert!(refused("MaxExecutions").contains("MaxExecutions has no value"));
        assert!(refused("ExecutionThreads 0").contains("ExecutionThreads is 0"));
        assert!(refused("GrpcPort 70000").contains("port number"));
        assert!(refused("PythonAttemptTraceback x").contains("value must be a number."));
        assert!(refused("PythonInstallReqMaxIdleTime 0").contains("greater then zero."));
    }

    #[test]
    fn elements_of_configset() {
        let config = store("").unwrap();
        let error = |text: &str| ConfigReply::Error(text.into());
        let table: [(&str, Option<&str>, ConfigReply); 8] = [
            ("MAXEXECUTIONS", Some("7"), ConfigReply::Simple("OK".into())),
            (
                "maxExecutions",
                Some("x"),
                error("(error) Failed setting config value maxExecutions"),
            ),
            (
                "MaxExecutions",
                None,
                error("(error) Failed setting config value MaxExecutions"),
            ),
            (
                "ExecutionThreads",
                Some("2"),
                error("(error) Config value ExecutionThreads not modifiable at runtime"),
            ),
            (
                "CreateVenv",
                Some("1"),
                error("(error) CreateVenv is not configurable at runtime"),
            ),
            ("PythonAttemptTraceback", Some("0"), saved()),
            (
                "PythonInstallReqMaxIdleTime",
                Some("no"),
                error("Failed setting config value for key 'PythonInstallReqMaxIdleTime' with value 'no'"),
            ),
            ("foo", None, error("(error) Value was not given to foo")),
        ];
        for (key, value, expected) in table {
            assert_eq!(config.set(key.as_bytes(), value.map(str::as_bytes)), expected, "{key}");
        }
        assert_eq!(config.max_executions(), 7);
        assert!(!config.attempt_traceback());
    }

    #[test]
    fn the_secret_comes_from_a_file_and_is_not_shown() {
        let path = std::env::temp_dir().join(format!("oxigears-secret-{}", std::process::id()));
        std::fs::write(&path, "abc\n").unwrap();
        let config = store(&format!("ClusterSecretFile {}", path.display())).unwrap();
        assert_eq!(config.cluster_secret(), Ok(Some("abc".into())));
        std::fs::write(&path, " ").unwrap();
        assert!(config.cluster_secret().unwrap_err().contains("is empty"));
        std::fs::remove_file(&path).unwrap();
        assert!(config.cluster_secret().unwrap_err().contains("ClusterSecretFile"));
        assert!(config.listing().iter().all(|(_, value)| value != "abc"));
    }
}
