//! The defaults are rclone's, and so is the JSON.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn object(value: Value) -> serde_json::Map<String, Value> {
    let Value::Object(map) = value else { panic!("an object") };
    map
}

/// Options in which most things differ from their defaults, depending on the bits of `seed`.
fn odd_options(seed: u64) -> Options {
    let bit = |at: u32| seed >> at & 1 == 1;
    let number = (seed % 1000) as u32 + 1;
    let text = |name: &str, at| bit(at).then(|| format!("{name}{number}"));
    let size = |at| if bit(at) { SizeSuffix::from_bytes(seed % 12345) } else { SizeSuffix::OFF };
    let span = |at| if bit(at) { Span::from_duration(Duration::from_millis(seed % 98765)) } else { Span::OFF };
    let list = |name: &str, at| if bit(at) { vec![format!("{name}{number}"), "- b".to_owned()] } else { Vec::new() };
    Options {
        transfers: number,
        checkers: number + 1,
        checksum: bit(0),
        size_only: bit(1),
        update: bit(2),
        ignore_existing: bit(3),
        ignore_times: bit(4),
        ignore_size: bit(5),
        ignore_errors: bit(6),
        immutable: bit(7),
        modify_window: span(8),
        dry_run: bit(9),
        max_delete: bit(10).then_some(seed % 77),
        delete_mode: [DeleteMode::Before, DeleteMode::During, DeleteMode::After][(seed % 3) as usize],
        backup_dir: text("/backup", 11),
        suffix: text(".old", 12),
        suffix_keep_extension: bit(13),
        retries: number,
        retries_sleep: span(14),
        low_level_retries: number,
        bwlimit: if bit(15) { "10M".parse().expect("a rate") } else { Rate::UNLIMITED },
        links: bit(16),
        copy_links: bit(17),
        create_empty_src_dirs: bit(18),
        delete_empty_src_dirs: bit(19),
        no_verify: bit(20),
        no_update_modtime: bit(21),
        no_update_dir_modtime: bit(22),
        max_depth: bit(23).then_some(number),
        multi_thread_streams: number,
        multi_thread_cutoff: size(24),
        one_way: bit(25),
        download: bit(26),
        cluster: text("s3:queue", 27),
        cluster_id: text("w-", 28),
        cluster_quit_workers: bit(29),
        cluster_batch_files: number,
        cluster_batch_size: size(30),
        cluster_cleanup: [Cleanup::Full, Cleanup::Completed, Cleanup::None][(seed % 3) as usize],
        no_worker_timeout: span(31),
        filter: FilterOptions {
            delete_excluded: bit(32),
            exclude_if_present: list(".ignore", 33),
            files: list("dir/file", 44),
            files_from: list("/f", 34),
            files_from_raw: list("/r", 35),
            min_age: Age::Span(span(36)),
            max_age: if bit(37) { Age::Moment(std::time::UNIX_EPOCH + Duration::from_secs(seed % 55555)) } else { Age::OFF },
            min_size: size(38),
            max_size: size(39),
            ignore_case: bit(40),
            rules: crate::filter::RuleOptions {
                filter: list("+ a", 41),
                filter_from: list("/ff", 42),
                exclude: list("*.o", 43),
                exclude_from: list("/ef", 44),
                include: list("*.c", 45),
                include_from: list("/if", 46),
            },
        },
    }
}

#[test]
fn defaults_are_not_written() {
    assert_eq!(Options::default().to_json(Audience::Controller), OptionsJson::default());
}

