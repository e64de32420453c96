//! `register()`: what it checks, what it leaves behind, what happens in running code.

use std::sync::atomic::Ordering::Relaxed;

use oxigears_coordinator::{
    plan::{Mode, Op, Reader},
    registry::{EventSource, RegisterMode},
};

use super::*;
use crate::{LogLevel, call_function};

fn refused(call: &str, text: &str) {
    let error = failure(call);
    assert!(error.contains(text), "{call}\n{error}");
    assert!(error.contains("gears.error"), "{call}\n{error}");
}

#[test]
fn arguments_are_checked_with_the_known_texts() {
    for (arguments, text) in [
        ("mode=1", "execution mode must be a string"),
        ("mode='no'", "unknown execution mode"),
        (
            "onRegistered=1, trigger='t'",
            "OnRegistered argument must be a function",
        ),
        (
            "onRegistered=len, trigger='t'",
            "OnRegistered argument must be a function",
        ),
        (
            "onUnregistered='f', trigger='t'",
            "OnUnregistered argument must be a function",
        ),
        ("", "no trigger or hook argument was given"),
        ("keyprefix='k'", "no trigger or hook argument was given"),
        ("trigger=1", "trigger argument is not string"),
        ("trigger=None", "trigger argument is not string"),
        ("hook=1", "hook argument is not string"),
        ("hook='set', keyprefix=b'k'", "keyprefix argument is not string"),
        ("trigger='t', inorder=1", "inorder argument is be boolean"),
        (
            "trigger='t', hook='set'",
            "trigger argument can not be given with keyprefix or hook",
        ),
        (
            "trigger='t', keyprefix='k'",
            "trigger argument can not be given with keyprefix or hook",
        ),
    ] {
        refused(&format!("GB('CommandReader').register({arguments})"), text);
    }
}

#[test]
fn other_readers_check_and_refuse() {
    for (reader, arguments, text) in [
        ("KeysReader", "1", "regex argument must be a string"),
        ("KeysReader", "'a', regex=1", "regex argument must be a string"),
        ("KeysReader", "eventTypes=1", "given eventTypes is not iterable"),
        ("KeysReader", "eventTypes=[1]", "given event type is not string"),
        ("KeysReader", "keyTypes=1", "given keyTypes is not iterable"),
        ("KeysReader", "keyTypes=[b'x']", "given key type is not string"),
        ("KeysReader", "keyTypes=['string', 'none']", "unknown key type"),
        ("KeysReader", "readValue=1", "readValue is not boolean"),
        ("KeysReader", "commands=1", "given commands is not iterable"),
        ("KeysReader", "commands=[1]", "given command type is not string"),
        ("StreamReader", "None", "regex argument must be a string"),
        ("StreamReader", "batch='1'", "batch argument must be a number"),
        ("StreamReader", "duration='1'", "duration argument must be a number"),
        (
            "StreamReader",
            "onFailedPolicy=1",
            "onFailedPolicy must be a string (Continue/Abort/Retry)",
        ),
        (
            "StreamReader",
            "onFailedPolicy='no'",
            "onFailedPolicy must be Continue/Abort/Retry",
        ),
        (
            "StreamReader",
            "onFailedPolicy='RETRY', mode='sync'",
            "ExecutionMode sync can only be combined with OnFailedPolicy Continue",
        ),
        (
            "StreamReader",
            "onFailedRetryInterval='x'",
            "retryInterval argument must be a number",
        ),
        (
            "StreamReader",
            "trimStream=1",
            "pyTrimmStream argument must be a boolean",
        ),
        (
            "KeysOnlyReader",
            "",
            "given reader does not exists or does not support register",
        ),
        (
            "PythonReader",
            "trigger='t'",
            "given reader does not exists or does not support register",
        ),
        (
            "ShardsIDReader",
            "",
            "given reader does not exists or does not support register",
        ),
    ] {
        refused(&format!("GB('{reader}').register({arguments})"), text);
    }
}

