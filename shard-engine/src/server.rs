//! What Python code may ask of this server.

use std::sync::Arc;

use oxigears_coordinator::topology::{key_slot, slot_tag};
use oxigears_python_api::{LogLevel, Reply, RunRequest, Server};

use crate::{
    identity,
    module::module,
    redis::{
        call::{self, Flags},
        lock, log,
    },
};

/// The server as scripts see it.
pub struct RedisServer;

impl Server for RedisServer {
    fn execute(&self, args: &[Vec<u8>]) -> Result<Reply, String> {
        let guard = lock::lock();
        let user = identity::current();
        let flags = Flags {
            user: user.as_deref(),
            ..Flags::from_script()
        };
        call::call(&guard, args, flags).map_err(|e| e.to_string())
    }

    fn try_lock(&self) -> bool {
        lock::try_enter()
    }

    fn unlock(&self) {
        lock::exit();
    }

    fn lock_held(&self) -> bool {
        lock::is_held()
    }

    fn hashtag(&self) -> Option<String> {
        let topology = module().engine.topology();
        if !topology.is_cluster() {
            return Some(slot_tag(0));
        }
        let shard = topology.my_number().map(|n| &topology.shards[n])?;
        let tag = shard.ranges.first().map(|&(first, _)| slot_tag(first))?;
        debug_assert_eq!(shard.ranges[0].0, key_slot(tag.as_bytes()));
        Some(tag)
    }

    fn log(&self, level: LogLevel, message: &str) {
        let level = match level {
            LogLevel::Debug => log::Level::Debug,
            LogLevel::Verbose => log::Level::Verbose,
            LogLevel::Notice => log::Level::Notice,
            LogLevel::Warning => log::Level::Warning,
        };
        log::log(level, message);
    }

    fn config_get(&self, key: &str) -> Option<String> {
        module().config.user_get(key)
    }

    fn cluster_size(&self) -> usize {
        module().engine.topology().shards.len().max(1)
    }

    fn traceback_enabled(&self) -> bool {
        module().config.attempt_traceback()
    }

    fn profile_enabled(&self) -> bool {
        module().config.profile_executions()
    }

    fn start_run(&self, request: RunRequest) -> Result<String, String> {
        let RunRequest {
            mut plan,
            functions,
            nested,
            ..
        } = request;
        plan.user = identity::current().map(|user| user.to_string());
        let execution = module().engine.create(plan, Arc::new(functions), nested, None);
        execution.map(|e| e.id.to_string()).map_err(|e| e.to_string())
    }
}