#[test]
fn what_differs_is_written_with_the_names_and_forms_of_rclone() {
    let mut options = Options {
        checksum: true,
        transfers: 16,
        update: true,
        bwlimit: "10M".parse().expect("a rate"),
        modify_window: "1s".parse().expect("a span"),
        no_verify: true,
        cluster: Some("/work".to_owned()),
        cluster_id: Some("7".to_owned()),
        cluster_batch_files: 5,
        ..Options::default()
    };
    options.filter.min_size = "1Mi".parse().expect("a size");
    options.filter.max_age = "2d".parse().expect("an age");
    options.filter.rules.filter = vec!["- *.tmp".to_owned()];
    let json = options.to_json(Audience::Worker);
    let config = json!({
        "CheckSum": true, "Transfers": 16, "UpdateOlder": true, "BwLimit": "10Mi", "ModifyWindow": 1_000_000_000, "IgnoreChecksum": true
    });
    assert_eq!(json.config, object(config), "and nothing of the cluster");
    assert_eq!(json.filter, object(json!({ "MinSize": 1_048_576, "MaxAge": 172_800_000_000_000_u64, "FilterRule": ["- *.tmp"] })));
    assert_eq!(options.to_json(Audience::Controller).config["ClusterBatchFiles"], 5);
}

#[test]
fn the_limit_of_bandwidth_is_found_and_changed_where_options_have_it() {
    let options = Options { checksum: true, bwlimit: "10M".parse().expect("a rate"), ..Options::default() };
    let OptionsJson { config, filter } = options.to_json(Audience::Worker);
    assert_eq!(rate_in(&config), Ok(options.bwlimit));
    let unlimited = Options { bwlimit: Rate::UNLIMITED, ..options.clone() };
    assert_eq!(without_rate(&config), unlimited.to_json(Audience::Worker).config);
    for limit in [None, Some(1), Some(1023), Some(4 << 20), Some(u64::MAX >> 12)] {
        let rate = Rate::from_bytes_per_second(limit);
        let json = OptionsJson { config: with_rate(&config, rate), filter: filter.clone() };
        let (read, unknown) = Options::from_json(&json).expect("options");
        assert_eq!((read, unknown), (Options { bwlimit: rate, ..options.clone() }, Vec::<String>::new()));
        assert_eq!(rate_in(&json.config), Ok(rate));
    }
    assert_eq!(Rate::from_bytes_per_second(Some(0)), Rate::UNLIMITED);
    // A plan for the day, or another one for each direction, is no single limit; whoever passes over it would have none.
    for value in [json!("08:00,512k 19:00,off"), json!("1M:2M"), json!(5), Value::Null] {
        let config = object(json!({ "BwLimit": value }));
        let refused = Options::from_json(&OptionsJson { config: config.clone(), ..OptionsJson::default() });
        assert_eq!(rate_in(&config).map_err(|error| error.to_string()).expect_err("refused"), refused.expect_err("refused").to_string());
    }
}

#[test]
fn the_spellings_of_rclone_are_read_and_what_is_unknown_is_told() {
    let json = OptionsJson {
        config: object(json!({
            "CheckSum": true, "MultiThreadCutoff": "1Gi", "ModifyWindow": "1s", "MaxDelete": -1, "BwLimit": "off", "LogLevel": "DEBUG"
        })),
        filter: object(
            json!({ "MinSize": "100k", "MaxAge": 9_223_372_036_854_775_807_i64, "RulesOpt.FilterRule": ["+ a"], "FilesFrom": null }),
        ),
    };
    let (options, unknown) = Options::from_json(&json).expect("usable");
    assert_eq!(unknown, ["LogLevel"]);
    assert!(options.checksum);
    assert_eq!(options.multi_thread_cutoff.bytes(), Some(1 << 30));
    assert_eq!(options.modify_window, Span::from_duration(Duration::from_secs(1)));
    assert_eq!((options.filter.min_size.bytes(), options.filter.max_age), (Some(102_400), Age::OFF));
    assert_eq!(options.filter.rules.filter, ["+ a"]);
}