#[test]
fn a_registration_holds_what_the_script_said() {
    on_worker(|| {
        let drafts = register(
            "def hello(): pass\ndef bye(): pass\n\
             b = GB('CommandReader', desc='what it does').map(lambda x: x)\n\
             ids = [b.register('ignored', trigger='A é\\0', mode='sync', inorder=True, onRegistered=hello, onUnregistered=bye)]\n\
             ids.append(b.register(trigger=b'\\xff', convertToStr=False, mode='async_local', onRegistered=None))\n\
             ids.append(GB('CommandReader').register(trigger='c', collect=False))\n\
             assert len(set(ids)) == 3 and all(type(i) is str for i in ids)",
        );
        let [first, second, third] = drafts.as_slice() else {
            panic!("{drafts:?}");
        };
        assert_eq!(
            first.source,
            EventSource::Command {
                trigger: "A é\0".as_bytes().to_vec().into(),
                inorder: true
            }
        );
        assert_eq!(
            (first.mode, first.plan.mode, &first.plan.reader),
            (RegisterMode::Sync, Mode::AsyncLocal, &Reader::Command)
        );
        assert_eq!(first.plan.ops, [Op::Map(0), Op::ToStr, Op::Collect]);
        assert_eq!(first.description.as_deref(), Some("what it does"));
        assert_eq!((first.on_registered, first.on_unregistered), (Some(1), Some(2)));
        assert!(first.plan.function_names[1].contains("hello") && first.plan.function_names[2].contains("bye"));
        assert_eq!((first.session.id(), first.plan.session.as_str()), ("test", "test"));
        assert!(first.id.contains('-') && first.id != second.id);
        assert_eq!(
            second.source,
            EventSource::Command {
                trigger: vec![0xff].into(),
                inorder: false
            }
        );
        assert_eq!(
            (second.mode, second.plan.mode),
            (RegisterMode::AsyncLocal, Mode::AsyncLocal)
        );
        // The steps that the first call appended stay.
        assert_eq!(second.plan.ops, [Op::Map(0), Op::ToStr, Op::Collect, Op::Collect]);
        assert_eq!((second.on_registered, second.on_unregistered), (None, None));
        assert_eq!((third.mode, third.plan.mode), (RegisterMode::Async, Mode::Async));
        assert_eq!(third.plan.ops, [Op::ToStr]);
        assert_eq!(third.description, None);
        for draft in &drafts {
            draft.plan.validate().unwrap();
            assert!(!draft.plan.code.is_empty());
            assert_eq!(
                oxigears_coordinator::plan::Plan::decode(&draft.plan.encode().unwrap()).unwrap(),
                draft.plan
            );
        }
    });
}

#[test]
fn every_builder_takes_a_number() {
    on_worker(|| {
        let fake = fake::start();
        let before = fake.builders.load(Relaxed);
        register("for i in range(5): GB('CommandReader')");
        // Other tests make builders meanwhile.
        assert!(fake.builders.load(Relaxed) >= before + 5);
    });
}

#[test]
fn a_run_and_registrations_in_one_script() {
    on_worker(|| {
        let session = Session::create("both", None).unwrap();
        let script = "GB('CommandReader').register(trigger='x')\nGB('PythonReader').run(lambda: iter([1]))\n\
                      GB('CommandReader').register(trigger='y')";
        let outcome = run_script(&session, script.as_bytes()).unwrap();
        assert_eq!(outcome.registrations.len(), 2);
        assert_eq!(execute(&outcome.run.unwrap(), 1, Vec::new()).results, ["1"]);
        // Nothing is left for the next script on this thread.
        let outcome = run_script(&session, b"pass").unwrap();
        assert!(outcome.run.is_none() && outcome.registrations.is_empty());
        assert!(run_script(&session, b"GB('CommandReader').register(trigger='x')\nbad").is_err());
        assert!(run_script(&session, b"pass").unwrap().registrations.is_empty());
    });
}

#[test]
fn the_server_may_refuse() {
    let fake = fake::start();
    fake.taken.lock().insert(b"taken".to_vec());
    refused(
        "GB('CommandReader').register(trigger='taken')",
        "trigger already registered",
    );
    let twice = "for i in range(2): GB('CommandReader').register(trigger='twice')";
    refused(twice, "trigger already registered in this session");
    // A refusal that the script catches costs nothing but itself.
    let drafts = on_worker(|| {
        register(
            "GB('CommandReader').register(trigger='ok1')\n\
             try:\n    GB('CommandReader').register(trigger='ok1')\nexcept redisgears.GearsError: pass\n\
             GB('CommandReader').register(trigger='ok2')",
        )
        .len()
    });
    assert_eq!(drafts, 2);
}

#[test]
fn functions_are_pickled_on_a_single_shard_too() {
    refused(
        "import threading\nlock = threading.Lock()\nGB('CommandReader').map(lambda x: lock).register(trigger='t')",
        "Error occured when serialized a python callback, callback=<lambda> error=",
    );
    refused(
        "import threading\nlock = threading.Lock()\ndef hello(): lock\n\
         GB('CommandReader').map(lambda x: x).register(trigger='t', onRegistered=hello)",
        "Error occured when serialized a python callback, callback=hello error=",
    );
}

