//! The module's state in this process, and what loading does.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use oxigears_coordinator::engine::{Engine, Host};
use oxigears_python_api::{self as python, InitOptions};

use crate::{
    commands,
    config::ConfigStore,
    host::EngineHost,
    info,
    mesh::{self, Settings},
    persistence,
    redis::{cluster, lock::ServerLock, log, version},
    registrations,
    scripts::ScriptThread,
    server::RedisServer,
    timers,
};

/// What `MODULE LIST` shows: the interface version that clients check.
pub const MODULE_NAME: &str = "rg";
/// 1.2.13 in the form of RedisGears.
pub const MODULE_VERSION: i32 = 10213;
/// Everything that lives as long as the process.
pub struct Module {
    /// The configuration.
    pub config: ConfigStore,
    /// The executions.
    pub engine: Arc<Engine>,
    /// The thread that runs scripts.
    pub scripts: ScriptThread,
    /// The server runs in cluster mode.
    pub is_cluster: bool,
    host: Arc<EngineHost>,
}

static MODULE: OnceLock<Module> = OnceLock::new();

/// The loaded module. Nothing of it runs before `load` has set it.
pub fn module() -> &'static Module {
    MODULE.get().expect("the module is loaded")
}

impl Module {
    /// Milliseconds of the engine's clock.
    pub fn now_ms(&self) -> u64 {
        self.host.now_ms()
    }

    /// What ShardsIDReader gives: `1` when the server is alone.
    pub fn shard_id_for_scripts(&self) -> String {
        let topology = self.engine.topology();
        if topology.is_cluster() {
            topology.me.to_string()
        } else {
            "1".to_owned()
        }
    }
}

/// Loads the module: configuration, interpreter, engine, commands, mesh. The error says why it cannot work here.
pub fn load(guard: &ServerLock, args: &[Vec<u8>]) -> Result<(), String> {
    let (major, minor, patch) = version::server_version(guard);
    log::notice(&format!(
        "RedisGears version 1.2.13 (OxiGears {}), git_sha={}, compiled_os=linux-{}",
        env!("CARGO_PKG_VERSION"),
        info::COMMIT,
        std::env::consts::ARCH
    ));
    log::notice(&format!(
        "Redis version found by RedisGears : {major}.{minor}.{patch} - oss"
    ));
    if !version::at_least(7, 0) {
        return Err("Redis version is to old, please upgrade to redis 7.0.0 and above.".into());
    }
    if MODULE.get().is_some() {
        return Err("the module is loaded already".into());
    }
    let config = ConfigStore::from_args(args).map_err(|e| format!("could not initialize gears config: {e}"))?;
    let is_cluster = cluster::is_enabled(guard);
    if is_cluster && let Some(reason) = Settings::read(guard, &config)?.refusal() {
        return Err(reason);
    }
    for (name, value) in config.listing() {
        log::notice(&format!("{name}:{value}"));
    }
    let options = InitOptions {
        override_allocators: config.override_python_allocators(),
        site_dirs: config
            .python_venv()
            .map(|venv| site_dirs(Path::new(&venv)))
            .transpose()?
            .into_iter()
            .collect(),
    };
    python::initialize(options, Arc::new(RedisServer)).map_err(|e| format!("Python can not start: {e}"))?;
    let host = Arc::new(EngineHost::new());
    let engine = Engine::start(host.clone(), config.execution_threads()).map_err(|e| format!("no threads: {e}"))?;
    if is_cluster {
        // Before anything runs: the engine takes a node whose cluster it does not know for a server that is alone.
        let topology = cluster::topology(guard).ok_or("the cluster's slots can not be read (CLUSTER SLOTS)")?;
        engine.set_topology(topology);
    }
    let scripts = ScriptThread::start().map_err(|e| format!("no threads: {e}"))?;
    registrations::create(guard)?;
    commands::register(guard, &config)?;
    persistence::register(guard)?;
    timers::register(guard)?;
    info::register(guard)?;
    if MODULE
        .set(Module {
            config,
            engine,
            scripts,
            is_cluster,
            host,
        })
        .is_err()
    {
        return Err("the module is loaded already".into());
    }
    registrations::start(guard)?;
    if is_cluster {
        registrations::group::start_if_known(guard);
        mesh::start(guard);
    }
    Ok(())
}

/// `site-packages` of a virtual environment.
fn site_dirs(venv: &Path) -> Result<PathBuf, String> {
    let version = python::python_version();
    let minor: Vec<&str> = version.split('.').take(2).collect();
    let dir = venv.join(format!("lib/python{}/site-packages", minor.join(".")));
    if dir.is_dir() {
        return Ok(dir);
    }
    Err(format!(
        "PythonVenv {}: no folder {}; make it with the Python that the module embeds ({version})",
        venv.display(),
        dir.display()
    ))
}
