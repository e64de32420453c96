//! RG.CONFIGGET and RG.CONFIGSET.

use crate::{
    config::ConfigReply,
    module::module,
    redis::{register::Call, reply::ReplyWriter},
};

/// RG.CONFIGGET <key> ...
pub fn configget(call: &mut Call) {
    let elements: Vec<ConfigReply> = call.args[1..].iter().map(|key| module().config.get(key)).collect();
    write(call.reply(), &elements);
}

/// RG.CONFIGSET <key> <value> ...
pub fn configset(call: &mut Call) {
    let pairs = call.args[1..].chunks(2);
    let set = |pair: &[Vec<u8>]| module().config.set(&pair[0], pair.get(1).map(Vec::as_slice));
    let elements: Vec<ConfigReply> = pairs.map(set).collect();
    write(call.reply(), &elements);
}

fn write(reply: &mut ReplyWriter, elements: &[ConfigReply]) {
    reply.array(elements.len());
    for element in elements {
        write_element(reply, element);
    }
}

fn write_element(reply: &mut ReplyWriter, element: &ConfigReply) {
    match element {
        ConfigReply::Int(n) => reply.int(*n),
        ConfigReply::Bulk(bytes) => reply.bulk(bytes),
        ConfigReply::Simple(text) => reply.simple(text),
        ConfigReply::Error(text) => reply.error(text),
        ConfigReply::Array(texts) => {
            reply.array(texts.len());
            for text in texts {
                reply.bulk(text.as_bytes());
            }
        }
    }
}
