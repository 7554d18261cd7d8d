"""produce.py BOOTSTRAP TOPIC FILE: a producer on confluent-kafka, idempotent, acks=all.

Each line of FILE is one record, {"key": …, "value": … or "value_base64": …, "headers": …, "partition": …}, all
optional; key and value are strings, headers an object or, where a name comes twice, a list of pairs. Prints
{"partition": …, "offset": …} for each line, in order. Status 1 when a record was not acknowledged within 30 s.
"""

import base64
import json
import sys

from confluent_kafka import KafkaException, Producer

DEADLINE_SECONDS = 30


def main() -> int:
    bootstrap, topic, path = sys.argv[1:]
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "acks": "all",
            "message.timeout.ms": DEADLINE_SECONDS * 1000,
            "message.max.bytes": 16_000_000,  # a record that is too large is the consumer's to refuse
        }
    )
    outcomes = {}

    def report(line: int):
        def on_delivery(error, message):
            outcomes[line] = error or message

        return on_delivery

    with open(path, encoding="utf-8") as file:
        records = [json.loads(line) for line in file if line.strip()]
    for line, record in enumerate(records):
        value = record.get("value")
        if "value_base64" in record:
            value = base64.b64decode(record["value_base64"], validate=True)
        headers = record.get("headers", {})
        if isinstance(headers, dict):
            headers = headers.items()
        options = {"partition": record["partition"]} if "partition" in record else {}
        while True:
            try:
                producer.produce(
                    topic,
                    key=record.get("key"),
                    value=value,
                    headers=[tuple(header) for header in headers],
                    on_delivery=report(line),
                    **options,
                )
                break
            except BufferError:
                producer.poll(0.1)  # the queue is full until reports have come in
    producer.flush(DEADLINE_SECONDS + 5)  # longer, so that the report names the reason

    failed = False
    for line in range(len(records)):
        outcome = outcomes.get(line, "no report")
        if hasattr(outcome, "offset"):
            print(json.dumps({"partition": outcome.partition(), "offset": outcome.offset()}))
        else:
            failed = True
            print(f"line {line + 1}: {outcome}", file=sys.stderr)
    return 1 if failed else 0


try:
    sys.exit(main())
except KafkaException as error:
    print(error, file=sys.stderr)
    sys.exit(1)
