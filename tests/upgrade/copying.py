"""Ten thousand rows from a hundred: copied within the database, whatever columns its version has."""

from __future__ import annotations

from psycopg import sql

from opensend_milter.adapters.postgres.link import Connection

_OF_MESSAGES = """
    SELECT n.nspname, c.relname FROM pg_attribute a
    JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE a.attname = 'email_id' AND c.relkind = 'r' AND n.nspname IN ('public', 'opensend_milter')
        AND c.relname NOT IN ('fingerprints', 'search')
    ORDER BY c.relname
"""
"""A fingerprint is of one message alone, and by what a copy is known the worker notes."""
_KNOWS_SEARCH = "SELECT 1 FROM pg_class WHERE oid = to_regclass('opensend_milter.search_progress')"
_NOTE_AGAIN = "UPDATE opensend_milter.search_progress SET noted_at = 'epoch', checked_at = 'epoch'"
_WRITTEN = """
    SELECT attname FROM pg_attribute
    WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attidentity = '' AND attgenerated = ''
"""
_COPIES = """
    CREATE TEMPORARY TABLE copies AS
    SELECT e.id AS old_id, gen_random_uuid() AS new_id, e.subject AS old_name,
        left(e.subject, -6) || lpad((100000 + row_number() OVER ())::text, 6, '0') AS new_name
    FROM public.emails e CROSS JOIN LATERAL generate_series(1, %s)
    WHERE e.subject LIKE %s
"""
# The names and ids in a row are the copy's, also those within bytes.
_COPY = sql.SQL("""
    INSERT INTO {table} ({columns})
    SELECT {made} FROM copies c JOIN {table} t ON t.{key} = c.old_id
    CROSS JOIN LATERAL jsonb_populate_record(NULL::{table}, replace(replace(replace(to_jsonb(t)::text,
        c.old_id::text, c.new_id::text),
        c.old_name, c.new_name),
        encode(convert_to(c.old_name, 'UTF8'), 'hex'), encode(convert_to(c.new_name, 'UTF8'), 'hex'))::jsonb
        || {own}) made
""")
_COPY_REFUSALS = sql.SQL("""
    INSERT INTO opensend_milter.refusals ({columns})
    SELECT {columns} FROM opensend_milter.refusals CROSS JOIN LATERAL generate_series(1, %s)
""")


def copy_messages(connection: Connection, like: str, times: int) -> None:
    """Copy all messages whose subject is like this so many times, under names of their own."""
    connection.execute(_COPIES, [times, like])
    tables = [("public", "emails"), *connection.execute(_OF_MESSAGES).fetchall()]
    for schema, name in tables:
        columns = _columns(connection, f"{schema}.{name}")
        has_own_id = name != "emails" and "id" in columns
        connection.execute(
            _COPY.format(
                table=sql.Identifier(schema, name),
                columns=sql.SQL(", ").join(map(sql.Identifier, columns)),
                made=sql.SQL(", ").join(sql.Identifier("made", column) for column in columns),
                key=sql.Identifier("id" if name == "emails" else "email_id"),
                own=sql.SQL("jsonb_build_object('id', gen_random_uuid())" if has_own_id else "'{}'::jsonb"),
            )
        )
    connection.execute("DROP TABLE copies")
    # Copies are as old as what they are of, and so behind what is noted.
    if connection.execute(_KNOWS_SEARCH).fetchone():
        connection.execute(_NOTE_AGAIN)


def copy_refusals(connection: Connection, times: int) -> None:
    """Have all refusals so many times more."""
    columns = sql.SQL(", ").join(map(sql.Identifier, _columns(connection, "opensend_milter.refusals")))
    connection.execute(_COPY_REFUSALS.format(columns=columns), [times])


def _columns(connection: Connection, table: str) -> list[str]:
    return [str(name) for (name,) in connection.execute(_WRITTEN, [table])]
