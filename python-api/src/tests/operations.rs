//! The operations of the interface description, section 9.2, on one shard.

use super::*;

#[test]
fn streaming_steps() {
    check("1, 2, 3", "PR.map(lambda x: x * 2).run(src)", &["2", "4", "6"], &[]);
    check(
        "0, 1, 2, 3, 4",
        "PR.filter(lambda x: x % 2 == 0).run(src)",
        &["0", "2", "4"],
        &[],
    );
    check(
        "0, 1, '', None, [], [0]",
        "PR.filter(lambda x: x).run(src)",
        &["1", "[0]"],
        &[],
    );
    check(
        "{'n': 1}",
        "PR.foreach(lambda d: d.update(n=2)).run(src)",
        &["{'n': 2}"],
        &[],
    );
    check("1", "PR.foreach(lambda x: 0).run(src)", &["1"], &[]);
    check("1", "PR.map(lambda x: None).run(src)", &["None"], &[]);
}

#[test]
fn flatmap_emits_lists_in_order_one_level_deep() {
    check(
        "1",
        "PR.flatmap(lambda x: [1, 2, 3, 4]).run(src)",
        &["1", "2", "3", "4"],
        &[],
    );
    check("[1, 2], [3]", "PR.flatmap(lambda x: x).run(src)", &["1", "2", "3"], &[]);
    check(
        "[3, [1, 2]], 'ab', (7, 8), None, {}, []",
        "PR.flatmap(lambda x: x).run(src)",
        &["3", "[1, 2]", "ab", "(7, 8)", "None", "{}"],
        &[],
    );
    check(
        "0, 1, 2, 3",
        "PR.flatmap(lambda x: [x] * x).run(src)",
        &["1", "2", "2", "3", "3", "3"],
        &[],
    );
    check(
        "0, 1",
        "PR.flatmap(lambda x: [[x, 'a'], [x, 'b']]).flatmap(lambda x: x).run(src)",
        &["0", "a", "0", "b", "1", "a", "1", "b"],
        &[],
    );
}

#[test]
fn limits() {
    let eight = "0, 1, 2, 3, 4, 5, 6, 7";
    check(eight, "PR.limit(3).run(src)", &["0", "1", "2"], &[]);
    check(eight, "PR.limit(3, 2).run(src)", &["2", "3", "4"], &[]);
    check(eight, "PR.limit(0).run(src)", &[], &[]);
    check(
        eight,
        "PR.limit(-1).run(src)",
        &["0", "1", "2", "3", "4", "5", "6", "7"],
        &[],
    );
    check(eight, "PR.limit(3, -1).run(src)", &[], &[]);
    check(eight, "PR.limit(True).run(src)", &["0"], &[]);
    check("0, 1, 2", "PR.limit(10, 1).run(src)", &["1", "2"], &[]);
    check("0, 1, 2", "PR.limit(10, 5).run(src)", &[], &[]);
    check("1, 2, 3, 4", "PR.limit(2, 1).limit(1, 1).run(src)", &["3"], &[]);
    check("1, 2, 3, 4", "PR.limit(3).count().run(src)", &["3"], &[]);
    check("3, 1, 2", "PR.sort().limit(2).run(src)", &["1", "2"], &[]);
    check("3, 1, 2", "PR.accumulate(lambda a, x: x).limit(0).run(src)", &[], &[]);
}

#[test]
fn a_limit_pulls_one_record_more_than_it_passes() {
    let script = "pulled = 0\ndef src():\n    global pulled\n    for v in range(5):\n        pulled += 1\n        \
                  execute('incr', 'pulled')\n        yield v\nGB('PythonReader').limit(2).run(src)";
    let outcome = run(script);
    assert_eq!(outcome.results, ["0", "1"]);
    let pulled = run("GB('PythonReader').map(lambda x: execute('get', 'pulled')).run(lambda: iter([1]))");
    assert_eq!(pulled.results, ["3"]);
}

