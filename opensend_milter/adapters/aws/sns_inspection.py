"""The check of the SNS topics that are listened to: with what they sign."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from botocore.config import Config as ClientConfig
from botocore.exceptions import BotoCoreError, ClientError

from opensend_milter.adapters.amazon import session
from opensend_milter.config import Config
from opensend_milter.core.findings import Check, Seen, good, problem, skipped, warning

_ANSWER_S = 10


def checks(config: Config) -> Iterator[Check]:
    """Return the check of the configured topics."""

    def signature() -> Seen:
        topics = config.feedback.topics.split()
        if not topics:
            return skipped("no topic is listened to")
        try:
            versions = {topic: _signature_version(config, topic) for topic in topics}
        except (BotoCoreError, ClientError) as error:
            return skipped(f"the topics cannot be asked (sns:GetTopicAttributes): {error}")
        return judged_signatures(versions, require_sha256=config.feedback.require_sha256)

    yield Check(
        name="feedback.signature",
        why="SNS signs with SHA-1 unless it is told otherwise, and two texts can be made that it takes for one",
        look=signature,
    )


def _signature_version(config: Config, topic: str) -> str:
    client = session().client(
        "sns",
        region_name=topic.split(":")[3],
        endpoint_url=config.aws.endpoint_url or None,
        config=ClientConfig(connect_timeout=_ANSWER_S, read_timeout=_ANSWER_S, retries={"total_max_attempts": 1}),
    )
    try:
        attributes = client.get_topic_attributes(TopicArn=topic)["Attributes"]
    finally:
        client.close()
    return str(attributes.get("SignatureVersion", "1"))


def judged_signatures(versions: Mapping[str, str], *, require_sha256: bool) -> Seen:
    """Judge the SignatureVersion of each topic."""
    old = [topic for topic, version in versions.items() if version == "1"]
    if not old:
        return good(f"{len(versions)} topic(s) sign with SHA-256")
    mend = "\n".join(
        f"aws sns set-topic-attributes --topic-arn {topic} --attribute-name SignatureVersion --attribute-value 2"
        for topic in old
    )
    shown = f"signed with SHA-1 (SignatureVersion 1): {', '.join(old)}"
    return problem(f"{shown}; feedback.require_sha256 refuses that", mend) if require_sha256 else warning(shown, mend)
