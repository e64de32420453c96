//! Error texts.

use super::*;

fn first_error(program: &str) -> String {
    let outcome = run(&with_source("1", program));
    assert_eq!(outcome.errors.len(), 1, "{program}: {outcome:?}");
    outcome.errors.into_iter().next().unwrap()
}

#[test]
fn script_errors() {
    assert_eq!(
        failure("raise Exception('foo')"),
        r#"['Traceback (most recent call last):\n', '  File "<string>", line 1, in <module>\n', 'Exception: foo\n']"#
    );
    assert_eq!(
        failure("def f(:"),
        "Error type: <class 'SyntaxError'>, Value: invalid syntax (<string>, line 1)"
    );
    assert_eq!(failure("raise redisgears.GearsFlatError('only this')"), "only this");
    assert_eq!(failure("flat_error({'a': 1})"), "{'a': 1}");
    assert!(failure("import sys; sys.exit(3)").ends_with(r"'SystemExit: 3\n']"));
    assert!(failure("raise KeyboardInterrupt").contains("KeyboardInterrupt"));
    assert!(failure("raise GeneratorExit").contains("GeneratorExit"));
    assert!(failure("x = 1\0").contains("null bytes"), "{}", failure("x = 1\0"));
    assert!(failure("flat_error()").contains("gears.error: not enough arguments for time flat error"));
}

#[test]
fn step_errors() {
    assert_eq!(first_error("PR.map(lambda x: flat_error('my msg')).run(src)"), "my msg");
    assert_eq!(
        first_error("PR.map(lambda: 1).run(src)"),
        "Error type: <class 'TypeError'>, Value: <lambda>() takes 0 positional arguments but 1 was given"
    );
    assert!(first_error("PR.map(lambda x: y).run(src)").starts_with("['Traceback (most recent call last):\\n', "));
    assert!(first_error("import sys\nPR.map(lambda x: sys.exit(2)).run(src)").contains("SystemExit: 2"));
    assert!(
        first_error("PR.map(lambda x: execute('wrong')).run(src)")
            .contains(r"gears.error: WRONGTYPE Operation against a key\n")
    );
    assert!(first_error("PR.map(lambda x: execute('nosuch')).run(src)").contains("ERR unknown command"));
}

#[test]
fn odd_exceptions_have_texts() {
    let odd = "class E(Exception):\n    def __str__(self): raise ValueError('no')\n    __repr__ = __str__\n\
               def fail(x): raise E('x')\n";
    assert!(first_error(&format!("{odd}PR.map(fail).run(src)")).contains("str() failed"));
    let meta = "class M(type):\n    def __str__(self): raise ValueError('no')\nclass E(Exception, metaclass=M): pass\n\
                def fail(x): raise E('x')\n";
    assert!(first_error(&format!("{meta}PR.map(fail).run(src)")).contains("E: x"));
    let surrogate = first_error("PR.map(lambda x: flat_error('a\\ud800b')).run(src)");
    assert!(surrogate.starts_with('a') && surrogate.ends_with('b'), "{surrogate}");
    let long = first_error("def fail(x): raise ValueError('x' * 10_000_000)\nPR.map(fail).run(src)");
    assert!(
        long.len() <= oxigears_coordinator::limits::ERROR_TEXT_BYTES,
        "{}",
        long.len()
    );
    assert!(
        long.contains("cut") && long.ends_with("']"),
        "the list stays complete: {}",
        &long[long.len() - 80..]
    );
    let flat = first_error("PR.map(lambda x: flat_error('é' * 1_000_000)).run(src)");
    assert!(flat.len() <= oxigears_coordinator::limits::ERROR_TEXT_BYTES && flat.ends_with("(cut)"));
    let (a, b) = ("a".repeat(300), "b".repeat(300));
    let deep = first_error(&format!(
        "def {a}(n): return {b}(n)\ndef {b}(n): return {a}(n + 1)\nPR.map({a}).run(src)"
    ));
    assert!(deep.contains("lines cut") && deep.contains("RecursionError"), "{deep}");
}

#[test]
fn without_tracebacks() {
    let script = with_source("1", "PR.map(lambda x: y).run(src)");
    let outcome = on_worker(move || {
        fake::NO_TRACEBACKS.with(|n| n.set(true));
        execute(&request(&script).unwrap(), 1, Vec::new())
    });
    assert_eq!(
        outcome.errors,
        ["Error type: <class 'NameError'>, Value: name 'y' is not defined"]
    );
}

