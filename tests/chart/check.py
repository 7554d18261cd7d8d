"""Checks the chart, its alerts and its dashboards, without a cluster. tests/run starts it; by hand:

  NOTIFIER_TEST_CHART_TOOLS=DIR DIR/python/bin/python tests/chart/check.py

DIR is what tests/chart/prepare has filled. promtool has to be on the search path (Debian's package `prometheus`).
"""
import copy, json, pathlib, re, shutil, subprocess, sys, tempfile, textwrap

import jsonschema, yaml

from chart import CHART, MATRIX, ROOT, VALUES, dashboards, expressions, helm, render, rules, template, tools

HERE = ROOT / "tests/chart"
CUSTOM = {
    "monitoring.coreos.com": "prometheus-operator",
    "keda.sh": "keda",
    "gateway.networking.k8s.io": "gateway-api",
    "cert-manager.io": "cert-manager",
}
# kube-score's findings that are meant, with the reason.
ALLOWED = {
    "container-resources": "no limit on CPU: a throttled node is late for everybody",
    "pod-networkpolicy": "values/sqlite.yaml has it off; helm-unittest looks at the others'",
    "statefulset-has-poddisruptionbudget": "values/sqlite.yaml has it off",
    "statefulset-has-host-podantiaffinity": "topologySpreadConstraints do it",
    "container-image-pull-policy": "versions are not overwritten",
    "pod-probes-identical": "they are not",
    "service-type": "values/alb.yaml asks for NodePort, which AWS' balancer needs",
}


def run(*command, **more):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **more)
    assert done.returncode == 0, f"{command[0]}:\n{done.stdout}{done.stderr}"
    return done.stdout


def generated_files_are_up_to_date():
    run(sys.executable, ROOT / "helm/generate", "--check")
    with tempfile.TemporaryDirectory() as directory:
        copied = shutil.copytree(CHART, pathlib.Path(directory) / "notifier")
        run(tools() / "bin/helm-docs", "--chart-search-root", directory, "--log-level", "error")
        fresh, kept = (copied / "README.md").read_text(), (CHART / "README.md").read_text()
        assert fresh == kept, "helm/notifier/README.md is not up to date: helm-docs -c helm"


def lint():
    for values in MATRIX:
        linted = helm("lint", "--strict", str(CHART), "--kube-version", "1.36.0", "--values", str(values))
        assert linted.returncode == 0, f"{values.name}:\n{linted.stdout}{linted.stderr}"


def bad_values_are_refused():
    cases, heard = yaml.safe_load((HERE / "refused.yaml").read_text()), []
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory) / "values.yaml"
        for case in cases:
            file.write_text(yaml.safe_dump(case["set"]))
            rendered = template(VALUES / "minimal.yaml", file)
            heard.append(rendered.stderr)
            assert rendered.returncode != 0, f"not refused: {case['set']}"
            assert case["says"] in rendered.stderr, f"{case['says']!r} is not said of {case['set']}:\n{rendered.stderr}"
    # Every sentence of the chart was heard.
    for sentence in re.findall(r'fail (?:\(printf )?"([^"]+)"', (CHART / "templates/_checks.tpl").read_text()):
        pattern = ".*".join(map(re.escape, re.split(r"%\w", sentence)))
        assert any(re.search(pattern, text) for text in heard), f"refused.yaml has no case for: {sentence}"
    return f"{len(cases)} cases"


def kubernetes_takes_the_objects():
    """Kubernetes' own schemas, unknown fields refused."""
    for values in MATRIX:
        kubernetes_takes(o for o in render(values) if group(o) not in CUSTOM and group(o) != "kafka.strimzi.io")


def kubernetes_takes(objects):
    location = f"{tools()}/schemas/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json"
    text = "---\n".join(map(yaml.safe_dump, objects))
    run(tools() / "bin/kubeconform", "-strict", "-schema-location", location, "-", input=text)


