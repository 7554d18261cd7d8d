"""Writes what of the chart is generated: values.schema.json and the dashboards.

  python3 helm/generate            writes them; README.md of the chart is helm-docs' (`helm-docs -c helm`)
  python3 helm/generate --check    says what is not up to date, and fails
"""
import json, pathlib, sys

from dashboards import DASHBOARDS
from schema import schema

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "helm/notifier"


def text(value):
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def files():
    yield CHART / "values.schema.json", text(schema((ROOT / "docs/configuration.md").read_text()))
    for name, dashboard in DASHBOARDS.items():
        yield CHART / f"files/dashboards/{name}.json", text(dashboard)


def main():
    check = sys.argv[1:] == ["--check"]
    stale = [(path, new) for path, new in files() if not path.is_file() or path.read_text() != new]
    for path, new in stale:
        print(("not up to date: " if check else "wrote ") + str(path.relative_to(ROOT)))
        if not check:
            path.write_text(new)
    return 1 if check and stale else 0


sys.exit(main())
