//! The layout of the database, and the way from each earlier one to it: forward only, each step in one transaction with
//! the number that it leads to. A step that was released is never changed.

use rusqlite::{Connection, TransactionBehavior};

/// Says that a database is ours: `hmq1`, in the header of the file. Source: SQLite, "PRAGMA application_id".
pub(super) const APPLICATION_ID: i64 = 0x686d_7131;

/// SQL that leads from the layout of its place in the list to the next.
pub(super) type Migration = &'static str;

/// All of them: the first makes an empty file a store.
pub(super) const MIGRATIONS: &[Migration] =
    &[concat!(include_str!("1.sql"), include_str!("1-views.sql")), include_str!("2.sql")];

/// The layout that this version reads and writes.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

/// Which layout a database has.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Leads a database to the last of these layouts. What fails leaves it at the step before.
pub(super) fn migrate(connection: &mut Connection, migrations: &[Migration]) -> rusqlite::Result<()> {
    let from = version(connection)?;
    for (place, migration) in migrations.iter().enumerate() {
        let number = place as i64 + 1;
        if number <= from {
            continue;
        }
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", number)?;
        transaction.commit()?;
        tracing::info!(from = number - 1, to = number, "led the store to its next layout");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(connection: &Connection) -> Vec<String> {
        let mut names =
            connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").unwrap();
        names.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn leads_from_every_layout_to_the_last() {
        let steps: &[Migration] =
            &["CREATE TABLE a (x)", "CREATE TABLE b (x); INSERT INTO a VALUES (1)", "DROP TABLE b"];
        for from in 0..=steps.len() {
            let mut connection = Connection::open_in_memory().unwrap();
            migrate(&mut connection, &steps[..from]).unwrap();
            migrate(&mut connection, steps).unwrap();
            assert_eq!((version(&connection).unwrap(), tables(&connection)), (3, vec!["a".to_owned()]), "from {from}");
            let rows: i64 = connection.query_row("SELECT count(*) FROM a", [], |row| row.get(0)).unwrap();
            assert_eq!(rows, 1, "a step is taken once");
        }
    }

    #[test]
    fn a_step_that_fails_leaves_the_layout_before_it() {
        let mut connection = Connection::open_in_memory().unwrap();
        let steps: &[Migration] = &["CREATE TABLE a (x)", "CREATE TABLE b (x); INSERT INTO nowhere VALUES (1)"];
        migrate(&mut connection, steps).unwrap_err();
        assert_eq!((version(&connection).unwrap(), tables(&connection)), (1, vec!["a".to_owned()]));
        migrate(&mut connection, &[steps[0], "CREATE TABLE c (x)"]).unwrap();
        assert_eq!(tables(&connection), ["a", "c"]);
    }
}
