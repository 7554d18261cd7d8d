"""stream.py TARGET TOKEN N [--ack] [--since SINCE]: a gRPC client on Python's `grpcio`.

It knows no .proto file: the messages come from the server's reflection. Every notification is printed as one line
{"type", "payload", "id", "seq"}, the payload byte for byte (line breaks, white space in JSON, as spaces). Status 0
after N notifications whose type does not begin with `$` (N = 0: after the first message); 1 when the stream ends
before: the status is then printed as a last line of type `$closed`.
"""

import json
import sys

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

DEADLINE_SECONDS = 60
SERVICE = "atlas.notifier.v1.Notifier"


def call(channel, service, name):
    method = service.FindMethodByName(name)
    make = channel.unary_stream if method.server_streaming else channel.unary_unary
    request, answer = (message_factory.GetMessageClass(t) for t in (method.input_type, method.output_type))
    return request, make(f"/{SERVICE}/{name}", request.SerializeToString, answer.FromString)


def line(notification):
    payload = (notification.data or "null").replace("\r", " ").replace("\n", " ")
    head = {"type": notification.notification_type, "id": notification.notification_id, "seq": notification.sequence}
    return json.dumps(head)[:-1] + f', "payload": {payload}}}'


def main():
    arguments = sys.argv[1:]
    since = arguments[arguments.index("--since") + 1] if "--since" in arguments else ""
    target, token, wanted = arguments[:3]
    with grpc.insecure_channel(target) as channel:
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        service = pool.FindServiceByName(SERVICE)
        request, connect = call(channel, service, "Connect")
        acknowledgement, acknowledge = call(channel, service, "Acknowledge")
        credentials = [("authorization", f"Bearer {token}")]
        seen, session = 0, None
        try:
            for notification in connect(request(since=since), metadata=credentials, timeout=DEADLINE_SECONDS):
                print(line(notification), flush=True)
                if notification.notification_type == "$hello":
                    session = json.loads(notification.data)["session"]
                elif not notification.notification_type.startswith("$"):
                    seen += 1
                    if "--ack" in arguments and notification.sequence:
                        acknowledge(acknowledgement(session_id=session, sequence=notification.sequence))
                if seen >= int(wanted):
                    return 0
            status = {"code": "OK", "details": "the stream ended"}
        except grpc.RpcError as error:
            status = {"code": error.code().name, "details": error.details()}
        print(json.dumps({"type": "$closed", "payload": status}), flush=True)
        return 1


sys.exit(main())
