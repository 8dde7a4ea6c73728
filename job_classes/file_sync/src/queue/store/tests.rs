use std::sync::Arc;

use super::*;

/// Contenders for one file.
const CONTENDERS: usize = 64;

async fn winners<F: Future<Output = Result<bool, StoreError>> + Send + 'static>(contend: impl Fn(usize) -> F) -> usize {
    let contenders: Vec<_> = (0..CONTENDERS).map(|number| tokio::spawn(contend(number))).collect();
    let mut winners = 0;
    for contender in contenders {
        winners += usize::from(contender.await.expect("no panic").expect("no failure"));
    }
    winners
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_who_create_or_rename_one_file_one_succeeds() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Arc::new(LocalStore::open(directory.path()).await.expect("a store"));
    assert_eq!(store.honours(), Honours { creates_once: true, renames: true });
    for round in 0..20 {
        let shared = Arc::clone(&store);
        let created = winners(move |number| {
            let store = Arc::clone(&shared);
            async move { store.create(&format!("queue/claims/{round}"), Bytes::from(number.to_string())).await }
        });
        assert_eq!(created.await, 1);
        let shared = Arc::clone(&store);
        let renamed = winners(move |number| {
            let store = Arc::clone(&shared);
            async move { store.rename(&format!("queue/claims/{round}"), &format!("queue/processing/{round}-{number}")).await }
        });
        assert_eq!(renamed.await, 1);
    }
    assert!(std::fs::read_dir(directory.path().join("queue/.staging")).expect("a directory").next().is_none(), "something is left behind");
}

#[tokio::test]
async fn a_directory_is_listed_read_and_written_and_what_is_missing_is_no_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = LocalStore::open(directory.path()).await.expect("a store");
    assert_eq!(store.list("queue/pending").await, Ok(Vec::new()));
    assert_eq!(store.read("queue/pending/x", 10).await, Ok(Content::Missing));
    assert_eq!(store.delete("queue/pending/x").await, Ok(()));
    assert_eq!(store.rename("queue/pending/x", "queue/done/x").await, Ok(false));
    for name in ["b", "a"] {
        store.replace(&format!("queue/pending/{name}"), Bytes::from_static(b"12345")).await.expect("written");
    }
    let before = store.list("queue/pending").await.expect("listed");
    assert_eq!(before.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(store.read("queue/pending/a", 5).await, Ok(Content::Bytes(Bytes::from_static(b"12345"))));
    assert_eq!(store.read("queue/pending/a", 4).await, Ok(Content::TooLong));
    assert_eq!(store.rename("queue/pending/a", "queue/pending/b").await, Ok(false), "nothing is written over");
    store.replace("queue/pending/a", Bytes::from_static(b"54321")).await.expect("written");
    let after = store.list("queue/pending").await.expect("listed");
    assert!(after[0].marker != before[0].marker && after[1].marker == before[1].marker);
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_refused_when_it_is_opened() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("file");
    std::fs::write(&file, b"no directory").expect("written");
    let error = LocalStore::open(&file).await.expect_err("it is a file");
    assert!(error.what.contains("file"), "{error}");
}
