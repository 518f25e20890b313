"""The commands: one module per noun, the only place that prints or exits."""

from __future__ import annotations

import typer

from opensend_milter.cli import daemons, db, domains, emails, feedback, keys, sandbox, settings, suppressions, webhooks

app = typer.Typer(
    help="API-key mail gateway: Postfix and Dovecot in front, a milter that records, a worker that delivers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve")(daemons.serve)
app.command("worker")(daemons.worker)
app.command("http")(daemons.http)
app.command("auth-gate")(daemons.auth_gate)
app.command("check-config")(settings.check_config)
app.add_typer(db.app, name="db")
app.add_typer(keys.app, name="key")
app.add_typer(domains.app, name="domain")
app.add_typer(suppressions.app, name="suppression")
app.add_typer(emails.app, name="email")
app.add_typer(webhooks.app, name="webhook")
app.add_typer(feedback.app, name="feedback")
app.add_typer(sandbox.app, name="sandbox")


def main() -> None:
    """Run the command line."""
    app()
