"""A Kubernetes without containers: etcd, API server, controllers and scheduler as they are, kwok for the kubelets.

Everything listens on loopback, on ports of its own, keeps its files in one directory, and ends with the `with` block: by
the numbers of its own processes, however the block ends. A process is killed too when this one is killed.
"""
import json, os, pathlib, secrets, signal, socket, ssl, subprocess, threading, time, urllib.error, urllib.request

READY = 60  # seconds that each process has to begin


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class ControlPlane:
    def __init__(self, binaries, stages, directory):
        self.bin, self.stages, self.directory = pathlib.Path(binaries), sorted(pathlib.Path(stages).iterdir()), directory
        self.started, self.token = [], secrets.token_hex(16)
        self.etcd, self.peer, self.api, self.kwok, self.other = free_ports(5)
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "KUBE"))},
            "KUBECONFIG": str(directory / "kubeconfig"), "HELM_CACHE_HOME": str(directory / "helm/cache"),
            "HELM_CONFIG_HOME": str(directory / "helm/config"), "HELM_DATA_HOME": str(directory / "helm/data"),
            # Of kubectl: what it has discovered.
            "HOME": str(directory),
        }

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        # Others first: an API server that has lost its etcd holds its port for a minute.
        for name, process in reversed(self.started):
            process.kill()
            process.wait()

    def run(self, name, *arguments):
        with open(self.directory / f"{name}.log", "wb") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", str(self.bin / name), *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, cwd=self.directory,
                # Ctrl-C is for this process, which ends the others in their order.
                start_new_session=True,
            )
        self.started.append((name, process))

    def until(self, what, is_true, seconds=READY):
        """Waits; fails when it takes longer, or a process has ended."""
        deadline = time.monotonic() + seconds
        while not is_true():
            for name, process in self.started:
                if process.poll() is not None:
                    raise AssertionError(f"{name} has ended:\n{self.log(name)}")
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
            time.sleep(0.05)

    def log(self, name):
        return "\n".join((self.directory / f"{name}.log").read_text(errors="replace").splitlines()[-20:])

    def _start(self):
        certs = self.directory / "certs"
        certs.mkdir()
        openssl = lambda *words: subprocess.run(["openssl", *words], check=True, capture_output=True)
        openssl("genrsa", "-out", str(certs / "sa.key"), "2048")
        openssl("rsa", "-in", str(certs / "sa.key"), "-pubout", "-out", str(certs / "sa.pub"))
        tokens = self.directory / "tokens.csv"
        tokens.write_text(f"{self.token},admin,1,system:masters\n")
        etcd, peer = (f"http://127.0.0.1:{port}" for port in (self.etcd, self.peer))
        self.run("etcd", "--data-dir=etcd", "--unsafe-no-fsync", f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}",
                 f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}")
        self.run("kube-apiserver", f"--etcd-servers={etcd}", "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
                 f"--secure-port={self.api}", f"--cert-dir={certs}", "--service-account-issuer=https://kubernetes.default.svc",
                 f"--service-account-key-file={certs}/sa.pub", f"--service-account-signing-key-file={certs}/sa.key",
                 "--authorization-mode=RBAC", f"--token-auth-file={tokens}", "--service-cluster-ip-range=10.0.0.0/24")
        authority = certs / "apiserver.crt"
        self.until("the API server's certificate", authority.exists)
        self.context = ssl.create_default_context(cafile=authority)
        self.context.check_hostname = False
        self.until("the API server", self._is_ready)
        (self.directory / "kubeconfig").write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": f"https://127.0.0.1:{self.api}", "certificate-authority": str(authority)}}],
            "users": [{"name": "test", "user": {"token": self.token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }))
        kubeconfig = f"--kubeconfig={self.directory}/kubeconfig"
        self.run("kube-controller-manager", kubeconfig, f"--service-account-private-key-file={certs}/sa.key",
                 f"--root-ca-file={authority}", "--leader-elect=false", "--secure-port=0",
                 "--horizontal-pod-autoscaler-sync-period=1s")
        self.run("kube-scheduler", kubeconfig, "--leader-elect=false", "--secure-port=0")
        stages = [f"--config={stage}" for stage in self.stages]
        self.run("kwok", kubeconfig, "--manage-all-nodes=true", "--node-lease-duration-seconds=40", "--node-ip=127.0.0.1",
                 f"--server-address=127.0.0.1:{self.kwok}", *stages)

    def _is_ready(self):
        try:
            return self.get("/readyz", json_body=False) == b"ok"
        except (OSError, AssertionError):
            return False

    # --- Its API, where kubectl would be slow or say too little ---

    def open(self, path, method="GET", body=None, timeout=30):
        """The answer, to be read and closed; fails when the server says no."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"https://127.0.0.1:{self.api}{path}", data, headers, method=method)
        try:
            return urllib.request.urlopen(request, timeout=timeout, context=self.context)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.code} {error.read().decode(errors='replace')}") from None

    def get(self, path, json_body=True):
        with self.open(path) as answer:
            text = answer.read()
        return json.loads(text) if json_body else text

    def create(self, path, body):
        with self.open(path, "POST", body) as answer:
            return json.load(answer)


class Watch:
    """The fewest pods that were ready at a time, seen in every change of theirs."""

    def __init__(self, plane, path):
        self.plane, self.pods, self.fewest, self.names = plane, {}, None, set()
        listed = plane.get(path)
        for pod in listed["items"]:
            self._see("ADDED", pod)
        self.fewest = self.ready()
        self.names.clear()
        version = listed["metadata"]["resourceVersion"]
        self.stream = plane.open(f"{path}&watch=1&resourceVersion={version}", timeout=600)
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self):
        try:
            for line in self.stream:
                event = json.loads(line)
                self._see(event["type"], event["object"])
                self.fewest = min(self.fewest, self.ready())
        except (OSError, ValueError, AttributeError):
            pass  # It is over.

    def _see(self, kind, pod):
        conditions = pod.get("status", {}).get("conditions", [])
        is_ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
        name = pod["metadata"]["name"]
        self.pods[name] = kind != "DELETED" and is_ready and "deletionTimestamp" not in pod["metadata"]
        if kind == "ADDED":
            self.names.add(name)

    def ready(self):
        return sum(self.pods.values())


def interrupted(*_):
    raise SystemExit(143)


signal.signal(signal.SIGTERM, interrupted)
signal.signal(signal.SIGHUP, interrupted)
