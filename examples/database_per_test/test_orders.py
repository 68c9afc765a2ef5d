"""Tests that spoil their database. Each has its own: no clean-up, no order, no shared state."""

from conftest import Database


def test_paying_an_order(database: Database) -> None:
    database.query("UPDATE orders SET state = 'paid' WHERE id = 7")
    assert database.query("SELECT count(*) FROM orders WHERE state = 'open'") == "999"


def test_losing_everything(database: Database) -> None:
    database.query("DROP TABLE orders")
    assert database.query("SELECT count(*) FROM sqlite_schema") == "0"


def test_all_orders_are_open(database: Database) -> None:
    assert database.query("SELECT count(*), sum(cents) FROM orders WHERE state = 'open'") == "1000|50050000"
