"""What is measured and published, with Nomad's key names (its ``telemetry`` block)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from cameleer.errors import ConfigError
from cameleer.log import log

WITHOUT_EFFECT: Final = frozenset(
    (
        "_",
        "in_memory_collection_interval",
        "in_memory_retention_period",
        "publish_node_metrics",
        "include_alloc_metadata_in_metrics",
        "allowed_metadata_keys_in_metrics",
        "prometheus_metrics",
        "disable_hostname",
        "use_node_name",
        "prefix_filter",
        "filter_default",
        "disable_dispatched_job_summary_metrics",
        "disable_quota_utilization_metrics",
        "disable_rpc_rate_metrics_labels",
        "disable_allocation_hook_metrics",
        "statsite_address",
        "statsd_address",
        "datadog_address",
        "datadog_tags",
        "circonus_api_token",
        "circonus_api_app",
        "circonus_api_url",
        "circonus_submission_interval",
        "circonus_submission_url",
        "circonus_check_id",
        "circonus_check_force_metric_activation",
        "circonus_check_instance_id",
        "circonus_check_search_tag",
        "circonus_check_tags",
        "circonus_check_display_name",
        "circonus_broker_id",
        "circonus_broker_select_tag",
    )
)
"""Nomad's keys that are known here and do nothing yet."""


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """What is measured, how often, and whether it is published. Durations are seconds, or text such as ``"1s"``.

    :ivar publish_allocation_metrics: hand readings to the hook plugins that implement ``update_stats``. Off, nothing is
        collected at all but what somebody asks for.
    :ivar collection_interval: time between two readings of a task, seconds.
    :ivar extended_interval: time between two readings of the dear groups (IO, processes, pressure, network), seconds.
    """

    publish_allocation_metrics: bool = False
    collection_interval: float | str = 1.0
    extended_interval: float | str = 5.0

    def __post_init__(self) -> None:
        if not isinstance(self.publish_allocation_metrics, bool):
            raise ConfigError(
                f"telemetry.publish_allocation_metrics is {self.publish_allocation_metrics!r}: use true or false"
            )
        for name in ("collection_interval", "extended_interval"):
            from cameleer.schema import duration_s

            value = getattr(self, name)
            seconds = value if type(value) is float else duration_s(value, f"telemetry.{name}")
            if not 0.01 <= seconds <= 86400:
                raise ConfigError(f"telemetry.{name} is {value!r}: it must be 10 ms to 24 h")
            object.__setattr__(self, name, seconds)

    @property
    def interval_s(self) -> float:
        """``collection_interval`` in seconds."""
        return float(self.collection_interval)

    @property
    def extended_interval_s(self) -> float:
        """``extended_interval`` in seconds."""
        return float(self.extended_interval)

    @classmethod
    def of(cls, section: Mapping[str, Any] | Telemetry) -> Telemetry:
        """Read the ``telemetry`` section of a configuration.

        :raises ConfigError: a key is unknown (the nearest is named) or a value is wrong.
        """
        if isinstance(section, Telemetry):
            return section
        known = {field.name for field in fields(cls)}
        idle = sorted(section.keys() & WITHOUT_EFFECT)
        if idle:
            log.warning("telemetry: %s: known, and without effect in this version", ", ".join(idle))
        unknown = section.keys() - known - WITHOUT_EFFECT
        if unknown:
            from cameleer.settings import unknown_key

            raise unknown_key("telemetry", min(unknown), known | WITHOUT_EFFECT)
        return replace(cls(), **{key: section[key] for key in section.keys() & known})
