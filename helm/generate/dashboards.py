"""The Grafana dashboards: overview, capacity, Kafka, store, cluster.

A panel is a title, what it means and what to do about it, a unit, and its queries; the rest is the same everywhere.
SELECT stands for the labels that the chart's monitors give to every series.
"""

SELECT = 'namespace=~"$namespace",pod=~"$pod"'


def panel(title, description, unit, *queries, kind="timeseries", **more):
    return {"title": title, "description": description, "unit": unit, "queries": queries, "kind": kind, **more}


def rate(metric, labels="", by="pod"):
    return f"sum by ({by}) (rate({metric}{{{SELECT}{labels}}}[$__rate_interval]))"


def total(metric, labels="", by="pod"):
    return f"sum by ({by}) ({metric}{{{SELECT}{labels}}})"


def quantile(q, metric, labels="", by=""):
    return f"histogram_quantile({q}, sum by (le{by}) (rate({metric}_bucket{{{SELECT}{labels}}}[$__rate_interval])))"


def quantiles(metric, labels=""):
    return [(quantile(q, metric, labels), name) for q, name in ((0.5, "half"), (0.99, "99 %"), (0.999, "99.9 %"))]


OVERVIEW = [
    panel("Connections", "Open connections of clients, by protocol. A fall of all of them at once is a node that went, "
          "or what stands in front of it.", "short", (total("notifier_connections", by="protocol"), "{{protocol}}")),
    panel("Deliveries", "Notifications written to clients' sockets each second. Dropped ones are transient ones that a "
          "slow client got no more.", "ops", (rate("notifier_deliveries_total", by="outcome"), "{{outcome}}")),
    panel("Delivery latency", "From the record's timestamp to the write to the socket, over all deliveries: those to "
          "users who were away count with their absence.", "s", *quantiles("notifier_delivery_latency_seconds")),
    panel("Late deliveries", "The part of the notifications, delivered within a minute, that took longer than a second. "
          "The objective is 1 %; the alerts NotifierDeliverySlow… fire on its budget.", "percentunit",
          ('notifier:slow_deliveries:ratio_rate5m{namespace=~"$namespace"}', "5 minutes"),
          ('notifier:slow_deliveries:ratio_rate1h{namespace=~"$namespace"}', "1 hour")),
    panel("Events", "What became of the events that reached their users, each second: stored and delivered is good, "
          "refused is not; away and no_session are transient ones without a reader.", "ops",
          (rate("notifier_events_total", by="outcome"), "{{outcome}}")),
    panel("Lag", "Age of the oldest event that is not settled. Above a minute NotifierLag fires.", "s",
          (f"max by (pod) (notifier_ingest_lag_seconds{{{SELECT}}})", "{{pod}}")),
    panel("Connections refused", "Clients that were not let in, by reason. connections, handshakes, memory and "
          "connect_rate are a lack of room; unauthenticated are tokens.", "ops",
          (rate("notifier_rejected_connections_total", by="reason") + " > 0", "{{reason}}")),
    panel("Slow clients", "Sessions closed because they read or acknowledged too slowly (4002), and transient "
          "notifications of slow sessions that newer ones replaced, each second.", "ops",
          (rate("notifier_slow_consumers_total"), "closed {{pod}}"), (rate("notifier_conflated_total"), "replaced {{pod}}")),
    panel("Waiting for limits", "Notifications that wait because their users get too many at once.", "short",
          (total("notifier_buffered_notifications", by="priority"), "{{priority}}")),
    panel("Over the limits", "Events over their user's limit, each second, by priority and whether that was only counted.",
          "ops", (rate("notifier_rate_limited_total", by="priority, mode") + " > 0", "{{priority}} {{mode}}")),
    panel("What became of those that waited", "Released in time, replaced by newer ones, folded into a digest, or "
          "expired, each second.", "ops", (rate("notifier_buffer_outcomes_total", by="outcome"), "{{outcome}}")),
    panel("Crashes", "Actors that crashed and were started again in the last 10 minutes. Always worth a look at the log.",
          "short", (f"sum by (pod, actor) (increase(notifier_actor_restarts_total{{{SELECT}}}[10m])) > 0",
                    "{{actor}} {{pod}}")),
    panel("Requests", "Answers on the client port each second, by class of status.", "ops",
          (rate("notifier_http_requests_total", by="status"), "{{status}}")),
    panel("Version", "What is running, and since when.", "s",
          (f"time() - process_start_time_seconds{{{SELECT}}} * on (pod) group_left (version) notifier_build_info{{{SELECT}}}",
           "{{pod}} {{version}}")),
]

