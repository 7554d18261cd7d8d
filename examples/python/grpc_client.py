"""python grpc_client.py 127.0.0.1:8001 'http://127.0.0.1:8000/dev/token?user=101' [DEVICE]"""

import json, random, sys, time
from urllib.request import urlopen
import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVICE, STATUS = "atlas.notifier.v1.Notifier", grpc.StatusCode

def stub(method, kind):  # in a product: what protoc makes of proto/; here the server describes itself
    request, answer = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    call = kind(f"/{SERVICE}/{method.name}", request.SerializeToString, answer.FromString)
    return lambda metadata=(), **fields: call(request(**fields), metadata=metadata, wait_for_ready=True)

def main(target, token_url, device=""):
    channel = grpc.insecure_channel(target)  # it connects again by itself
    methods = DescriptorPool(ProtoReflectionDescriptorDatabase(channel)).FindServiceByName(SERVICE).methods_by_name
    connect = stub(methods["Connect"], channel.unary_stream)
    acknowledge = stub(methods["Acknowledge"], channel.unary_unary)
    since, token, ceiling = "", None, 1.5
    while True:
        wait = None
        try:
            token = token or json.load(urlopen(token_url))["token"]  # in a product: from your own backend
            for frame in connect([("authorization", f"Bearer {token}")], device=device, since=since):
                kind, payload = frame.notification_type, json.loads(frame.data or "null")
                if kind == "$hello":
                    epoch, session, ceiling = payload["epoch"], payload["session"], payload["reconnect_ms"] / 1000
                if kind == "$gap" or kind == "$hello" and not since:  # some will not come, or this is the start
                    print("fetch everything", flush=True)  # from your own API
                    since = f"{epoch}-{payload['to' if kind == '$gap' else 'cursor']}"
                elif kind == "$bye":
                    wait = payload.get("reconnect_ms")  # a time of our own, so that not all come back at once
                elif not kind.startswith("$"):
                    print(kind, json.dumps(payload), flush=True)
                if frame.sequence:  # transient ones have none
                    since = f"{epoch}-{frame.sequence}"
                    acknowledge(session_id=session, sequence=frame.sequence)
        except (grpc.RpcError, OSError) as error:
            code = error.code() if isinstance(error, grpc.RpcError) else None
            if code in (STATUS.ABORTED, STATUS.INVALID_ARGUMENT, STATUS.PERMISSION_DENIED):
                sys.exit(f"closed for good: {code.name}, {error.details()}")  # it would end the same way again
            token = None if code == STATUS.UNAUTHENTICATED else token
        time.sleep(random.uniform(0, ceiling) if wait is None else wait / 1000)
        ceiling = min(ceiling * 2, 30)  # until a $hello names it again

main(*sys.argv[1:])