def examples_of_the_guide_work():
    """Values in README.md render, and its objects are Kubernetes'."""
    blocks = re.findall(r"^ *```yaml\n(.*?)^ *```", (CHART / "README.md").read_text(), flags=re.M | re.S)
    values = [block for block in map(textwrap.dedent, blocks) if "kind" not in yaml.safe_load(block)]
    objects = [block for block in map(textwrap.dedent, blocks) if "kind" in yaml.safe_load(block)]
    assert any("sqlite:" in block for block in values) and any("sasl.username" in block for block in values), blocks
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory) / "values.yaml"
        for block in values:
            file.write_text(block)
            kubernetes_takes(render(VALUES / "minimal.yaml", file))
    kubernetes_takes(map(yaml.safe_load, objects))
    return f"{len(blocks)} examples"


def group(document):
    return document["apiVersion"].rpartition("/")[0]


def operators_take_the_objects():
    """Custom resources: types and unknown fields by TypeScript, patterns and bounds by their validators."""
    resources, strimzi = [], []
    for values in MATRIX:
        for document in render(values):
            if group(document) == "kafka.strimzi.io":
                strimzi.append(document)
            elif group(document) in CUSTOM:
                version = document["apiVersion"].partition("/")[2]
                module = f"@kubernetes-models/{CUSTOM[group(document)]}/{group(document)}/{version}/{document['kind']}"
                resources.append({"module": module, "object": document})
    kinds = {r["object"]["kind"] for r in resources}
    assert kinds >= {"ServiceMonitor", "PodMonitor", "PrometheusRule", "ScaledObject", "HTTPRoute", "GRPCRoute", "Certificate"}, kinds
    types(resources)
    validate(resources)
    schema = json.loads((HERE / "strimzi.schema.json").read_text())
    for document in strimzi:
        jsonschema.validate(document, schema)
    assert {o["kind"] for o in strimzi} == {"KafkaTopic", "KafkaUser"}
    # These checks can fail.
    wrong = copy.deepcopy(next(r for r in resources if r["object"]["kind"] == "PodMonitor"))
    wrong["object"]["spec"]["podMetricsEndpoint"] = []
    refuses(lambda: types([wrong]), "podMetricsEndpoint")
    wrong = copy.deepcopy(next(r for r in resources if r["object"]["kind"] == "PrometheusRule"))
    wrong["object"]["spec"]["groups"][0]["rules"][0]["for"] = "soon"
    refuses(lambda: validate([wrong]), "for")


def refuses(check, words):
    try:
        check()
    except AssertionError as error:
        assert words in str(error), error
        return
    raise AssertionError(f"a wrong object was not refused: {words}")


def types(resources):
    text = ""
    for at, resource in enumerate(resources):
        kind = resource["object"]["kind"]
        text += f'import {{ I{kind} as T{at} }} from "{resource["module"]}";\n'
        text += f"export const o{at}: T{at} = {json.dumps(resource['object'])};\n"
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        (directory / "node_modules").symlink_to(tools() / "node_modules")
        (directory / "objects.ts").write_text(text)
        run(tools() / "node_modules/.bin/tsc", "--noEmit", "--strict", "--skipLibCheck", "--module", "esnext",
            "--moduleResolution", "bundler", "objects.ts", cwd=directory)


def validate(resources):
    run("node", HERE / "validate.mjs", tools() / "node_modules", input=json.dumps(resources))


def security_practice():
    """kube-score over everything that runs pods, and what only runs in a test."""
    for values in MATRIX:
        documents = [o for o in render(values) if group(o) not in CUSTOM and group(o) != "kafka.strimzi.io"]
        text = "---\n".join(yaml.safe_dump(o) for o in documents)
        ignore = [word for test in ALLOWED for word in ("--ignore-test", test)]
        run(tools() / "bin/kube-score", "score", "--kubernetes-version", "v1.34", *ignore, "-", input=text)


def assertions():
    return re.search(r"Tests:\s+(.*)", run(tools() / "bin/helm-unittest", "--color=false", CHART))[1]


