"""Writes events for one user, each PAYLOAD a JSON text.

python producer.py 127.0.0.1:8004 notifier.events.v1 101 greeting PAYLOAD...
"""
import json, sys, uuid
from confluent_kafka import Producer

def main(brokers, topic, user, kind, *payloads):
    # Idempotent: retries neither repeat an event nor change the order. It implies acks=all.
    producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True, "message.timeout.ms": 10_000})
    failures = []

    def report(error, message):
        if error:
            failures.append(error)
            print(f"not written: {error}", file=sys.stderr)
        else:
            print(f"partition {message.partition()}, offset {message.offset()}")

    for payload in payloads:
        # The id makes an event that is sent again by you, after a crash for example, arrive once.
        event = {"id": str(uuid.uuid4()), "target": user, "type": kind, "payload": json.loads(payload)}
        while True:
            try:  # keyed by user: a user's events stay in one partition, and so in order
                producer.produce(topic, key=user, value=json.dumps(event), on_delivery=report)
                break
            except BufferError:
                producer.poll(0.1)  # the queue is full: wait for reports
        producer.poll(0)
    failures += ["no report"] * producer.flush(30)
    return 1 if failures else 0

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
