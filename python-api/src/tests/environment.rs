//! What scripts see besides the builder.

use super::*;
use crate::Server;

fn value(expression: &str) -> String {
    let outcome = run(&format!(
        "GB('PythonReader').map(lambda x: repr({expression})).run(lambda: iter([1]))"
    ));
    assert_eq!(outcome.errors, [""; 0], "{expression}");
    outcome.results.into_iter().next().unwrap()
}

#[test]
fn execute_maps_arguments_and_replies() {
    for (expression, expected) in [
        ("execute('ping')", "'PONG'"),
        ("execute('get', 'nokey')", "None"),
        ("execute('incr', 'n')", "1"),
        ("execute()", "[]"),
        (
            "execute('echo', 1, 2.5, b'b', bytearray(b'c'), None, True, [1], 'é')",
            "['1', '2.5', 'b', 'c', 'None', 'True', '[1]', 'é']",
        ),
        ("execute('echo', b'\\xff', 'a\\0b')", "[bytearray(b'\\xff'), 'a\\x00b']"),
        (
            "execute('resp3')",
            "[{b'a\\xff': 1.5}, {(1,)}, True, 36893488147419103232, None, 'ERR x']",
        ),
        ("hashtag()", "'06S'"),
        ("__name__", "'not_main'"),
        ("isInAtomicBlock()", "False"),
        ("isAsyncAllow()", "True"),
        ("str(getGearsSession())", "'PyExecutionSession'"),
        (
            "(configGet('FooBar'), configGet('foobar'), gearsConfigGet('zz', 'd'))",
            "('v1', None, 'd')",
        ),
        ("len(sys.argv)", "1"),
        ("__import__('cloudpickle').__version__", "'3.1.2'"),
        ("__import__('rg') is __import__('redisgears') is redisgears", "True"),
        (
            "[str(e) for e in (redisgears.GearsError, rg.GearsFlatError, rg.GearsForceStopped)]",
            "[\"<class 'gears.error'>\", \"<class 'gears.flat_error'>\", \"<class 'gears.forcestopped'>\"]",
        ),
        ("__import__('__main__').__name__", "'__main__'"),
        ("type(__import__('ctypes').CDLL(None)).__name__", "'CDLL'"),
        ("__import__('ssl').OPENSSL_VERSION.split()[0]", "'OpenSSL'"),
    ] {
        assert_eq!(value(expression), expected, "{expression}");
    }
}

#[test]
fn atomic_holds_the_lock() {
    let script = "def f(x):\n    inside = []\n    with atomic() as a:\n        inside.append(isInAtomicBlock())\n        \
                  execute('set', 'c', '1')\n    inside.append(isInAtomicBlock())\n    \
                  try:\n        with atomic():\n            raise ValueError('x')\n    \
                  except ValueError:\n        inside.append(isInAtomicBlock())\n    return inside\n\
                  GB('PythonReader').map(f).run(lambda: iter([1]))";
    assert_eq!(run(script).results, ["[True, False, False]"]);
}

#[test]
fn a_block_left_open_gives_the_lock_back() {
    run("GB('PythonReader').map(lambda x: atomic().__enter__() and None).run(lambda: iter([1]))");
    on_worker(|| {
        let server = fake::start();
        assert!(!server.lock_held());
    });
    failure("atomic().__enter__(); raise ValueError()");
    // Would wait for ever if the lock were still held.
    assert_eq!(run("x = 1; GB('PythonReader').run(lambda: iter([x]))").results, ["1"]);
}

#[test]
fn sessions_do_not_see_each_other() {
    run("x = 5; GB('PythonReader').run(lambda: iter([1]))");
    assert!(failure("x").contains("name 'x' is not defined"));
    run("import math; math.foo = 7; GB('PythonReader').run(lambda: iter([1]))");
    assert_eq!(
        run("import math; f = math.foo; GB('PythonReader').run(lambda: iter([f]))").results,
        ["7"]
    );
}

#[test]
fn scripts_without_a_run() {
    on_worker(|| {
        for script in ["", "1+1", "# nothing", "isAsyncAllow() and 1/0", "\u{feff}x = 1"] {
            assert!(request(script).is_none(), "{script}");
        }
        assert!(request("# -*- coding: latin-1 -*-\nx = 'y'").is_none());
    });
}

#[test]
fn print_and_log_reach_the_server_log() {
    on_worker(|| {
        let fake = fake::start();
        request(
            "import sys\nprint('one', 2)\nprint('a\\nb', end='')\nprint('', flush=True)\n\
             print('odd \\ud800 text')\nprint('to stderr', file=sys.stderr)\n\
             log('hello'); log('warning', 'old order'); log('x', level='debug'); Log('dep')",
        );
        let log = fake.log.lock();
        let has = |level, text: &str| log.iter().any(|(l, t)| *l == level && t.starts_with(text));
        use crate::LogLevel::{Debug, Notice, Warning};
        for text in ["one 2", "a", "b", "odd ", "GEARS: hello", "GEARS: dep"] {
            assert!(has(Notice, text), "{text}: {log:?}");
        }
        assert!(has(Warning, "to stderr") && has(Warning, "GEARS: old order") && has(Debug, "GEARS: x"));
        assert!(has(Warning, "GEARS: Log is deprecated, use log instead"));
    });
}

