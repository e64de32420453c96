//! Next moments, against values that were found by trying every minute.

use super::*;

fn next(expression: &str, after: i64) -> i64 {
    Cron::parse(expression)
        .expect(expression)
        .next_after(after)
        .expect(expression)
}

#[test]
fn the_next_moment() {
    for (expression, after, expected) in [
        // 2026-11-28T14:06:00+00:00
        ("* * * * *", 1795874730000, 1795874760000),
        // 2026-11-28T14:10:00+00:00
        ("*/5 * * * *", 1795874700000, 1795875000000),
        // 2026-11-28T15:00:00+00:00
        ("*/5 * * * *", 1795877879000, 1795878000000),
        // 2027-01-01T00:00:00+00:00
        ("0 0 1 1 *", 1767225600000, 1798761600000),
        // 2000-12-31T23:59:00+00:00
        ("59 23 31 12 *", 946684740000, 978307140000),
        // 2104-02-29T12:00:00+00:00
        ("0 12 29 feb *", 4007836800000, 4233729600000),
        // 2032-02-29T00:00:00+00:00
        ("0 0 29 2 */7", 1767225600000, 1961625600000),
        // 2026-11-06T04:30:00+00:00
        ("30 4 1,15 * fri", 1793577600000, 1793939400000),
        // 2026-11-30T09:00:00+00:00
        ("0 9-17/2 * * mon-fri", 1795798860000, 1796029200000),
        // 2026-11-29T10:15:00+00:00
        ("15 10 * * 7", 1795824000000, 1795947300000),
        // 2026-03-31T00:00:00+00:00
        ("0 0 31 * *", 1769821200000, 1774915200000),
        // 2026-06-01T01:07:00+00:00
        ("7,3-9/3,50 1 * JAN,jun *", 1780275960000, 1780276020000),
        // 2026-12-07T00:00:00+00:00
        ("0 0 */2 * 1", 1795824000000, 1796601600000),
        // 2026-02-06T00:00:00+00:00
        ("0 0 13 * 5", 1769904000000, 1770336000000),
        // 2100-03-01T00:00:00+00:00
        ("0 0 1 3 *", 4107369600000, 4107542400000),
        // 1969-12-28T00:00:00+00:00
        ("0 0 * * 0", -604800000, -345600000),
    ] {
        assert_eq!(next(expression, after), expected, "{expression} after {after}");
        assert_eq!(
            next(expression, expected - 1),
            expected,
            "{expression}: a moment is reached"
        );
        assert!(next(expression, expected) > expected, "{expression}: it comes once");
    }
}

#[test]
fn every_minute_of_a_year_is_found_or_passed_over_rightly() {
    let cron = Cron::parse("*/7 5-6 * 2,12 *").unwrap();
    let (start, end) = (1_767_225_600_000, 1_798_761_600_000); // 2026
    let mut at = start - 1;
    let mut count = 0;
    while let Some(moment) = cron.next_after(at).filter(|&ms| ms < end) {
        count += 1;
        at = moment;
    }
    // February and December, two hours a day, minutes 0, 7, ..., 56.
    assert_eq!(count, (28 + 31) * 2 * 9);
}

#[test]
fn months_and_days() {
    for (day, expected) in [
        (0, (1, 1)),
        (-1, (12, 31)),
        (58, (2, 28)),
        (59, (3, 1)),
        (11_016, (2, 29)), // 2000
        (47_540, (2, 28)), // 2100, no leap year
        (47_541, (3, 1)),
    ] {
        assert_eq!(month_and_day(day), expected, "day {day}");
    }
}

#[test]
fn what_is_wrong_is_said() {
    for (expression, part) in [
        ("", "has 0"),
        ("* * * *", "has 4"),
        ("* * * * * *", "has 6"),
        ("60 * * * *", "`60` is no number from 0 to 59"),
        ("* 24 * * *", "(hour)"),
        ("* * 0 * *", "`0` is no number from 1 to 31"),
        ("* * * 13 *", "and no name"),
        ("* * * foo *", "`foo`"),
        ("* * * * 8", "(day of week)"),
        ("*/0 * * * *", "`0` is no step"),
        ("*/x * * * *", "`x` is no step"),
        ("*/ * * * *", "`` is no step"),
        ("5/2 * * * *", "behind `*` or a range"),
        ("9-5 * * * *", "ends before it begins"),
        ("1- * * * *", "`` is no number"),
        ("1,,2 * * * *", "`` is no number"),
        ("-1 * * * *", "`` is no number"),
        ("+1 * * * *", "`+1` is no number"),
        ("999 * * * *", "`999`"),
        ("0 0 30 2 *", "never comes"),
        ("0 0 31 4,6,9,11 *", "never comes"),
        (&"1,".repeat(200), "longer than"),
    ] {
        let text = Cron::parse(expression).expect_err(expression).to_string();
        assert!(text.contains(part), "{expression}: {text}");
    }
}

#[test]
fn far_times_are_no_trouble() {
    let cron = Cron::parse("* * * * *").unwrap();
    assert_eq!(cron.next_after(i64::MAX), None);
    assert!(cron.next_after(i64::MIN / 2).is_some());
    assert_eq!(cron.next_after(-60_001), Some(-60_000));
}
