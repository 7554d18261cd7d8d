"""An adapter of pod metrics, as the autoscaler asks for them: each pod's notifier_capacity_ratio, as the test says."""
import http.server, json, re, ssl, subprocess, threading, urllib.parse

GROUP = "/apis/custom.metrics.k8s.io/v1beta2"


class Adapter:
    def __init__(self, plane, namespace):
        self.plane, self.namespace = plane, namespace
        self.ratios, self.asked = {}, set()
        certificate, key = plane.directory / "adapter.crt", plane.directory / "adapter.key"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
                        "-keyout", key, "-out", certificate], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        adapter = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                body = json.dumps(adapter.answer(urllib.parse.urlsplit(self.path))).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self._register(server.server_address[1])

    def _register(self, port):
        plane = self.plane
        plane.create("/api/v1/namespaces/default/services", {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "adapter"},
            "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]},
        })
        plane.create("/apis/apiregistration.k8s.io/v1/apiservices", {
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": "v1beta2.custom.metrics.k8s.io"},
            "spec": {"group": "custom.metrics.k8s.io", "version": "v1beta2", "groupPriorityMinimum": 100, "versionPriority": 100,
                     "insecureSkipTLSVerify": True,
                     "service": {"name": "adapter", "namespace": "default", "port": port}},
        })
        service = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta2.custom.metrics.k8s.io"
        conditions = lambda: plane.get(service).get("status", {}).get("conditions", [])
        plane.until("the adapter's API", lambda: any(c["type"] == "Available" and c["status"] == "True" for c in conditions()))

    def answer(self, url):
        query = urllib.parse.parse_qs(url.query)
        found = re.fullmatch(rf"{GROUP}/namespaces/{self.namespace}/pods/\*/(\w+)", urllib.parse.unquote(url.path))
        if not found:
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "custom.metrics.k8s.io/v1beta2",
                    "resources": [{"name": "pods/notifier_capacity_ratio", "singularName": "", "namespaced": True,
                                   "kind": "MetricValueList", "verbs": ["get"]}]}
        metric, chosen = found[1], query.get("metricLabelSelector", [""])[0]
        self.asked.add((metric, chosen))
        labels = urllib.parse.quote(query.get("labelSelector", [""])[0])
        pods = self.plane.get(f"/api/v1/namespaces/{self.namespace}/pods?labelSelector={labels}")["items"]
        ratio = self.ratios.get((metric, chosen))
        now = max((c["lastTransitionTime"] for pod in pods for c in pod["status"].get("conditions", [])), default="1970-01-01T00:00:00Z")
        return {"kind": "MetricValueList", "apiVersion": "custom.metrics.k8s.io/v1beta2", "metadata": {}, "items": [
            {"describedObject": {"kind": "Pod", "namespace": self.namespace, "name": pod["metadata"]["name"], "apiVersion": "/v1"},
             "metric": {"name": metric}, "timestamp": now, "value": f"{round(ratio * 1000)}m"}
            for pod in pods if ratio is not None]}
