"""The PrometheusRule of `deploy/k8s`: the groups of `deploy/prometheus/rules.yaml`, for the Prometheus Operator.

`python -m tests.kubernetes.prometheus_rule` writes it.
"""

from pathlib import Path

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yaml"
PROMETHEUS_RULE = DEPLOY / "k8s" / "components" / "prometheusrule" / "prometheusrule.yaml"
HEADER = """\
# Generated from deploy/prometheus/rules.yaml by `make kubernetes-rules`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: conversation-consumer
  labels:
    app.kubernetes.io/name: conversation-consumer
spec:
"""


def generated() -> str:
    """Expressions keep their lines."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    body = yaml.dump({"groups": groups}, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
    return HEADER + "".join(f"  {line}" if line.strip() else line for line in body.splitlines(keepends=True))


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        """An anchor would be right, but no reader expects it here."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)

if __name__ == "__main__":
    PROMETHEUS_RULE.write_text(generated())
