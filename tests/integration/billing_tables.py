"""OpenSend's billing as its hosted installation has it: three tables, and subscriptions to fill them with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import LiteralString

import psycopg

from tests.integration.private_postgres import Cluster
from tests.integration.serving import Account

TABLES: LiteralString = """
    CREATE TABLE plans (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        slug varchar(64) NOT NULL UNIQUE,
        name varchar(255) NOT NULL,
        monthly_price_cents integer NOT NULL DEFAULT 0,
        monthly_email_quota integer NOT NULL DEFAULT 0,
        daily_email_quota integer NOT NULL DEFAULT 0,
        rate_per_second integer NOT NULL DEFAULT 2,
        stripe_price_id varchar(255),
        stripe_overage_price_id varchar(255)
    );
    CREATE TABLE subscriptions (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        user_id text NOT NULL UNIQUE,
        plan_id uuid NOT NULL,
        status varchar(50) NOT NULL DEFAULT 'active',
        current_period_start timestamptz,
        current_period_end timestamptz
    );
    CREATE TABLE usage_periods (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        user_id text NOT NULL,
        period_start timestamptz NOT NULL,
        period_end timestamptz NOT NULL,
        emails_sent integer NOT NULL DEFAULT 0,
        included_email_quota integer,
        overage_reported_emails integer NOT NULL DEFAULT 0,
        overage_claimed_emails integer NOT NULL DEFAULT 0,
        overage_last_reported_at timestamptz,
        usage_warning_80_notified_at timestamptz,
        usage_warning_100_notified_at timestamptz,
        last_increment_at timestamptz
    );
    CREATE UNIQUE INDEX usage_periods_user_period_idx ON usage_periods (user_id, period_start);
"""
"""Without the foreign key from subscriptions to plans: a plan may be missing."""

START = datetime(2026, 1, 15, 12, tzinfo=UTC)
END = START + timedelta(days=31)


def add_billing(cluster: Cluster, name: str) -> str:
    """Make a database that has billing, before our roles get their rights; return its URL."""
    url = cluster.new_database(name, template="template_opensend")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(TABLES)
    return url


def subscribe(
    account: Account,
    *,
    slug: str = "cloud_lite_15k_monthly",
    price: int = 1_000,
    quota: int = 15_000,
    status: str = "active",
    period: tuple[datetime | None, datetime | None] = (START, END),
) -> None:
    """Give a user a plan of his own."""
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
