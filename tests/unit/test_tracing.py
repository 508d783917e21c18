"""Traces are off unless asked for, and say what is missing."""

import sys

import pytest

from consumer.errors import ConfigurationError
from consumer.observability.tracing import NoTracing, tracing
from consumer.settings import TracingSettings


def test_nothing_is_traced_unless_asked_for() -> None:
    assert isinstance(tracing(TracingSettings(), "1"), NoTracing)


def test_a_missing_extra_is_named_with_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)

    with pytest.raises(ConfigurationError, match=r"CONSUMER_TRACING__ENABLED needs the extra otel.*pip install"):
        tracing(TracingSettings(enabled=True), "1")