#[test]
fn accumulate_and_nothing() {
    check(
        "0, 1, 2, 3, 4",
        "PR.accumulate(lambda a, x: x + (a or 0)).run(src)",
        &["10"],
        &[],
    );
    check(
        "1, 2",
        "PR.accumulate(lambda a, x: [x] if a is None else a + [x]).run(src)",
        &["[1, 2]"],
        &[],
    );
    check("1, 2, 3", "PR.accumulate(lambda a, x: None).run(src)", &["None"], &[]);
    for op in [
        "accumulate(lambda a, x: x)",
        "count()",
        "avg()",
        "sort()",
        "distinct()",
        "countby()",
        "aggregate(5, lambda a, x: a, lambda a, x: a)",
        "batchgroupby(lambda x: x, lambda k, l: l)",
    ] {
        check("", &format!("PR.{op}.run(src)"), &[], &[]);
    }
}

#[test]
fn grouping() {
    sorted(
        "1, 1, 2",
        "PR.groupby(lambda x: x, lambda k, a, x: (k, (a[1] if a else 0) + x)).run(src)",
        &["{'key': '1', 'value': ('1', 2)}", "{'key': '2', 'value': ('2', 2)}"],
    );
    sorted(
        "1, 1, 2",
        "PR.localgroupby(lambda x: (x, 't'), lambda k, a, x: [a, x]).run(src)",
        &[
            "{'key': \"(1, 't')\", 'value': [[None, 1], 1]}",
            "{'key': \"(2, 't')\", 'value': [None, 2]}",
        ],
    );
    check(
        "1, 1, 2, None, 'é', b'b'",
        "PR.batchgroupby(lambda x: x, lambda k, l: (k, l)).run(src)",
        &[
            "{'key': \"b'b'\", 'value': (\"b'b'\", [b'b'])}",
            "{'key': 'é', 'value': ('é', ['é'])}",
            "{'key': 'None', 'value': ('None', [None])}",
            "{'key': '2', 'value': ('2', [2])}",
            "{'key': '1', 'value': ('1', [1, 1])}",
        ],
        &[],
    );
    check(
        "1, 2, 3",
        "PR.groupby(lambda x: 'k', lambda k, a, x: x).run(src)",
        &["{'key': 'k', 'value': 3}"],
        &[],
    );
    check(
        "1, 2",
        "PR.groupby(lambda x: 'k', lambda k, a, x: None).run(src)",
        &["{'key': 'k', 'value': None}"],
        &[],
    );
    check(
        "1, 2, 3",
        "PR.batchgroupby(lambda x: 'k', lambda k, l: l).flatmap(lambda r: r['value']).run(src)",
        &["1", "2", "3"],
        &[],
    );
    check("1, 2", "PR.repartition(lambda x: x).run(src)", &["1", "2"], &[]);
    check(
        "1",
        "PR.groupby(lambda x: 'a\\0b', lambda k, a, x: x).run(src)",
        &["{'key': 'a\\x00b', 'value': 1}"],
        &[],
    );
    check(
        "1",
        "PR.countby(lambda x: '\\ud800').run(src)",
        &["{'key': '\\ud800', 'value': 1}"],
        &[],
    );
}

#[test]
fn aggregates() {
    let add = "lambda a, x: a + x, lambda a, x: a + x";
    check("1, 2, 3", &format!("PR.aggregate(10, {add}).run(src)"), &["26"], &[]);
    check(
        "1, 2, 3",
        "PR.aggregate([], lambda a, x: a + [x], lambda a, x: a + x).run(src)",
        &["[1, 2, 3]"],
        &[],
    );
    let by = "lambda k, a, x: a + x, lambda k, a, x: a + x";
    sorted(
        "1, 2, 3",
        &format!("PR.aggregateby(lambda x: x % 2, 0, {by}).run(src)"),
        &["{'key': '0', 'value': 2}", "{'key': '1', 'value': 4}"],
    );
    sorted(
        "1, 2, 3",
        &format!("PR.aggregateby(lambda x: x % 2, 10, {by}).run(src)"),
        &["{'key': '0', 'value': 22}", "{'key': '1', 'value': 24}"],
    );
    sorted(
        "1, 2, 3",
        "PR.__localAggregateby__(lambda x: x % 2, 10, lambda k, a, x: a + x).run(src)",
        &["{'key': '0', 'value': 12}", "{'key': '1', 'value': 14}"],
    );
    // A falsy accumulator starts anew with a deep copy of the start value.
    check(
        "1, 1, 1",
        "PR.aggregate([[]], lambda a, x: a[0].append(x) or a, lambda a, x: x).run(src)",
        &["[[1, 1, 1]]"],
        &[],
    );
}