#[test]
fn a_reused_builder_keeps_the_steps_that_run_added() {
    on_worker(|| {
        let script = "b = GB('ShardsIDReader').map(lambda x: x)\nb.run()\n\
                      def again(x):\n    b.map(lambda x: x).run()\n    return x\nc = GB()";
        let request = request(script).unwrap();
        let words: Vec<_> = request.plan.ops.iter().map(|op| op.word()).collect();
        assert_eq!(words, ["map", "map", "collect"]);
        assert_eq!(request.plan.function_names.len(), 1);
    });
}

#[test]
fn nested_runs_are_started_at_once() {
    let script = "def f(x):\n    future = GB('ShardsIDReader').map(lambda y: x).run()\n    \
                  return (type(future).__name__, future.executionId[-2:-1])\n\
                  GB('PythonReader').map(f).run(lambda: iter([1]))";
    assert_eq!(run(script).results, ["('GearsFuture', '-')"]);
    let started = fake::start().started.lock();
    assert!(started.iter().any(|r| r.nested && r.plan.ops.len() == 3));
}

#[test]
fn threads_of_scripts() {
    let script = "def on_thread(f):\n    out = []\n    def go():\n        try:\n            out.append(f())\n        \
                  except Exception as e:\n            out.append(str(e))\n    t = Thread(target=go)\n    t.start()\n    \
                  t.join()\n    return out[0]\n\
                  def with_session(s, register):\n    def go():\n        if register: registerGearsThread()\n        \
                  with GearsSession(s):\n            b = GB('ShardsIDReader')\n            b.run()\n        \
                  return getGearsSession()\n    return go\n\
                  def f(x):\n    s = getGearsSession()\n    return [on_thread(lambda: GB()), \
                  on_thread(with_session(s, False)), on_thread(with_session(s, True)), \
                  on_thread(lambda: execute('ping')), on_thread(lambda: getGearsSession())]\n\
                  GB('PythonReader').map(f).run(lambda: iter([1]))";
    assert_eq!(
        run(script).results,
        ["['Can not create a gearsCtx on a python created thread', \
          'Can only create a gearsCtx on registered gears thread', None, 'PONG', None]"]
    );
}

#[test]
fn callables_of_any_kind_are_accepted() {
    let setup = "import functools\nclass C:\n    def m(self, x): return ('m', x)\n    def __call__(self, x): return ('c', x)\n\
                 def two(a, b): return (a, b)\n";
    for (callable, expected) in [
        ("C().m", "('m', 1)"),
        ("C()", "('c', 1)"),
        ("str", "1"),
        ("functools.partial(two, 'p')", "('p', 1)"),
    ] {
        let outcome = run(&format!(
            "{setup}GB('PythonReader').map({callable}).run(lambda: iter([1]))"
        ));
        assert_eq!(outcome.results, [expected], "{callable}: {:?}", outcome.errors);
    }
}

#[test]
fn memory_is_counted() {
    on_worker(|| {
        let before = crate::memory_stats();
        assert!(before.current > 0 && before.peak >= before.current && before.total >= before.current);
        request("x = bytearray(50_000_000)");
        assert!(crate::memory_stats().total >= before.total + 50_000_000);
    });
}

#[test]
fn profilers_print() {
    let script = "def f(x):\n    p = profilerCreate()\n    profileStart(p)\n    sorted([3, 1])\n    profileStop(p)\n    \
                  return 'sorted' in profileGetInfo(p, 'time')\nGB('PythonReader').map(f).run(lambda: iter([1]))";
    assert_eq!(run(script).results, ["True"]);
}

/// Editors and type checkers see exactly the names that scripts see.
#[test]
fn stubs_name_what_scripts_see() {
    for (stub, names) in [
        (
            include_str!("../../python/oxigears/__init__.pyi"),
            "__import__('oxigears.environment', None, None, ['x']).__all__",
        ),
        (
            include_str!("../../python/redisgears/__init__.pyi"),
            "[n for n in vars(redisgears) if not n.startswith('__')]",
        ),
    ] {
        let script = format!(
            "import ast\nnames = set()\nfor node in ast.parse({stub:?}).body:\n    match node:\n        \
             case ast.FunctionDef() | ast.ClassDef(): names.add(node.name)\n        \
             case ast.Assign(): names.update(t.id for t in node.targets)\n        \
             case ast.AnnAssign(): names.add(node.target.id)\n        \
             case ast.Import(): names.update(a.asname for a in node.names if a.asname)\n        \
             case ast.ImportFrom(): names.update(a.asname for a in node.names if a.asname)\n\
             names = {{n for n in names if not n.startswith('_')}}\n\
             odd = sorted(names ^ set({names}))\n\
             GB('PythonReader').run(lambda: iter([odd]))"
        );
        assert_eq!(run(&script).results, ["[]"]);
    }
}