/// (script, fragment of its error)
#[test]
fn misuse_of_the_builder() {
    for (script, text) in [
        (
            "GB().run(); GB().run()",
            "gears.error: Can not run more then 1 executions in a single script",
        ),
        ("GB('nope')", "The given reader does not exists"),
        ("GB(1)", "reader argument must be a string"),
        ("GB('KeysReader', '*', 5)", "desc argument must be a string"),
        ("GB().map()", "wrong number of args to map function"),
        ("GB().map(1)", "map argument must be a function"),
        ("GB().map(len)", "map argument must be a function"),
        ("GB().map(f=lambda x: x)", "unexpected keyword argument"),
        ("GB().filter(1)", "filter argument must be a function"),
        ("GB().foreach(1, 2)", "wrong number of args to foreach function"),
        ("GB().flatmap(None)", "flatmap argument must be a function"),
        ("GB().accumulate(1)", "accumulate argument must be a function"),
        ("GB().repartition(1)", "repartition argument must be a function"),
        ("GB().groupby(1)", "wrong number of args to groupby function"),
        ("GB().groupby(1, 2)", "groupby extractor argument must be a function"),
        (
            "GB().groupby(lambda x: x, 2)",
            "groupby reducer argument must be a function",
        ),
        (
            "GB().localgroupby(lambda x: x, 2)",
            "groupby reducer argument must be a function",
        ),
        ("GB().batchgroupby(1)", "wrong number of args to batchgroupby function"),
        (
            "GB().batchgroupby(1, 2)",
            "batchgroupby extractor argument must be a function",
        ),
        ("GB().collect(1)", "wrong number of args to collect function"),
        ("GB().limit('a')", "limit argument must be a number"),
        ("GB().limit(1.5)", "limit argument must be a number"),
        ("GB().limit(1, 2, 3)", "wrong number of args to limit function"),
        ("GB().avg(1)", "map argument must be a function"),
        ("GB().run(1)", "regex argument must be a string"),
        ("GB().run('x', mode='sync')", "unknown execution mode"),
        ("GB().run('x', mode=1)", "execution mode must be a string"),
        ("GB().run(noScan=1)", "exactMatch value is not boolean"),
        ("GB().run(readValue=1)", "readValue value is not boolean"),
        ("GB().run(readAllTypes=1)", "readAllTypes value is not boolean"),
        ("GB('KeysOnlyReader').run('x', nonsense=1)", "nonsense"),
        ("GB('PythonReader').run(5)", "pyreader argument must be a function"),
        ("GB('PythonReader').run()", "pyreader argument must be a function"),
        ("GB('PythonReader', None).run()", "python reader function is not given"),
        (
            "GB('CommandReader').run()",
            "Given reader do not support run or not exists",
        ),
        (
            "GB('StreamReader').run('x', fromId=1)",
            "fromId argument must be a string",
        ),
        (
            "gearsFuture()",
            "Future object can only be created inside certain execution steps",
        ),
        ("gearsFuture(1)", "Future gets no arguments"),
        ("call_next()", "Can not get CommandHook ctx"),
        ("get_command()", "Can not get command ctx"),
        ("override_reply(1)", "Can not get command ctx"),
        ("override_reply()", "Override reply must get a single argument"),
        ("execute(b'get', 'x')", "the given command must be a string"),
        (
            "with atomic():\n  with atomic(): pass",
            "gears.error: Already inside an atomic block",
        ),
        (
            "atomic().__exit__(None, None, None)",
            "gears.error: Not inside an atomic block",
        ),
        ("log()", "log function must get a log message as input"),
        ("log(1)", "Log message must be a string"),
        (
            "log('x', level=1)",
            "Log level must be a sting (debug/verbose/notice/warning)",
        ),
        (
            "log('x', level='loud')",
            "Log level should be one of the following : debug,verbose,notice,warning",
        ),
        ("configGet()", "get_config function must get a single key input"),
        ("configGet(1)", "get_config key must be a string"),
        ("setGearsSession()", "Wrong number of args given to setGearsSession"),
        ("setGearsSession(1)", "Given object is not of type GearsSession"),
        ("import redisAI; redisAI.createDAGRunner()", "RedisAI is not loaded"),
    ] {
        let error = failure(script);
        assert!(error.contains(text), "{script}\n{error}");
    }
}
