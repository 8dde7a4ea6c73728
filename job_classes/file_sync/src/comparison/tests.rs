//! rclone's rules as a table.

use super::*;
use crate::listing::Tag;
use crate::options::Span;

const EPOCH: SystemTime = SystemTime::UNIX_EPOCH;

fn file(size: u64, seconds: Option<u64>) -> Item<'static> {
    let modified = seconds.map(|seconds| EPOCH + Duration::from_secs(seconds));
    Item { name: "f", kind: ItemKind::File, size, modified, mode: None, tag: Tag::None }
}

fn link(target: &str) -> Item<'_> {
    Item { name: "f", kind: ItemKind::Link(target), size: 0, modified: None, mode: None, tag: Tag::None }
}

fn keeps_times(precision_ns: Option<u64>) -> Abilities {
    Abilities { sets_times: true, time_precision_ns: precision_ns, ..Abilities::default() }
}

fn rules(change: impl FnOnce(&mut Options)) -> Comparison {
    let mut options = Options::default();
    change(&mut options);
    Comparison::new(&options, &keeps_times(Some(1)), &keeps_times(Some(1)))
}

#[track_caller]
fn assert_verdicts(rules: &Comparison, cases: &[(Item<'_>, Item<'_>, Verdict)]) {
    for (source, destination, expected) in cases {
        assert_eq!(rules.compare(*source, *destination), *expected, "{source:?} {destination:?}");
    }
}

const CONTENT_OR_TIMES: Verdict = Verdict::AskContent(Question { if_same: After::UpdateTimes, if_unknown: After::Transfer });
const CONTENT_ONLY: Verdict = Verdict::AskContent(Question { if_same: After::Same, if_unknown: After::Same });

#[test]
fn by_default_size_and_time_decide_and_content_only_where_times_differ() {
    assert_verdicts(
        &rules(|_| {}),
        &[
            (file(1, Some(5)), file(1, Some(5)), Verdict::Same),
            (file(1, Some(5)), file(2, Some(5)), Verdict::Transfer),
            (file(1, Some(5)), file(1, Some(6)), CONTENT_OR_TIMES),
            (file(1, Some(6)), file(1, Some(5)), CONTENT_OR_TIMES),
            (file(1, None), file(1, Some(5)), Verdict::AskTimes),
            (file(1, Some(5)), file(1, None), Verdict::AskTimes),
            (link("a"), link("a"), Verdict::Same),
            (link("a"), link("b"), Verdict::Transfer),
            (link("a"), file(1, Some(5)), Verdict::Transfer),
        ],
    );
}

#[test]
fn each_flag_changes_what_it_says() {
    assert_verdicts(
        &rules(|options| options.size_only = true),
        &[(file(1, Some(5)), file(1, Some(9)), Verdict::Same), (file(1, Some(5)), file(2, Some(5)), Verdict::Transfer)],
    );
    assert_verdicts(
        &rules(|options| options.checksum = true),
        &[(file(1, Some(5)), file(1, Some(5)), CONTENT_ONLY), (file(1, Some(5)), file(2, Some(5)), Verdict::Transfer)],
    );
    assert_verdicts(
        &rules(|options| options.ignore_existing = true),
        &[(file(1, Some(5)), file(2, Some(9)), Verdict::Leave), (link("a"), file(2, None), Verdict::Leave)],
    );
    assert_verdicts(&rules(|options| options.ignore_times = true), &[(file(1, Some(5)), file(1, Some(5)), Verdict::Transfer)]);
    assert_verdicts(&rules(|options| options.ignore_size = true), &[(file(1, Some(5)), file(2, Some(5)), Verdict::Same)]);
    assert_verdicts(
        &rules(|options| options.immutable = true),
        &[(file(1, Some(5)), file(2, Some(5)), Verdict::Immutable), (file(1, Some(5)), file(1, Some(5)), Verdict::Same)],
    );
    let leaves_times = Verdict::AskContent(Question { if_same: After::Same, if_unknown: After::Transfer });
    assert_verdicts(&rules(|options| options.no_update_modtime = true), &[(file(1, Some(5)), file(1, Some(6)), leaves_times)]);
}

