"""The chart as objects: what the checks and the integration tests share.

  chart.py VALUES…     prints the rendered objects as a JSON array
  chart.py --metrics   prints, one a line, every metric that alerts, recording rules, dashboards and scalers name

NOTIFIER_TEST_CHART_TOOLS is the directory that tests/chart/prepare has filled.
"""
import json, os, pathlib, re, subprocess, sys

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "helm/notifier"
VALUES = ROOT / "tests/chart/values"
MATRIX = [*sorted(VALUES.glob("*.yaml")), CHART / "values-production.yaml"]
# The oldest version that the chart allows takes the same objects; this one's schemas are at hand.
KUBERNETES = "1.36.0"


def tools():
    return pathlib.Path(os.environ["NOTIFIER_TEST_CHART_TOOLS"])


def helm(*arguments):
    command = [tools() / "bin/helm", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def template(*values, chart=CHART):
    files = [word for file in values for word in ("--values", str(file))]
    return helm("template", "r", str(chart), "--namespace", "ns", "--kube-version", KUBERNETES, *files)


def render(*values):
    rendered = template(*values)
    assert rendered.returncode == 0, rendered.stderr
    return [document for document in yaml.safe_load_all(rendered.stdout) if document]


def rules():
    """(file, rule) of every rule."""
    for file in sorted((CHART / "files/rules").glob("*.yaml")):
        for group in yaml.safe_load(file.read_text())["groups"]:
            for rule in group["rules"]:
                yield file, rule


def dashboards():
    for file in sorted((CHART / "files/dashboards").glob("*.json")):
        yield file, json.loads(file.read_text())


def expressions():
    """(where, PromQL) of everything that asks Prometheus."""
    for file, rule in rules():
        yield f"{file.stem} {rule.get('alert') or rule['record']}", rule["expr"]
    for file, dashboard in dashboards():
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                yield f"{file.stem} {panel['title']}", target["expr"].replace("$__rate_interval", "5m")
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                yield f"{file.stem} ${variable['name']}", re.search(r"\((.*), \w+\)", variable["query"])[1]
    for document in render(VALUES / "keda.yaml"):
        if document["kind"] == "ScaledObject":
            yield "ScaledObject", document["spec"]["triggers"][0]["metadata"]["query"]
    for document in render(VALUES / "cluster.yaml"):
        if document["kind"] == "HorizontalPodAutoscaler":
            for metric in document["spec"]["metrics"]:
                yield "HorizontalPodAutoscaler", metric["pods"]["metric"]["name"]


def metrics():
    """What a node exports, of that: names without the suffixes of histograms, and without recording rules."""
    names = set()
    for _, expression in expressions():
        names |= set(re.findall(r"\b(?:notifier|process)_[a-z0-9_]+\b(?!:)", re.sub(r"notifier:[\w:]+", "", expression)))
    return sorted(names)


def main():
    if sys.argv[1:] == ["--metrics"]:
        print("\n".join(metrics()))
    else:
        print(json.dumps(render(*sys.argv[1:])))


if __name__ == "__main__":
    main()
