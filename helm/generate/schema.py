"""values.schema.json of the chart: what values.yaml may hold, unknown keys refused.

The part for `config` is read from docs/configuration.md, which the program generates and its tests keep up to date.
"""
import re

DURATION = {"type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$"}
SIZE = {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^[0-9]+(B|KiB|MiB|GiB)$"}]}
STRING, INTEGER, BOOLEAN = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
COUNT, POSITIVE = {"type": "integer", "minimum": 0}, {"type": "integer", "minimum": 1}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
STRINGS = {"type": "array", "items": STRING}
TEXTS = {"type": "object", "additionalProperties": STRING}
# Kubernetes' own types: its API server knows them better.
OBJECT, OBJECTS = {"type": "object"}, {"type": "array", "items": {"type": "object"}}


def closed(properties, **more):
    return {"type": "object", "additionalProperties": False, "properties": properties, **more}


def enum(*values):
    return {"enum": list(values)}


# --- The configuration ---------------------------------------------------------------------------------------------

SIMPLE = {
    "string": STRING, "file": STRING, "url": STRING, "secret": STRING, "address": STRING,
    "boolean": BOOLEAN, "integer": COUNT, "number": {"type": "number", "minimum": 0},
    "duration": DURATION, "size": SIZE, "list of strings": STRINGS, "table of strings": TEXTS,
}


def key_schema(kind):
    if kind in SIMPLE:
        return SIMPLE[kind]
    values = re.findall(r'`"([^"]+)"`', kind)
    assert values, f"docs/configuration.md has a type that the schema does not know: {kind}"
    return {"type": "array", "items": enum(*values)} if kind.startswith("list of ") else enum(*values)


def sections(reference):
    """(heading, {key: (type, default)}) of each section of the reference."""
    for block in re.split(r"^## ", reference, flags=re.M)[1:]:
        heading = re.match(r"`(.+)`\n", block)
        rows = re.findall(r"^\| `([^`]+)` \| (.+?) \| (.+?) \|", block, flags=re.M)
        if heading:
            yield heading[1], {key: (kind, default) for key, kind, default in rows}


def config_schema(reference):
    root = closed({})
    for heading, keys in sections(reference):
        properties = {key: key_schema(kind) for key, (kind, _) in keys.items()}
        path = heading.strip("[]").split(".")
        section = root["properties"]
        for name in path[:-1]:
            section = section.setdefault(name, closed({}))
            section = section["properties"] if path[-1] != '"PATTERN"' else section
        if path[-1] == '"PATTERN"':
            section["additionalProperties"] = closed(properties)
        elif heading.startswith("[["):
            required = [key for key, (_, default) in keys.items() if default == "–"]
            section[path[-1]] = {"type": "array", "items": closed(properties, required=required)}
        else:
            section.setdefault(path[-1], closed({}))["properties"].update(properties)
    return root


# --- The chart's own values ----------------------------------------------------------------------------------------

SECRET = closed({"value": STRING, "existingSecret": STRING, "key": {"type": "string", "minLength": 1}})
HOSTS = {"type": "array", "items": {"type": "string", "minLength": 1}}
ISSUER = closed({"name": STRING, "kind": STRING, "group": STRING})
RATIO = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
SERVICE_TYPE = enum("ClusterIP", "NodePort", "LoadBalancer")


def schema(reference):
    values = {
        "global": OBJECT,
        "nameOverride": STRING,
        "fullnameOverride": STRING,
        "replicas": COUNT,
        "image": closed({
            "repository": {"type": "string", "minLength": 1},
            "tag": STRING,
            "digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
            "pullPolicy": enum("Always", "IfNotPresent", "Never"),
            "pullSecrets": OBJECTS,
        }),
        "config": config_schema(reference),
        "secrets": closed({name: SECRET for name in ("jwtSecret", "storePassword", "kafkaPassword", "clusterSecret")}),
        "kafkaTls": closed({"caSecret": STRING, "caKey": STRING, "userSecret": STRING}),
        "cluster": closed({
            "enabled": BOOLEAN, "shards": POSITIVE, "dnsDomain": STRING,
            "tls": closed({
                "enabled": BOOLEAN, "existingSecret": STRING, "certManager": closed({"enabled": BOOLEAN, "issuerRef": ISSUER}),
            }),
        }),
        "tls": closed({
            "enabled": BOOLEAN,
            "grpc": BOOLEAN,
            "existingSecret": STRING,
            "certManager": closed({
                "enabled": BOOLEAN,
                "issuerRef": ISSUER,
                "dnsNames": HOSTS,
            }),
        }),
        "service": closed({
            "type": SERVICE_TYPE, "port": PORT, "annotations": TEXTS,
            "externalTrafficPolicy": enum("Cluster", "Local"),
        }),
        "grpcService": closed({"type": SERVICE_TYPE, "port": PORT, "annotations": TEXTS, "appProtocol": STRING}),
        "ingress": closed({
            "enabled": BOOLEAN, "className": STRING, "controller": enum("", "nginx", "haproxy", "alb"),
            "timeoutSeconds": POSITIVE, "hosts": HOSTS, "tlsSecret": STRING, "annotations": TEXTS,
            "grpc": closed({"enabled": BOOLEAN, "hosts": HOSTS, "annotations": TEXTS}),
        }),
        "gateway": closed({
            "enabled": BOOLEAN, "parentRefs": OBJECTS, "hosts": HOSTS,
            "grpc": closed({"enabled": BOOLEAN, "hosts": HOSTS}),
        }),
        "resources": OBJECT,
        "shutdown": closed({"preStopSeconds": POSITIVE, "gracePeriodSeconds": COUNT}),
        "minReadySeconds": COUNT,
        "probes": closed({"startupSeconds": POSITIVE}),
        "podDisruptionBudget": closed({"enabled": BOOLEAN, "maxUnavailable": POSITIVE}),
        "networkPolicy": closed({
            "enabled": BOOLEAN,
            "ingress": closed({"clients": OBJECTS, "monitoring": OBJECTS}),
            "egress": closed({
                "kafka": OBJECTS, "kafkaPorts": {"type": "array", "items": PORT}, "store": OBJECTS, "extra": OBJECTS,
            }),
        }),
        "topologySpreadConstraints": OBJECTS,
        "priorityClassName": STRING,
        "nodeSelector": TEXTS,
        "tolerations": OBJECTS,
        "affinity": OBJECT,
        "podLabels": TEXTS,
        "podAnnotations": TEXTS,
        "env": {"type": "array", "items": {"type": "object", "required": ["name"]}},
        "extraVolumes": OBJECTS,
        "extraVolumeMounts": {"type": "array", "items": {"type": "object", "required": ["name", "mountPath"]}},
        "serviceAccount": closed({"create": BOOLEAN, "name": STRING, "annotations": TEXTS}),
        "autoscaling": closed({
            "hpa": closed({
                "enabled": BOOLEAN, "minReplicas": POSITIVE, "maxReplicas": POSITIVE, "targetCapacityRatio": RATIO,
            }),
            "keda": closed({
                "enabled": BOOLEAN, "minReplicas": POSITIVE, "maxReplicas": POSITIVE, "serverAddress": STRING,
                "lagSeconds": POSITIVE,
            }),
            "scaleDownStabilizationSeconds": {"type": "integer", "minimum": 0, "maximum": 3600},
        }),
        "monitoring": closed({"kind": enum("", "PodMonitor", "ServiceMonitor"), "interval": DURATION, "labels": TEXTS}),
        "prometheusRule": closed({
            "enabled": BOOLEAN, "labels": TEXTS, "alertLabels": TEXTS, "disabled": STRINGS, "runbookUrl": STRING,
        }),
        "dashboards": closed({"enabled": BOOLEAN, "labels": TEXTS, "annotations": TEXTS}),
        "migration": closed({"enabled": BOOLEAN}),
        "strimzi": closed({
            "enabled": BOOLEAN, "cluster": STRING, "partitions": POSITIVE, "replicas": POSITIVE, "config": OBJECT,
            "user": closed({"enabled": BOOLEAN, "name": STRING, "authentication": enum("scram-sha-512", "tls")}),
        }),
        "helmTest": closed({
            "enabled": BOOLEAN, "image": STRING, "user": STRING, "tokenSecret": STRING, "tokenKey": STRING,
        }),
    }
    return {"$schema": "https://json-schema.org/draft-07/schema#", "title": "Values of the chart notifier", **closed(values)}