#[test]
fn update_leaves_what_is_newer() {
    assert_verdicts(
        &rules(|options| options.update = true),
        &[
            (file(1, Some(5)), file(2, Some(6)), Verdict::Leave),
            (file(1, Some(6)), file(2, Some(5)), Verdict::Transfer),
            (file(1, Some(6)), file(1, Some(5)), CONTENT_OR_TIMES),
            (file(1, Some(5)), file(1, Some(5)), Verdict::Same),
            (file(1, Some(5)), file(2, Some(5)), Verdict::Transfer),
            (file(1, Some(5)), file(2, None), Verdict::AskTimes),
        ],
    );
    let both = rules(|options| (options.update, options.checksum) = (true, true));
    assert_verdicts(&both, &[(file(1, Some(5)), file(1, Some(5)), CONTENT_ONLY), (file(1, Some(6)), file(1, Some(5)), CONTENT_ONLY)]);
}

#[test]
fn the_coarser_storage_and_the_window_bound_the_precision_of_times() {
    let options = Options { modify_window: Span::from_duration(Duration::from_secs(2)), ..Options::default() };
    let wide = Comparison::new(&options, &keeps_times(Some(1)), &keeps_times(Some(1)));
    assert_verdicts(&wide, &[(file(1, Some(5)), file(1, Some(6)), Verdict::Same), (file(1, Some(5)), file(1, Some(7)), CONTENT_OR_TIMES)]);
    let coarse = Comparison::new(&Options::default(), &keeps_times(Some(1)), &keeps_times(Some(2_000_000_000)));
    assert_verdicts(&coarse, &[(file(1, Some(5)), file(1, Some(6)), Verdict::Same)]);
    let none = Comparison::new(&Options::default(), &keeps_times(Some(1)), &keeps_times(None));
    assert_verdicts(&none, &[(file(1, Some(5)), file(1, Some(9)), Verdict::Same), (file(1, None), file(2, None), Verdict::Transfer)]);
}

#[test]
fn the_answer_decides_as_the_question_says() {
    let rules_by_default = rules(|_| {});
    let Verdict::AskContent(question) = rules_by_default.compare(file(1, Some(5)), file(1, Some(6))) else { panic!("a question") };
    let decided = [Answer::Same, Answer::Differs, Answer::Unknown].map(|answer| rules_by_default.decide(question, answer));
    assert_eq!(decided, [Verdict::UpdateTimes, Verdict::Transfer, Verdict::Transfer]);
    let immutable = rules(|options| options.immutable = true);
    assert_eq!(immutable.decide(question, Answer::Same), Verdict::Immutable);
    let by_checksum = rules(|options| options.checksum = true);
    let Verdict::AskContent(question) = by_checksum.compare(file(1, Some(5)), file(1, Some(6))) else { panic!("a question") };
    let decided = [Answer::Same, Answer::Differs, Answer::Unknown].map(|answer| by_checksum.decide(question, answer));
    assert_eq!(decided, [Verdict::Same, Verdict::Transfer, Verdict::Same]);
}

#[test]
fn a_time_that_nobody_knows_leaves_the_content() {
    assert_eq!(rules(|_| {}).compare_again(file(1, Some(5)), file(1, None)), CONTENT_OR_TIMES);
    assert_eq!(rules(|options| options.update = true).compare_again(file(1, Some(5)), file(1, None)), Verdict::Same);
}

#[test]
fn where_times_are_set_only_by_writing_a_file_is_written_again() {
    let writes = Abilities { sets_times: false, ..keeps_times(Some(1)) };
    let rules = Comparison::new(&Options::default(), &keeps_times(Some(1)), &writes);
    assert_verdicts(&rules, &[(file(1, Some(5)), file(1, Some(6)), Verdict::Transfer)]);
}

#[test]
fn times_of_directories_follow_the_same_window() {
    let at = |seconds| Some(EPOCH + Duration::from_secs(seconds));
    let by_default = rules(|_| {});
    assert!(by_default.is_same_time(at(5), at(5)) && by_default.is_same_time(None, at(5)) && !by_default.is_same_time(at(5), at(6)));
    assert!(rules(|options| options.update = true).is_same_time(at(5), at(6)));
    assert!(rules(|options| options.size_only = true).is_same_time(at(5), at(6)));
}