CAPACITY = [
    panel("Used", "How much of each limited resource is used: the fullest decides when the next node is due. New "
          "connections are refused at 1.", "percentunit",
          (f"max by (pod, resource) (notifier_capacity_ratio{{{SELECT}}})", "{{resource}} {{pod}}"), max=1),
    panel("In four hours", "The same, in four hours, if the last hour goes on. NotifierCapacityForecast fires above 1.",
          "percentunit", (f"predict_linear(notifier_capacity_ratio{{{SELECT}}}[1h], 4 * 3600)", "{{resource}} {{pod}}")),
    panel("Memory", "Resident memory of the process.", "bytes", (total("process_resident_memory_bytes"), "{{pod}}")),
    panel("Memory of a connection", "Resident memory divided by connections: the figure to size nodes with. With few "
          "connections it is mostly what an idle node takes.", "bytes",
          (f"notifier:memory_bytes:per_connection{{{SELECT}}}", "{{pod}}")),
    panel("CPU", "Cores in use. At the pod's limit, or the machine's, everything takes longer.", "short", (rate("process_cpu_seconds_total"), "{{pod}}")),
    panel("CPU of a delivery", "CPU time divided by deliveries. It rises when there is little to deliver.", "s",
          (f"notifier:cpu_seconds:per_delivery_rate5m{{{SELECT}}}", "{{pod}}")),
    panel("CPU of a connection", "Cores divided by connections.", "short",
          (f"notifier:cpu_seconds:per_connection_rate5m{{{SELECT}}}", "{{pod}}")),
    panel("File descriptors", "Open ones and how many may be. Each connection takes one.", "short",
          (total("process_open_fds"), "open {{pod}}"), (f"min(process_max_fds{{{SELECT}}})", "limit")),
    panel("Users and sessions", "Users with a running actor, and session actors. Idle ones give their memory back.", "short",
          (f"sum(notifier_users_active{{{SELECT}}})", "users"), (total("notifier_sessions", by="state"), "sessions {{state}}")),
    panel("Handshakes", "How long a client takes from connecting to being let in.", "s",
          *quantiles("notifier_stage_seconds", ',stage="handshake"')),
    panel("Threads", "Threads of the process.", "short", (total("process_threads"), "{{pod}}")),
]

KAFKA = [
    panel("Lag in seconds", "Age of each partition's oldest event that is not settled. It is what KEDA scales by.", "s",
          (f"max by (partition) (notifier_ingest_lag_seconds{{{SELECT}}})", "partition {{partition}}")),
    panel("Lag in records", "Records of a partition that are written and not settled.", "short",
          (f"max by (partition) (notifier_ingest_lag_records{{{SELECT}}})", "partition {{partition}}")),
    panel("Unsettled events", "Events that were read and are not settled. At kafka.in_flight_events reading stops; a "
          "number that never falls is stuck.", "short", (total("notifier_unsettled_events"), "{{pod}}")),
    panel("Dead letters", "Records put aside for good, by reason, in 10 minutes.", "short",
          (f"sum by (reason) (increase(notifier_dead_letters_total{{{SELECT}}}[10m])) > 0", "{{reason}}")),
    panel("Receipts", "Receipts written to Kafka each second, by the state that they tell of.", "ops",
          (rate("notifier_receipts_total", by="state, outcome"), "{{state}} {{outcome}}")),
    panel("Oldest receipt", "Age of the oldest receipt that is not in Kafka. It rises while the topic is away.", "s",
          (f"max by (pod) (notifier_receipts_age_seconds{{{SELECT}}})", "{{pod}}")),
    panel("Events over HTTP", "Events of POST /v1/events each second, by what became of them in Kafka.", "ops",
          (rate("notifier_published_events_total", by="outcome"), "{{outcome}}")),
    panel("Time to publish", "How long POST /v1/events takes until Kafka has acknowledged.", "s",
          *quantiles("notifier_stage_seconds", ',stage="publish"')),
]

