//! Database clients against real servers: PostgreSQL, MariaDB, Redis, and SQLite in the process itself.

use std::time::Duration;

use mysql::prelude::Queryable;
use postgres::{Client, NoTls};
use redis::Commands;
use sleave_compat::{server, together};

const FIBERS: usize = 100;
/// What each asks its server to wait.
const NAP: Duration = Duration::from_millis(200);
/// One after the other they would take 20 s.
const LIMIT: Duration = Duration::from_secs(6);

/// This client runs a tokio event loop of its own inside each call: its `epoll_wait` parks.
#[test]
fn queries_of_postgresql_that_sleep_sleep_together() {
    let address = server("SLEAVE_POSTGRES");
    let overlap = together(FIBERS, move |number| {
        let mut client = Client::connect(&address, NoTls).unwrap();
        let asked = number as i32;
        let row = client.query_one("select $1::int + 1, pg_sleep(0.2)::text", &[&asked]).unwrap();
        row.get::<_, i32>(0)
    });
    overlap.assert(LIMIT);
    assert!(overlap.results.iter().enumerate().all(|(number, &got)| got == number as i32 + 1));
}

#[test]
fn queries_of_mariadb_that_sleep_sleep_together() {
    let address = server("SLEAVE_MYSQL");
    let overlap = together(FIBERS, move |number| {
        let mut client = mysql::Conn::new(mysql::Opts::from_url(&address).unwrap()).unwrap();
        let row: Option<(usize, i32)> =
            client.exec_first("select ? + 1, sleep(0.2)", (number,)).unwrap();
        row.unwrap().0
    });
    overlap.assert(LIMIT);
    assert!(overlap.results.iter().enumerate().all(|(number, &got)| got == number + 1));
}

/// Half of the fibers block in the server until the other half sends them something.
#[test]
fn blocking_pops_of_redis_wait_for_other_fibers() {
    let address = server("SLEAVE_REDIS");
    let overlap = together(2 * FIBERS, move |number| {
        let client = redis::Client::open(address.as_str()).unwrap();
        let mut connection = client.get_connection().unwrap();
        let key = format!("list:{}", number / 2);
        if number % 2 == 0 {
            let (_, got): (String, usize) = connection.blpop(key, 20.0).unwrap();
            got
        } else {
            std::thread::sleep(NAP);
            let _: () = connection.rpush(key, number).unwrap();
            number
        }
    });
    overlap.assert(LIMIT);
    assert!(overlap.results.chunks(2).all(|pair| pair[0] == pair[1]), "each gets its own");
}

/// SQLite's locks are file locks and a busy handler that sleeps; its mutexes are pthreads'.
#[test]
fn transactions_of_sqlite_take_turns() {
    const ROWS: usize = 5;
    let directory = std::env::temp_dir().join(format!("sleave-compat-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("shared.db");
    let open = {
        let path = path.clone();
        move || {
            let connection = rusqlite::Connection::open(&path).unwrap();
            connection.busy_timeout(Duration::from_secs(60)).unwrap();
            connection
        }
    };
    let connection = open();
    connection.pragma_update(None, "journal_mode", "wal").unwrap();
    connection.pragma_update(None, "synchronous", "off").unwrap();
    connection.execute("create table rows (fiber integer, row integer)", ()).unwrap();
    let overlap = together(FIBERS, move |number| {
        let mut connection = open();
        for row in 0..ROWS {
            let behaviour = rusqlite::TransactionBehavior::Immediate;
            let transaction = connection.transaction_with_behavior(behaviour).unwrap();
            transaction.execute("insert into rows values (?1, ?2)", (number, row)).unwrap();
            transaction.commit().unwrap();
        }
    });
    overlap.assert(Duration::from_secs(60));
    let rows: usize =
        connection.query_row("select count(*) from rows", (), |row| row.get(0)).unwrap();
    assert_eq!(rows, FIBERS * ROWS);
    drop(connection);
    std::fs::remove_dir_all(directory).unwrap();
}