#[test]
fn only_known_threads_register() {
    let script = "import threading\nerrors = []\nb = GB('CommandReader')\n\
                  def f():\n    try:\n        b.register(trigger='t')\n    except Exception as e:\n        errors.append(str(e))\n\
                  t = threading.Thread(target=f)\nt.start()\nt.join()\nflat_error(errors)";
    assert_eq!(
        failure(script),
        "['Can only register execution on registered gears thread']"
    );
}

#[test]
fn odd_keywords_are_logged() {
    let logged = |script: &str, fragment: &str| {
        on_worker({
            let script = script.to_owned();
            move || assert_eq!(register(&script).len(), 1)
        });
        let log = fake::start().log.lock();
        let line = log.iter().find(|(_, line)| line.contains(fragment));
        assert!(
            line.is_some_and(|(level, _)| *level == LogLevel::Warning),
            "{script}: {line:?}"
        );
    };
    logged(
        "GB('CommandReader').register(trigger='t', triger='t', evenTypes=1)",
        "CommandReader does not know these keywords, they are ignored: triger, evenTypes",
    );
    logged(
        "async def welcome(): pass\nGB('CommandReader').register(trigger='t', onRegistered=welcome)",
        "onRegistered is a coroutine function (welcome)",
    );
    logged("GB('KeysReader').register(regex='a*')", "regex is deprecated");
}

#[test]
fn callbacks_run_in_their_session() {
    on_worker(|| {
        let drafts = register(
            "state = 'none'\ndef hello():\n    global state\n    state = (execute('echo', 'a'), isAsyncAllow(), isInAtomicBlock())\n    \
             atomic().__enter__()\n\
             async def later(): pass\n\
             GB('CommandReader').map(lambda x: state).register(trigger='t', mode='sync', onRegistered=hello, onUnregistered=lambda: bad)\n\
             GB('CommandReader').register(trigger='u', onRegistered=lambda: later())",
        );
        let [first, second] = drafts.as_slice() else {
            panic!("{drafts:?}");
        };
        for functions in [first.functions.clone(), loaded_elsewhere(&first.plan, 1)] {
            let invoker = Invoker::new(&first.plan, &functions).unwrap();
            let state = || invoke(&invoker, functions.session(), &[b"t"]).results;
            assert_eq!(state(), ["none"]);
            crate::with_server_locked(|| {
                assert!(crate::server::server().lock_held());
                call_function(&functions, first.on_registered.unwrap(), functions.session())
            })
            .unwrap();
            // The block that it left open was closed.
            assert!(!crate::server::server().lock_held());
            assert_eq!(state(), ["(['a'], False, False)"]);
            let error = call_function(&functions, first.on_unregistered.unwrap(), functions.session()).unwrap_err();
            assert!(error.contains("NameError"), "{error}");
        }
        let error = call_function(&second.functions, second.on_registered.unwrap(), &second.session).unwrap_err();
        assert!(error.contains("coroutine"), "{error}");
        assert!(call_function(&second.functions, 99, &second.session).is_err());
    });
}

#[test]
fn running_code_registers_at_once() {
    on_worker(|| {
        let fake = fake::start();
        let drafts = register(
            "n = 0\ndef count(x):\n    global n\n    n += 1\n    return n\n\
             def add(x): return GB('CommandReader').map(count).register(trigger=x[1], convertToStr=False, mode='sync')\n\
             GB('CommandReader').map(add).register(trigger='add', mode='sync')\n\
             GB('CommandReader').map(count).register(trigger='count', mode='sync')",
        );
        let session = &drafts[0].session;
        let added = invoke(&invoker(&drafts[0]), session, &[b"add", b"running:new"]);
        let draft = {
            let mut registered = fake.registered.lock();
            let at = registered
                .iter()
                .position(
                    |draft| matches!(&draft.source, EventSource::Command { trigger, .. } if trigger == "running:new"),
                )
                .expect("the server was told");
            registered.remove(at)
        };
        assert_eq!(added.results, std::slice::from_ref(&draft.id));
        assert!(Arc::ptr_eq(&draft.session, session));
        // It joins the session's globals.
        assert_eq!(invoke(&invoker(&drafts[1]), session, &[b"count"]).results, ["1"]);
        assert_eq!(invoke(&invoker(&draft), session, &[b"new"]).results, ["2"]);
        fake.taken.lock().insert(b"running:taken".to_vec());
        let error = invoke(&invoker(&drafts[0]), session, &[b"add", b"running:taken"]).errors;
        assert!(error[0].contains("trigger already registered"), "{error:?}");
    });
}
