//! RG.PYEXECUTE: runs a script.

use rand::RngExt;

use super::{options, wrong_arity};
use crate::{
    identity, mesh,
    module::module,
    redis::{blocked::BlockedClient, register::Call},
    registrations::{drafts::Replacing, service},
    scripts,
};

/// RG.PYEXECUTE <script> [options ...]
pub fn pyexecute(call: &mut Call) {
    if !call.context_flags().may_block() {
        return call
            .reply()
            .error("Can not run gears inside a multi exec, lua, or when blocking is not allowed");
    }
    if wrong_arity(call, 2..) {
        return;
    }
    let options = match options::parse(&call.args[2..]).and_then(refuse_later_work) {
        Ok(options) => options,
        Err(text) => return call.reply().error(&text),
    };
    let replacing = Replacing {
        name: options.id.unwrap_or_else(random_id),
        upgrade: options.upgrade || options.replace_with.is_some(),
        replace: options.replace_with,
    };
    if let Err(refusal) = replacing.check(&service().state()) {
        return call.reply().error(&refusal.to_string());
    }
    mesh::refresh_topology_if_old(call.guard());
    let user = identity::of_caller(call);
    let code = std::mem::take(&mut call.args[1]);
    let client = BlockedClient::block(call, None);
    module().scripts.submit(scripts::Call {
        code,
        replacing,
        description: options.description,
        user,
        unblocking: options.unblocking,
        client,
    });
}

fn refuse_later_work(options: options::Options) -> Result<options::Options, String> {
    if options.force_reinstall || !options.requirements.is_empty() {
        return Err("ERR REQUIREMENTS are not supported yet: install packages into the server's Python".into());
    }
    Ok(options)
}

/// 40 hex digits.
fn random_id() -> String {
    let mut rng = rand::rng();
    (0..5).map(|_| format!("{:08x}", rng.random::<u32>())).collect()
}
