"""Subscriptions for OpenSend's billing tables, as its hosted installation has them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg

from tests.integration.serving import Account

START = datetime(2026, 1, 15, 12, tzinfo=UTC)
END = START + timedelta(days=31)


def subscribe(
    account: Account,
    *,
    slug: str = "cloud_lite_15k_monthly",
    price: int = 1_000,
    quota: int = 15_000,
    status: str = "active",
    period: tuple[datetime | None, datetime | None] = (START, END),
) -> None:
    """Give a user a plan of his own; the daily quota and the rate are the table's, which OpenSend itself leaves so."""
    ((plan_id,),) = account.served.rows(
        "INSERT INTO plans (slug, name, monthly_price_cents, monthly_email_quota, stripe_price_id)"
        " VALUES (%s, %s, %s, %s, 'price_1') ON CONFLICT (slug)"
        " DO UPDATE SET monthly_price_cents = excluded.monthly_price_cents RETURNING id",
        slug if slug == "free" else f"{slug}-{account.user_id}"[:64],
        slug,
        price,
        quota,
    )
    account.rows(
        "INSERT INTO subscriptions (user_id, plan_id, status, current_period_start, current_period_end)"
        " VALUES (%s, %s, %s, %s, %s)",
        plan_id,
        status,
        *period,
    )


def without_foreign_keys(account: Account, query: str) -> None:
    """Change what is this user's so that a row may point nowhere: OpenSend asks for that case too."""
    with psycopg.connect(account.served.url, options="-c session_replication_role=replica") as connection:
        connection.execute(query.encode(), [account.user_id])