STORE = [
    panel("Errors", "Calls that the store did not answer, each second. Durable events wait meanwhile.", "ops",
          (rate("notifier_store_errors_total", by="operation"), "{{operation}}")),
    panel("Write time", "How long a group of rows takes until it is committed. Above half a second for one in a hundred "
          "NotifierStoreSlow fires.", "s", *quantiles("notifier_store_write_seconds")),
    panel("Rows of a write", "Rows that are committed together. It grows by itself when the store is the bottleneck.",
          "short", *quantiles("notifier_store_batch_rows")),
    panel("Writes", "Groups of rows committed each second.", "ops",
          (rate("notifier_store_write_seconds_count"), "{{pod}}")),
    panel("Rows", "Rows committed each second.", "ops", (rate("notifier_store_batch_rows_sum"), "{{pod}}")),
    panel("Timestamps out of range", "Events each second whose record's timestamp is of a day for which the log has no "
          "place: a producer's clock is wrong.", "ops", (rate("notifier_clamped_timestamps_total"), "{{pod}}")),
]

CLUSTER = [
    panel("Shards of each node", "Shards that each node owns: about equal, but while it changes.", "short",
          (total("notifier_shards_owned"), "{{pod}}")),
    panel("Shards without an owner", "Their users are served by nobody. NotifierShardsUnowned fires after a minute.",
          "short", (f"max(notifier_shards_unowned{{{SELECT}}})", "unowned")),
    panel("View", "The version of the cluster's view that each node has. One that stays behind is cut off.", "short",
          (f"max by (pod) (notifier_membership_version{{{SELECT}}})", "{{pod}}")),
    panel("Changes of the view", "Nodes that came, went or changed state, in 15 minutes.", "short",
          (f"max(increase(notifier_membership_changes_total{{{SELECT}}}[15m]))", "changes")),
]


def target(index, query):
    expr, legend = query
    return {"refId": chr(ord("A") + index), "expr": expr, "legendFormat": legend,
            "datasource": {"type": "prometheus", "uid": "${datasource}"}}


def grafana_panel(index, spec):
    defaults = {"unit": spec["unit"], "min": 0, "custom": {"fillOpacity": 10, "showPoints": "never"}}
    if "max" in spec:
        defaults["max"] = spec["max"]
    return {
        "id": index + 1,
        "type": spec["kind"],
        "title": spec["title"],
        "description": spec["description"],
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"h": 8, "w": 12, "x": 12 * (index % 2), "y": 8 * (index // 2)},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [target(at, query) for at, query in enumerate(spec["queries"])],
    }


def variable(name, label, query):
    return {
        "name": name, "label": label, "type": "query", "query": query, "refresh": 2, "sort": 1,
        "multi": True, "includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"},
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
    }


def dashboard(name, title, panels):
    return {
        "uid": f"notifier-{name}",
        "title": f"Notifier: {title}",
        "tags": ["notifier"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "timezone": "browser",
        "time": {"from": "now-3h", "to": "now"},
        "links": [{"type": "dashboards", "tags": ["notifier"], "title": "Notifier", "asDropdown": True, "keepTime": True,
                   "includeVars": True}],
        "annotations": {"list": []},
        "templating": {"list": [
            {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1},
            variable("namespace", "Namespace", "label_values(notifier_build_info, namespace)"),
            variable("pod", "Node", 'label_values(notifier_build_info{namespace=~"$namespace"}, pod)'),
        ]},
        "panels": [grafana_panel(index, spec) for index, spec in enumerate(panels)],
    }


DASHBOARDS = {
    "overview": dashboard("overview", "overview", OVERVIEW),
    "capacity": dashboard("capacity", "capacity", CAPACITY),
    "kafka": dashboard("kafka", "Kafka", KAFKA),
    "store": dashboard("store", "store", STORE),
    "cluster": dashboard("cluster", "cluster", CLUSTER),
}