def alerts():
    files = sorted((CHART / "files/rules").glob("*.yaml"))
    run("promtool", "check", "rules", "--lint=all", "--lint-fatal", *files)
    run("promtool", "test", "rules", HERE / "alerts_test.yaml")
    names = {rule["alert"]: rule for _, rule in rules() if "alert" in rule}
    provoked = (ROOT / "tests/it/alerts.rs").read_text()
    tests = [test["name"] for test in yaml.safe_load((HERE / "alerts_test.yaml").read_text())["tests"]]
    for name, rule in names.items():
        for case in ("fires", "is quiet"):
            assert any(re.match(rf"{name} {case}\b", test) for test in tests), f"{name}: no test where it {case}"
        assert re.search(rf'"{name}"', provoked), f"{name}: tests/it/alerts.rs does not provoke it"
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}, name
        runbook = ROOT / rule["annotations"]["runbook"]
        assert runbook.is_file(), f"{name}: {runbook} is missing"
        text = runbook.read_text()
        assert f"`{name}`" in text, f"{runbook.name} does not name {name}"
        for heading in ("## What it means", "## How to see", "## What to do"):
            assert heading in text, f"{runbook.name} lacks {heading!r}"
    used = {pathlib.Path(rule["annotations"]["runbook"]).name for rule in names.values()}
    assert used | {"README.md"} == {file.name for file in (ROOT / "docs/runbooks").iterdir()}, "a runbook without an alert"
    index = (ROOT / "docs/runbooks/README.md").read_text()
    assert all(f"({name})" in index for name in used), "docs/runbooks/README.md does not list every runbook"
    # As they leave the chart.
    for document in render(VALUES / "cluster.yaml"):
        if document["kind"] == "PrometheusRule":
            promtool_takes(document["spec"])
    return f"{len(names)} alerts"


def promtool_takes(spec):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(spec, file)
        file.flush()
        run("promtool", "check", "rules", file.name)


def dashboards_work():
    asked = list(expressions())
    promtool_takes({"groups": [{"name": "g", "rules": [
        {"record": f"checked:{at}", "expr": expr} for at, (_, expr) in enumerate(asked)
    ]}]})
    recorded = {rule["record"] for _, rule in rules() if "record" in rule}
    for where, expr in asked:
        unknown = set(re.findall(r"notifier:[\w:]+", expr)) - recorded
        assert not unknown, f"{where}: nothing records {unknown}"
    uids, panels = set(), 0
    for file, dashboard in dashboards():
        assert dashboard["uid"] not in uids, f"{file.name}: uid {dashboard['uid']} twice"
        uids.add(dashboard["uid"])
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(set(ids)) == len(ids), f"{file.name}: a panel's id twice"
        for panel in dashboard["panels"]:
            where = f"{file.name}: {panel['title']}"
            panels += 1
            assert len(panel["description"]) > 20, f"{where}: no description"
            assert panel["fieldConfig"]["defaults"]["unit"], f"{where}: no unit"
            for target in panel["targets"]:
                assert target["legendFormat"], f"{where}: no legend"
                assert 'namespace=~"$namespace"' in target["expr"], f"{where}: not of the chosen namespace"
                assert target["datasource"]["uid"] == "${datasource}", f"{where}: a fixed data source"
            at = panel["gridPos"]
            assert at["x"] + at["w"] <= 24, f"{where}: beyond the edge"
        assert {v["name"] for v in dashboard["templating"]["list"]} == {"datasource", "namespace", "pod"}, file.name
    return f"{panels} panels"


CHECKS = [
    generated_files_are_up_to_date, lint, bad_values_are_refused, kubernetes_takes_the_objects, examples_of_the_guide_work,
    operators_take_the_objects, security_practice, assertions, alerts, dashboards_work,
]


def main():
    failed = 0
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            found = check()
            print(f"chart: {name}: ok" + (f" ({found})" if found else ""))
        except AssertionError as error:
            failed += 1
            print(f"chart: {name}: FAILED\n{error}")
    print(f"chart: {len(CHECKS) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
