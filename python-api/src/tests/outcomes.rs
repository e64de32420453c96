//! Errors, odd readers and results, and the operations on three shards.

use super::*;

#[test]
fn errors_stop_the_reader_and_keep_what_was_read() {
    let six = "1, 2, 3, 4, 5, 6";
    let bad = "NameError: name 'bad' is not defined";
    check(six, "PR.map(lambda x: bad if x == 2 else x).run(src)", &["1"], &[bad]);
    check(
        six,
        "PR.map(lambda x: bad if x == 2 else x).count().run(src)",
        &["1"],
        &[bad],
    );
    check(
        "'1', 'x', '2', '4'",
        "PR.avg().run(src)",
        &["1.0"],
        &["could not convert string to float: 'x'"],
    );
    check(
        six,
        "PR.accumulate(lambda a, x: bad if x == 2 else (a or 0) + x).run(src)",
        &[],
        &[bad],
    );
    check(
        six,
        "PR.groupby(lambda x: x % 2, lambda k, a, x: bad if x == 3 else (a or 0) + x).run(src)",
        &["{'key': '0', 'value': 2}"],
        &[bad],
    );
    check(
        "1, 2, 3",
        "PR.batchgroupby(lambda x: x, lambda k, l: bad).run(src)",
        &[],
        &[bad, bad, bad],
    );
    check(
        "1, 2, 3",
        "PR.sort().map(lambda x: bad if x < 3 else x).run(src)",
        &["3"],
        &[bad, bad],
    );
    check(
        "1",
        "PR.flatmap(lambda x: [1, 0, 2]).map(lambda x: 1 // x).run(src)",
        &["1", "0"],
        &["ZeroDivisionError"],
    );
}

#[test]
fn python_readers() {
    check(
        "",
        "PR.run(lambda: (i for i in range(5)))",
        &["0", "1", "2", "3", "4"],
        &[],
    );
    check(
        "",
        "def g():\n    yield 1\n    raise Exception('stop here')\nPR.run(g)",
        &["1"],
        &["Exception: stop here"],
    );
    check("", "PR.run(lambda: None)", &[], &[]);
    check(
        "",
        "PR.run(lambda: [1, 2])",
        &[],
        &["PythonReader function must return an iterator"],
    );
    check("", "PR.run(lambda: iter([1, 2]))", &["1", "2"], &[]);
    check(
        "",
        "PR.run(lambda x: iter([1, 2]))",
        &[],
        &["missing 1 required positional argument"],
    );
    check("", "PR.run(lambda: 1 / 0)", &[], &["ZeroDivisionError"]);
    check(
        "",
        "async def g(): pass\nPR.run(g)",
        &[],
        &["PythonReader function must return an iterator"],
    );
}

#[test]
fn results_of_any_kind() {
    check(
        "1",
        "PR.flatmap(lambda x: (yield)).run(src, convertToStr=False)",
        &["<generator object>"],
        &[],
    );
    check(
        "-7, 2**62, 2**70",
        "PR.run(src, convertToStr=False)",
        &["-7", "4611686018427387904", "1180591620717411303424"],
        &[],
    );
    check(
        "1.0, 1e20, True, None, b'x'",
        "PR.run(src)",
        &["1.0", "1e+20", "True", "None", "b'x'"],
        &[],
    );
}

/// Three shards, each of which yields 1, 2, 3.
fn on_three_shards(program: &str) -> Outcome {
    let script = with_source("1, 2, 3", program);
    on_worker(move || {
        fake::SHARDS.with(|s| s.set(3));
        let mut outcome = execute(&request(&script).unwrap(), 3, Vec::new());
        outcome.results.sort();
        outcome
    })
}

#[test]
fn three_shards() {
    let three = |program: &str, results: &[&str]| {
        let outcome = on_three_shards(program);
        assert_eq!(outcome.results, results, "{program}: {:?}", outcome.errors);
        assert_eq!(outcome.errors, [""; 0], "{program}");
    };
    three("PR.count().run(src)", &["9"]);
    three(
        "PR.aggregate(10, lambda a, x: a + x, lambda a, x: a + x).run(src)",
        &["58"],
    );
    three("PR.accumulate(lambda a, x: (a or 0) + x).run(src)", &["6", "6", "6"]);
    three(
        "PR.countby().map(lambda r: (r['key'], r['value'])).sort().run(src)",
        &["('1', 3)", "('2', 3)", "('3', 3)"],
    );
    three(
        "PR.countby().run(src)",
        &[
            "{'key': '1', 'value': 3}",
            "{'key': '2', 'value': 3}",
            "{'key': '3', 'value': 3}",
        ],
    );
    three("PR.avg().run(src)", &["2.0"]);
    three("PR.sort().run(src)", &["1", "1", "1", "2", "2", "2", "3", "3", "3"]);
    three("PR.distinct().count().run(src)", &["3"]);
    three("PR.limit(1).run(src)", &["1", "1", "1"]);
    three("PR.limit(1).collect().limit(2).run(src)", &["1", "1"]);
    three("PR.map(lambda x: 7).run(src, collect=False)", &["7", "7", "7"]);
    three(
        "PR.repartition(lambda x: 'one').map(lambda x: x).count().run(src)",
        &["9"],
    );
    three(
        "PR.groupby(lambda x: x % 2, lambda k, a, x: (a or 0) + x).run(src)",
        &["{'key': '0', 'value': 6}", "{'key': '1', 'value': 12}"],
    );
    three(
        "PR.batchgroupby(lambda x: x % 2, lambda k, l: sorted(l)).run(src)",
        &[
            "{'key': '0', 'value': [2, 2, 2]}",
            "{'key': '1', 'value': [1, 1, 1, 3, 3, 3]}",
        ],
    );
    three(
        "PR.aggregateby(lambda x: x % 2, 0, lambda k, a, x: a + x, lambda k, a, x: a + x).run(src)",
        &["{'key': '0', 'value': 6}", "{'key': '1', 'value': 12}"],
    );
    let outcome = on_three_shards("PR.map(lambda x: bad).run(src)");
    assert_eq!((outcome.results.len(), outcome.errors.len()), (0, 7));
}

#[test]
fn globals_are_counted_per_shard() {
    let program = "c = 5\ndef inc(x):\n    global c\n    c += 1\n    return c\nPR.map(inc).map(inc).limit(1).run(src)";
    assert_eq!(on_three_shards(program).results, ["7", "7", "7"]);
}