#[test]
fn counting_and_averages() {
    check("1, 2, 3", "PR.count().run(src)", &["3"], &[]);
    check("1, 2, 3", "PR.count().map(lambda n: n * 10).run(src)", &["30"], &[]);
    let abc = "'a', 'a', 'b', 'a', 'c'";
    let counted = [
        "{'key': 'a', 'value': 3}",
        "{'key': 'b', 'value': 1}",
        "{'key': 'c', 'value': 1}",
    ];
    sorted(abc, "PR.countby().run(src)", &counted);
    sorted(abc, "PR.countby().run(src, convertToStr=False)", &counted);
    sorted(abc, "PR.countby().map(lambda r: r).run(src)", &counted);
    sorted(
        "1.0, 1, True",
        "PR.countby().run(src)",
        &[
            "{'key': '1', 'value': 1}",
            "{'key': '1.0', 'value': 1}",
            "{'key': 'True', 'value': 1}",
        ],
    );
    check(
        "5, 6",
        "PR.countby(lambda x: None).run(src)",
        &["{'key': 'None', 'value': 2}"],
        &[],
    );
    check("'1', '2', '4'", "PR.avg().run(src)", &["2.3333333333333335"], &[]);
    check("1, 2, 3", "PR.avg(lambda x: x * 2).run(src)", &["4.0"], &[]);
    check("True, 2.5", "PR.avg(lambda x: x).run(src)", &["1.75"], &[]);
    check(
        "{'value': '1 2 1'}",
        "PR.flatmap(lambda r: r['value'].split()).countby().map(lambda r: (r['key'], r['value'])).sort().run(src)",
        &["('1', 2)", "('2', 1)"],
        &[],
    );
}

#[test]
fn texts_of_counted_keys_are_those_of_python() {
    let keys =
        r#""it's", 'a"b', "a'b\"c", '\\', '\n\t\0', 'é', '\xa0', '\xad', '日本', '😀', 'ß', '\ud800', 'Ω', '\u200b'"#;
    let native = run(&with_source(keys, "PR.countby().run(src)"));
    let python = run(&with_source(
        keys,
        "PR.countby().map(lambda r: str(r)).run(src, convertToStr=False)",
    ));
    assert_eq!(native, python);
    assert_eq!(native.results.len(), 14);
}

#[test]
fn sorting_and_distinct() {
    check("3, 1, 2", "PR.sort().run(src)", &["1", "2", "3"], &[]);
    check("3, 1, 2", "PR.sort(reverse=False).run(src)", &["3", "2", "1"], &[]);
    check(
        "(2,'b'), (1,'z'), (2,'a')",
        "PR.sort().run(src)",
        &["(1, 'z')", "(2, 'a')", "(2, 'b')"],
        &[],
    );
    check(
        "3, 'a', 2",
        "PR.sort().run(src)",
        &[],
        &["TypeError: '<' not supported between instances of"],
    );
    check("3, 1, 3, 2, 1", "PR.distinct().sort().run(src)", &["1", "2", "3"], &[]);
    check("3, 1, 3, 2, 1", "PR.distinct().count().run(src)", &["3"], &[]);
    check("1.0, 1, True", "PR.distinct().run(src)", &["1.0"], &[]);
    check(
        "[1], [1]",
        "PR.distinct().run(src)",
        &[],
        &["TypeError: unhashable type: 'list'"],
    );
}