#[test]
fn a_value_of_the_wrong_form_is_refused_by_name() {
    for (name, value) in
        [("Transfers", json!("many")), ("BwLimit", json!("08:00,512k 19:00,10M")), ("DeleteMode", json!(9)), ("Retries", json!(-1))]
    {
        let json = OptionsJson { config: [(name.to_owned(), value)].into_iter().collect(), ..OptionsJson::default() };
        let error = Options::from_json(&json).expect_err(name);
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn a_rate_is_one_number_and_timetables_are_refused_as_such() {
    assert_eq!("10M".parse::<Rate>().expect("a rate").bytes_per_second(), Some(10 << 20));
    assert_eq!("512".parse::<Rate>().expect("a rate").bytes_per_second(), Some(512 << 10));
    for unlimited in ["off", "0", ""] {
        assert_eq!(unlimited.parse(), Ok(Rate::UNLIMITED));
    }
    assert!(matches!("08:00,512k 12:00,10M".parse::<Rate>(), Err(RateError::Timetable(_))));
    assert!(matches!("10M:1M".parse::<Rate>(), Err(RateError::Pair(_))));
    assert!(matches!("fast".parse::<Rate>(), Err(RateError::Size(_))));
}

#[test]
fn options_that_exclude_each_other_are_refused() {
    assert!(Options { links: true, copy_links: true, ..Options::default() }.checked().is_err());
    assert!(Options { checksum: true, size_only: true, ..Options::default() }.checked().is_err());
    assert!(Options { suffix: Some("/../x".to_owned()), ..Options::default() }.checked().is_err());
    let raised = Options { transfers: 0, retries: 0, ..Options::default() }.checked().expect("raised");
    assert_eq!((raised.transfers, raised.retries), (1, 1));
}

#[test]
fn rclone_reads_what_is_written_and_we_read_what_rclone_writes() {
    if !crate::test_tree::has_rclone() {
        return;
    }
    for seed in [0, u64::MAX >> 1, 0x5555_5555_5555, 0x2AAA_AAAA_AAAA, 0x1234_5678_9ABC] {
        let known = Options::default();
        let odd = odd_options(seed);
        // What rclone does not have, what names files that are not there, and an age that becomes a span.
        let mut options = Options {
            copy_links: known.copy_links,
            create_empty_src_dirs: known.create_empty_src_dirs,
            delete_empty_src_dirs: known.delete_empty_src_dirs,
            one_way: known.one_way,
            download: known.download,
            cluster: known.cluster,
            cluster_id: known.cluster_id,
            cluster_quit_workers: known.cluster_quit_workers,
            cluster_batch_files: known.cluster_batch_files,
            cluster_batch_size: known.cluster_batch_size,
            cluster_cleanup: known.cluster_cleanup,
            no_worker_timeout: known.no_worker_timeout,
            ..odd.clone()
        };
        options.filter.rules =
            crate::filter::RuleOptions { filter_from: vec![], exclude_from: vec![], include_from: vec![], ..options.filter.rules };
        options.filter = FilterOptions { files: vec![], files_from: vec![], files_from_raw: vec![], max_age: Age::OFF, ..options.filter };
        let mut json = options.to_json(Audience::Worker);
        // Our own options travel with them, and rclone passes over them.
        json.config.insert("CopyLinks".to_owned(), json!(true));
        let call = json!({ "_config": json.config, "_filter": json.filter }).to_string();
        let output = std::process::Command::new("rclone")
            .args(["rc", "--loopback", "--config", "/dev/null", "options/local", "--json", &call])
            .output()
            .expect("rclone starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let (config, filter) = (object(answer["config"].take()), object(answer["filter"].take()));
        let (read, _) = Options::from_json(&OptionsJson { config, filter }).expect("usable");
        assert_eq!(read, options);
    }
}

proptest! {
    #[test]
    fn options_return_from_their_json(seed in any::<u64>()) {
        let options = odd_options(seed);
        let json = options.to_json(Audience::Controller);
        let text = serde_json::to_string(&json.config).expect("text");
        let again = OptionsJson { config: serde_json::from_str(&text).expect("the same"), filter: json.filter };
        prop_assert_eq!(Options::from_json(&again), Ok((options, Vec::new())));
    }
}
